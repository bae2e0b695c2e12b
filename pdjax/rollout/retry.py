"""Retries: training episodes that go on from a random moment of the failed episode before them.

From true starts, states in which a policy fails late (an object held beside its place) are rare in
the replay, and success from them is rarer. A retry begins in such a state and has the time that was
left there. Only training retries; evaluation always plays whole episodes.

Each environment remembers one moment of its own episode, so nothing crosses devices. Restarting
from stored states is what DemoStart (arXiv:2409.06613) and RFCL (arXiv:2405.03379) do with
demonstrations; the states here are those that the current policy fails in.
"""

# pyright: reportUnknownMemberType=false

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdjax.types import Array, Key
from pdjax_envs.task import select


class Retry(NamedTuple):
    """What one environment remembers; batched, it has a leading axis num_envs.

    Attributes:
      moment: (env, history, carry) of a `RolloutState` between two decisions of the episode.
      decisions: () int32, decisions of the episode that the moment was drawn from; 0 = no moment.
      is_retry: () bool, the episode began at a moment of the one before it.
    """

    moment: Any
    decisions: Array
    is_retry: Array


def init(state: Any) -> Any:
    """Returns the first states of episodes, a `RolloutState` with leaves (num_envs, ...), with
    room for a moment."""
    moment = jax.tree.map(jnp.copy, _moment(state))  # has its own buffers: the state is donated
    none = jnp.zeros(len(state.done), jnp.int32)
    return state._replace(retry=Retry(moment, none, none > 0))


def restart(
    start: Callable[[Any, Array], Any],
    share: float,
    key: Key,
    numbers: Array,
    before: Any,
    played: Any,
) -> Any:
    """Starts episodes where the last decision ended one, and remembers moments of the others.

    Of the k decisions of an episode so far, each is the remembered one with probability 1 / k
    (reservoir sampling).

    Args:
      start: (state, is_over) -> the state with fresh episodes where one is over.
      share: of the failed episodes that are tried again.
      key: consumed; each environment folds in its own number.
      numbers: (environments,) int32, their places among all environments.
      before: the `RolloutState` before the decision.
      played: the same after it, without a `Retry`.

    Returns:
      The next `RolloutState`.
    """

    def draw(number: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, number), (2,))

    again_draw, keep_draw = jax.vmap(draw)(numbers).T
    old = before.retry
    again = before.done & ~before.succeeded & (old.decisions > 0) & (again_draw < share)
    state = start(played, before.done & ~again)
    env, history, carry = jax.vmap(select)(again, old.moment, _moment(state))
    state = state._replace(
        env=env,
        history=history,
        carry=carry,
        done=state.done & ~again,
        succeeded=state.succeeded & ~again,
    )
    goes_on = ~before.done & ~played.done
    decisions = jnp.where(before.done, 0, old.decisions + goes_on)
    keep = goes_on & (keep_draw * decisions < 1)
    moment = jax.vmap(select)(keep, _moment(played), old.moment)
    is_retry = jnp.where(before.done, again, old.is_retry)
    return state._replace(retry=Retry(moment, decisions, is_retry))


def _moment(state: Any) -> Any:
    return state.env, state.history, state.carry
