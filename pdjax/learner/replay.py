"""Replay ring on the device: rows of all environments, with each observation stored once.

The layout (time-major, next-step reset), the index arithmetic that turns rows into n-step
transitions, and the number format belong together; this module owns them and ReplayState.
"""

# pyright: reportUnknownMemberType=false

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Num

from pdjax.learner.holes import is_hole
from pdjax.types import Array, Batch, Key, Scalar, Transition


class ReplayState(NamedTuple):
    """The ring.

    Attributes:
      storage: Transition with leaves (capacity_rows, num_envs, ...).
      cursor: the row to write next; it is the oldest row once the ring is full.
      size: number of rows written so far, at most capacity_rows.
    """

    storage: Transition
    cursor: Int[Array, ""]
    size: Int[Array, ""]


class ReplayBuffer(NamedTuple):
    """A replay ring as pure functions.

    Attributes:
      init: () -> empty ReplayState.
      add: (state, rows) -> state, see `add`.
      sample: (state, key, batch_size, n_step, gamma, reward_offset) -> Batch, see `sample`.
      can_sample: (state, n_step) -> whether `sample` has a row to start from.
    """

    init: Callable[[], ReplayState]
    add: Callable[[ReplayState, Transition], ReplayState]
    sample: Callable[..., Batch]
    can_sample: Callable[[ReplayState, int], Bool[Array, ""]]


class Packing(NamedTuple):
    """How the ring keeps observations and actions.

    Attributes:
      dtype: their type in the ring. bfloat16 numbers are kept as words of type uint16.
      pack: Transition -> Transition in the form that the ring keeps.
      unpack: Batch -> Batch; undoes `pack` in a batch that `sample` drew from packed rows.
    """

    dtype: Any
    pack: Callable[[Transition], Transition]
    unpack: Callable[[Batch], Batch]


def make_packing(
    dtype: str, obs_mean: Float[Array, " obs_dim"], obs_std: Float[Array, " obs_dim"]
) -> Packing:
    """Chooses how the ring keeps numbers: unchanged, or in half the memory.

    bfloat16 has 8 significant bits, so a number x returns within 2^-8 |x|. Positions in a room are
    large numbers with small differences; therefore observations are whitened before rounding, and
    return within 2^-8 |obs - obs_mean|. This helps only if the statistics are those of the data: a
    wrapped policy without statistics (mean 0, deviation 1) gets plain rounding.

    The ring holds words because XLA's compiler for CPUs computes in float32 what a program asks for
    in bfloat16: to read or write one row, it would convert the whole ring.

    Args:
      dtype: float32, which changes no bit, or bfloat16.
      obs_mean: mean of the base policy's data.
      obs_std: above zero.
    """
    if dtype == "float32":
        return Packing(jnp.float32, _same_rows, _same_batch)

    def words(numbers: Array) -> Array:
        return jax.lax.bitcast_convert_type(numbers.astype(jnp.bfloat16), jnp.uint16)

    def pack(rows: Transition) -> Transition:
        return rows._replace(
            obs=words((rows.obs - obs_mean) / obs_std),
            base_action=words(rows.base_action),
            residual_action=words(rows.residual_action),
        )

    def unpack(batch: Batch) -> Batch:
        return batch._replace(
            obs=batch.obs * obs_std + obs_mean, next_obs=batch.next_obs * obs_std + obs_mean
        )

    return Packing(jnp.uint16, pack, unpack)


def _same_rows(rows: Transition) -> Transition:
    return rows


def _same_batch(batch: Batch) -> Batch:
    return batch


def _numbers(stored: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns float32 numbers from floats or from bfloat16 words, which are their upper halves."""
    if stored.dtype != jnp.uint16:
        return stored.astype(jnp.float32)
    return jax.lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, jnp.float32)


def make_replay(capacity_rows: int, num_envs: int, example_row: Transition) -> ReplayBuffer:
    """Builds a replay ring.

    Args:
      capacity_rows: number of rows; the ring holds capacity_rows * num_envs decisions.
      num_envs: number of environments in each row.
      example_row: what one environment stores in one row. Only shapes and dtypes are read, so
        leaves may be arrays or jax.ShapeDtypeStruct.

    Raises:
      ValueError: capacity_rows or num_envs is below 1.
    """
    if capacity_rows < 1 or num_envs < 1:
        raise ValueError(
            f"capacity_rows={capacity_rows} and num_envs={num_envs} must both be at least 1; "
            "raise replay_capacity to num_envs or more."
        )

    def init() -> ReplayState:
        def zeros(leaf: Any) -> Array:
            return jnp.zeros((capacity_rows, num_envs, *leaf.shape), leaf.dtype)

        storage = jax.tree.map(zeros, example_row)
        return ReplayState(storage, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    return ReplayBuffer(init, add, sample, can_sample)


def add(state: ReplayState, rows: Transition) -> ReplayState:
    """Overwrites the oldest rows with new ones, in place if the caller donates the state.

    All calls on one ring must add the same number of rows, a divisor of the capacity. Then no write
    wraps around, and one dynamic_update_slice of cost O(rows) is enough.

    Args:
      state: the ring.
      rows: leaves (k, num_envs, ...), oldest first.

    Returns:
      The ring with the new rows.

    Raises:
      ValueError: k does not divide the ring's capacity.
    """
    capacity = state.storage.reward.shape[0]
    num_rows = rows.reward.shape[0]
    if num_rows == 0 or capacity % num_rows:
        raise ValueError(
            f"cannot add {num_rows} rows at a time to a ring of {capacity}: the rows of one add "
            "must divide the capacity; round the capacity to a multiple of them."
        )

    def write(stored: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(
            stored, new.astype(stored.dtype), state.cursor, axis=0
        )

    return ReplayState(
        storage=jax.tree.map(write, state.storage, rows),
        cursor=(state.cursor + num_rows) % capacity,
        size=jnp.minimum(state.size + num_rows, capacity),
    )


def can_sample(state: ReplayState, n_step: int) -> Bool[Array, ""]:
    """Returns whether at least one row has n_step successors."""
    return state.size > n_step


def sample(
    state: ReplayState,
    key: Key,
    batch_size: int,
    n_step: int,
    gamma: Scalar,
    reward_offset: Scalar,
) -> Batch:
    """Draws n-step transitions, uniformly over the rows that have n_step successors.

    Let k <= n_step be the number of decisions up to and including the first that ended an episode,
    or n_step if none did. Then
      reward = sum_{i<k} gamma^i (reward_{t+i} + reward_offset);
      successor = row t+k of the same environment, which after an end is the reset row with the
        final observation;
      discount = gamma^k, or 0 if decision t+k-1 terminated. A truncated episode thus bootstraps
        from its true final observation.
    A start on a reset row is not a transition: its weight is 0. So is the weight of a transition
    that meets a hole, see `holes`.

    Args:
      state: the ring. `can_sample` must hold, or the batch contains rows that were never written.
      key: consumed.
      batch_size: number of transitions to draw, with replacement.
      n_step: at least 1.
      gamma: discount per decision.
      reward_offset: added to the reward of each decision.

    Returns:
      Batch with float32 leaves (batch_size, ...); observations in the form that the ring keeps.

    Raises:
      ValueError: n_step is not in [1, capacity_rows - 1].

    Source: arXiv:2412.13630 (reward offset, bootstrap on truncation only).
    """
    storage = state.storage
    capacity, num_envs = storage.reward.shape
    if not 1 <= n_step < capacity:
        raise ValueError(f"n_step={n_step} must be in [1, {capacity - 1}] (capacity_rows - 1).")

    key_row, key_env = jax.random.split(key)
    num_starts = jnp.maximum(state.size - n_step, 1)  # the newest n_step rows start nothing
    age_order = jax.random.randint(key_row, (batch_size,), 0, num_starts)  # 0 = oldest row
    envs = jax.random.randint(key_env, (batch_size,), 0, num_envs)
    start = (state.cursor - state.size + age_order) % capacity

    window = (start[:, None] + jnp.arange(n_step)) % capacity  # (batch,) -> (batch, n_step)
    terminated = storage.terminated[window, envs[:, None]]
    done = terminated | storage.truncated[window, envs[:, None]]
    ended_before = jnp.cumsum(done, axis=1) - done  # dones strictly before each decision
    used = ended_before == 0
    num_used = jnp.sum(used, axis=1)  # (batch, n_step) -> (batch,), the k of the formulas
    gammas = jnp.power(jnp.asarray(gamma, jnp.float32), jnp.arange(n_step + 1))
    rewards = storage.reward[window, envs[:, None]] + reward_offset
    successor = (start + num_used) % capacity
    # A window ends before the next reset, so a reset within it is its start or a hole.
    meets_reset = jnp.any(storage.is_reset[window, envs[:, None]] & used, axis=1)
    ends_at_hole = is_hole(storage.is_reset[successor, envs], storage.truncated[successor, envs])
    is_terminal = jnp.any(terminated & used, axis=1)
    is_whole = ~meets_reset & (is_terminal | ~ends_at_hole)

    def numbers(
        stored: Num[Array, "rows num_envs *shape"], row: Int[Array, " batch"]
    ) -> Float[Array, " batch *shape"]:
        return _numbers(stored[row, envs])

    return Batch(
        obs=numbers(storage.obs, start),
        base_action=numbers(storage.base_action, start),
        residual_action=numbers(storage.residual_action, start),
        reward=jnp.sum(gammas[:-1] * used * rewards, axis=1),
        discount=gammas[num_used] * ~is_terminal,
        next_obs=numbers(storage.obs, successor),
        next_base_action=numbers(storage.base_action, successor),
        weight=is_whole.astype(jnp.float32),
    )
