"""This file is not pure: it reads finished runs back, to evaluate, export and draw them."""

from pathlib import Path
from typing import Any

import jax

from pdjax.config import files as configs
from pdjax.output import checkpoint
from pdjax.rollout.paired import compare
from pdjax.training.build import Run, build
from pdjax.types import Params
from pdjax_envs import shifts


def load_run(directory: Path, physics: str = "", shift: str = "") -> tuple[Run, Params]:
    """Reads a finished run back: the built run and its residual policy's parameters.

    Args:
      directory: of the run.
      physics: another engine than in training; "" = the same.
      shift: other perturbations than in training, `none` for none; "" = the same.

    Raises:
      ConfigError, checkpoint.CheckpointError: the directory is no finished run.
    """
    overrides = [f"task.physics={physics}"] if physics else []
    overrides += [f"task.shift={'' if shift == 'none' else shift!r}"] if shift else []
    built = build(configs.load_of_run(directory, overrides))
    like = jax.eval_shape(built.sac.init, jax.random.key(0)).actor
    return built, checkpoint.restore(directory / "residual", like)


def evaluate_run(
    directory: Path, episodes: int, seed: int, physics: str = "", shift: str = ""
) -> dict[str, Any]:
    """Paired evaluation of a finished run on other episodes than its training saw.

    Args:
      directory: of the run.
      episodes: played by both policies.
      seed: of the episodes; the same with and without a shift.
      physics: engine; "" = as in training.
      shift: see `registry.make`; "" = as in training.
    """
    built, actor = load_run(directory, physics, shift)
    refined = [(actor, built.config.decorator.residual_scale)]
    (summary,) = compare(built, refined, episodes, seed)
    return summary | {"run": str(directory), "seed": seed, "shift": built.config.task.shift}


def evaluate_shifts(
    directory: Path, episodes: int, seed: int, physics: str = ""
) -> list[dict[str, Any]]:
    """`evaluate_run` without a shift and under each that the run's task has, one at a time."""
    task = load_run(directory, physics)[0].env.task
    names = [name for name in shifts.SHIFTS if not shifts.needed(name, task)]
    return [evaluate_run(directory, episodes, seed, physics, name) for name in ["none", *names]]
