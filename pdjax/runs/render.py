"""Draws episodes of a finished run, base and refined side by side."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from pdjax.output import terminal
from pdjax.output.paths import check_file
from pdjax.rollout.evaluate import episode_overrides
from pdjax.rollout.playing import make_play, no_residual
from pdjax.runs import video
from pdjax.runs.load import load_refined


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
    refined = load_refined(directory)
    env, actor = refined.playing.env, refined.actor
    play, actors = make_play(refined.playing), {"base policy": no_residual(actor), "refined": actor}
    if grid != (1, 1):
        episodes, actors = grid[0] * grid[1], {"refined": actor}
    sides = []
    for label, chosen in actors.items():
        result = play(seed, episodes, chosen, refined.residual_scale, record=True)
        played = (result.qpos, result.steps_to_success, result.success_once)
        sides.append(video.Side(label, *map(np.asarray, played)))
    overrides = episode_overrides(env, jax.random.split(jax.random.key(seed), episodes))
    with terminal.progress("rendering", video.count_frames(sides, grid), "frames") as bar:
        video.render(env.task.name, overrides, sides, out, grid, bar.update)
    return {"video": str(out), "episodes": episodes, "seed": seed, "grid": list(grid)}
