"""Draws episodes of a finished run, base and refined side by side."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from pdjax.output import terminal
from pdjax.output.paths import check_file
from pdjax.rollout.evaluate import episode_overrides
from pdjax.rollout.paired import make_assess
from pdjax.runs import video
from pdjax.runs.evaluate import load_run


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
        sides.append(video.Side(label, *map(np.asarray, played)))
    overrides = episode_overrides(built.env, jax.random.split(jax.random.key(seed), episodes))
    with terminal.progress("rendering", video.count_frames(sides, grid), "frames") as bar:
        video.render(built.env.task.name, overrides, sides, out, grid, bar.update)
    return {"video": str(out), "episodes": episodes, "seed": seed, "grid": list(grid)}
