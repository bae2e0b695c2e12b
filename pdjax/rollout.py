"""Rollouts: collecting transitions for the replay, and evaluating policies. Each is one scan.

A decision is one call of the base policy and one executed chunk. When an episode ends, the next
decision ignores the action and starts a new episode (next-step autoreset), so each row of the
replay holds one observation. Evaluation has its own result type and never touches training state.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from pdjax.base_policies.chunking import push_history
from pdjax.config import DecoratorConfig
from pdjax.decision import Frozen, RolloutState, base_actions, play_decision, start_episode
from pdjax.decorator import clip_action, decorate, far_numbers, normalize
from pdjax.sharding import AXIS, by_env
from pdjax.types import Array, BasePolicy, Key, Metrics, Params, Transition
from pdjax_envs.task import Env, in_float32

PLAIN = DecoratorConfig()


class Rollout(NamedTuple):
    """Rollout functions of one environment and base policy.

    Attributes:
      init: (frozen, key, num_envs) -> RolloutState.
      collect: (frozen, state, choose_residual, keys (decisions,)) -> (state, rows, metrics);
        choose_residual: (view, base_action, key, decision index) -> residual_action,
        all with leading num_envs; with gate="uncertain" it also gets how far two draws of the base
        policy differ, (num_envs,); rows: Transition with leaves (decisions, num_envs, ...);
        metrics: counts over the block, see `_decide`.
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
      carry: the base policy's own state after the last decision, or None unless recorded.
    """

    success_once: Array
    success_at_end: Array
    steps_to_success: Array
    smoothness: Array
    saturation: Array
    qpos: Array | None
    carry: Any = None


def make_rollout(
    env: Env, base: BasePolicy, config: DecoratorConfig = PLAIN, mesh: Mesh | None = None
) -> Rollout:
    """Binds the rollout functions to an environment and a base policy.

    Args:
      env: the environment.
      base: the base policy.
      config: `task_features` and `gate` are read.
      mesh: over which environments are split; None = wherever the inputs are.
    """
    features = env.task.features if config.task_features else None
    doubt = config.gate == "uncertain"

    def see(frozen: Frozen, obs: Array) -> Array:
        seen = normalize(obs, frozen.obs_mean, frozen.obs_std)
        if features is None:
            return seen
        return jnp.concatenate([seen, jax.vmap(in_float32(features))(obs)], axis=-1)

    def seeing(frozen: Frozen, choose):
        return lambda obs, *rest: choose(see(frozen, obs), *rest)

    def init(frozen: Frozen, key: Key, num_envs: int) -> RolloutState:
        def start(frozen: Frozen, keys: Array) -> RolloutState:
            return jax.vmap(lambda key: start_episode(env, base, frozen, key))(keys)

        return by_env(mesh, start)(frozen, jax.random.split(key, num_envs))

    act = by_env(mesh, partial(base_actions, base))
    play = by_env(mesh, partial(play_decision, env, base))

    def collect(frozen: Frozen, state: RolloutState, choose_residual, keys: Array):
        def decide(state, inputs):
            choose = seeing(frozen, choose_residual)
            return _decide((act, play), base, frozen, (choose, doubt), state, inputs)

        state, (rows, counts) = jax.lax.scan(decide, state, (keys, jnp.arange(len(keys))))
        return state, rows, jax.tree.map(jnp.sum, counts)

    by_episode: Any = PartitionSpec(AXIS)
    of_step: Any = PartitionSpec(None, AXIS)
    parts = Evaluation(*[by_episode] * 5, qpos=of_step, carry=by_episode)

    def evaluation(frozen, choose_residual, residual_scale, key, episodes, record=False):
        def play_all(frozen: Frozen, keys: Array) -> Evaluation:
            residual = (seeing(frozen, choose_residual), residual_scale)
            return evaluate(env, base, frozen, residual, keys, record)

        return by_env(mesh, play_all, parts)(frozen, jax.random.split(key, episodes))

    view_dim = jax.eval_shape(
        see, Frozen(None, None, base.obs_mean, base.obs_std), jnp.zeros((1, base.obs_dim))
    ).shape[-1]
    return Rollout(init, collect, evaluation, see, view_dim)


def make_base_play(env: Env, base: BasePolicy) -> Callable[..., Evaluation]:
    """(params, seed, episodes, record=False) -> Evaluation of a base policy alone, on the host.

    Compiled once for each number of episodes; params are of the base policy.
    """
    rollout = make_rollout(env, base)

    @partial(jax.jit, static_argnums=(2, 3))
    def play(frozen: Frozen, key: Key, episodes: int, record: bool) -> Evaluation:
        nothing = lambda obs, base_action: jnp.zeros_like(base_action)  # noqa: E731
        return rollout.evaluate(frozen, nothing, 0.0, key, episodes, record)

    def on_host(params: Params, seed: int, episodes: int, record: bool = False) -> Evaluation:
        frozen = Frozen(env.model, params, base.obs_mean, base.obs_std)
        return jax.device_get(play(frozen, jax.random.key(seed), episodes, record))

    return on_host


def _decide(env_parts, base, frozen, residual: tuple, state: RolloutState, inputs):
    """One decision of all environments: base, residual, chunk or reset.

    `env_parts` are `base_actions` and `play_decision`, each environment's where it lives.
    """
    (act, play), (choose_residual, doubt), (key, index) = env_parts, residual, inputs
    num_envs = len(state.history)
    base_key, residual_key, reset_key, doubt_key = jax.random.split(key, 4)
    base_keys = jax.random.split(base_key, num_envs)
    chunk, carry = act(frozen, state.carry, state.history, base_keys)
    base_action = chunk.reshape(num_envs, -1)
    obs = state.history[:, -1]
    inputs = (obs, base_action, residual_key, index)
    if doubt:
        other, _ = act(frozen, state.carry, state.history, jax.random.split(doubt_key, num_envs))
        inputs += (jnp.mean((other - chunk) ** 2, axis=(1, 2)),)
    residual_action, residual_scale = choose_residual(*inputs)
    action = clip_action(decorate(base_action, residual_action, residual_scale))

    was_done, numbers = state.done, jnp.arange(num_envs)
    state = state._replace(carry=carry)
    next_state, outcome, ended, succeeded = play(
        (frozen, reset_key), state, action.reshape(chunk.shape), numbers
    )
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
    counts = {
        "episodes": ended,
        "successes": ended & succeeded,
        "control_steps": outcome.steps,
        "bad_actions": outcome.bad_actions,
        "overflows": outcome.overflows,
        "anomalies": outcome.anomalies,
        "far_numbers": far_numbers(obs, base.obs_mean, base.obs_std),
    }
    counts = {name: jnp.sum(count).astype(jnp.float32) for name, count in counts.items()}
    return next_state, (row, counts)


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
      record: whether to keep all positions, for rendering, and the base policy's last state.
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
        state = state._replace(env=env_state, history=history, carry=carry)
        return state, (success, actions, qpos, saturated)

    decisions = -(-env.task.episode_steps // base.act_horizon)
    state, (success, actions, qpos, saturated) = jax.lax.scan(decide, state, jnp.arange(decisions))
    limit = env.task.episode_steps
    flat = lambda x: x.reshape(-1, *x.shape[2:])[:limit]  # noqa: E731  (decisions, chunk) -> steps
    result = _summarize(flat(success), flat(actions), saturated, base.act_horizon)
    return result._replace(qpos=flat(qpos), carry=state.carry) if record else result


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
