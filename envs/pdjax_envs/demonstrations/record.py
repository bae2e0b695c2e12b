"""Records demonstrations: an expert acts in many environments until enough attempts succeeded."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdjax_envs.demonstrations.trajectory import DataError, Trajectory, episode_keys
from pdjax_envs.task import Env, Expert

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
    """Records successful episodes of an expert, cut at success.

    Args:
      env: the environment.
      episodes: successful episodes wanted.
      seed: of the first episode; further ones count up.
      noise: size of the expert's disturbances of the actions that are executed; `actions` are
        those that it wanted.
      progress: called with the number of episodes recorded so far.
      expert: records this one instead of the task's own.

    Returns:
      The trajectories and the share of attempts that succeeded.

    Raises:
      DataError: the task has no expert, or it never succeeds.
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
    trajectories, tried, won = [], 0, 0
    while len(trajectories) < episodes:
        seeds = (seed + tried + np.arange(width)) % SEEDS
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
        found = _cut(jax.device_get(attempt(env.model, keys)), seeds)
        tried, won = tried + width, won + len(found)
        trajectories.extend(found)
        progress(min(len(trajectories), episodes))
        if tried >= 10 * width and won == 0:
            raise DataError(f"the expert of {task.name} failed in all of {tried} attempts")
    return trajectories[:episodes], won / tried


def _make_attempt(env: Env, expert: Expert, noise: float) -> Callable[..., Any]:
    """(model, keys (n,)) -> initial states and arrays of one episode each, time first."""

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
            # A disturbance lasts a few control steps: short ones average out in the arm's inertia.
            now = fold(act_keys, index), fold(noise_keys, index // DISTURBANCE_STEPS)
            return jax.vmap(step, (None, 0, 0))(model, carry, now)

        steps = jnp.arange(env.task.episode_steps)
        return first, jax.lax.scan(body, (state, obs, memory), steps)[1]

    return attempt


def _cut(recorded: Any, seeds: np.ndarray) -> list[Trajectory]:
    """The successful episodes of one attempt, each up to and including its first success."""
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
