"""One decision: the state that an environment keeps between two decisions, and how a chunk plays.

Collecting for the replay and evaluating share this module, because both start episodes and play
chunks in the same way. Owns RolloutState.
"""

# pyright: reportUnknownMemberType=false

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdjax.base_policies.chunking import push_history, start_history
from pdjax.rollout import retry
from pdjax.types import Array, BasePolicy, Key, Params
from pdjax_envs.physics.anomalies import is_anomalous, joint_limits
from pdjax_envs.task import Env, EnvState, select

BLOCKS = 8
"""Number of blocks of environments in which new episodes start, see `block_size`."""


class Frozen(NamedTuple):
    """The arrays that no training step changes: an argument of every jitted program, never donated.

    Attributes:
      model: the physics engine's model.
      base_params: the base policy's parameters.
      obs_mean: (obs_dim,) subtracted from observations before the learner sees them.
      obs_std: (obs_dim,) divides them afterwards.
      demos: a ReplayState of demonstrations, see `training.demo_ring`; () if the run learns from
        none.
    """

    model: Any
    base_params: Params
    obs_mean: Array
    obs_std: Array
    demos: Any = ()


class RolloutState(NamedTuple):
    """The state of one environment between two decisions; batched, it has a leading axis num_envs.

    Attributes:
      env: the environment's own state.
      history: (obs_horizon, obs_dim) latest observations, oldest first.
      carry: the base policy's own state.
      done: () bool, the last decision ended the episode; the next one starts a new one.
      succeeded: () bool, the task was solved at some control step of the episode so far.
      retry: a `Retry` if failed episodes are tried again, else ().
      noise: (residual_dim,) noise of the last decision if exploration is correlated, else ().
    """

    env: EnvState
    history: Array
    carry: Any
    done: Array
    succeeded: Array
    retry: Any = ()
    noise: Any = ()


class Outcome(NamedTuple):
    """The result of one decision.

    Attributes:
      reward: () float32, the sum over its control steps.
      terminated: () bool, the episode ended in a terminal state.
      truncated: () bool, the episode reached its time limit.
      success: () bool, the task was solved at one of its control steps.
      steps: () int32, control steps taken.
      bad_actions: () int32, control steps whose action was not in [-1, 1].
      overflows: () int32, control steps in which the engine left out contacts or constraints.
      anomalies: () int32, control steps after which a joint was beyond ANOMALOUS_SPEED or
        ANOMALOUS_OVERRUN, or a number was not finite.
    """

    reward: Array
    terminated: Array
    truncated: Array
    success: Array
    steps: Array
    bad_actions: Array
    overflows: Array
    anomalies: Array


def base_actions(
    base: BasePolicy, frozen: Frozen, carry: Any, history: Array, keys: Array
) -> tuple[Array, Any]:
    """Calls the base policy in all environments.

    Args:
      base: the base policy.
      frozen: only `base_params` is read.
      carry: the base policy's state, with leaves (num_envs, ...).
      history: (num_envs, obs_horizon, obs_dim).
      keys: (num_envs,), consumed.

    Returns:
      Chunks (num_envs, act_horizon, act_dim) in [-1, 1], and the next carry.
    """
    return jax.vmap(base.apply, (None, 0, 0, 0))(frozen.base_params, carry, history, keys)


def start_episode(env: Env, base: BasePolicy, frozen: Frozen, key: Key) -> RolloutState:
    """Starts a new episode in one environment, from a random initial state."""
    reset_key, carry_key = jax.random.split(key)
    state, obs = env.reset(frozen.model, reset_key)
    history = start_history(obs, base.obs_horizon)
    no = jnp.zeros((), bool)
    return RolloutState(state, history, base.init_carry(carry_key), done=no, succeeded=no)


def play_chunk(
    env: Env, frozen: Frozen, state: EnvState, history: Array, chunk: Array
) -> tuple[EnvState, Array, Outcome]:
    """Executes a chunk in one environment and skips what remains of it once the episode ends.

    Args:
      env: the environment.
      frozen: only `model` is read.
      state: the environment's state.
      history: (obs_horizon, obs_dim).
      chunk: (act_horizon, act_dim) in [-1, 1].

    Returns:
      The next state, the next history and the outcome.
    """
    limits = joint_limits(env.task.scene)

    def step(
        carry: tuple[EnvState, Array, Outcome], action: Array
    ) -> tuple[tuple[EnvState, Array, Outcome], None]:
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
                anomalies=outcome.anomalies + is_anomalous(limits, next_state.physics, out.obs),
            ),
        )
        return select(over, carry, played), None

    no, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    nothing = Outcome(jnp.zeros(()), no, no, no, zero, zero, zero, zero)
    return jax.lax.scan(step, (state, history, nothing), chunk)[0]


def play_decision(
    env: Env,
    base: BasePolicy,
    frozen: Frozen,
    reset_key: Key,
    state: RolloutState,
    chunk: Array,
    numbers: Array,
    retry_share: float = 0.0,
) -> tuple[RolloutState, Outcome, Array, Array]:
    """Executes chunks, and starts new episodes where the last decision ended one.

    Args:
      env: the environment.
      base: the base policy.
      frozen: the physics model and the base policy's parameters.
      reset_key: the key of the new episodes; each environment folds in its own number.
      state: the state of some environments, with the base policy's next carry.
      chunk: (environments, act_horizon, act_dim).
      numbers: (environments,) int32, their places among all environments.
      retry_share: share of failed episodes to try again; above 0, `state` has a `Retry`.

    Returns:
      The next state, the outcomes, whether an episode ended, and whether it has succeeded so far,
      all with a leading axis (environments,).
    """
    played_env, history, outcome = jax.vmap(play_chunk, (None, None, 0, 0, 0))(
        env, frozen, state.env, state.history, chunk
    )
    succeeded = state.succeeded | outcome.success
    done = outcome.terminated | outcome.truncated
    played = RolloutState(played_env, history, state.carry, done, succeeded)

    def start(index: Array) -> RolloutState:
        key = jax.random.fold_in(start_key, numbers[index])
        return start_episode(env, base, frozen, key)

    start_key = reset_key
    if retry_share:
        start_key, retry_key = jax.random.split(reset_key)
        fresh = partial(_restart, start)
        following = retry.restart(fresh, retry_share, retry_key, numbers, state, played)
    else:
        following = _restart(start, played, state.done)
    following = following._replace(noise=state.noise)
    return following, outcome, done & ~state.done, succeeded


def block_size(num_envs: int) -> int:
    """Returns how many of `num_envs` environments start their new episodes at the same time."""
    return -(-num_envs // BLOCKS)


def _restart(
    start: Callable[[Array], RolloutState], state: RolloutState, is_over: Array
) -> RolloutState:
    """Replaces the environments whose episode is over by `start(index)`, one block at a time.

    Most decisions end only a few episodes. Starting an episode in every environment would cost as
    much as a control step of all of them; the cost of this loop grows with the episodes to start.
    """
    num_envs = len(is_over)
    block = block_size(num_envs)

    def start_some(carry: tuple[RolloutState, Array]) -> tuple[RolloutState, Array]:
        state, waiting = carry
        # an index of num_envs is out of range, so it changes nothing
        index = jnp.nonzero(waiting, size=block, fill_value=num_envs)[0]
        fresh = jax.vmap(start)(index)
        state = jax.tree.map(partial(_put, index), state, fresh)
        return state, waiting.at[index].set(False, mode="drop")

    def any_waiting(carry: tuple[RolloutState, Array]) -> Array:
        return carry[1].any()

    return jax.lax.while_loop(any_waiting, start_some, (state, is_over))[0]


def _put(index: Array, old: Array, new: Array) -> Array:
    return old.at[index].set(new, mode="drop")
