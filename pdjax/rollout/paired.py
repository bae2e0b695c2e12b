"""Paired evaluation: the base policy and refined policies play the same episodes.

Also writes the outcomes of all episodes to a file, and reads them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdjax.output import tables, terminal
from pdjax.rollout import intervals
from pdjax.rollout.evaluate import OUTCOMES, Evaluation
from pdjax.rollout.playing import Playing, make_play, no_residual
from pdjax.types import Params
from pdjax_envs.reading import InputError, read_npz, short
from pdjax_envs.writing import aside

EPISODES = "episodes.npz"  # the file's name in a run's directory
SUCCESS = ("success_once", "success_at_end")  # a task may be without these
SIDES = ("base", "refined")


class Paired(NamedTuple):
    """A paired evaluation: base and refined policy played the same episodes.

    Attributes:
      task: the task's name.
      physics: the name of the physics engine that played.
      seed: the seed of the episodes.
      base: the base policy's episodes.
      refined: the refined policy's episodes, in the same order.
    """

    task: str
    physics: str
    seed: int
    base: Evaluation
    refined: Evaluation

    @property
    def summary(self) -> dict[str, Any]:
        """Task, engine, rates, gain and their 95 % intervals, ready for JSON.

        See `intervals.summarize`.
        """
        return {
            "task": self.task,
            **intervals.summarize(self.base, self.refined),
            "physics": self.physics,
        }


def save_paired(path: Path, paired: Paired) -> None:
    """Writes the outcomes of all episodes to an .npz file.

    Its arrays (episodes,) are named after the policy and the outcome, for example
    `base_success_once`; `seed` is beside them. A task without success has no arrays of it.

    Args:
      path: the file to write; an existing one is replaced.
      paired: the evaluation.
    """
    arrays = {
        f"{side}_{name}": value
        for side in SIDES
        for name in OUTCOMES
        if (value := getattr(getattr(paired, side), name)) is not None
    }
    with aside(path) as written:
        differ = bool(paired.base.starts_differ)
        np.savez(written, seed=paired.seed, starts_differ=differ, **arrays)


def read_paired(path: Path, summary: Mapping[str, Any]) -> Paired:
    """Reads a file that `save_paired` wrote.

    Args:
      path: the file.
      summary: the evaluation's `Paired.summary`, which names the task and the physics engine.

    Raises:
      InputError: the file is damaged, or holds something else.
    """
    found: Any = read_npz(path, "episodes")
    optional = () if "base_success_once" in found else SUCCESS
    names = [f"{side}_{name}" for side in SIDES for name in OUTCOMES if name not in optional]
    sizes = {found[name].shape for name in names if name in found}
    whole = found.keys() >= {"seed", *names} and len(sizes) == 1 and found["seed"].shape == ()
    if not whole or any(found[name].dtype.kind not in "bfiu" for name in ("seed", *names)):
        raise InputError(
            f"cannot read episodes {short(str(path))}: expected seed and arrays of one length for"
            f" {', '.join(OUTCOMES)} of both policies; evaluate the run again with `pdjax eval`"
        )
    base, refined = (
        Evaluation(
            **{name: found.get(f"{side}_{name}") for name in OUTCOMES},
            qpos=None,
            starts_differ=bool(np.any(found.get("starts_differ", False))),
        )
        for side in SIDES
    )
    task, physics = (str(summary.get(name, "")) for name in ("task", "physics"))
    return Paired(task, physics, int(found["seed"]), base, refined)


def play_paired(
    playing: Playing,
    refined: Sequence[tuple[Params, float]],
    episodes: int,
    seed: int,
    record: bool = False,
) -> list[Paired]:
    """Plays the base policy and refined ones on the same episodes, with a progress bar.

    Args:
      playing: the environment, the base policy and their functions.
      refined: actors, each with its residual_scale; at least one.
      episodes: number of episodes that the base policy and each actor play.
      seed: the seed of the episodes.
      record: see `evaluate.evaluate`.

    Returns:
      One paired evaluation per actor, in the same order.
    """
    play = make_play(playing)
    found: list[Paired] = []
    with terminal.progress("evaluating", (1 + len(refined)) * episodes, "episodes") as bar:
        # With an actor, though a zero one, so that one compiled program plays everything.
        base = play(seed, episodes, no_residual(refined[0][0]), record=record)
        is_rate = base.success_once is not None
        note = f"base {tables.score(base.score, is_rate)}"
        for count, (actor, residual_scale) in enumerate(refined, 1):
            bar.update(count * episodes, note)
            result = play(seed, episodes, actor, residual_scale, record=record)
            note = f"refined {tables.score(result.score, is_rate)}"
            found.append(Paired(playing.env.task.name, playing.env.engine, seed, base, result))
        bar.update((1 + len(refined)) * episodes, note)
    return found
