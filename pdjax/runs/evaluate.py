"""Evaluates a finished run: base and refined policy on the same episodes, also under shifts."""

from pathlib import Path
from typing import Any

from pdjax.output import terminal
from pdjax.rollout.paired import Paired, play_paired
from pdjax.runs.load import load_refined, load_run
from pdjax.types import BasePolicy
from pdjax_envs import shifts


def evaluate_run(
    directory: Path,
    episodes: int,
    seed: int,
    physics: str = "",
    shift: str = "",
    base: BasePolicy | None = None,
) -> tuple[Paired, dict[str, Any]]:
    """Plays both policies of a finished run on other episodes than its training saw.

    Args:
      directory: of the run.
      episodes: played by both policies.
      seed: of the episodes; the same with and without a shift.
      physics: engine; "" = as in the run's config.
      shift: see `registry.make`; "" = as in training.
      base: see `load.Run`.

    Returns:
      The episodes, and their summary for JSON, with the run, the seed and the shift.
    """
    trained_with = load_run(directory).summary.get("physics")
    refined = load_refined(directory, physics, shift, base)
    playing = refined.playing
    if trained_with not in (None, playing.env.engine):
        terminal.say(f"trained with physics {trained_with}, played with {playing.env.engine}")
    (paired,) = play_paired(playing, [(refined.actor, refined.residual_scale)], episodes, seed)
    about = {"run": str(directory), "seed": seed, "shift": refined.config.task.shift}
    return paired, paired.summary | about


def evaluate_shifts(
    directory: Path, episodes: int, seed: int, physics: str = ""
) -> list[dict[str, Any]]:
    """Summaries of `evaluate_run` without a shift and under each that the run's task has."""
    task = load_refined(directory, physics).playing.env.task
    names = [name for name in shifts.SHIFTS if not shifts.needed(name, task)]
    return [evaluate_run(directory, episodes, seed, physics, name)[1] for name in ["none", *names]]
