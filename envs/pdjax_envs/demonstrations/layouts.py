"""Reads files of demonstrations in the layouts of several projects into one type.

Each layout has a reader. The content of a file decides which one applies, not its name:

- ManiSkill, HDF5: `traj_0`, ... with `obs` (T + 1), `actions`, `success`, `env_states`, and a JSON
  sidecar. pdjax writes this layout too and adds `init_state`, `executed_actions` and `rewards`.
  Source: mani-skill2 0.5.3 `utils/wrappers/record.py`.
- Minari, HDF5: `episode_0`, ... with `observations` (T + 1), `actions`, `rewards`, `infos`; the
  initial state is in the attributes `options/initial_state_dict/...`.
  Source: Minari 0.5 `dataset/_storages/hdf5_storage.py`.
- D4RL, HDF5: all steps of all episodes in `observations`, `actions`, `rewards`, `terminals`,
  `timeouts`, `infos/qpos` ...; an episode ends where either flag is set.
  Source: D4RL `scripts/generation/hand_dapg_policies.py`.
- DAPG, a pickle: a list of dicts with `observations`, `actions`, `rewards`, `init_state_dict`.
  Source: hand_dapg `dapg/demonstrations`.

The last two layouts have no observation after the last action, so the reader drops that action,
and with it a success that only that action brought. D4RL's Relocate files give the same places of
ball and target for all episodes (D4RL issue 196), so their replays start elsewhere than the
recordings. Adroit's environments clip actions to [-1, 1], so the last three layouts may contain
larger numbers, which the reader clips and counts. Success comes from the file's flags (`success`,
`infos/success`, `infos/goal_achieved`), or else from Adroit's rewards, see `adroit.rewards`.
Without either it is unknown until the episode is replayed, see `playback`.
"""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from pdjax_envs.demonstrations import pickles
from pdjax_envs.demonstrations.trajectory import DataError, Trajectory


class Recording(NamedTuple):
    """The content of a file, before it is checked against a task.

    Attributes:
      layout: name of the layout.
      episodes: pairs (place in the file, episode).
      obs_name: the layout's name for observations.
      task: name of the task, or None if the file does not say.
      control_mode: control mode of the actions, or None if the file does not say.
    """

    layout: str
    episodes: list[tuple[str, Trajectory]]
    obs_name: str = "observations"
    task: str | None = None
    control_mode: str | None = None


def load(path: Path) -> Recording:
    """Reads a file in any of the layouts.

    Raises:
      DataError: the file is missing, has none of the layouts, is cut short, or lacks arrays; or it
        is a pickle that names something demonstrations do not need.
    """
    if not path.is_file():
        raise DataError(f"no demonstrations at {path}; write some with `pdjax demos TASK`")
    try:
        recording = _load(path)
    except DataError:
        raise
    except pickles.Forbidden as error:
        raise DataError(
            f"{path} is a pickle that names {error}, which demonstrations do not need; none of it"
            " was executed; expected DAPG's list of episodes"
        ) from None
    except (
        OSError,
        RuntimeError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        pickles.Damaged,
    ) as error:
        raise DataError(
            f"{path} is not a readable demonstration file ({_first_line(error)}); it may be cut"
            " short: write it again with `pdjax demos`, or download it again"
        ) from None
    if not recording.episodes:
        raise DataError(f"{path} holds no episodes; expected at least one")
    return recording


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__


def _load(path: Path) -> Recording:
    if h5py.is_hdf5(path):
        with h5py.File(path, "r") as file:
            if groups := _numbered(file, "traj"):
                return _load_maniskill(path, groups)
            if groups := _numbered(file, "episode"):
                return _load_minari(path, groups)
            if "observations" in file and "actions" in file:
                return _load_d4rl(path, file)
        raise DataError(
            f"{path} holds no episodes (no group `traj_0`); expected at least one, or the layout of"
            " Minari (`episode_0`) or D4RL (`observations`, `actions`)"
        )
    with path.open("rb") as file:
        if file.read(1) != b"\x80":  # a pickle's first byte since protocol 2
            raise ValueError("neither HDF5 nor a pickle")
    return _load_dapg(path)


def _numbered(file: h5py.File, prefix: str) -> dict[int, Any]:
    """Returns the groups PREFIX_0, PREFIX_1, ... by number, in order."""
    matches = [re.fullmatch(rf"{prefix}_(\d+)", str(name)) for name in file]
    return {n: file[f"{prefix}_{n}"] for n in sorted(int(match[1]) for match in matches if match)}


def _optional(group: Any, name: str, kind: Any = np.float32) -> np.ndarray | None:
    """Returns an array of an HDF5 group, or None if it is missing."""
    found = group.get(name)
    return np.asarray(found, kind) if isinstance(found, h5py.Dataset) else None


def _required(found: Mapping[str, np.ndarray | None], where: str, layout: str) -> list[np.ndarray]:
    """Returns the arrays; raises DataError if one of them is missing."""
    for name, values in found.items():
        if values is None:
            raise DataError(f"{where} has no array `{name}`; expected {layout}")
    return [values for values in found.values() if values is not None]


def _arrays(group: Any, *names: str) -> dict[str, np.ndarray | None]:
    return {name: _optional(group, name) for name in names}


def _no_states(obs: np.ndarray) -> np.ndarray:
    return np.zeros((len(obs), 0), np.float32)


def _clip(actions: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns the clipped actions and how many of their numbers were beyond [-1, 1]."""
    beyond = np.isfinite(actions) & (np.abs(actions) > 1)
    return np.where(beyond, np.sign(actions), actions), int(beyond.sum())


# One reader per layout.


def _load_maniskill(path: Path, groups: Mapping[int, Any]) -> Recording:
    task, mode, seeds = _read_sidecar(path.with_suffix(".json"))
    episodes = []
    for number, group in groups.items():
        where = f"{path}:traj_{number}"
        obs, actions = _required(
            _arrays(group, "obs", "actions"), where, "ManiSkill's layout with obs_mode=state"
        )
        states, init = _optional(group, "env_states"), group.get("init_state")
        trajectory = Trajectory(
            obs=obs,
            actions=actions,
            success=_optional(group, "success", bool),
            env_states=_no_states(obs) if states is None else states,
            seed=seeds.get(number, -1),
            executed=_optional(group, "executed_actions"),
            rewards=_optional(group, "rewards"),
            init_state=None if init is None else {n: np.asarray(init[n], np.float32) for n in init},
        )
        episodes.append((where, trajectory))
    return Recording("ManiSkill", episodes, "obs", task, mode)


def _read_sidecar(sidecar: Path) -> tuple[str | None, str | None, dict[int, int]]:
    """Returns the task, the control mode and each episode's seed, if the sidecar has them."""
    if not sidecar.is_file():
        return None, None, {}
    try:
        content = json.loads(sidecar.read_text())
        task = re.sub(r"-v\d+$", "", content["env_info"]["env_id"])
        mode = content["env_info"].get("env_kwargs", {}).get("control_mode")
        told = {e["episode_id"]: e.get("episode_seed") for e in content.get("episodes", [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{sidecar} is not ManiSkill's JSON sidecar; remove or repair it") from None
    return task, mode, {n: seed for n, seed in told.items() if isinstance(seed, int)}


def _load_minari(path: Path, groups: Mapping[int, Any]) -> Recording:
    state_prefix = "options/initial_state_dict/"
    episodes = []
    for number, group in groups.items():
        where = f"{path}:episode_{number}"
        obs, actions = _required(
            _arrays(group, "observations", "actions"), where, "Minari's layout with one array each"
        )
        state = {
            name.removeprefix(state_prefix): np.asarray(value, np.float32)
            for name, value in group.attrs.items()
            if name.startswith(state_prefix)
        }
        success = _success_flags(group.get("infos"))
        if success is not None and len(success) == len(obs):
            success = success[1:]  # the first flag belongs to the reset
        actions, clipped = _clip(actions)
        rewards = _optional(group, "rewards")
        trajectory = Trajectory(
            obs,
            actions,
            success,
            _no_states(obs),
            rewards=rewards,
            init_state=state or None,
            clipped=clipped,
        )
        episodes.append((where, trajectory))
    return Recording("Minari", episodes)


def _success_flags(infos: Any) -> np.ndarray | None:
    if not isinstance(infos, h5py.Group):
        return None
    flags = [_optional(infos, name, bool) for name in ("success", "goal_achieved")]
    return next((found for found in flags if found is not None), None)


def _load_d4rl(path: Path, file: h5py.File) -> Recording:
    names = ("observations", "actions", "rewards", "terminals")
    obs, actions, rewards, terminals = _required(
        _arrays(file, *names), str(path), f"D4RL's layout: {', '.join(names)}"
    )
    timeouts, infos = _optional(file, "timeouts"), file.get("infos")
    success = _success_flags(infos)
    _same_length(
        str(path),
        actions,
        observations=obs,
        rewards=rewards,
        terminals=terminals,
        timeouts=timeouts,
        success=success,
    )
    ends = terminals.astype(bool) if timeouts is None else (terminals + timeouts).astype(bool)
    bounds = np.unique(np.concatenate([[0], np.flatnonzero(ends) + 1, [len(actions)]]))
    states = _d4rl_states(infos, len(actions))
    episodes = []
    for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
        rows = slice(start, stop)
        init = {name: values[start] for name, values in states.items()}
        flags = None if success is None else success[rows]
        trajectory = _without_last_action(obs[rows], actions[rows], rewards[rows], flags, init)
        episodes.append((f"{path}:episode_{index} (rows {start}-{stop - 1})", trajectory))
    return Recording("D4RL", episodes)


def _d4rl_states(infos: Any, steps: int) -> dict[str, np.ndarray]:
    """Returns the state at each step; empty if the file has none."""
    if not isinstance(infos, h5py.Group) or not {"qpos", "qvel"} <= set(infos):
        return {}
    found = _arrays(infos, *map(str, infos))
    return {name: a for name, a in found.items() if a is not None and len(a) == steps}


def _load_dapg(path: Path) -> Recording:
    content = pickles.load(path, pickles.NUMPY)
    if not (isinstance(content, list) and all(isinstance(episode, dict) for episode in content)):
        raise DataError(f"{path} is a pickle of other things; expected DAPG's list of episodes")
    episodes = []
    for index, episode in enumerate(content):
        where = f"{path}:episode_{index}"
        found = {
            name: _pickled(episode[name]) if name in episode else None
            for name in ("observations", "actions", "rewards")
        }
        obs, actions, rewards = _required(found, where, "DAPG's layout")
        _same_length(where, actions, observations=obs, rewards=rewards)
        state = episode.get("init_state_dict", {})
        init = {name: _pickled(value) for name, value in state.items()}
        episodes.append((where, _without_last_action(obs, actions, rewards, None, init)))
    return Recording("DAPG", episodes)


def _pickled(value: Any) -> np.ndarray:
    return pickles.array(value).astype(np.float32)


def _same_length(where: str, actions: np.ndarray, **columns: np.ndarray | None) -> None:
    for name, values in columns.items():
        if values is not None and len(values) != len(actions):
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
    actions, clipped = _clip(actions[:-1])
    success = None if success is None else success[:-1]
    return Trajectory(
        obs,
        actions,
        success,
        _no_states(obs),
        rewards=rewards[:-1],
        init_state=init_state or None,
        clipped=clipped,
    )
