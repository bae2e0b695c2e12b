"""The idea of Policy Decorator: a frozen base action plus a bounded, progressively gated residual.

This is the one place that adds, gates and reads the residual, because rollout and learner must do
so in exactly the same way. Pure functions; holds no state.

Where `residual_scale` comes from: a compiled program receives it as an argument and never reads it
from a config. In training the argument is `Hyperparams.residual_scale`, which
`sac.make_hyperparams` reads from the config; after training, the host passes the value of the run's
own config.

Source: arXiv:2412.13630; policy_decorator online/pi_dec_diffusion_maniskill2.py.
"""

# pyright: reportUnknownMemberType=false

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from pdjax.types import Array, Key, Scalar

OBS_CLIP = 10.0
"""Bound of a normalised observation, in standard deviations; ours, against near-constant inputs."""


def decorate(
    base_action: Float[Array, "*batch chunk_dim"],
    residual_action: Float[Array, "*batch residual_dim"],
    residual_scale: Scalar,
) -> Float[Array, "*batch chunk_dim"]:
    """Adds the bounded residual to the base action: base_action + residual_scale * residual_action.

    Where the scaled residual is zero or not finite, the result is the base action, bit for bit
    (-0.0 included).

    Args:
      base_action: in [-1, 1].
      residual_action: in [-1, 1], after the gate; see `spread` for its size.
      residual_scale: at least 0; the paper's alpha.

    Returns:
      The action, not clipped. It differs from base_action by at most residual_scale, up to
      rounding.

    Raises:
      ValueError: residual_dim does not divide chunk_dim.
    """
    change = residual_scale * spread(residual_action, base_action.shape[-1])
    is_none = (change == 0) | ~jnp.isfinite(change)
    return jnp.where(is_none, base_action, base_action + change)


def spread(
    residual_action: Float[Array, "*batch residual_dim"], chunk_dim: int
) -> Float[Array, "*batch {chunk_dim}"]:
    """Returns the residual for each number of a chunk.

    Args:
      residual_action: a chunk of residuals, or one of act_dim numbers that is held for the whole
        chunk (DecoratorConfig.hold_residual).
      chunk_dim: act_horizon * act_dim, a multiple of residual_dim.

    Raises:
      ValueError: residual_dim does not divide chunk_dim.
    """
    repeats, rest = divmod(chunk_dim, residual_action.shape[-1])
    if rest:
        raise ValueError(
            f"residual_action has {residual_action.shape[-1]} numbers, expected a divisor of the"
            f" chunk's {chunk_dim}: act_dim, or act_horizon * act_dim"
        )
    return jnp.concatenate([residual_action] * repeats, axis=-1)


def hold(
    chunk: Float[Array, "*batch chunk_dim"], residual_dim: int
) -> Float[Array, "*batch {residual_dim}"]:
    """Returns the residual closest to a change of a chunk: the mean over its control steps.

    Inverts `spread`.

    Args:
      chunk: a change of a chunk.
      residual_dim: a divisor of chunk_dim.
    """
    return jnp.mean(chunk.reshape(*chunk.shape[:-1], -1, residual_dim), axis=-2)


def clip_action(action: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Clips an action to [-1, 1], the range that the simulator accepts."""
    return jnp.clip(action, -1.0, 1.0)


def exploration_prob(decision_steps: Scalar, exploration_steps: Scalar) -> Float[Array, ""]:
    """Returns the share of decisions that apply the residual: min(decision_steps / H, 1).

    Args:
      decision_steps: decisions so far over all environments.
      exploration_steps: the paper's H; 0 or less opens the gate at once.

    Returns:
      float32 in [0, 1].
    """
    decision_steps = jnp.asarray(decision_steps, jnp.float32)
    exploration_steps = jnp.asarray(exploration_steps, jnp.float32)
    safe_steps = jnp.where(exploration_steps > 0, exploration_steps, 1.0)
    return jnp.where(exploration_steps > 0, jnp.minimum(decision_steps / safe_steps, 1.0), 1.0)


def gate(key: Key, prob: Scalar, num: int) -> Bool[Array, " {num}"]:
    """Draws whether each environment applies its residual: Bernoulli(prob).

    Args:
      key: consumed.
      prob: in [0, 1], see `exploration_prob`.
      num: number of environments.
    """
    return jax.random.bernoulli(key, prob, (num,))


def gate_uncertain(
    key: Key, prob: Scalar, uncertainty: Float[Array, " num_envs"]
) -> Bool[Array, " num_envs"]:
    """Opens the gate in those environments where the base policy is least certain.

    Args:
      key: consumed; breaks ties, and decides whether a fraction of an environment counts as one.
      prob: in [0, 1], see `exploration_prob`.
      uncertainty: difference between two draws of the base policy.

    Returns:
      True (the residual is applied) for prob * num_envs environments on average.
    """
    num = len(uncertainty)
    tie_key, round_key = jax.random.split(key)
    count = jnp.floor(prob * num + jax.random.uniform(round_key))
    order = jnp.lexsort((jax.random.uniform(tie_key, (num,)), -uncertainty))  # most uncertain first
    return jnp.zeros(num, bool).at[order].set(jnp.arange(num) < count)


def actor_input(
    obs: Float[Array, "*batch obs_dim"], base_action: Float[Array, "*batch chunk_dim"], kind: str
) -> Float[Array, "*batch input_dim"]:
    """Returns what the residual policy reads.

    Args:
      obs: the observation.
      base_action: the base policy's chunk.
      kind: "obs" or "obs_base_action", see DecoratorConfig.actor_input.

    Returns:
      input_dim is obs_dim or obs_dim + chunk_dim.

    Raises:
      ValueError: the kind is unknown.
    """
    if kind == "obs":
        return obs
    if kind == "obs_base_action":
        return jnp.concatenate([obs, base_action], axis=-1)
    raise ValueError(f"actor_input={kind!r} must be 'obs' or 'obs_base_action'.")


def critic_action(
    base_action: Float[Array, "*batch chunk_dim"],
    residual_action: Float[Array, "*batch residual_dim"],
    residual_scale: Scalar,
    kind: str,
) -> Float[Array, "*batch action_dim"]:
    """Returns what the critics read of an action.

    The sum is not clipped, so that a critic can distinguish residuals beyond the action bounds. It
    does not call `decorate`, whose gradient vanishes at residual 0.

    Args:
      base_action: in [-1, 1].
      residual_action: in [-1, 1], after the gate; see `spread` for its size.
      residual_scale: the paper's alpha.
      kind: "sum", "res" or "concat", see DecoratorConfig.critic_input.

    Returns:
      sum: base + scale * residual, (..., chunk_dim). res: residual, (..., residual_dim).
      concat: residual, then base, (..., residual_dim + chunk_dim).

    Raises:
      ValueError: the kind is unknown, or residual_dim does not divide chunk_dim.
    """
    if kind == "sum":
        return base_action + residual_scale * spread(residual_action, base_action.shape[-1])
    if kind == "res":
        return residual_action
    if kind == "concat":
        return jnp.concatenate([residual_action, base_action], axis=-1)
    raise ValueError(f"critic_input={kind!r} must be 'sum', 'res' or 'concat'.")


def normalize(
    obs: Float[Array, "*batch obs_dim"],
    mean: Float[Array, " obs_dim"],
    std: Float[Array, " obs_dim"],
) -> Float[Array, "*batch obs_dim"]:
    """Whitens observations and clips them to OBS_CLIP standard deviations.

    Args:
      obs: observations.
      mean: subtracted from them.
      std: above zero; divides them.

    Returns:
      Numbers without unit.
    """
    return jnp.clip((obs - mean) / std, -OBS_CLIP, OBS_CLIP)


def far_numbers(
    obs: Float[Array, "*batch obs_dim"],
    mean: Float[Array, " obs_dim"],
    std: Float[Array, " obs_dim"],
) -> Bool[Array, "*batch obs_dim"]:
    """Finds observed numbers that the base policy's data never came near: the guard's drift.

    Args:
      obs: observations.
      mean: mean of the data.
      std: standard deviation of the data.

    Returns:
      True beyond OBS_CLIP standard deviations and for numbers that are not finite.
    """
    return ~(jnp.abs(obs - mean) <= OBS_CLIP * std)
