"""Records demonstrations: an expert acts in many environments until enough attempts succeed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdjax_envs.demonstrations.trajectory import DataError, Trajectory, episode_keys
from pdjax_envs.task import Env, Expert, Task

DISTURBANCE_STEPS = 4  # control steps that one disturbance lasts
SEEDS = 2**31  # the number of seeds; seed 0 follows the last one


def record(
    env: Env,
    episodes: int,
    seed: int = 0,
    noise: float = 0.0,
    progress: Callable[[int], None] = lambda count: None,
    expert: Expert | None = None,
) -> tuple[list[Trajectory], float]:
    """Records successful episodes of an expert, each cut at its first success.

    Args:
      env: the environment.
      episodes: the number of successful episodes to record.
      seed: seed of the first episode; the seeds of further episodes count up.
      noise: size of the disturbances of the executed actions; `Trajectory.actions` are the actions
        that the expert wanted.
      progress: called with the number of episodes recorded so far.
      expert: the expert to record instead of the task's own.

    Returns:
      The trajectories and the share of attempts that succeeded.

    Raises:
      DataError: the task has no expert, or the expert never succeeds.
    """
    task = env.task
    if expert is None and task.expert is not None:
        expert = task.expert()
    if expert is None:
        raise DataError(
            f"task {task.name} has no scripted expert; bring your own demonstrations or"
            " pass --expert dapg:FILE"
        )
    width = min(64, max(8, episodes))
    attempt = jax.jit(_make_attempt(env, expert, noise))

    def attempts(seeds: np.ndarray) -> list[Trajectory]:
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
        return _cut(jax.device_get(attempt(env.model, keys)), seeds)

    return gather(attempts, width, episodes, seed, progress, task)


def gather(
    attempt: Callable[[np.ndarray], list[Trajectory]],
    width: int,
    episodes: int,
    seed: int,
    progress: Callable[[int], None],
    task: Task,
) -> tuple[list[Trajectory], float]:
    """Attempts episodes, `width` seeds at a time, until enough succeed.

    Args:
      attempt: seeds (width,) -> the episodes that succeed.
      width: attempts at once.
      episodes, seed, progress: see `record`.
      task: for the error message.

    Returns:
      The trajectories and the share of attempts that succeeded.

    Raises:
      DataError: the expert never succeeds.
    """
    trajectories: list[Trajectory] = []
    tried, won = 0, 0
    while len(trajectories) < episodes:
        found = attempt((seed + tried + np.arange(width)) % SEEDS)
        tried, won = tried + width, won + len(found)
        trajectories += found
        progress(min(len(trajectories), episodes))
        if tried >= 10 * width and won == 0:
            raise DataError(f"the expert of {task.name} failed in all of {tried} attempts")
    return trajectories[:episodes], won / tried


def _make_attempt(env: Env, expert: Expert, noise: float) -> Callable[..., Any]:
    """Returns (model, keys (n,)) -> initial states and arrays of n episodes, time first."""

    def snapshot(state):
        return jnp.concatenate([state.physics.qpos, state.physics.qvel])

    def step(model, carry, keys):
        state, obs, memory = carry
        act_key, noise_key = keys
        action, memory = expert.act(memory, obs, act_key)
        executed = expert.disturb(action, obs, noise_key, noise)
        state, out = env.step(model, state, executed)
        return (state, out.obs, memory), (out.obs, action, executed, out.success, snapshot(state))

    def attempt(model, keys):
        reset_keys, memory_keys, act_keys, noise_keys = jax.vmap(episode_keys)(keys)
        state, obs = jax.vmap(env.reset, (None, 0))(model, reset_keys)
        init_state = jax.vmap(env.task.get_state)(state.episode, state.physics)
        first = (obs, jax.vmap(snapshot)(state), init_state)
        memory = jax.vmap(expert.init)(memory_keys)

        def body(carry, index):
            fold = jax.vmap(jax.random.fold_in, (0, None))
            # A disturbance lasts a few control steps; the arm's inertia would smooth shorter ones.
            now = fold(act_keys, index), fold(noise_keys, index // DISTURBANCE_STEPS)
            return jax.vmap(step, (None, 0, 0))(model, carry, now)

        steps = jnp.arange(env.task.episode_steps)
        return first, jax.lax.scan(body, (state, obs, memory), steps)[1]

    return attempt


def _cut(recorded: Any, seeds: np.ndarray) -> list[Trajectory]:
    """Returns the successful episodes of an attempt, each up to and including its first success."""
    (first_obs, first_state, init_state), (obs, actions, executed, success, states) = recorded
    found = []
    for index in np.flatnonzero(success.any(axis=0)):
        steps = int(success[:, index].argmax()) + 1
        wanted, done = actions[:steps, index], executed[:steps, index]
        found.append(
            Trajectory(
                obs=np.concatenate([first_obs[index][None], obs[:steps, index]]),
                actions=wanted,
                success=success[:steps, index],
                env_states=np.concatenate([first_state[index][None], states[:steps, index]]),
                seed=int(seeds[index]),
                executed=None if np.array_equal(wanted, done) else done,
                init_state={name: values[index] for name, values in init_state.items()},
            )
        )
    return found
