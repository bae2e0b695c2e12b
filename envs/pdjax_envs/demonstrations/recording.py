"""The content of a demonstration file before it is checked against a task, and what readers share.

Separate from `layouts`, which chooses the reader, because all readers return this. No state.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import h5py
import numpy as np

from pdjax_envs.demonstrations import hdf5
from pdjax_envs.demonstrations.trajectory import DataError, Trajectory
from pdjax_envs.workers.spec import SUCCESS_KEYS


class Recording(NamedTuple):
    """The content of a file, before it is checked against a task.

    Attributes:
      layout: name of the layout.
      episodes: pairs (place in the file, episode).
      obs_name: the layout's name for observations.
      tasks: the tasks that the file names; none if it does not say.
      control_modes: the control modes that the file names.
      parts: (name, size) of the observation's parts, if the file has it in several arrays.
    """

    layout: str
    episodes: list[tuple[str, Trajectory]]
    obs_name: str = "observations"
    tasks: frozenset[str] = frozenset()
    control_modes: frozenset[str] = frozenset()
    parts: tuple[tuple[str, int], ...] = ()


def required(found: Mapping[str, np.ndarray | None], where: str, layout: str) -> list[np.ndarray]:
    """Returns the arrays; raises DataError if one of them is missing."""
    for name, values in found.items():
        if values is None:
            raise DataError(f"{where} has no array `{name}`; expected {layout}")
    return [values for values in found.values() if values is not None]


def arrays(group: Any, *names: str) -> dict[str, np.ndarray | None]:
    """Returns arrays of a group by name; None for those that it has not."""
    return {name: hdf5.array(group, name) for name in names}


def all_arrays(group: Any) -> dict[str, np.ndarray]:
    """Returns the numbers that a group holds by name; empty if there is no group."""
    if not isinstance(group, h5py.Group):
        return {}
    found = {str(name): hdf5.array(group, str(name)) for name in group}
    return {name: values for name, values in found.items() if values is not None}


def no_states(obs: np.ndarray) -> np.ndarray:
    """Returns unknown states of the simulator, one for each observation."""
    return np.zeros((len(obs), 0), np.float32)


def clip(actions: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns the clipped actions and how many of their numbers were beyond [-1, 1]."""
    beyond = np.isfinite(actions) & (np.abs(actions) > 1)
    return np.where(beyond, np.sign(actions), actions), int(beyond.sum())


def success_flags(infos: Any) -> np.ndarray | None:
    """Returns what a group says of success at each step; None if it does not say."""
    flags = [hdf5.array(infos, name, bool) for name in SUCCESS_KEYS]
    return next((found for found in flags if found is not None), None)
