"""One recorded episode, in the form used for every file format, and the check that it is usable.

Separate from recording and reading because both need it. Holds no state.
"""

import dataclasses

import jax
import numpy as np

from pdjax_envs.reading import InputError, short
from pdjax_envs.task import Task

ACTION_SLACK = 1e-3  # how far rounding may take normalised actions beyond [-1, 1]
MOST = 1e10  # size of a number in an episode; MuJoCo takes larger ones for a failed simulation


class DataError(InputError):
    """Demonstrations cannot be used; the message is one line that says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One episode.

    Attributes:
      obs: (T + 1, obs_dim) float32.
      actions: (T, act_dim) float32 in [-1, 1], the actions that the demonstrator wanted.
      success: (T,) bool, after each action; None if the file does not say.
      env_states: (T + 1, nq + nv) float32; width 0 if unknown.
      seed: seed of the initial state, see `episode_keys`; -1 if unknown.
      executed: (T, act_dim) float32, the executed actions if disturbances made them differ from
        `actions`; else None.
      rewards: (T,) float32, or None.
      init_state: the episode's initial state as `Task.get_state` names it and `Task.make_start`
        accepts it; None if unknown.
      clipped: how many numbers of the actions were beyond [-1, 1] in the file, see `layouts`.
    """

    obs: np.ndarray
    actions: np.ndarray
    success: np.ndarray | None
    env_states: np.ndarray
    seed: int = -1
    executed: np.ndarray | None = None
    rewards: np.ndarray | None = None
    init_state: dict[str, np.ndarray] | None = None
    clipped: int = 0


def check(trajectory: Trajectory, task: Task, where: str, obs_name: str = "obs") -> None:
    """Checks that an episode has a task's sizes and is complete, finite and in range.

    Args:
      trajectory: the episode.
      task: the task.
      where: the name of the episode in an error message.
      obs_name: the file's name for observations.

    Raises:
      DataError: the episode is not usable; the message names the first problem.
    """
    obs, actions = trajectory.obs, trajectory.actions
    if obs.ndim != 2 or obs.shape[1] != task.obs_dim:
        raise DataError(
            f"{where}/{obs_name} has shape {obs.shape}, expected"
            f" (T + 1, {task.obs_dim}) for {task.name}"
        )
    if actions.ndim != 2 or actions.shape[1] != task.act_dim:
        raise DataError(
            f"{where}/actions has shape {actions.shape}, expected (T, {task.act_dim})"
            f" for {task.name}"
        )
    steps = len(actions)
    if steps == 0 or len(obs) != steps + 1:
        raise DataError(
            f"{where} has {len(obs)} observations for {steps} actions, expected T + 1 for T >= 1"
        )
    for name, values, parts in (
        (obs_name, obs, task.observation),
        ("actions", actions, task.action),
        ("executed actions", trajectory.executed, task.action),
        ("rewards", trajectory.rewards, ()),
        ("env_states", trajectory.env_states, ()),
        *((f"initial {n}", state, ()) for n, state in (trajectory.init_state or {}).items()),
    ):
        if values is not None and not (is_right := np.abs(values) <= MOST).all():
            raise DataError(
                f"{where} holds NaN, or numbers beyond {MOST:g}; drop the episode (the first is"
                f" in {short(name)}{_first_of(~is_right, parts)})"
            )
    for name, values, shape in (
        ("success", trajectory.success, (steps,)),
        ("rewards", trajectory.rewards, (steps,)),
        ("executed actions", trajectory.executed, actions.shape),
    ):
        if values is not None and values.shape != shape:
            raise DataError(f"{where} has {name} of shape {values.shape}, expected {shape}")
    for name, values in (("actions", actions), ("executed_actions", trajectory.executed)):
        if values is not None and np.abs(values).max() > 1 + ACTION_SLACK:
            raise DataError(
                f"{where}/{name} reach {np.abs(values).max():.3g}, expected [-1, 1];"
                " normalise the actions"
            )


def _first_of(is_wrong: np.ndarray, parts: tuple[tuple[str, int], ...]) -> str:
    """Returns where the first wrong number stands: its step and its part."""
    if is_wrong.ndim == 0:
        return ""
    step, *column = np.argwhere(is_wrong)[0]
    names = column_names(parts)
    known = len(column) == 1 and column[0] < len(names)
    return f", step {step}" + (f", {names[column[0]]}" if known else "")


def episode_keys(key: jax.Array) -> tuple[jax.Array, ...]:
    """Splits an episode's key, `jax.random.key(seed)`.

    Returns:
      Keys for the initial state, the expert's initial carry, its actions, and the disturbances.
    """
    return tuple(jax.random.split(key, 4))


def column_names(parts: tuple[tuple[str, int], ...]) -> list[str]:
    """Names each number of an observation or action: `part`, or `part[i]` for longer parts."""
    return [
        name if size == 1 else f"{name}[{index}]" for name, size in parts for index in range(size)
    ]
