"""The nouns that every room of pdjax shares.

Kept apart so that networks, learner and base policies can speak of the same things without
importing one another. Holds no state and computes nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
Key = jax.Array
"""A typed PRNG key, `jax.random.key(seed)`."""
Params = Any
"""A pytree of parameter arrays."""
Metrics = dict[str, Array]
"""Named scalars of one epoch; read by the host once an epoch."""


class BasePolicy(NamedTuple):
    """A frozen policy as pure functions, written for one environment (use `jax.vmap`).

    Attributes:
      init_carry: key -> carry, the policy's own state at the start of an episode.
      apply: (params, carry, obs_history, key) -> (action_chunk, carry).
        obs_history: (obs_horizon, obs_dim) float32, oldest first.
        action_chunk: (act_horizon, act_dim) float32 in [-1, 1].
      params: the frozen parameters; handed back to `apply`, never put into an optimiser.
      obs_dim: numbers in one observation.
      act_dim: numbers in one action.
      obs_horizon: observations that `apply` reads.
      act_horizon: control steps that one chunk executes.
      obs_mean: (obs_dim,) mean of the observations the policy was trained on.
      obs_std: (obs_dim,) their standard deviation, floored above zero.
    """

    init_carry: Callable[[Key], Any]
    apply: Callable[[Params, Any, Array, Key], tuple[Array, Any]]
    params: Params
    obs_dim: int
    act_dim: int
    obs_horizon: int
    act_horizon: int
    obs_mean: Array
    obs_std: Array


class Transition(NamedTuple):
    """One row of the replay ring: what one environment saw and did in one decision.

    The observation after a decision is the next row of the same environment, so each
    observation is stored once. A row with `is_reset` set holds an episode's final
    observation; its action was ignored and it never starts a transition.

    Attributes:
      obs: (..., obs_dim) float32, before the decision; see `replay.make_packing` for the ring's.
      base_action: (..., act_horizon * act_dim) float32 in [-1, 1], as the base policy chose.
      residual_action: (..., residual_dim), in [-1, 1], before scaling, after the gate; a chunk of
        residuals, or one that is held over the chunk.
      reward: (...,) float32, summed over the decision's control steps.
      terminated: (...,) bool, the decision ended the episode in a terminal state.
      truncated: (...,) bool, the decision ran into the time limit.
      is_reset: (...,) bool, see above.
    """

    obs: Array
    base_action: Array
    residual_action: Array
    reward: Array
    terminated: Array
    truncated: Array
    is_reset: Array


class Batch(NamedTuple):
    """Transitions as the learner takes them: n-step, discounted, with their successor.

    Attributes:
      obs: (batch, obs_dim), what the networks see (normalised).
      base_action: (batch, chunk_dim).
      residual_action: (batch, residual_dim), gated, before scaling.
      reward: (batch,), discounted sum over the n steps.
      discount: (batch,), gamma^k of the bootstrap term, 0 where the episode terminated.
      next_obs: (batch, obs_dim).
      next_base_action: (batch, chunk_dim), the action that the base chose at `next_obs`.
      weight: (batch,), 0 for rows that start no transition, else 1.
    """

    obs: Array
    base_action: Array
    residual_action: Array
    reward: Array
    discount: Array
    next_obs: Array
    next_base_action: Array
    weight: Array
