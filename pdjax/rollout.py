"""Rollouts: collecting transitions for the replay, and evaluating policies. Each is one scan.

A decision is one call of the base policy and one executed chunk. When an episode ends, the next
decision ignores the action and starts a new episode (next-step autoreset), so each row of the
replay holds one observation. Evaluation has its own result type and never touches training state.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdjax.base_policies.chunking import push_history, start_history
from pdjax.decorator import clip_action, decorate, normalize
from pdjax.types import Array, BasePolicy, Key, Metrics, Params, Transition
from pdjax_envs.task import Env, EnvState, select


class Frozen(NamedTuple):
    """What no training step changes: an argument of every jitted program, never donated.

    Attributes:
      model: the physics engine's model.
      base_params: the base policy's parameters.
      obs_mean: (obs_dim,) subtracted from observations before the learner sees them.
      obs_std: (obs_dim,) by which they are then divided.
    """

    model: Any
    base_params: Params
    obs_mean: Array
    obs_std: Array


class RolloutState(NamedTuple):
    """One environment between two decisions (leaves get a leading num_envs axis).

    Attributes:
      env: the environment.
      history: (obs_horizon, obs_dim) latest observations.
      carry: the base policy's own state.
      done: () bool, the last decision ended the episode; the next one starts a new one.
      succeeded: () bool, the task was solved at some control step of the episode so far.
    """

    env: EnvState
    history: Array
    carry: Any
    done: Array
    succeeded: Array


class Outcome(NamedTuple):
    """What one decision brought.

    Attributes:
      reward: () summed over its control steps.
      terminated: () bool.
      truncated: () bool.
      success: () bool, at any of its control steps.
      steps: () int32, control steps taken.
      bad_actions: () int32, of them with an action that was not in [-1, 1].
      overflows: () int32, of them with contacts or constraints left out.
    """

    reward: Array
    terminated: Array
    truncated: Array
    success: Array
    steps: Array
    bad_actions: Array
    overflows: Array


class Rollout(NamedTuple):
    """Rollout functions of one environment and base policy.

    Attributes:
      init: (frozen, key, num_envs) -> RolloutState.
      collect: (frozen, state, choose_residual, keys (decisions,)) -> (state, rows, metrics);
        choose_residual: (view, base_action, key, decision index) -> residual_action,
        all with leading num_envs; rows: Transition with leaves (decisions, num_envs, ...); metrics:
        counts over the block, see `_decide`.
      evaluate: see `evaluate`.
      see: (frozen, obs (n, obs_dim)) -> (n, view_dim), what the learner's networks read.
      view_dim: numbers in it.
    """

    init: Callable[..., RolloutState]
    collect: Callable[..., tuple[RolloutState, Transition, Metrics]]
    evaluate: Callable[..., "Evaluation"]
    see: Callable[[Frozen, Array], Array]
    view_dim: int


class Evaluation(NamedTuple):
    """One episode per environment and seed; leaves (episodes,) unless stated.

    Attributes:
      success_once: bool, success at any control step.
      success_at_end: bool, success at the last control step of the time limit.
      steps_to_success: int32 control steps until the first success, or the time limit.
      smoothness: mean squared second difference of the executed actions until then.
      saturation: share of residual numbers beyond 0.95 in size until then.
      qpos: (episode_steps, episodes, nq) positions, or None unless recorded.
    """

    success_once: Array
    success_at_end: Array
    steps_to_success: Array
    smoothness: Array
    saturation: Array
    qpos: Array | None


def make_rollout(env: Env, base: BasePolicy, task_features: bool = False) -> Rollout:
    """Binds the rollout functions to an environment and a base policy.

    Args:
      env: the environment.
      base: the base policy.
      task_features: whether the learner also reads the task's features, where it has any.
    """
    features = env.task.features if task_features else None

    def see(frozen: Frozen, obs: Array) -> Array:
        seen = normalize(obs, frozen.obs_mean, frozen.obs_std)
        if features is None:
            return seen
        return jnp.concatenate([seen, jax.vmap(features)(obs)], axis=-1)

    def seeing(frozen: Frozen, choose):
        return lambda obs, *rest: choose(see(frozen, obs), *rest)

    def init(frozen: Frozen, key: Key, num_envs: int) -> RolloutState:
        return jax.vmap(lambda k: _start(env, base, frozen, k))(jax.random.split(key, num_envs))

    def collect(frozen: Frozen, state: RolloutState, choose_residual, keys: Array):
        def decide(state, inputs):
            return _decide(env, base, frozen, seeing(frozen, choose_residual), state, inputs)

        state, (rows, counts) = jax.lax.scan(decide, state, (keys, jnp.arange(len(keys))))
        return state, rows, jax.tree.map(jnp.sum, counts)

    def evaluation(frozen, choose_residual, residual_scale, key, episodes, record=False):
        keys = jax.random.split(key, episodes)
        residual = (seeing(frozen, choose_residual), residual_scale)
        return evaluate(env, base, frozen, residual, keys, record)

    view_dim = jax.eval_shape(
        see, Frozen(None, None, base.obs_mean, base.obs_std), jnp.zeros((1, base.obs_dim))
    ).shape[-1]
    return Rollout(init, collect, evaluation, see, view_dim)


def base_actions(base: BasePolicy, frozen: Frozen, carry: Any, history: Array, key: Key):
    """Chunks (num_envs, act_horizon, act_dim) of the base policy, and its next carry."""
    keys = jax.random.split(key, len(history))
    return jax.vmap(base.apply, (None, 0, 0, 0))(frozen.base_params, carry, history, keys)


def _start(env: Env, base: BasePolicy, frozen: Frozen, key: Key) -> RolloutState:
    """A fresh episode of one environment."""
    reset_key, carry_key = jax.random.split(key)
    state, obs = env.reset(frozen.model, reset_key)
    history = start_history(obs, base.obs_horizon)
    no = jnp.zeros((), bool)
    return RolloutState(state, history, base.init_carry(carry_key), done=no, succeeded=no)


def _play_chunk(env: Env, frozen: Frozen, state: EnvState, history: Array, chunk: Array):
    """Executes a chunk in one environment; after the episode's end the rest is not played."""

    def step(carry, action):
        state, history, outcome = carry
        next_state, out = env.step(frozen.model, state, action)
        over = outcome.terminated | outcome.truncated
        played = (
            next_state,
            push_history(history, out.obs),
            Outcome(
                reward=outcome.reward + out.reward,
                terminated=out.terminated,
                truncated=out.truncated,
                success=outcome.success | out.success,
                steps=outcome.steps + 1,
                bad_actions=outcome.bad_actions + out.bad_action,
                overflows=outcome.overflows + out.overflow,
            ),
        )
        return select(over, carry, played), None

    no, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    nothing = Outcome(jnp.zeros(()), no, no, no, zero, zero, zero)
    return jax.lax.scan(step, (state, history, nothing), chunk)[0]


def _decide(env, base, frozen, choose_residual, state: RolloutState, inputs):
    """One decision of all environments: base, residual, chunk or reset."""
    key, index = inputs
    num_envs = len(state.history)
    base_key, residual_key, reset_key = jax.random.split(key, 3)
    chunk, carry = base_actions(base, frozen, state.carry, state.history, base_key)
    base_action = chunk.reshape(num_envs, -1)
    obs = state.history[:, -1]
    residual_action, residual_scale = choose_residual(obs, base_action, residual_key, index)
    action = clip_action(decorate(base_action, residual_action, residual_scale))

    played_env, history, outcome = jax.vmap(_play_chunk, (None, None, 0, 0, 0))(
        env, frozen, state.env, state.history, action.reshape(chunk.shape)
    )
    succeeded = state.succeeded | outcome.success
    done = outcome.terminated | outcome.truncated
    played = RolloutState(played_env, history, carry, done, succeeded)
    reset_keys = jax.random.split(reset_key, num_envs)
    fresh = jax.vmap(lambda k: _start(env, base, frozen, k))(reset_keys)
    was_done = state.done
    outcome = jax.tree.map(lambda x: jnp.where(was_done, jnp.zeros_like(x), x), outcome)
    row = Transition(
        obs=obs,
        base_action=base_action,
        residual_action=residual_action,
        reward=outcome.reward,
        terminated=outcome.terminated,
        truncated=outcome.truncated,
        is_reset=was_done,
    )
    ended = done & ~was_done
    counts = {
        "episodes": ended,
        "successes": ended & succeeded,
        "control_steps": outcome.steps,
        "bad_actions": outcome.bad_actions,
        "overflows": outcome.overflows,
    }
    counts = {name: jnp.sum(count).astype(jnp.float32) for name, count in counts.items()}
    return jax.vmap(select)(was_done, fresh, played), (row, counts)


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
      record: whether to keep all positions, for rendering.
    """
    choose, residual_scale = residual
    start_keys, noise_keys = _episode_keys(keys)
    state = jax.vmap(lambda k: _start(env, base, frozen, k))(start_keys)

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
        state = state._replace(env=env_state, history=history, carry=carry)
        return state, (success, actions, qpos, saturated)

    decisions = -(-env.task.episode_steps // base.act_horizon)
    _, (success, actions, qpos, saturated) = jax.lax.scan(decide, state, jnp.arange(decisions))
    limit = env.task.episode_steps
    flat = lambda x: x.reshape(-1, *x.shape[2:])[:limit]  # noqa: E731  (decisions, chunk) -> steps
    result = _summarize(flat(success), flat(actions), saturated, base.act_horizon)
    return result._replace(qpos=flat(qpos) if record else None)


def _episode_keys(keys: Array) -> tuple[Array, Array]:
    """Keys (episodes,) for the start of each episode, and for the base policy's noise in it."""
    return jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)


def episode_overrides(env: Env, keys: Array) -> dict[str, Array]:
    """Model overrides (episodes, rows, ...) of the episodes that `evaluate` plays for these."""
    start_keys, _ = _episode_keys(keys)
    # `_start` splits once more, between the environment and the base policy.
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
