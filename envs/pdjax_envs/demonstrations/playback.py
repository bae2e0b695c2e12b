"""Replays demonstrations in the simulator: from their initial state, action by action, open loop.

A replay shows whether a recording and the simulator agree on the meaning of states, actions and
success. Separate from reading because it needs an environment. Holds no state.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdjax_envs.demonstrations.trajectory import DataError, Trajectory, episode_keys
from pdjax_envs.task import Env, Start, Task

_WIDTH = 64  # episodes that step in parallel


class Replay(NamedTuple):
    """The result of replaying an episode: `obs` (T + 1, obs_dim) and `success` (T,) bool."""

    obs: np.ndarray
    success: np.ndarray


def can_start(env: Env, trajectory: Trajectory) -> bool:
    """Returns whether an episode can be begun again; worker processes need the seed for that."""
    return trajectory.seed >= 0 or (env.open is None and trajectory.init_state is not None)


def replay(env: Env, trajectories: list[Trajectory]) -> list[Replay]:
    """Plays the executed actions of episodes from their initial states, or else from their seeds.

    Neither success nor the time limit ends an episode.

    Raises:
      DataError: an initial state is unknown or does not fit the task.
    """
    starts = [make_start(env.task, trajectory) for trajectory in trajectories]
    play = jax.jit(partial(_play, env))
    replays = []
    for first in range(0, len(trajectories), _WIDTH):
        chunk = trajectories[first : first + _WIDTH]
        longest = max(len(trajectory.actions) for trajectory in chunk)
        actions = np.zeros((longest, len(chunk), env.task.act_dim), np.float32)
        for index, trajectory in enumerate(chunk):
            executed = trajectory.actions if trajectory.executed is None else trajectory.executed
            actions[: len(executed), index] = executed
        start = jax.tree.map(lambda *rows: jnp.stack(rows), *starts[first : first + _WIDTH])
        obs, success = jax.device_get(play(env.model, start, actions))  # (T + 1, n, ..), (T, n)
        for index, trajectory in enumerate(chunk):
            steps = len(trajectory.actions)
            replays.append(Replay(obs[: steps + 1, index], success[:steps, index]))
    return replays


def make_start(task: Task, trajectory: Trajectory) -> Start:
    """Returns the start of an episode.

    Raises:
      DataError: the initial state is unknown, lacks a quantity, or has one of the wrong size.
    """
    if trajectory.init_state is None and trajectory.seed < 0:
        raise DataError("the episode's initial state is unknown; it cannot be replayed")
    if trajectory.init_state is None:
        return task.sample_start(episode_keys(jax.random.key(trajectory.seed))[0])
    state = {name: jnp.asarray(a, jnp.float32) for name, a in trajectory.init_state.items()}
    expected = jax.eval_shape(task.sample_start, jax.random.key(0))
    try:
        start = task.make_start(state)
        sizes = [jax.tree.map(jnp.shape, start), jax.tree.map(jnp.shape, expected)]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"an initial state is not one of {task.name}: {type(error).__name__}"
            f" {error}; expected what its environment writes"
        ) from None
    if sizes[0] != sizes[1]:
        raise DataError(
            f"an initial state has sizes {sizes[0]}, expected {sizes[1]} for {task.name}"
        )
    return start


def _play(env: Env, model, starts: Start, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Plays actions (T, n, ..) from n starts: observations (T + 1, n, obs_dim), success (T, n)."""
    state, first = jax.vmap(env.start_from, (None, 0))(model, starts)

    def step(state, action):
        state, out = jax.vmap(env.step, (None, 0, 0))(model, state, action)
        return state, (out.obs, out.success)

    obs, success = jax.lax.scan(step, state, actions)[1]
    return jnp.concatenate([first[None], obs]), success
