"""Rollouts: the functions that collect transitions for the replay and evaluate policies.

Both run as one `jax.lax.scan` over decisions. A decision is one call of the base policy and the
execution of its chunk. When an episode ends, the next decision ignores its action and starts a new
episode (next-step autoreset), so each row of the replay holds one observation. Evaluation has its
own result type and never touches training state.
"""

# pyright: reportUnknownMemberType=false

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from pdjax.config.schema import Config
from pdjax.devices.sharding import AXIS, by_env
from pdjax.learner.decorator import clip_action, decorate, far_numbers, normalize
from pdjax.learner.holes import mark_holes
from pdjax.learner.sac import residual_dim
from pdjax.rollout import retry
from pdjax.rollout.decision import (
    Frozen,
    Outcome,
    RolloutState,
    base_actions,
    play_decision,
    start_episode,
)
from pdjax.rollout.evaluate import Evaluation, Residual, evaluate
from pdjax.types import Array, BasePolicy, Key, Metrics, Scalar, Transition
from pdjax_envs.task import Env, in_float32

PLAIN = Config()

Explore = Callable[..., tuple[Array, Scalar]]
"""(view, base_action, key, index) -> (residual_action, residual_scale) while collecting.

All arrays have a leading axis num_envs, except the key and the decision's index in its block. With
`gate="uncertain"` a fifth argument follows: (num_envs,), the mean squared difference between two
draws of the base policy. With `sac.noise_correlation`, `noise` is (num_envs, residual_dim): the
standard normal numbers to draw the residuals with."""


class Rollout(NamedTuple):
    """The rollout functions of one environment and one base policy.

    Attributes:
      init: (frozen, key, num_envs) -> RolloutState.
      collect: (frozen, state, explore, keys (decisions,)) -> (state, rows, metrics). `explore` is
        an `Explore`; the rows are a Transition with leaves (decisions, num_envs, ...); the metrics
        count events over the block, see `record`.
      evaluate: (frozen, residual, residual_scale, key, episodes, record=False) -> Evaluation. The
        residual reads the view and the base action, see `evaluate.Residual`.
      see: (frozen, obs (n, obs_dim)) -> (n, view_dim), the view that the learner's networks read.
      view_dim: count of numbers in one view.
    """

    init: Callable[..., RolloutState]
    collect: Callable[
        [Frozen, RolloutState, Explore, Array], tuple[RolloutState, Transition, Metrics]
    ]
    evaluate: Callable[..., Evaluation]
    see: Callable[[Frozen, Array], Array]
    view_dim: int


def make_rollout(
    env: Env,
    base: BasePolicy,
    config: Config = PLAIN,
    mesh: Mesh | None = None,
) -> Rollout:
    """Binds the rollout functions to an environment and a base policy.

    Args:
      env: the environment.
      base: the base policy.
      config: what the learner sees, how it explores, and which episodes are tried again.
      mesh: the devices that share the environments; None = those that hold the inputs.
    """
    decorator, retry_share = config.decorator, config.train.retry_share
    features = env.task.features if decorator.task_features else None
    exploring = exploring_of(config)

    def see(frozen: Frozen, obs: Array) -> Array:
        seen = normalize(obs, frozen.obs_mean, frozen.obs_std)
        if features is None:
            return seen
        related = jax.vmap(in_float32(features))(obs)
        return related if decorator.only_features else jnp.concatenate([seen, related], axis=-1)

    def start_all(frozen: Frozen, keys: Array) -> RolloutState:
        state = jax.vmap(partial(start_episode, env, base, frozen))(keys)
        return retry.init(state) if retry_share else state

    def init(frozen: Frozen, key: Key, num_envs: int) -> RolloutState:
        state = by_env(mesh, start_all)(frozen, jax.random.split(key, num_envs))
        return state._replace(noise=exploring.first_noise(num_envs, residual_dim(decorator, base)))

    def play_all(
        whole: tuple[Frozen, Key], state: RolloutState, chunk: Array, numbers: Array
    ) -> tuple[RolloutState, Outcome, Array, Array]:
        return play_decision(env, base, *whole, state, chunk, numbers, retry_share)

    act, play = by_env(mesh, partial(base_actions, base)), by_env(mesh, play_all)

    def collect(
        frozen: Frozen, state: RolloutState, explore: Explore, keys: Array
    ) -> tuple[RolloutState, Transition, Metrics]:
        def explore_view(obs: Array, *rest: Array, **noise: Array) -> tuple[Array, Scalar]:
            return explore(see(frozen, obs), *rest, **noise)

        def decide(
            state: RolloutState, now: tuple[Key, Array]
        ) -> tuple[RolloutState, tuple[Transition, Metrics]]:
            was_done, numbers = state.done, jnp.arange(len(state.done))
            state, choice, reset_key = choose(act, frozen, explore_view, exploring, state, *now)
            played = Played(*play((frozen, reset_key), state, choice.chunk, numbers))
            return record(base, choice, was_done, played)

        state, (rows, counts) = jax.lax.scan(decide, state, (keys, jnp.arange(len(keys))))
        return state, rows, {name: jnp.sum(count) for name, count in counts.items()}

    by_episode: Any = PartitionSpec(AXIS)
    of_step: Any = PartitionSpec(None, AXIS)
    parts = Evaluation(
        *[by_episode] * 6, qpos=of_step, carry=by_episode, obs=of_step, base_action=of_step
    )

    def evaluate_view(
        frozen: Frozen,
        residual: Residual,
        residual_scale: Scalar,
        key: Key,
        episodes: int,
        record: bool = False,
    ) -> Evaluation:
        def evaluate_all(frozen: Frozen, keys: Array) -> Evaluation:
            return evaluate(
                env=env,
                base=base,
                frozen=frozen,
                residual=lambda obs, base_action: residual(see(frozen, obs), base_action),
                residual_scale=residual_scale,
                keys=keys,
                record=record,
            )

        return by_env(mesh, evaluate_all, parts)(frozen, jax.random.split(key, episodes))

    view_dim = jax.eval_shape(
        see, Frozen(None, None, base.obs_mean, base.obs_std), jnp.zeros((1, base.obs_dim))
    ).shape[-1]
    return Rollout(init, collect, evaluate_view, see, view_dim)


class Exploring(NamedTuple):
    """How the residuals of exploration are drawn.

    Attributes:
      is_gate_uncertain: whether an `Explore` also gets the base policy's uncertainty.
      noise_correlation: see `SACConfig.noise_correlation`; 0 = an `Explore` draws its own noise.
    """

    is_gate_uncertain: bool = False
    noise_correlation: float = 0.0

    def first_noise(self, num_envs: int, size: int) -> Any:
        """Returns the noise (num_envs, size) before the first decision; () if none is kept."""
        return jnp.zeros((num_envs, size)) if self.noise_correlation else ()

    def next_noise(self, noise: Array, key: Key) -> Array:
        """Returns the next noise: standard normal as before, correlated with that before (AR(1)).

        Args:
          noise: (num_envs, residual_dim) of the decision before.
          key: consumed.
        """
        rho = self.noise_correlation
        return rho * noise + math.sqrt(1 - rho**2) * jax.random.normal(key, noise.shape)


def exploring_of(config: Config) -> Exploring:
    """Returns how a run explores."""
    return Exploring(config.decorator.gate == "uncertain", config.sac.noise_correlation)


class Choice(NamedTuple):
    """What all environments are about to execute; leaves have a leading axis num_envs.

    Attributes:
      obs: (obs_dim,), the newest observation.
      base_action: (chunk_dim,).
      residual_action: (residual_dim,), after the gate.
      chunk: (act_horizon, act_dim) to execute.
      is_sound: () bool, all of these are finite.
    """

    obs: Array
    base_action: Array
    residual_action: Array
    chunk: Array
    is_sound: Array


def choose(
    act: Callable[[Frozen, Any, Array, Array], tuple[Array, Any]],
    frozen: Frozen,
    explore: Explore,
    exploring: Exploring,
    state: RolloutState,
    key: Key,
    index: Array,
) -> tuple[RolloutState, Choice, Key]:
    """Chooses what to execute in all environments: base action and residual.

    Args:
      act: `base_actions` for all environments, each computed on its own device.
      frozen: the physics model, the base policy's parameters, the observation statistics.
      explore: an `Explore` that reads observations instead of views.
      exploring: what `explore` gets besides.
      state: the state of all environments.
      key: consumed.
      index: () int32, the decision's index in its block.

    Returns:
      The state with the base policy's next carry, the choice, and a key for new episodes.
    """
    num_envs = len(state.history)
    base_key, residual_key, reset_key, doubt_key = jax.random.split(key, 4)
    base_keys = jax.random.split(base_key, num_envs)
    chunk, carry = act(frozen, state.carry, state.history, base_keys)
    base_action = chunk.reshape(num_envs, -1)
    obs = state.history[:, -1]
    uncertainty: tuple[Array, ...] = ()
    if exploring.is_gate_uncertain:
        other, _ = act(frozen, state.carry, state.history, jax.random.split(doubt_key, num_envs))
        uncertainty = (jnp.mean((other - chunk) ** 2, axis=(1, 2)),)
    noise: dict[str, Array] = {}
    if exploring.noise_correlation:
        residual_key, noise_key = jax.random.split(residual_key)
        noise["noise"] = exploring.next_noise(state.noise, noise_key)
        state = state._replace(**noise)
    residual_action, residual_scale = explore(
        obs, base_action, residual_key, index, *uncertainty, **noise
    )
    action = clip_action(decorate(base_action, residual_action, residual_scale))
    is_sound = _is_finite(obs) & _is_finite(base_action) & _is_finite(residual_action)
    choice = Choice(obs, base_action, residual_action, action.reshape(chunk.shape), is_sound)
    return state._replace(carry=carry), choice, reset_key


class Played(NamedTuple):
    """What a decision led to; leaves have a leading axis num_envs.

    Attributes:
      state: the next state.
      outcome: see `Outcome`; of no meaning where the decision began an episode.
      ended: () bool, the decision ended an episode.
      succeeded: () bool, the episode has succeeded so far.
    """

    state: RolloutState
    outcome: Outcome
    ended: Array
    succeeded: Array


def record(
    base: BasePolicy, choice: Choice, was_done: Array, played: Played
) -> tuple[RolloutState, tuple[Transition, Metrics]]:
    """Makes the rows of the replay and the counts of a decision.

    Retries count as no episodes, so that successes stay those from true starts.

    An episode is cut, truncated, where a number is not finite: in its row, which becomes a hole of
    the replay, or in what the base policy would read next.

    Args:
      base: the base policy; only its sizes and statistics are read.
      choice: what was executed.
      was_done: (num_envs,) bool, the decision began an episode instead.
      played: what it led to.

    Returns:
      The next state, and the decision's rows and its counts over all environments.
    """
    state, outcome, ended, succeeded = played
    outcome = Outcome(*[jnp.where(was_done, jnp.zeros_like(x), x) for x in outcome])
    is_sound = choice.is_sound & jnp.isfinite(outcome.reward)
    # Not finite: what the base policy would read next, or, unless the action is ignored, the row.
    is_cut = ~_is_finite(state.history) | ~(is_sound | was_done)
    state = state._replace(done=state.done | is_cut)
    is_first: Array | bool = True
    if state.retry:  # what was cut is not tried again
        decisions = jnp.where(is_cut, 0, state.retry.decisions)
        state = state._replace(retry=state.retry._replace(decisions=decisions))
        is_first = ~state.retry.is_retry
    ended, succeeded = ended | (is_cut & ~was_done), succeeded & ~is_cut
    row = Transition(
        obs=choice.obs,
        base_action=choice.base_action,
        residual_action=choice.residual_action,
        reward=outcome.reward,
        terminated=outcome.terminated & ~is_cut,
        truncated=outcome.truncated | (is_cut & ~was_done),
        is_reset=was_done,
    )
    row = mark_holes(row, ~is_sound)
    counts = {
        "episodes": ended & is_first,
        "cut_episodes": is_cut,
        "reward": row.reward,
        "successes": ended & succeeded & is_first,
        "control_steps": outcome.steps,
        "bad_actions": outcome.bad_actions,
        "overflows": outcome.overflows,
        "anomalies": outcome.anomalies,
        "far_numbers": far_numbers(choice.obs, base.obs_mean, base.obs_std),
    }
    counts = {name: jnp.sum(count).astype(jnp.float32) for name, count in counts.items()}
    return state, (row, counts)


def _is_finite(numbers: Array) -> Array:
    """Returns (num_envs,) whether all numbers of an environment are finite."""
    return jnp.all(jnp.isfinite(numbers), axis=tuple(range(1, numbers.ndim)))
