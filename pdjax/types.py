"""The nouns that every room of pdjax shares.

They live apart, so that networks, learner and base policies can speak of the same things without
importing one another. This module holds no state and computes nothing.

Shapes are jaxtyping annotations. They cost nothing when pdjax runs; the tests check them wherever a
function of `pdjax.learner` is called.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jaxtyping
from jaxtyping import Bool, Float, Num

Array = jax.Array
Key = jaxtyping.Key[Array, ""]
"""A typed PRNG key, `jax.random.key(seed)`."""
Scalar = Num[Array | float | int, ""]
"""A number: an array of shape () or a Python number."""
Params = Any
"""A pytree of parameter arrays."""
Metrics = dict[str, Array]
"""Named scalars of one epoch, which the host reads once an epoch."""


class BasePolicy(NamedTuple):
    """A frozen policy as pure functions, written for one environment (use `jax.vmap` for more).

    Attributes:
      init_carry: key -> carry, the policy's own state at the start of an episode.
      apply: (params, carry, obs_history, key) -> (action_chunk, carry).
        obs_history: (obs_horizon, obs_dim) float32, oldest first.
        action_chunk: (act_horizon, act_dim) float32 in [-1, 1].
      params: the frozen parameters, which callers pass to `apply`; no optimiser ever sees them.
      obs_dim: count of numbers in one observation.
      act_dim: count of numbers in one action.
      obs_horizon: number of observations that `apply` reads.
      act_horizon: number of control steps that one chunk executes.
      obs_mean: mean of the observations that the policy was trained on.
      obs_std: their standard deviation, bounded away from zero.
    """

    init_carry: Callable[[Key], Any]
    apply: Callable[[Params, Any, Array, Key], tuple[Array, Any]]
    params: Params
    obs_dim: int
    act_dim: int
    obs_horizon: int
    act_horizon: int
    obs_mean: Float[Array, " obs_dim"]
    obs_std: Float[Array, " obs_dim"]


class Transition(NamedTuple):
    """One row of the replay ring: what one environment saw and did in one decision.

    The observation after a decision is in the next row of the same environment, so the ring stores
    each observation once. A row with `is_reset` holds the final observation of an episode; its
    action was ignored, and it never starts a transition. A row with both `is_reset` and `truncated`
    is a hole, see `learner.holes`.

    Attributes:
      obs: the observation before the decision; `replay.make_packing` describes how the ring keeps
        it.
      base_action: the base policy's chunk, in [-1, 1]; chunk_dim = act_horizon * act_dim.
      residual_action: in [-1, 1], before scaling, after the gate: a chunk of residuals, or one
        residual that is held for the whole chunk.
      reward: sum over the decision's control steps.
      terminated: whether the decision ended the episode in a terminal state.
      truncated: whether the decision reached the time limit.
      is_reset: see above.
    """

    obs: Float[Array, "*rows obs_dim"]
    base_action: Float[Array, "*rows chunk_dim"]
    residual_action: Float[Array, "*rows residual_dim"]
    reward: Float[Array, "*rows"]
    terminated: Bool[Array, "*rows"]
    truncated: Bool[Array, "*rows"]
    is_reset: Bool[Array, "*rows"]


class Batch(NamedTuple):
    """Transitions in the form that the learner takes: n-step, discounted, with their successor.

    Attributes:
      obs: the observation that the networks read (normalised).
      base_action: the base policy's chunk.
      residual_action: after the gate, before scaling.
      reward: discounted sum over the n steps.
      discount: gamma^k of the bootstrap term, or 0 if the episode terminated.
      next_obs: the observation after the n steps.
      next_base_action: the chunk that the base policy chose at `next_obs`.
      weight: 0 for a row that starts no transition, else 1.
    """

    obs: Float[Array, "batch obs_dim"]
    base_action: Float[Array, "batch chunk_dim"]
    residual_action: Float[Array, "batch residual_dim"]
    reward: Float[Array, " batch"]
    discount: Float[Array, " batch"]
    next_obs: Float[Array, "batch obs_dim"]
    next_base_action: Float[Array, "batch chunk_dim"]
    weight: Float[Array, " batch"]
