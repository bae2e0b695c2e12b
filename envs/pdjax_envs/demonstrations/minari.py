"""Reads datasets of Minari: any environment of Gymnasium, with observations of one or more arrays.

HDF5, `episode_0`, ... with `observations` (T + 1), `actions`, `rewards`, `infos`, an attribute
`seed`, and the initial state in the attributes `options/initial_state_dict/...`; `metadata.json`
beside the file names the environment and the bounds of its actions. Source: Minari 0.5
`dataset/_storages/hdf5_storage.py`. Observations of several arrays are joined in the order in which
`workers.spaces` joins them: dictionaries by sorted keys, tuples by index.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pdjax_envs.demonstrations import hdf5
from pdjax_envs.demonstrations.recording import (
    Recording,
    clip,
    no_states,
    required,
    success_flags,
)
from pdjax_envs.demonstrations.trajectory import DataError, Trajectory
from pdjax_envs.from_gymnasium import ORIGINALS, PREFIX
from pdjax_envs.names import task_named
from pdjax_envs.reading import is_file, parse_json, read_json_object, short

FILE = "main_data.hdf5"
_LAYOUT = "Minari's layout"
_STATE = "options/initial_state_dict/"


def load(path: Path, groups: Mapping[int, Any]) -> Recording:
    """Reads the episodes of a file.

    Args:
      path: the file, for what lies beside it.
      groups: number of an episode -> its group.

    Raises:
      DataError, InputError: see `layouts.load`.
    """
    tasks, low, high = _read_metadata(path.with_name("metadata.json"))
    is_other = any(name.startswith(PREFIX) for name in tasks)
    parts: tuple[tuple[str, int], ...] = ()
    episodes: list[tuple[str, Trajectory]] = []
    for number, group in groups.items():
        where = hdf5.place(group.file, f"episode_{number}")
        found = {"observations": None, "actions": hdf5.array(group, "actions")}
        if arrays := _observations(hdf5.member(group, "observations"), "observation"):
            parts, found["observations"] = _join(where, arrays)
        obs, actions = required(found, where, _LAYOUT)
        state = {
            name.removeprefix(_STATE): hdf5.attribute(group, name)
            for name in map(str, group.attrs)
            if name.startswith(_STATE)
        }
        success = success_flags(hdf5.member(group, "infos"))
        if success is not None and len(success) == len(obs):
            success = success[1:]  # the first flag belongs to the reset
        actions, clipped = clip(_scaled(where, actions, low, high))
        trajectory = Trajectory(
            obs,
            actions,
            success,
            no_states(obs),
            seed=_seed(group) if is_other else -1,  # of our own tasks' seeds it is none
            rewards=hdf5.array(group, "rewards"),
            init_state=state or None,
            clipped=clipped,
        )
        episodes.append((where, trajectory))
    return Recording("Minari", episodes, tasks=tasks, parts=parts if len(parts) > 1 else ())


def _read_metadata(path: Path) -> tuple[frozenset[str], np.ndarray, np.ndarray]:
    """Returns the task and the bounds of its actions, as far as the metadata has them."""
    tasks, low, high = frozenset[str](), np.array(-1.0), np.array(1.0)
    if not is_file(path):
        return tasks, low, high
    what = "Minari's metadata"
    metadata = read_json_object(path, what)
    spec, space = (
        parse_json(text, f"{what} {short(str(path))} has no JSON in {name}")
        if isinstance(text := metadata.get(name), str)
        else {}
        for name in ("env_spec", "action_space")
    )
    try:
        if identity := spec.get("id"):
            ours = task_named(identity)
            tasks = frozenset({ours if ours in ORIGINALS.values() else PREFIX + identity})
        if space.get("type") == "Box":
            a, b = (np.array(space[end], float).ravel() for end in ("low", "high"))
            if np.isfinite([a, b]).all() and (a < b).all():
                low, high = a, b
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError(
            f"{short(str(path))} is not Minari's metadata; download the dataset again"
        ) from None
    return tasks, low, high


def _observations(found: Any, name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of an observation by name, in order."""
    if isinstance(found, h5py.Dataset):
        values = hdf5.array(found.parent, str(found.name).rpartition("/")[2])
        return {} if values is None else {name: values}
    if not isinstance(found, h5py.Group):
        return {}
    arrays: dict[str, np.ndarray] = {}
    prefix = "" if name == "observation" else f"{name}."
    for key in sorted(map(str, found), key=_order):
        shown = re.sub(r"^_index_", "", key)
        arrays |= _observations(hdf5.member(found, key), f"{prefix}{shown}")
    return arrays


def _order(key: str) -> tuple[int, str]:
    """Sorts keys by their text, and the `_index_N` of a tuple by number."""
    match = re.fullmatch(r"_index_([0-9]{1,6})", key)
    return (int(match[1]), "") if match else (0, key)


def _join(
    where: str, arrays: Mapping[str, np.ndarray]
) -> tuple[tuple[tuple[str, int], ...], np.ndarray]:
    """Returns (name, size) of the parts and flat observations (T + 1, obs_dim)."""
    if len(lengths := {values.shape[:1] for values in arrays.values()}) > 1:
        raise DataError(f"{where} has observations of unequal lengths, {short(str(lengths))}")
    if len(arrays) == 1:
        (values,) = arrays.values()
        return (), values
    flat = {name: values.reshape(len(values), -1) for name, values in arrays.items()}
    parts = tuple((name, values.shape[1]) for name, values in flat.items())
    return parts, np.concatenate(list(flat.values()), axis=1)


def _scaled(where: str, actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Returns actions in [-1, 1], from the environment's own bounds."""
    try:
        scaled = (actions - (high + low) / 2) / ((high - low) / 2)
    except ValueError:
        raise DataError(
            f"{where} has actions of shape {actions.shape}, but its metadata has {low.size} bounds"
        ) from None
    return scaled.astype(np.float32)


def _seed(group: h5py.Group) -> int:
    """Returns the seed of an episode's reset; -1 if unknown."""
    if "seed" not in group.attrs:
        return -1
    seed = group.attrs["seed"]
    return int(seed) if isinstance(seed, np.integer) and seed >= 0 else -1
