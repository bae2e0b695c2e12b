"""What every kind of policy offers to be trained: how data is cut, start, loss, result.

Kept apart so that `imitation` trains any kind and knows none. Holds no state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdjax.types import Array, BasePolicy, Key, Params


class Windows(NamedTuple):
    """Training data on the device: `obs` (n, obs_horizon, obs_dim), whitened by the data's
    statistics, and `actions` (n, pred_horizon, act_dim) in [-1, 1]."""

    obs: Array
    actions: Array


class TrainablePolicy(NamedTuple):
    """A kind of policy as pure functions, for one size of observation and action.

    Attributes:
      obs_horizon: observations per window.
      pred_horizon: actions per window.
      from_now: whether a window's actions begin at its last observation; else at its first.
      init: (key, windows) -> (trained, fixed), two dicts of arrays with names of their own; only
        `trained` is put into an optimiser.
      loss: (params, windows, key) -> scalar, params = trained | fixed; the key is for noise and
        dropout.
      decays: (trained) -> pytree of bool, which arrays weight decay applies to; None = all.
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
    """Shapes of the parameters that `kind.make_policy` takes, as `jax.ShapeDtypeStruct`."""

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
    """A trained policy in the framework's contract.

    Args:
      params: with `obs_mean` and `obs_std` among them.
      apply: see `BasePolicy`.
      act_dim: numbers in one action.
      horizons: obs_horizon and act_horizon.
      init_carry: see `BasePolicy`; none by default.
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
    """Observations (..., obs_dim) by the statistics that `params` carries."""
    return (obs - params["obs_mean"]) / params["obs_std"]
