"""Reads files of demonstrations in the layouts of several projects into one type.

Each layout has a reader. The content of a file decides which one applies, not its name:

- ManiSkill, HDF5: `traj_0`, ... with `obs` (T + 1), `actions`, `success`, `env_states`, and a JSON
  sidecar. pdjax writes this layout too and adds `init_state`, `executed_actions` and `rewards`.
  Source: mani-skill2 0.5.3 `utils/wrappers/record.py`.
- Minari, HDF5: see `minari`.
- D4RL, HDF5: all steps of all episodes in `observations`, `actions`, `rewards`, `terminals`,
  `timeouts`, `infos/qpos` ...; an episode ends where either flag is set.
  Source: D4RL `scripts/generation/hand_dapg_policies.py`.
- DAPG, a pickle: a list of dicts with `observations`, `actions`, `rewards`, `init_state_dict`.
  Source: hand_dapg `dapg/demonstrations`.

The last two layouts have no observation after the last action, so the reader drops that action,
and with it a success that only that action brought; an episode of a single row has nothing left.
D4RL's Relocate files give the same places of ball and target for all episodes (D4RL issue 196), so
their replays start elsewhere than the recordings. Adroit's environments clip actions to [-1, 1], so
the last three layouts may contain larger numbers, which the reader clips and counts. Success comes
from the file's flags (`success`, or one of `workers.spec.SUCCESS_KEYS` in `infos`), or else from
Adroit's rewards, see `adroit.rewards`. Without either it is unknown until the episode is replayed,
see `playback`.

HDF5 is read by `hdf5` and pickles by `pickles`, which check what they read; `trajectory.check`
checks sizes and finiteness for all layouts.
"""

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pdjax_envs.demonstrations import hdf5, minari, pickles
from pdjax_envs.demonstrations.record import SEEDS
from pdjax_envs.demonstrations.recording import (
    Recording,
    all_arrays,
    arrays,
    clip,
    no_states,
    required,
    success_flags,
)
from pdjax_envs.demonstrations.trajectory import DataError, Trajectory
from pdjax_envs.names import task_named
from pdjax_envs.reading import InputError, is_file, read_json_object, reason, short


def load(path: Path) -> Recording:
    """Reads a file in any of the layouts.

    Args:
      path: the file, a folder of Minari, or the name of a dataset in Minari's local root.

    Raises:
      DataError: the file is missing, has none of the layouts, is cut short, or lacks arrays; or it
        is a pickle that names something demonstrations do not need.
      InputError: an array does not fit into memory.
    """
    file = _find(path)
    name = short(str(file))
    try:
        recording = _load(file, name)
    except InputError:
        raise
    except pickles.Forbidden as error:
        raise DataError(
            f"{name} is a pickle that names {short(str(error))}, which demonstrations do not need;"
            " none of it was executed; expected DAPG's list of episodes"
        ) from None
    except Exception as error:  # h5py and pickles raise many kinds for a damaged file
        raise DataError(
            f"{name} is not a readable demonstration file ({reason(error)}); it may be cut"
            " short: write it again with `pdjax demos`, or download it again"
        ) from None
    if not recording.episodes:
        raise DataError(f"{name} holds no episodes; expected at least one")
    return recording


def _find(path: Path) -> Path:
    """Returns the file of demonstrations that a path means.

    Minari keeps a dataset in ROOT/NAME/data/main_data.hdf5; ROOT is MINARI_DATASETS_PATH or
    ~/.minari/datasets (Minari 0.5 `storage/datasets_root_dir.py`).
    """
    if is_file(path):
        return path
    root = os.environ.get("MINARI_DATASETS_PATH") or os.path.expanduser("~/.minari/datasets")
    folders = [path, path / "data", Path(root) / path / "data"]
    for folder in folders:
        if is_file(folder / minari.FILE):
            return folder / minari.FILE
    name = short(str(path))
    if os.path.isdir(path):
        raise DataError(
            f"no demonstrations at {name}: a folder without data/{minari.FILE}; expected a file, or"
            " a dataset that Minari wrote with data_format='hdf5'"
        )
    raise DataError(
        f"no demonstrations at {name}; write some with `pdjax demos TASK`, or give a file, a folder"
        " of Minari, or a name in Minari's local root"
    )


def _load(path: Path, name: str) -> Recording:
    if h5py.is_hdf5(path):
        with hdf5.opened(path) as file:
            if groups := _numbered(file, "traj"):
                return _load_maniskill(path, groups)
            if groups := _numbered(file, "episode"):
                return minari.load(path, groups)
            if "observations" in file and "actions" in file:
                return _load_d4rl(file)
            found = short(", ".join(map(str, file)) or "nothing")
        raise DataError(
            f"{name} holds no episodes: it has {found}; expected traj_0 (ManiSkill), episode_0"
            " (Minari), or observations and actions (D4RL)"
        )
    return _load_dapg(path, name)


def _numbered(file: h5py.File, prefix: str) -> dict[int, Any]:
    """Returns the groups PREFIX_0, PREFIX_1, ... by number, in order."""
    matches = [re.fullmatch(rf"{prefix}_(0|[1-9][0-9]{{0,8}})", str(name)) for name in file]
    numbers = sorted(int(match[1]) for match in matches if match)
    return {number: hdf5.member(file, f"{prefix}_{number}") for number in numbers}


# One reader per layout.


def _load_maniskill(path: Path, groups: Mapping[int, Any]) -> Recording:
    tasks, modes, seeds = _read_sidecar(path.with_suffix(".json"))
    episodes = []
    for number, group in groups.items():
        where = hdf5.place(group.file, f"traj_{number}")
        obs, actions = required(
            arrays(group, "obs", "actions"),
            where,
            "ManiSkill's layout; replay the file with `python -m"
            " mani_skill2.trajectory.replay_trajectory --save-traj --obs-mode state --traj-path"
            " FILE`",
        )
        states = hdf5.array(group, "env_states")
        trajectory = Trajectory(
            obs=obs,
            actions=actions,
            success=hdf5.array(group, "success", bool),
            env_states=no_states(obs) if states is None else states,
            seed=seeds.get(number, -1),
            executed=hdf5.array(group, "executed_actions"),
            rewards=hdf5.array(group, "rewards"),
            init_state=all_arrays(hdf5.member(group, "init_state")) or None,
        )
        episodes.append((where, trajectory))
    return Recording("ManiSkill", episodes, "obs", tasks, modes)


def _read_sidecar(sidecar: Path) -> tuple[frozenset[str], frozenset[str], dict[int, int]]:
    """Returns the tasks, the control modes and each episode's seed, as far as the sidecar has them.

    Task and control mode may be named for the whole file, for each episode, or both.
    """
    if not is_file(sidecar):
        return frozenset(), frozenset(), {}
    content = read_json_object(sidecar, "ManiSkill's JSON sidecar")
    try:
        info, listed = content["env_info"], content.get("episodes", [])
        tasks = [info["env_id"], *(e["env_id"] for e in listed if e.get("env_id"))]
        named = [info.get("env_kwargs", {}), *listed]
        modes = frozenset(n["control_mode"] for n in named if n.get("control_mode"))
        seeds = {e["episode_id"]: e.get("episode_seed") for e in listed}
        tasks = frozenset(task_named(name) for name in tasks)
    except (KeyError, TypeError, AttributeError):
        raise DataError(
            f"{short(str(sidecar))} is not ManiSkill's JSON sidecar; remove or repair it"
        ) from None
    # Other numbers are no seeds of pdjax, so the initial state is unknown.
    return tasks, modes, {n: s for n, s in seeds.items() if type(s) is int and 0 <= s < SEEDS}


def _load_d4rl(file: h5py.File) -> Recording:
    where = short(file.filename)
    names = ("observations", "actions", "rewards", "terminals")
    obs, actions, rewards, terminals = required(
        arrays(file, *names[:3]) | {"terminals": hdf5.array(file, "terminals", bool)},
        where,
        f"D4RL's layout: {', '.join(names)}",
    )
    timeouts, infos = hdf5.array(file, "timeouts", bool), hdf5.member(file, "infos")
    success = success_flags(infos)
    _same_length(
        where,
        actions,
        observations=obs,
        rewards=rewards,
        terminals=terminals,
        timeouts=timeouts,
        success=success,
    )
    ends = terminals if timeouts is None else terminals | timeouts
    bounds = np.unique(np.concatenate([[0], np.flatnonzero(ends) + 1, [len(actions)]]))
    states = _d4rl_states(infos, len(actions))
    episodes = []
    for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if stop - start == 1:  # no action has a resulting observation
            continue
        rows = slice(start, stop)
        init = {name: values[start] for name, values in states.items()}
        flags = None if success is None else success[rows]
        trajectory = _without_last_action(obs[rows], actions[rows], rewards[rows], flags, init)
        episodes.append((f"{where}:episode_{index} (rows {start}-{stop - 1})", trajectory))
    return Recording("D4RL", episodes)


def _d4rl_states(infos: Any, steps: int) -> dict[str, np.ndarray]:
    """Returns the state at each step; empty if the file has none."""
    if not isinstance(infos, h5py.Group) or not {"qpos", "qvel"} <= set(infos):
        return {}
    return {name: a for name, a in all_arrays(infos).items() if a.shape[:1] == (steps,)}


def _load_dapg(path: Path, name: str) -> Recording:
    try:
        content = pickles.load(path, pickles.DATA)
    except pickles.Damaged:
        with path.open("rb") as file:
            if file.read(1) == b"\x80":  # a pickle's first byte since protocol 2
                raise
        raise ValueError("neither HDF5 nor a pickle") from None
    if not (isinstance(content, list | tuple) and all(isinstance(e, dict) for e in content)):
        raise DataError(f"{name} is a pickle of other things; expected DAPG's list of episodes")
    episodes = []
    for index, episode in enumerate(content):
        where = f"{name}:episode_{index}"
        found = {
            name: _pickled(episode[name]) if name in episode else None
            for name in ("observations", "actions", "rewards")
        }
        obs, actions, rewards = required(found, where, "DAPG's layout")
        _same_length(where, actions, observations=obs, rewards=rewards)
        state = episode.get("init_state_dict", {})
        init = {str(name): _pickled(value) for name, value in state.items()}
        episodes.append((where, _without_last_action(obs, actions, rewards, None, init)))
    return Recording("DAPG", episodes)


def _pickled(value: Any) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinity is found by `trajectory.check`
        return pickles.array(value).astype(np.float32)


def _same_length(where: str, actions: np.ndarray, **columns: np.ndarray | None) -> None:
    for name, values in columns.items():
        if values is not None and np.shape(values)[:1] != np.shape(actions)[:1]:
            raise DataError(
                f"{where} has {len(values)} {name} for {len(actions)} actions, expected as many"
            )


def _without_last_action(
    obs: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
    success: np.ndarray | None,
    init_state: dict[str, np.ndarray],
) -> Trajectory:
    """Builds an episode without its last action, whose resulting observation is not in the file."""
    actions, clipped = clip(actions[:-1])
    success = None if success is None else success[:-1]
    return Trajectory(
        obs,
        actions,
        success,
        no_states(obs),
        rewards=rewards[:-1],
        init_state=init_state or None,
        clipped=clipped,
    )
