"""One recorded episode, as the program keeps it whatever file it came from, and when it is usable.

Kept apart from recording and reading because both need it. Holds no state.
"""

import dataclasses

import jax
import numpy as np

from pdjax_envs.task import Task

ACTION_SLACK = 1e-3  # rounding of normalised actions beyond [-1, 1]


class DataError(ValueError):
    """Demonstrations that cannot be used: one line that says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """One episode.

    Attributes:
      obs: (T + 1, obs_dim) float32.
      actions: (T, act_dim) float32 in [-1, 1], what the demonstrator wanted.
      success: (T,) bool, after each action; None where the file does not tell.
      env_states: (T + 1, nq + nv) float32, or of width 0 where unknown.
      seed: of the initial state, see `episode_keys`; -1 where unknown.
      executed: (T, act_dim) float32, the actions that were carried out where they differ from the
        ones wanted (disturbances); else None.
      rewards: (T,) float32, or None.
      init_state: the state that the episode starts from, in the names of the task's `get_state`, as
        its `make_start` takes them; None where unknown.
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
    """Checks that an episode is of a task's sizes, complete, finite and in range.

    Args:
      trajectory: the episode.
      task: whose episode it should be.
      where: names the episode in an error.
      obs_name: what the file calls observations.

    Raises:
      DataError: the first thing that is wrong with it.
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
    ):
        if not np.isfinite(values).all():
            step, column = np.argwhere(~np.isfinite(values))[0]
            part = column_names(parts)[column]
            raise DataError(
                f"{where} holds NaN or infinite numbers; drop the episode (the first is"
                f" in {name}, step {step}, {part})"
            )
    if np.abs(actions).max() > 1 + ACTION_SLACK:
        raise DataError(
            f"{where}/actions reach {np.abs(actions).max():.3g}, expected [-1, 1];"
            " normalise the actions"
        )
    for name, values, shape in (
        ("success", trajectory.success, (steps,)),
        ("rewards", trajectory.rewards, (steps,)),
        ("executed actions", trajectory.executed, actions.shape),
    ):
        if values is not None and values.shape != shape:
            raise DataError(f"{where} has {name} of shape {values.shape}, expected {shape}")


def episode_keys(key: jax.Array) -> tuple[jax.Array, ...]:
    """What an episode's key, `jax.random.key(seed)`, becomes.

    Returns:
      Keys of the initial state, the expert's memory, its actions, and the disturbances.
    """
    return tuple(jax.random.split(key, 4))


def column_names(parts: tuple[tuple[str, int], ...]) -> list[str]:
    """A name for each number of an observation or action: `part`, or `part[i]` of larger parts."""
    return [
        name if size == 1 else f"{name}[{index}]" for name, size in parts for index in range(size)
    ]
