"""Where failed episodes end: groups them by the stages of the task that they reached.

A success rate says how often a policy fails, not what it lacks. Each task names its stages in
order, see `Task.stages`; an episode is told by the furthest one that it reached and by what was
left of it at the end.
"""

# pyright: reportUnknownMemberType=false

from collections import Counter
from typing import NamedTuple

import jax
import numpy as np

from pdjax.rollout.evaluate import Evaluation
from pdjax.types import Array
from pdjax_envs.task import Task

UNDONE = "solved, but not at the end"
NO_STAGES = "never solved"


class Group(NamedTuple):
    """Episodes that end alike: how, and how many."""

    end: str
    episodes: int


def group(task: Task, played: Evaluation) -> list[Group]:
    """Groups the episodes that were never solved, and those whose success was undone.

    Args:
      task: has success.
      played: recorded, of that task.

    Returns:
      The groups, the largest first; the last one is `UNDONE` if there are such episodes.
    """
    once, at_end = np.asarray(played.success_once), np.asarray(played.success_at_end)
    obs = np.asarray(played.obs)[:, ~once]  # (decisions, failed, obs_dim)
    ends = [NO_STAGES] * obs.shape[1]
    if task.stages and ends:
        held = _held(task, obs)
        ends = [_describe(tuple(task.stages), held[:, :, i]) for i in range(len(ends))]
    counts = sorted(Counter(ends).items(), key=lambda one: (-one[1], one[0]))
    undone = int((once & ~at_end).sum())
    return [Group(*one) for one in counts] + [Group(UNDONE, undone)] * bool(undone)


def _held(task: Task, obs: np.ndarray) -> np.ndarray:
    """Returns (stages, decisions, episodes) bool, whether each stage held, from observations."""

    def look(obs: Array) -> list[Array]:
        return [jax.vmap(jax.vmap(stage))(obs) for stage in task.stages.values()]

    return np.stack(jax.device_get(jax.jit(look)(obs)))


def _describe(names: tuple[str, ...], held: np.ndarray) -> str:
    """Tells the end of one episode.

    Args:
      names: of the stages, in order.
      held: (stages, decisions) bool.
    """
    reached, last = held.any(axis=1), held[:, -1]
    if not reached.any():
        return f"never {names[0]}"
    furthest = int(np.flatnonzero(reached)[-1])
    if last[furthest]:
        return f"{names[furthest]} at the end"
    left = np.flatnonzero(last)
    at_end = names[int(left[-1])] if len(left) else f"not {names[0]}"
    return f"{names[furthest]}, at the end {at_end}"
