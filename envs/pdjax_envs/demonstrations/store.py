"""Demonstrations on disk: written in ManiSkill's HDF5 layout, read from any layout.

Each episode is an HDF5 group (`traj_0`, ...) with `obs` (T + 1, obs_dim), `actions` (T, act_dim),
`success` (T,) and `env_states` (T + 1, nq + nv); a JSON sidecar names the task and the episodes.
Source of the layout: mani-skill2 0.5.3 `utils/wrappers/record.py`. pdjax adds what an exact replay
needs: the group `init_state`, and `executed_actions` if disturbances made them differ from
`actions`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pdjax_envs import registry, writing
from pdjax_envs.adroit import rewards
from pdjax_envs.demonstrations import layouts
from pdjax_envs.demonstrations.layouts import Recording
from pdjax_envs.demonstrations.trajectory import DataError, Trajectory, check
from pdjax_envs.task import Task


def write(path: Path, task: Task, trajectories: list[Trajectory]) -> None:
    """Writes an HDF5 file and its JSON sidecar; both appear only once they are complete.

    Raises:
      DataError: one of the two files exists already.
    """
    sidecar = path.with_suffix(".json")
    for existing in (path, sidecar):
        if existing.exists():
            raise DataError(f"{existing} exists already; choose another file or remove it")
    with writing.aside(path) as partial, writing.aside(sidecar) as partial_sidecar:
        with h5py.File(partial, "w") as file:
            for index, trajectory in enumerate(trajectories):
                group = file.create_group(f"traj_{index}", track_order=True)
                for name, values in _arrays(trajectory).items():
                    group.create_dataset(name, data=values)
        partial_sidecar.write_text(json.dumps(_describe(task, trajectories), indent=2) + "\n")


def _arrays(trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Returns the known arrays of an episode by their names in the file."""
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
    """Returns the content of the sidecar."""
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
    """Reads demonstrations of a task from a file in any layout that `layouts` knows.

    Raises:
      DataError: see `layouts.load` and `judge`.
    """
    return judge(path, layouts.load(path), task)


def judge(path: Path, recording: Recording, task: Task) -> list[Trajectory]:
    """Returns the episodes of a file after checking that they are demonstrations of a task.

    If the file has no success flags, success is derived from the rewards of tasks that allow it.

    Args:
      path: the file, for error messages.
      recording: the content of the file.
      task: the expected task. If the file names no task, matching sizes are enough.

    Raises:
      DataError: the file belongs to another task or control mode; or an episode is empty, not
        finite, out of range or has the wrong sizes.
    """
    named = recording.task
    if named not in (None, task.name) and registry.family(named) != task.family:
        raise DataError(
            f"{path} holds demonstrations of {named}, expected {task.name}; pass --task"
        )
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
