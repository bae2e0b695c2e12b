"""Demonstrations on disk: written in ManiSkill's HDF5 layout, read from any layout.

Each episode is an HDF5 group (`traj_0`, ...) with `obs` (T + 1, obs_dim), `actions` (T, act_dim),
`success` (T,) and `env_states` (T + 1, nq + nv); a JSON sidecar names the task and the episodes.
Source of the layout: mani-skill2 0.5.3 `utils/wrappers/record.py`. pdjax adds what an exact replay
needs: the group `init_state`, and `executed_actions` if disturbances made them differ from
`actions`.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pdjax_envs import from_gymnasium, registry
from pdjax_envs.adroit import rewards
from pdjax_envs.demonstrations import layouts
from pdjax_envs.demonstrations.recording import Recording
from pdjax_envs.demonstrations.trajectory import DataError, Trajectory, check
from pdjax_envs.reading import short
from pdjax_envs.task import Task
from pdjax_envs.writing import aside


def write(path: Path, task: Task, trajectories: list[Trajectory]) -> None:
    """Writes an HDF5 file and its JSON sidecar; both appear only once they are complete.

    Raises:
      DataError: one of the two files exists already.
    """
    sidecar = path.with_suffix(".json")
    for existing in (path, sidecar):
        if existing.exists():
            raise DataError(f"{existing} exists already; choose another file or remove it")
    with aside(path) as written, aside(sidecar) as written_sidecar:
        with h5py.File(written, "w") as file:
            for index, trajectory in enumerate(trajectories):
                group = file.create_group(f"traj_{index}", track_order=True)
                for name, values in _arrays(trajectory).items():
                    group.create_dataset(name, data=values)
        description = json.dumps(_describe(task, trajectories), indent=2, allow_nan=False)
        written_sidecar.write_text(description + "\n", encoding="utf-8")


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
    holder = f"{short(str(path))} holds demonstrations"
    check_origin(holder, recording.tasks, recording.control_modes, task)
    judged = []
    if recording.parts and recording.parts != task.observation:
        theirs, ours = (
            ", ".join(f"{name} ({size})" for name, size in parts)
            for parts in (recording.parts, task.observation)
        )
        raise DataError(f"{holder} with observations {short(theirs)}, expected {short(ours)}")
    for where, trajectory in recording.episodes:
        check(trajectory, task, where, recording.obs_name)
        if trajectory.success is None and trajectory.rewards is not None:
            success = rewards.success(task.name, trajectory.rewards)
            trajectory = dataclasses.replace(trajectory, success=success)
        judged.append(trajectory)
    return judged


def check_origin(
    holder: str, tasks: Iterable[str], control_modes: Iterable[str], task: Task
) -> None:
    """Checks that a file names nothing but the expected task, or one of its family.

    Args:
      holder: beginning of the error message, such as "FILE holds demonstrations".
      tasks: the tasks that the file names, see `recording.task_named`.
      control_modes: the control modes that it names.
      task: the expected task.

    Raises:
      DataError: it is another task or another control mode.
    """
    for named in tasks:
        if not registry.is_same(named, task):
            raise DataError(f"{holder} of {short(named)}, expected {task.name}; pass --task")
    for mode in control_modes:
        is_told = from_gymnasium.CONTROL_MODE not in (mode, task.control_mode)
        if is_told and mode != task.control_mode:
            raise DataError(
                f"{holder} of control mode {short(mode)}, expected {task.control_mode}; convert the"
                " demonstrations with ManiSkill's replay tool"
            )
