"""Evaluation: one whole episode per environment, up to the time limit, apart from training."""

# pyright: reportUnknownMemberType=false

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdjax.base_policies.chunking import push_history
from pdjax.learner.decorator import clip_action, decorate
from pdjax.rollout.decision import Frozen, RolloutState, base_actions, start_episode
from pdjax.types import Array, BasePolicy, Key, Scalar
from pdjax_envs.task import Env, EnvState

Residual = Callable[[Array, Array], Array]
"""(observation or view, base_action) -> residual_action in [-1, 1] while evaluating.

All arrays have a leading axis (episodes,)."""


OUTCOMES = (  # of each episode, whether recorded or not
    "success_once",
    "success_at_end",
    "steps_to_success",
    "smoothness",
    "saturation",
    "returns",
)


class Evaluation(NamedTuple):
    """The outcomes of evaluated episodes; leaves have shape (episodes,) unless stated.

    Attributes:
      success_once: bool, the task was solved at some control step; None if the task has no success.
      success_at_end: bool, the task was solved at the last control step of the time limit; None if
        the task has no success.
      steps_to_success: int32, control steps until the first success, or the time limit.
      smoothness: float32, mean squared second difference of the actions executed until then.
      saturation: float32, share of residual numbers above 0.95 in absolute value until then.
      returns: float32, sum of the rewards until the episode terminates; rewards that are not finite
        count as 0.
      qpos: (episode_steps, episodes, nq) positions after each control step; None unless recorded.
      carry: the base policy's own state after the last decision; None unless recorded.
      obs: (decisions, episodes, obs_dim) newest observation at each decision; None unless recorded.
      base_action: (decisions, episodes, chunk_dim) the base policy's choice at each decision; None
        unless recorded.
      starts_differ: bool, one seed gives different starts, so that two evaluations with it play
        different episodes; None = they play the same.
    """

    success_once: Any
    success_at_end: Any
    steps_to_success: Array
    smoothness: Array
    saturation: Array
    returns: Any
    qpos: Array | None
    carry: Any = None
    obs: Any = None
    base_action: Any = None
    starts_differ: bool | None = None

    @property
    def scores(self) -> Array:
        """(episodes,) what policies are judged by: success_once, or the return without success."""
        return self.returns if self.success_once is None else self.success_once

    @property
    def score(self) -> float:
        """The mean of `scores`."""
        return float(self.scores.mean())


class _Decision(NamedTuple):
    """The record of one decision; after the scan, leaves have a leading axis (decisions,).

    Attributes:
      success: (act_horizon, episodes) bool.
      reward: (act_horizon, episodes).
      terminated: (act_horizon, episodes) bool.
      actions: (act_horizon, episodes, act_dim), executed.
      saturated: (episodes,) share of residual numbers above 0.95 in absolute value.
      qpos: (act_horizon, episodes, nq), or None.
      obs: (episodes, obs_dim), or None.
      base_action: (episodes, chunk_dim), or None.
    """

    success: Array
    reward: Array
    terminated: Array
    actions: Array
    saturated: Array
    qpos: Array | None
    obs: Array | None
    base_action: Array | None


def evaluate(
    env: Env,
    base: BasePolicy,
    frozen: Frozen,
    residual: Residual,
    residual_scale: Scalar,
    keys: Array,
    record: bool,
) -> Evaluation:
    """Plays one episode per key up to the time limit, beyond success too.

    Two policies with the same keys meet the same initial states and the same noise of the base
    policy.

    Args:
      env: the environment.
      base: the base policy.
      frozen: the physics model, the base policy's parameters, the observation statistics.
      residual: chooses the residuals; it reads observations here.
      residual_scale: at 0, the base policy plays alone.
      keys: (episodes,), one per episode.
      record: whether to keep positions, observations, base actions and the last carry too.
    """
    start_keys, noise_keys = _episode_keys(keys)
    state = jax.vmap(partial(start_episode, env, base, frozen))(start_keys)

    def control_step(
        carry: tuple[EnvState, Array], action: Array
    ) -> tuple[tuple[EnvState, Array], tuple[Any, ...]]:
        state, history = carry
        state, out = jax.vmap(env.step, (None, 0, 0))(frozen.model, state, action)
        history = jax.vmap(push_history)(history, out.obs)
        qpos = state.physics.qpos if record else None
        return (state, history), (out.success, out.reward, out.terminated, qpos)

    def decide(state: RolloutState, index: Array) -> tuple[RolloutState, _Decision]:
        now = jax.vmap(jax.random.fold_in, (0, None))(noise_keys, index)
        chunk, carry = base_actions(base, frozen, state.carry, state.history, now)
        obs, base_action = state.history[:, -1], chunk.reshape(len(keys), -1)
        residual_action = residual(obs, base_action)
        action = clip_action(decorate(base_action, residual_action, residual_scale))
        action = jnp.where(jnp.isnan(action), 0, action)  # as the environment takes it
        actions = jnp.moveaxis(action.reshape(chunk.shape), 1, 0)  # (act_horizon, episodes, dim)
        (env_state, history), (success, reward, terminated, qpos) = jax.lax.scan(
            control_step, (state.env, state.history), actions
        )
        decision = _Decision(
            success=success,
            reward=reward,
            terminated=terminated,
            actions=actions,
            saturated=jnp.mean(jnp.abs(residual_action) > 0.95, axis=-1),
            qpos=qpos,
            obs=obs if record else None,
            base_action=base_action if record else None,
        )
        return state._replace(env=env_state, history=history, carry=carry), decision

    limit = env.task.episode_steps
    state, played = jax.lax.scan(decide, state, jnp.arange(-(-limit // base.act_horizon)))

    def flat(x: Array) -> Array:  # (decisions, act_horizon, ...) -> (episode_steps, ...)
        return x.reshape(-1, *x.shape[2:])[:limit]

    result = _summarize(
        flat(played.success), flat(played.actions), played.saturated, base.act_horizon
    )
    returns = _returns(flat(played.reward), flat(played.terminated))
    result = result._replace(returns=returns)
    if not env.task.has_success:
        result = result._replace(success_once=None, success_at_end=None)
    if played.qpos is None:  # not recorded
        return result
    return result._replace(
        qpos=flat(played.qpos), carry=state.carry, obs=played.obs, base_action=played.base_action
    )


def _episode_keys(keys: Array) -> tuple[Array, Array]:
    """Returns the keys (episodes,) of the episodes' starts and of the base policy's noise."""

    def split(key: Key) -> tuple[Array, Array]:
        start_key, noise_key = jax.random.split(key)
        return start_key, noise_key

    return jax.vmap(split)(keys)


def episode_overrides(env: Env, keys: Array) -> dict[str, Array]:
    """Returns the model overrides (episodes, rows, ...) of the episodes that `evaluate` plays.

    Args:
      env: the environment.
      keys: (episodes,), the keys that `evaluate` receives.
    """

    def overrides(start_key: Key) -> dict[str, Array]:
        # `start_episode` splits once more, between the environment and the base policy.
        return env.task.sample_start(jax.random.split(start_key)[0]).episode.overrides

    return jax.device_get(jax.vmap(overrides)(_episode_keys(keys)[0]))


def _summarize(success: Array, actions: Array, saturated: Array, act_horizon: int) -> Evaluation:
    """Computes each episode's numbers.

    Args:
      success: (steps, episodes) bool.
      actions: (steps, episodes, act_dim), executed.
      saturated: (decisions, episodes), see `_Decision`.
      act_horizon: control steps per decision.
    """
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
        returns=None,
        qpos=None,
    )


def _returns(reward: Array, terminated: Array) -> Array:
    """Returns (episodes,) the sum of the rewards (steps, episodes) until an episode terminates."""
    ended_before = jnp.cumsum(terminated, axis=0) - terminated > 0
    return jnp.sum(jnp.where(ended_before | ~jnp.isfinite(reward), 0, reward), axis=0)
