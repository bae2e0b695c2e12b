"""This file is not pure: it reads finished runs back, to evaluate and to draw them."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from pdjax import checkpoint, report
from pdjax import config as configs
from pdjax import render as rendering
from pdjax.outputs import check_file
from pdjax.rollout import episode_overrides
from pdjax.runner import Run, build, compare, make_assess
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
    summary = compare(built, actor, episodes, seed)
    return summary | {"run": str(directory), "seed": seed, "shift": built.config.task.shift}


def evaluate_shifts(
    directory: Path, episodes: int, seed: int, physics: str = ""
) -> list[dict[str, Any]]:
    """`evaluate_run` without a shift and under each that the run's task has, one at a time."""
    task = load_run(directory, physics)[0].env.task
    names = [name for name in shifts.SHIFTS if not shifts.needed(name, task)]
    return [evaluate_run(directory, episodes, seed, physics, name) for name in ["none", *names]]


def render_run(
    directory: Path, out: Path, episodes: int, seed: int, grid: tuple[int, int] = (1, 1)
) -> dict[str, Any]:
    """Renders a run: base and refined policy side by side, or many episodes of the refined one.

    Args:
      directory: of the run.
      out: the video.
      episodes: shown side by side, where the grid is (1, 1).
      seed: of the episodes.
      grid: rows and columns of episodes of the refined policy.

    Raises:
      ConfigError, checkpoint.CheckpointError: no finished run, or the video exists already.
      rendering.RenderError: nothing to draw with on this machine.
    """
    check_file(out, (".mp4", ".gif"))
    built, actor = load_run(directory)
    assess = make_assess(built)
    scale = built.config.decorator.residual_scale
    labels = {"base policy": 0.0, "refined": scale}
    if grid != (1, 1):
        episodes, labels = grid[0] * grid[1], {"refined": scale}
    sides = []
    for label, chosen in labels.items():
        result = assess(actor, chosen, seed, episodes, True)
        played = (result.qpos, result.steps_to_success, result.success_once)
        sides.append(rendering.Side(label, *map(np.asarray, played)))
    overrides = episode_overrides(built.env, jax.random.split(jax.random.key(seed), episodes))
    with report.progress("rendering", rendering.count_frames(sides, grid), "frames") as bar:
        rendering.render(built.env.task.name, overrides, sides, out, grid, bar.update)
    return {"video": str(out), "episodes": episodes, "seed": seed, "grid": list(grid)}
