"""Combines base and residual policy into one policy to deploy, with a fail-safe.

The fail-safe trips if the newest observation is far from what the residual was trained on (by the
guard's measure of drift), if the observation has a number that is not finite, or if the residual
has one. In that decision the residual is off and the base policy acts alone; the policy counts such
decisions. Separate, because training does not need it. Pure functions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdjax.learner.decorator import clip_action, decorate, far_numbers
from pdjax.types import Array, BasePolicy, Key, Params


class Carry(NamedTuple):
    """What a deployed policy remembers during an episode. `trips` is the first leaf in its file.

    Attributes:
      trips: () int32, decisions of the episode so far in which the fail-safe tripped.
      seen: (obs_dim,) float32, the latest finite value of each observed number; at first the mean
        of the base policy's data.
      base: the base policy's own carry.
    """

    trips: Array
    seen: Array
    base: Any


def make_deployed(
    base: BasePolicy,
    choose: Callable[[Array, Array], Array],
    residual_scale: float,
    drift_limit: float,
) -> BasePolicy:
    """Builds one policy from base and residual; it may serve as a base policy again.

    While the fail-safe does not trip, the policy acts as the refined policy in an evaluation. It
    replaces an observed number that is not finite by its latest finite value before the base policy
    reads it, and a number of the base policy's action that is not finite by 0, as the simulator
    does.

    Args:
      base: the base policy, written for one environment.
      choose: (obs (1, obs_dim), base_action (1, chunk_dim)) -> residual_action (1, residual_dim).
      residual_scale: the largest change of each action number.
      drift_limit: share of the observed numbers that may be far from the base policy's data; above
        it the fail-safe trips.

    Returns:
      A policy without parameters: they are constants of its program, so its file is complete.
    """

    def init_carry(key: Key) -> Carry:
        return Carry(jnp.zeros((), jnp.int32), base.obs_mean, base.init_carry(key))

    def apply(params: Params, carry: Carry, obs_history: Array, key: Key):
        del params
        seen, history = jax.lax.scan(_hold, carry.seen, obs_history)
        chunk, base_carry = base.apply(base.params, carry.base, history, key)
        base_action = _finite(chunk.reshape(1, -1), 0.0)
        residual_action = choose(history[-1:], base_action)
        tripped = trips(base, obs_history[-1], drift_limit)
        tripped |= ~jnp.all(jnp.isfinite(residual_action))
        residual_action = jnp.where(tripped, 0.0, residual_action)
        action = clip_action(decorate(base_action, residual_action, residual_scale))
        return action.reshape(chunk.shape), Carry(carry.trips + tripped, seen, base_carry)

    return base._replace(init_carry=init_carry, apply=apply, params=())


def trips(base: BasePolicy, obs: Array, drift_limit: float) -> Array:
    """Returns whether an observation (obs_dim,) alone makes the fail-safe trip: () bool."""
    share = jnp.mean(far_numbers(obs, base.obs_mean, base.obs_std))
    return (share > drift_limit) | ~jnp.all(jnp.isfinite(obs))


def _hold(seen: Array, obs: Array) -> tuple[Array, Array]:
    """Replaces numbers that are not finite by those seen last; as a step of a scan."""
    obs = _finite(obs, seen)
    return obs, obs


def _finite(numbers: Array, instead: Array | float) -> Array:
    return jnp.where(jnp.isfinite(numbers), numbers, instead)
