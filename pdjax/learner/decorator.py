"""The idea of Policy Decorator: a frozen base action plus a bounded, progressively gated residual.

Kept apart because rollout and learner must add, gate and read the residual in exactly the same
way. Pure functions; holds no state.

Source: arXiv:2412.13630; policy_decorator online/pi_dec_diffusion_maniskill2.py.
"""

import jax
import jax.numpy as jnp

from pdjax.types import Array, Key

OBS_CLIP = 10.0
"""Bound of a normalised observation, in standard deviations; ours, against near-constant inputs."""


def decorate(base_action: Array, residual_action: Array, residual_scale: Array | float) -> Array:
    """Adds the bounded residual to the base action: base_action + residual_scale * residual_action.

    Where the scaled residual is zero the result is the base action, bit for bit (-0.0 included).

    Args:
      base_action: (num_envs, chunk_dim), in [-1, 1].
      residual_action: (num_envs, residual_dim), in [-1, 1], after the gate; see `spread`.
      residual_scale: scalar >= 0, the paper's alpha.

    Returns:
      (num_envs, chunk_dim), not clipped; differs from base_action by at most residual_scale, up
      to rounding.

    Raises:
      ValueError: the residual's size does not divide the chunk's.
    """
    change = residual_scale * spread(residual_action, base_action.shape[-1])
    return jnp.where(change == 0, base_action, base_action + change)


def spread(residual_action: Array, chunk_dim: int) -> Array:
    """The residual of each number in a chunk.

    Args:
      residual_action: (..., residual_dim): a chunk of residuals, or one of act_dim numbers that is
        held over the whole chunk (DecoratorConfig.hold_residual).
      chunk_dim: act_horizon * act_dim, a multiple of residual_dim.

    Returns:
      (..., chunk_dim).

    Raises:
      ValueError: the residual's size does not divide the chunk's.
    """
    repeats, rest = divmod(chunk_dim, residual_action.shape[-1])
    if rest:
        raise ValueError(
            f"residual_action has {residual_action.shape[-1]} numbers, expected a divisor of the"
            f" chunk's {chunk_dim}: act_dim, or act_horizon * act_dim"
        )
    return jnp.concatenate([residual_action] * repeats, axis=-1)


def hold(chunk: Array, residual_dim: int) -> Array:
    """The residual nearest to a change of a chunk: the inverse of `spread`, by the mean over steps.

    Args:
      chunk: (..., chunk_dim).
      residual_dim: a divisor of chunk_dim.

    Returns:
      (..., residual_dim).
    """
    return jnp.mean(chunk.reshape(*chunk.shape[:-1], -1, residual_dim), axis=-2)


def clip_action(action: Array) -> Array:
    """Bounds an action to the [-1, 1] that the simulator takes."""
    return jnp.clip(action, -1.0, 1.0)


def exploration_prob(decision_steps: Array | int, exploration_steps: Array | float) -> Array:
    """Share of decisions that let the residual in: min(decision_steps / exploration_steps, 1).

    Args:
      decision_steps: scalar, decisions so far over all environments.
      exploration_steps: scalar, the paper's H; 0 or less opens the gate at once.

    Returns:
      Scalar float32 in [0, 1].
    """
    decision_steps = jnp.asarray(decision_steps, jnp.float32)
    exploration_steps = jnp.asarray(exploration_steps, jnp.float32)
    safe_steps = jnp.where(exploration_steps > 0, exploration_steps, 1.0)
    return jnp.where(exploration_steps > 0, jnp.minimum(decision_steps / safe_steps, 1.0), 1.0)


def gate(key: Key, prob: Array | float, num: int) -> Array:
    """Draws for each environment whether its residual is let in: Bernoulli(prob).

    Args:
      key: consumed.
      prob: scalar in [0, 1], see `exploration_prob`.
      num: number of environments.

    Returns:
      (num,) bool.
    """
    return jax.random.bernoulli(key, prob, (num,))


def gate_uncertain(key: Key, prob: Array | float, uncertainty: Array) -> Array:
    """Lets the residual in where the base policy is least certain: a share `prob` of environments.

    Args:
      key: consumed; which of equals, and whether a fraction of an environment counts as one.
      prob: scalar in [0, 1], see `exploration_prob`.
      uncertainty: (num_envs,), how far two draws of the base policy differ.

    Returns:
      (num_envs,) bool, prob * num_envs of them on average.
    """
    num = len(uncertainty)
    tie_key, round_key = jax.random.split(key)
    count = jnp.floor(prob * num + jax.random.uniform(round_key))
    order = jnp.lexsort((jax.random.uniform(tie_key, (num,)), -uncertainty))  # most uncertain first
    return jnp.zeros(num, bool).at[order].set(jnp.arange(num) < count)


def actor_input(obs: Array, base_action: Array, kind: str) -> Array:
    """What the residual policy reads.

    Args:
      obs: (..., obs_dim).
      base_action: (..., chunk_dim).
      kind: "obs" or "obs_base_action", see DecoratorConfig.actor_input.

    Returns:
      (..., obs_dim) or (..., obs_dim + chunk_dim).

    Raises:
      ValueError: unknown kind.
    """
    if kind == "obs":
        return obs
    if kind == "obs_base_action":
        return jnp.concatenate([obs, base_action], axis=-1)
    raise ValueError(f"actor_input={kind!r} must be 'obs' or 'obs_base_action'.")


def critic_action(
    base_action: Array, residual_action: Array, residual_scale: Array | float, kind: str
) -> Array:
    """What the critics read of an action.

    The sum is not clipped, so that a critic can tell residuals apart beyond the action bounds. It
    is written out rather than taken from `decorate`, whose gradient vanishes at residual 0.

    Args:
      base_action: (..., chunk_dim), in [-1, 1].
      residual_action: (..., residual_dim), in [-1, 1], after the gate; see `spread`.
      residual_scale: scalar.
      kind: "sum", "res" or "concat", see DecoratorConfig.critic_input.

    Returns:
      sum: base + scale * residual, (..., chunk_dim); res: residual, (..., residual_dim);
      concat: residual then base, (..., residual_dim + chunk_dim).

    Raises:
      ValueError: unknown kind, or the residual's size does not divide the chunk's.
    """
    if kind == "sum":
        return base_action + residual_scale * spread(residual_action, base_action.shape[-1])
    if kind == "res":
        return residual_action
    if kind == "concat":
        return jnp.concatenate([residual_action, base_action], axis=-1)
    raise ValueError(f"critic_input={kind!r} must be 'sum', 'res' or 'concat'.")


def normalize(obs: Array, mean: Array, std: Array) -> Array:
    """Whitens observations, bounded to OBS_CLIP standard deviations.

    Args:
      obs: (..., obs_dim).
      mean: (obs_dim,).
      std: (obs_dim,), above zero.

    Returns:
      (..., obs_dim), without unit.
    """
    return jnp.clip((obs - mean) / std, -OBS_CLIP, OBS_CLIP)


def far_numbers(obs: Array, mean: Array, std: Array) -> Array:
    """Which numbers a policy's data never came near: the guard's measure of drift.

    Args:
      obs: (..., obs_dim).
      mean: (obs_dim,) of the data.
      std: (obs_dim,) of the data.

    Returns:
      (..., obs_dim) bool, True beyond OBS_CLIP standard deviations and where not finite.
    """
    return ~(jnp.abs(obs - mean) <= OBS_CLIP * std)
