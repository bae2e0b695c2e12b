"""One decision: what an environment carries between two of them, and how a chunk is played.

Kept apart because collecting for the replay and evaluating start episodes and play chunks the same
way. Owns RolloutState.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdjax.base_policies.chunking import push_history, start_history
from pdjax.types import Array, BasePolicy, Key, Params
from pdjax_envs.physics.anomalies import is_anomalous, joint_limits
from pdjax_envs.task import Env, EnvState, select

BLOCKS = 8  # in which episodes start anew, see `block_size`


class Frozen(NamedTuple):
    """What no training step changes: an argument of every jitted program, never donated.

    Attributes:
      model: the physics engine's model.
      base_params: the base policy's parameters.
      obs_mean: (obs_dim,) subtracted from observations before the learner sees them.
      obs_std: (obs_dim,) by which they are then divided.
      demos: a ReplayState of demonstrations, see `demo_replay`; () where none are learned from.
    """

    model: Any
    base_params: Params
    obs_mean: Array
    obs_std: Array
    demos: Any = ()


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
      anomalies: () int32, of them with a joint beyond ANOMALOUS_SPEED or ANOMALOUS_OVERRUN, or
        numbers not finite.
    """

    reward: Array
    terminated: Array
    truncated: Array
    success: Array
    steps: Array
    bad_actions: Array
    overflows: Array
    anomalies: Array


def base_actions(base: BasePolicy, frozen: Frozen, carry: Any, history: Array, keys: Key):
    """Chunks (num_envs, act_horizon, act_dim) of the base policy, and its next carry.

    `keys` are (num_envs,).
    """
    return jax.vmap(base.apply, (None, 0, 0, 0))(frozen.base_params, carry, history, keys)


def start_episode(env: Env, base: BasePolicy, frozen: Frozen, key: Key) -> RolloutState:
    """A fresh episode of one environment."""
    reset_key, carry_key = jax.random.split(key)
    state, obs = env.reset(frozen.model, reset_key)
    history = start_history(obs, base.obs_horizon)
    no = jnp.zeros((), bool)
    return RolloutState(state, history, base.init_carry(carry_key), done=no, succeeded=no)


def play_chunk(env: Env, frozen: Frozen, state: EnvState, history: Array, chunk: Array):
    """Executes a chunk in one environment; after the episode's end the rest is not played."""
    limits = joint_limits(env.task.scene)

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
                anomalies=outcome.anomalies + is_anomalous(limits, next_state.physics, out.obs),
            ),
        )
        return select(over, carry, played), None

    no, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    nothing = Outcome(jnp.zeros(()), no, no, no, zero, zero, zero, zero)
    return jax.lax.scan(step, (state, history, nothing), chunk)[0]


def play_decision(
    env: Env, base: BasePolicy, whole: Any, state: RolloutState, chunk: Array, numbers: Array
):
    """Executes chunks, or starts new episodes where the last decision ended one.

    Args:
      env: the environment.
      base: the base policy.
      whole: (frozen, key of the new episodes).
      state: of some environments, with the base policy's next carry.
      chunk: (environments, act_horizon, act_dim).
      numbers: (environments,) of them among all.

    Returns:
      The next state, outcomes, whether an episode ended, and whether it has succeeded so far.
    """
    frozen, reset_key = whole
    played_env, history, outcome = jax.vmap(play_chunk, (None, None, 0, 0, 0))(
        env, frozen, state.env, state.history, chunk
    )
    succeeded = state.succeeded | outcome.success
    done = outcome.terminated | outcome.truncated
    played = RolloutState(played_env, history, state.carry, done, succeeded)

    def start(index: Array) -> RolloutState:
        key = jax.random.fold_in(reset_key, numbers[index])
        return start_episode(env, base, frozen, key)

    return _restart(start, played, state.done), outcome, done & ~state.done, succeeded


def block_size(num_envs: int) -> int:
    """Environments that start a new episode at a time, while any of `num_envs` has to."""
    return -(-num_envs // BLOCKS)


def _restart(start, state: RolloutState, is_over: Array) -> RolloutState:
    """Replaces the environments that are over by `start` of their index, a few at a time.

    In most decisions a few episodes end, so starting one in every environment would cost as much
    as a control step of all of them; a loop over blocks costs what there is to start.
    """
    num_envs = len(is_over)
    block = block_size(num_envs)

    def start_some(carry):
        state, waiting = carry
        index = jnp.nonzero(waiting, size=block, fill_value=num_envs)[0]  # beyond: dropped
        fresh = jax.vmap(start)(index)
        state = jax.tree.map(lambda old, new: old.at[index].set(new, mode="drop"), state, fresh)
        return state, waiting.at[index].set(False, mode="drop")

    return jax.lax.while_loop(lambda carry: carry[1].any(), start_some, (state, is_over))[0]
