"""Demonstrations: recorded by a task's expert, kept in ManiSkill's HDF5 layout with JSON sidecar.

One HDF5 group per episode (`traj_0`, ...) with `obs` (T + 1, obs_dim), `actions` (T, act_dim),
`success` (T,) and `env_states` (T + 1, nq + nv); the sidecar names the task and the episodes.
Layout: mani-skill2 0.5.3 `utils/wrappers/record.py`.
"""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np

from pdjax_envs import registry
from pdjax_envs.task import Env, Task

ACTION_SLACK = 1e-3  # rounding of normalised actions beyond [-1, 1]


DISTURBANCE_STEPS = 4  # control steps that one disturbance lasts


class DataError(ValueError):
    """Demonstrations that cannot be used: one line that says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One episode.

    Attributes:
      obs: (T + 1, obs_dim) float32.
      actions: (T, act_dim) float32 in [-1, 1].
      success: (T,) bool, after each action.
      env_states: (T + 1, nq + nv) float32.
      seed: of the initial state; -1 where unknown.
    """

    obs: np.ndarray
    actions: np.ndarray
    success: np.ndarray
    env_states: np.ndarray
    seed: int


def record(
    env: Env,
    episodes: int,
    seed: int = 0,
    noise: float = 0.0,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[list[Trajectory], float]:
    """Records successful episodes of the task's expert, cut at success.

    Args:
      env: the environment.
      episodes: successful episodes wanted.
      seed: of the first episode; further ones count up.
      noise: standard deviation of Gaussian noise on executed (and recorded) arm actions.
      progress: called with the number of episodes recorded so far.

    Returns:
      The trajectories and the share of attempts that succeeded.

    Raises:
      DataError: the task has no expert, or it never succeeds.
    """
    task = env.task
    if task.expert is None:
        raise DataError(f"task {task.name} has no scripted expert; bring your own demonstrations")
    width = min(64, max(8, episodes))
    attempt = jax.jit(_make_attempt(env, noise))
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


def _make_attempt(env: Env, noise: float) -> Callable[..., Any]:
    """(model, keys (n,)) -> arrays of one episode each, time first."""
    assert env.task.expert is not None
    expert = env.task.expert()

    def snapshot(state):
        return jnp.concatenate([state.physics.qpos, state.physics.qvel])

    def step(model, carry, keys):
        state, obs, memory = carry
        act_key, noise_key = keys
        action, memory = expert.act(memory, obs, act_key)
        executed = expert.disturb(action, obs, noise_key, noise)
        state, out = env.step(model, state, executed)
        return (state, out.obs, memory), (out.obs, action, out.success, snapshot(state))

    def attempt(model, keys):
        split = jax.vmap(lambda key: tuple(jax.random.split(key, 4)))
        reset_keys, memory_keys, act_keys, noise_keys = split(keys)
        state, obs = jax.vmap(env.reset, (None, 0))(model, reset_keys)
        first = (obs, jax.vmap(snapshot)(state))
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
    (first_obs, first_state), (obs, actions, success, states) = recorded
    found = []
    for index in np.flatnonzero(success.any(axis=0)):
        steps = int(success[:, index].argmax()) + 1
        found.append(
            Trajectory(
                obs=np.concatenate([first_obs[index][None], obs[:steps, index]]),
                actions=actions[:steps, index],
                success=success[:steps, index],
                env_states=np.concatenate([first_state[index][None], states[:steps, index]]),
                seed=int(seeds[index]),
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
                group.create_dataset("obs", data=trajectory.obs.astype(np.float32))
                group.create_dataset("actions", data=trajectory.actions.astype(np.float32))
                group.create_dataset("success", data=trajectory.success.astype(bool))
                group.create_dataset("env_states", data=trajectory.env_states.astype(np.float32))
        partial_sidecar.write_text(json.dumps(_describe(task, trajectories), indent=2) + "\n")
        partial_sidecar.replace(sidecar)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        partial_sidecar.unlink(missing_ok=True)


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
                "info": {"success": bool(trajectory.success[-1])},
            }
            for index, trajectory in enumerate(trajectories)
        ],
    }


def read(path: Path, task: Task) -> list[Trajectory]:
    """Reads demonstrations of a task; without a sidecar only their sizes tell whose they are.

    Raises:
      DataError: the file is missing, not HDF5 or cut short; it is of another task or control mode;
        an episode is empty, not finite, out of range or of other sizes.
    """
    if not path.is_file():
        raise DataError(f"no demonstrations at {path}; write some with `pdjax demos {task.name}`")
    seeds = _read_sidecar(path.with_suffix(".json"), path, task)
    try:
        with h5py.File(path, "r") as file:
            matches = [re.fullmatch(r"traj_(\d+)", str(name)) for name in file]
            numbers = sorted(int(match[1]) for match in matches if match)
            trajectories = [
                _read_group(file[f"traj_{number}"], task, f"{path}:traj_{number}",
                            seeds.get(number, -1))
                for number in numbers
            ]  # fmt: skip
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} is not a readable demonstration file ({_first_line(error)}); it may be cut"
            f" short: write it again with `pdjax demos {task.name}`"
        ) from None
    if not trajectories:
        raise DataError(f"{path} holds no episodes (no group `traj_0`); expected at least one")
    return trajectories


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__


def _read_sidecar(sidecar: Path, path: Path, task: Task) -> dict[int, int]:
    """Checks whose demonstrations these are; returns the seed of each episode."""
    if not sidecar.is_file():
        return {}
    try:
        content = json.loads(sidecar.read_text())
        env_id = re.sub(r"-v\d+$", "", content["env_info"]["env_id"])
        mode = content["env_info"].get("env_kwargs", {}).get("control_mode", task.control_mode)
        seeds = {e["episode_id"]: e.get("episode_seed", -1) for e in content.get("episodes", [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{sidecar} is not ManiSkill's JSON sidecar; remove or repair it") from None
    if env_id != task.name and registry.family(env_id) != task.family:
        raise DataError(
            f"{path} holds demonstrations of {env_id}, expected {task.name}; pass --task"
        )
    if mode != task.control_mode:
        raise DataError(
            f"{path} holds actions of control mode {mode}, expected {task.control_mode}; convert"
            " them with ManiSkill's replay tool"
        )
    return seeds


def _read_group(group: Any, task: Task, where: str, seed: int) -> Trajectory:
    for name in ("obs", "actions"):
        if not isinstance(group.get(name), h5py.Dataset):
            raise DataError(f"{where} has no array `{name}`; expected ManiSkill's layout with"
                            " obs_mode=state")  # fmt: skip
    obs, actions = np.asarray(group["obs"], np.float32), np.asarray(group["actions"], np.float32)
    if obs.ndim != 2 or obs.shape[1] != task.obs_dim:
        raise DataError(f"{where}/obs has shape {obs.shape}, expected (T + 1, {task.obs_dim}) for"
                        f" {task.name}")  # fmt: skip
    if actions.ndim != 2 or actions.shape[1] != task.act_dim:
        raise DataError(f"{where}/actions has shape {actions.shape}, expected (T, {task.act_dim})"
                        f" for {task.name}")  # fmt: skip
    if len(actions) == 0 or len(obs) != len(actions) + 1:
        raise DataError(f"{where} has {len(obs)} observations for {len(actions)} actions, expected"
                        " T + 1 for T >= 1")  # fmt: skip
    if not (np.isfinite(obs).all() and np.isfinite(actions).all()):
        raise DataError(f"{where} holds NaN or infinite numbers; drop the episode")
    if np.abs(actions).max() > 1 + ACTION_SLACK:
        raise DataError(f"{where}/actions reach {np.abs(actions).max():.3g}, expected [-1, 1];"
                        " normalise the actions")  # fmt: skip
    success = np.asarray(group["success"], bool) if "success" in group else np.zeros(len(actions))
    if len(success) != len(actions):
        raise DataError(f"{where} has {len(success)} success flags for {len(actions)} actions")
    states = np.asarray(group["env_states"], np.float32) if "env_states" in group else obs[:, :0]
    return Trajectory(obs, actions, success.astype(bool), states, seed)
