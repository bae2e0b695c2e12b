"""The refined policy as one policy to deploy: base plus residual, with a fail-safe that counts.

In a decision where the fail-safe trips the residual is off and the base policy acts alone. It trips
where the newest observation is not one that the residual was trained on, by the guard's measure of
drift, or has numbers that are not finite; and where the residual itself is not finite. Kept apart
because no training needs it. Pure functions; owns Carry.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdjax.learner.decorator import clip_action, decorate, far_numbers
from pdjax.types import Array, BasePolicy, Key, Params


class Carry(NamedTuple):
    """What a deployed policy remembers of an episode. `trips` comes first in its file, too.

    Attributes:
      trips: () int32, decisions of the episode so far in which the fail-safe tripped.
      seen: (obs_dim,) the latest finite value of each number observed; at first the mean of the
        base policy's data.
      base: the base policy's own state.
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
    """Base and residual as one policy, which may itself be a base policy.

    Where no fail-safe trips it acts as the refined policy of an evaluation does. Numbers observed
    that are not finite are replaced by their latest finite value before the base policy reads them;
    numbers of its action that are not finite are 0, as the simulator takes them.

    Args:
      base: the base policy, written for one environment.
      choose: (obs (1, obs_dim), base_action (1, chunk_dim)) -> residual_action (1, residual_dim).
      residual_scale: the largest change of an action.
      drift_limit: share of the numbers observed that may be far; beyond it the fail-safe trips.

    Returns:
      A policy without parameters: all are constants of its program, so that a file of it is whole.
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
    """Whether an observation (obs_dim,) alone makes the fail-safe trip: () bool."""
    share = jnp.mean(far_numbers(obs, base.obs_mean, base.obs_std))
    return (share > drift_limit) | ~jnp.all(jnp.isfinite(obs))


def _hold(seen: Array, obs: Array) -> tuple[Array, Array]:
    obs = _finite(obs, seen)
    return obs, obs


def _finite(numbers: Array, instead: Array | float) -> Array:
    return jnp.where(jnp.isfinite(numbers), numbers, instead)
