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

from pdjax.config.schema import DecoratorConfig
from pdjax.devices.sharding import AXIS, by_env
from pdjax.learner.decorator import clip_action, decorate, far_numbers, normalize
from pdjax.rollout.decision import Frozen, RolloutState, base_actions, play_decision, start_episode
from pdjax.rollout.evaluate import Evaluation, evaluate
from pdjax.types import Array, BasePolicy, Key, Metrics, Transition
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
    parts = Evaluation(
        *[by_episode] * 5, qpos=of_step, carry=by_episode, obs=of_step, base_action=of_step
    )

    def evaluation(frozen, choose_residual, residual_scale, key, episodes, record=False):
        def play_all(frozen: Frozen, keys: Array) -> Evaluation:
            residual = (seeing(frozen, choose_residual), residual_scale)
            return evaluate(env, base, frozen, residual, keys, record)

        return by_env(mesh, play_all, parts)(frozen, jax.random.split(key, episodes))

    view_dim = jax.eval_shape(
        see, Frozen(None, None, base.obs_mean, base.obs_std), jnp.zeros((1, base.obs_dim))
    ).shape[-1]
    return Rollout(init, collect, evaluation, see, view_dim)


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
