"""Evaluation: whole episodes to the time limit, one an environment, apart from training."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdjax.base_policies.chunking import push_history
from pdjax.learner.decorator import clip_action, decorate
from pdjax.rollout.decision import Frozen, RolloutState, start_episode
from pdjax.types import Array, BasePolicy
from pdjax_envs.task import Env


class Evaluation(NamedTuple):
    """The episodes that one policy played; arrays (episodes,) unless stated.

    Attributes:
      success_once: bool, success at any control step.
      success_at_end: bool, success at the last control step of the time limit.
      steps_to_success: int32, control steps until the first success, or the time limit.
      smoothness: float32, mean squared second difference of the executed actions until then.
      saturation: float32, share of residual numbers with a magnitude above 0.95 until then.
      qpos: (episode_steps, episodes, nq) positions, or None unless recorded.
      carry: the base policy's own state after the last decision, or None unless recorded.
      obs: (decisions, episodes, obs_dim) newest observation at each decision, or None likewise.
      base_action: (decisions, episodes, chunk_dim) what the base policy chose, or None likewise.
    """

    success_once: Array
    success_at_end: Array
    steps_to_success: Array
    smoothness: Array
    saturation: Array
    qpos: Array | None
    carry: Any = None
    obs: Any = None
    base_action: Any = None


def evaluate(
    env: Env, base: BasePolicy, frozen: Frozen, residual: tuple, keys: Array, record: bool
) -> Evaluation:
    """Plays one episode per key to the time limit, success or not.

    Two policies given the same keys meet the same initial states and the same base-policy noise.

    Args:
      env: the environment.
      base: the base policy.
      frozen: model, base parameters, observation statistics.
      residual: (choose (view, base_action) -> residual_action, residual_scale); scale 0 is the
        base policy alone.
      keys: (episodes,) one per episode.
      record: whether to keep positions, observations, base actions and the last carry, too.
    """
    choose, residual_scale = residual
    start_keys, noise_keys = _episode_keys(keys)
    state = jax.vmap(lambda k: start_episode(env, base, frozen, k))(start_keys)

    def control_step(carry, action):
        state, history = carry
        state, out = jax.vmap(env.step, (None, 0, 0))(frozen.model, state, action)
        history = jax.vmap(push_history)(history, out.obs)
        qpos = state.physics.qpos if record else None
        return (state, history), (out.success, qpos)

    def decide(state: RolloutState, index):
        now = jax.vmap(jax.random.fold_in, (0, None))(noise_keys, index)
        chunk, carry = jax.vmap(base.apply, (None, 0, 0, 0))(
            frozen.base_params, state.carry, state.history, now
        )
        base_action = chunk.reshape(len(keys), -1)
        residual_action = choose(state.history[:, -1], base_action)
        action = clip_action(decorate(base_action, residual_action, residual_scale))
        actions = jnp.moveaxis(action.reshape(chunk.shape), 1, 0)  # (act_horizon, episodes, dim)
        (env_state, history), (success, qpos) = jax.lax.scan(
            control_step, (state.env, state.history), actions
        )
        saturated = jnp.mean(jnp.abs(residual_action) > 0.95, axis=-1)
        seen = (state.history[:, -1], base_action) if record else (None, None)
        state = state._replace(env=env_state, history=history, carry=carry)
        return state, (success, actions, qpos, saturated, *seen)

    decisions = -(-env.task.episode_steps // base.act_horizon)
    state, (success, actions, qpos, saturated, obs, base_action) = jax.lax.scan(
        decide, state, jnp.arange(decisions)
    )
    limit = env.task.episode_steps
    flat = lambda x: x.reshape(-1, *x.shape[2:])[:limit]  # noqa: E731  (decisions, chunk) -> steps
    result = _summarize(flat(success), flat(actions), saturated, base.act_horizon)
    if not record:
        return result
    return result._replace(qpos=flat(qpos), carry=state.carry, obs=obs, base_action=base_action)


def _episode_keys(keys: Array) -> tuple[Array, Array]:
    """Keys (episodes,) for the start of each episode, and for the base policy's noise in it."""
    return jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)


def episode_overrides(env: Env, keys: Array) -> dict[str, Array]:
    """Model overrides (episodes, rows, ...) of the episodes that `evaluate` plays for these."""
    start_keys, _ = _episode_keys(keys)
    # `start_episode` splits once more, between the environment and the base policy.
    reset_keys = jax.vmap(lambda key: jax.random.split(key)[0])(start_keys)
    return jax.device_get(
        jax.vmap(lambda key: env.task.sample_start(key).episode.overrides)(reset_keys)
    )


def _summarize(success: Array, actions: Array, saturated: Array, act_horizon: int) -> Evaluation:
    """Per-episode figures from (steps, episodes) successes and (steps, episodes, dim) actions."""
    limit = len(success)
    once = success.any(axis=0)
    steps = jnp.where(once, jnp.argmax(success, axis=0) + 1, limit)
    # a_t - 2 a_(t-1) + a_(t-2), counted while the episode runs
    second = actions[2:] - 2 * actions[1:-1] + actions[:-2]
    alive = jnp.arange(2, limit)[:, None] < steps
    squared = jnp.mean(second**2, axis=-1)
    smoothness = jnp.sum(squared * alive, axis=0) / jnp.maximum(jnp.sum(alive, axis=0), 1)
    deciding = jnp.arange(len(saturated))[:, None] * act_horizon < steps
    return Evaluation(
        success_once=once,
        success_at_end=success[-1],
        steps_to_success=steps.astype(jnp.int32),
        smoothness=smoothness,
        saturation=jnp.sum(saturated * deciding, axis=0) / jnp.sum(deciding, axis=0),
        qpos=None,
    )
