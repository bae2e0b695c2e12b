"""Demonstrations: recorded by an expert, written in ManiSkill's HDF5 layout, read from any layout.

One HDF5 group per episode (`traj_0`, ...) with `obs` (T + 1, obs_dim), `actions` (T, act_dim),
`success` (T,) and `env_states` (T + 1, nq + nv); the sidecar names the task and the episodes.
Layout: mani-skill2 0.5.3 `utils/wrappers/record.py`. Ours adds what an exact replay needs: the
group `init_state`, and `executed_actions` where a disturbance made them differ from `actions`.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np

from pdjax_envs import importers, registry
from pdjax_envs.adroit import rewards
from pdjax_envs.importers import Recording
from pdjax_envs.task import Env, Expert, Task
from pdjax_envs.trajectory import DataError, Trajectory, check, episode_keys

DISTURBANCE_STEPS = 4  # control steps that one disturbance lasts


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
        raise DataError(f"task {task.name} has no scripted expert; bring your own demonstrations or"
                        " pass --expert dapg:FILE")  # fmt: skip
    width = min(64, max(8, episodes))
    attempt = jax.jit(_make_attempt(env, expert, noise))
    trajectories, tried, won = [], 0, 0
    while len(trajectories) < episodes:
        seeds = np.arange(seed + tried, seed + tried + width)
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


def write(path: Path, task: Task, trajectories: list[Trajectory]) -> None:
    """Writes an HDF5 file and its JSON sidecar; both appear only when they are complete.

    Raises:
      DataError: one of them exists already.
    """
    sidecar = path.with_suffix(".json")
    for existing in (path, sidecar):
        if existing.exists():
            raise DataError(f"{existing} exists already; choose another file or remove it")
    partial, partial_sidecar = (p.with_name(f"{p.name}.partial") for p in (path, sidecar))
    try:
        with h5py.File(partial, "w") as file:
            for index, trajectory in enumerate(trajectories):
                group = file.create_group(f"traj_{index}", track_order=True)
                for name, values in _arrays(trajectory).items():
                    group.create_dataset(name, data=values)
        partial_sidecar.write_text(json.dumps(_describe(task, trajectories), indent=2) + "\n")
        partial_sidecar.replace(sidecar)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        partial_sidecar.unlink(missing_ok=True)


def _arrays(trajectory: Trajectory) -> dict[str, np.ndarray]:
    """What is known of an episode, by its name in the file."""
    found = {
        "obs": trajectory.obs,
        "actions": trajectory.actions,
        "env_states": trajectory.env_states,
        "executed_actions": trajectory.executed,
        "rewards": trajectory.rewards,
        **{f"init_state/{name}": a for name, a in (trajectory.init_state or {}).items()},
    }
    arrays = {name: a.astype(np.float32) for name, a in found.items() if a is not None}
    if trajectory.success is not None:
        arrays["success"] = trajectory.success.astype(bool)
    return arrays


def _describe(task: Task, trajectories: list[Trajectory]) -> dict[str, Any]:
    """The content of the sidecar."""
    return {
        "env_info": {
            "env_id": task.name,
            "max_episode_steps": task.episode_steps,
            "env_kwargs": {
                "obs_mode": "state",
                "control_mode": task.control_mode,
                "reward_mode": "sparse",
            },
        },
        "commit_info": None,
        "episodes": [
            {
                "episode_id": index,
                "episode_seed": trajectory.seed,
                "reset_kwargs": {"seed": trajectory.seed},
                "control_mode": task.control_mode,
                "elapsed_steps": len(trajectory.actions),
                "info": {}
                if trajectory.success is None
                else {"success": bool(trajectory.success[-1])},
            }
            for index, trajectory in enumerate(trajectories)
        ],
    }


def read(path: Path, task: Task) -> list[Trajectory]:
    """Reads demonstrations of a task from a file of any layout that `importers` knows.

    Raises:
      DataError: see `importers.load` and `judge`.
    """
    return judge(path, importers.load(path), task)


def judge(path: Path, recording: Recording, task: Task) -> list[Trajectory]:
    """The episodes of a file, if they are usable demonstrations of a task.

    Where the file has no success flags, they come from the rewards of tasks whose rewards tell.

    Args:
      path: named in errors.
      recording: what the file holds.
      task: whose demonstrations they should be; where the file names none, sizes are enough.

    Raises:
      DataError: they are of another task or control mode; an episode is empty, not finite, out of
        range or of other sizes.
    """
    named = recording.task
    if named not in (None, task.name) and registry.family(named) != task.family:
        raise DataError(f"{path} holds demonstrations of {named}, expected {task.name};"
                        " pass --task")  # fmt: skip
    if recording.control_mode not in (None, task.control_mode):
        raise DataError(
            f"{path} holds actions of control mode {recording.control_mode}, expected"
            f" {task.control_mode}; convert them with ManiSkill's replay tool"
        )
    judged = []
    for where, trajectory in recording.episodes:
        check(trajectory, task, where, recording.obs_name)
        if trajectory.success is None and trajectory.rewards is not None:
            success = rewards.success(task.name, trajectory.rewards)
            trajectory = dataclasses.replace(trajectory, success=success)
        judged.append(trajectory)
    return judged
