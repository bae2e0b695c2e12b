"""Defines what a kind of policy must offer so that `imitation` can train it.

Kept apart so that `imitation` trains every kind without knowing its network. Holds no state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdjax.types import Array, BasePolicy, Key, Params


class Windows(NamedTuple):
    """Training data on the device.

    Attributes:
      obs: (n, obs_horizon, obs_dim) float32, normalised by the statistics of the data.
      actions: (n, pred_horizon, act_dim) float32, in [-1, 1].
    """

    obs: Array
    actions: Array


class TrainablePolicy(NamedTuple):
    """A kind of policy as pure functions, for given sizes of observations and actions.

    Attributes:
      obs_horizon: observations per window.
      pred_horizon: actions per window.
      from_now: True if a window's actions begin at its last observation, False if at its first.
      init: (key, windows) -> (trained, fixed), two dicts of arrays without common names; the
        optimiser only gets `trained`.
      loss: (params, windows, key) -> scalar, with params = trained | fixed; the key is for noise
        and dropout.
      decays: (trained) -> pytree of bool, True for arrays with weight decay; None = all arrays.
      make_policy: (params) -> BasePolicy with exactly these params = trained | fixed |
        {"obs_mean": (obs_dim,), "obs_std": (obs_dim,)}.
    """

    obs_horizon: int
    pred_horizon: int
    from_now: bool
    init: Callable[[Key, Windows], tuple[Params, Params]]
    loss: Callable[[Params, Windows, Key], Array]
    decays: Callable[[Params], Params] | None
    make_policy: Callable[[Params], BasePolicy]


def abstract_params(kind: TrainablePolicy, obs_dim: int, act_dim: int) -> Params:
    """Returns the shapes of the parameters of `kind.make_policy`, as `jax.ShapeDtypeStruct`."""

    def untrained(key: Key) -> Params:
        nothing = Windows(
            jnp.zeros((1, kind.obs_horizon, obs_dim)), jnp.zeros((1, kind.pred_horizon, act_dim))
        )
        trained, fixed = kind.init(key, nothing)
        return trained | fixed | {"obs_mean": jnp.zeros(obs_dim), "obs_std": jnp.ones(obs_dim)}

    return jax.eval_shape(untrained, jax.random.key(0))


def as_base_policy(
    params: Params,
    apply: Callable[[Params, Any, Array, Key], tuple[Array, Any]],
    act_dim: int,
    horizons: tuple[int, int],
    init_carry: Callable[[Key], Any] = lambda key: (),
) -> BasePolicy:
    """Builds the `BasePolicy` of a trained policy.

    Args:
      params: the parameters, which include `obs_mean` and `obs_std`.
      apply: see `BasePolicy`.
      act_dim: numbers in one action.
      horizons: obs_horizon and act_horizon.
      init_carry: see `BasePolicy`; by default, the policy has no carry.
    """
    return BasePolicy(
        init_carry=init_carry,
        apply=apply,
        params=params,
        obs_dim=len(params["obs_mean"]),
        act_dim=act_dim,
        obs_horizon=horizons[0],
        act_horizon=horizons[1],
        obs_mean=params["obs_mean"],
        obs_std=params["obs_std"],
    )


def whiten(params: Params, obs: Array) -> Array:
    """Normalises observations (..., obs_dim) by `obs_mean` and `obs_std` in `params`."""
    return (obs - params["obs_mean"]) / params["obs_std"]
