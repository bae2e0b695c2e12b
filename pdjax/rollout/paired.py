"""Base and refined policy on the same episodes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdjax.output import terminal
from pdjax.rollout import intervals
from pdjax.rollout.evaluate import Evaluation
from pdjax.rollout.playing import Playing, make_play, no_residual
from pdjax.types import Params

EPISODES = "episodes.npz"  # name of the file in a run's directory
OUTCOMES = ("success_once", "success_at_end", "steps_to_success", "smoothness", "saturation")


class Paired(NamedTuple):
    """A paired evaluation: base and refined policy played the same episodes.

    Attributes:
      task: name of the task.
      physics: name of the physics engine.
      seed: seed of the episodes.
      base: the base policy's episodes, arrays (episodes,).
      refined: the refined policy's episodes, in the same order.
    """

    task: str
    physics: str
    seed: int
    base: Evaluation
    refined: Evaluation

    @property
    def summary(self) -> dict[str, Any]:
        """Rates, gain and smoothness with 95 % intervals, ready for JSON; see
        `intervals.summarize`."""
        return {
            "task": self.task,
            **intervals.summarize(self.base, self.refined),
            "physics": self.physics,
        }


def save_paired(path: Path, paired: Paired) -> None:
    """Writes the outcomes of all episodes to an .npz file: `base_success_once` and so on."""
    arrays = {
        f"{side}_{name}": getattr(getattr(paired, side), name)
        for side in ("base", "refined")
        for name in OUTCOMES
    }
    np.savez(path, seed=paired.seed, **arrays)


def read_paired(path: Path, summary: Mapping[str, Any]) -> Paired:
    """Reads the file of `save_paired`; `summary` names task and physics."""
    with np.load(path) as found:
        base, refined = (
            Evaluation(**{name: found[f"{side}_{name}"] for name in OUTCOMES}, qpos=None)
            for side in ("base", "refined")
        )
        return Paired(summary["task"], summary["physics"], int(found["seed"]), base, refined)


def play_paired(
    playing: Playing, refined: Sequence[tuple[Params, float]], episodes: int, seed: int
) -> list[Paired]:
    """Plays the base policy and refined ones on the same episodes, with a progress bar.

    Args:
      playing: what plays.
      refined: actors, each with its residual_scale.
      episodes: played by the base policy and by each of these.
      seed: of the episodes.
    """
    play, found = make_play(playing), []
    with terminal.progress("evaluating", (1 + len(refined)) * episodes, "episodes") as bar:
        base = play(seed, episodes, no_residual(refined[0][0]))  # the same program as the refined
        note = f"base {base.success_once.mean():.1%}"
        for count, (actor, residual_scale) in enumerate(refined, 1):
            bar.update(count * episodes, note)
            result = play(seed, episodes, actor, residual_scale)
            note = f"refined {result.success_once.mean():.1%}"
            found.append(Paired(playing.env.task.name, playing.env.engine, seed, base, result))
        bar.update((1 + len(refined)) * episodes, note)
    return found
