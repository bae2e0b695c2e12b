"""Renders episodes of a finished run, base and refined policy side by side.

Separate from `video`, which draws recorded episodes and knows no policies.
"""

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
    """Renders a run: base and refined policy side by side, or a grid of the refined policy.

    Args:
      directory: the run's directory.
      out: the video to write, .mp4 or .gif.
      episodes: number of episodes to show one after another, if `grid` is (1, 1).
      seed: seed of the episodes.
      grid: rows and columns; with more than one cell, each shows an episode of the refined policy.

    Returns:
      What `pdjax render --json` prints.

    Raises:
      ConfigError, checkpoint.CheckpointError: the run is not finished, or the video exists already.
      video.RenderError: the task has no model to draw, or this machine cannot draw.
    """
    check_file(out, (".mp4", ".gif"))
    refined = load_refined(directory)
    try:
        refined.playing.env.task.make_visual_model()
    except NotImplementedError as error:
        raise video.RenderError(f"cannot draw {refined.playing.env.task.name}: {error}") from None
    env, actor = refined.playing.env, refined.actor
    play, actors = make_play(refined.playing), {"base policy": no_residual(actor), "refined": actor}
    if grid != (1, 1):
        episodes, actors = grid[0] * grid[1], {"refined": actor}
    sides = []
    for label, chosen in actors.items():
        result = play(seed, episodes, chosen, refined.residual_scale, record=True)
        succeeded = np.zeros(episodes, bool) if result.success_once is None else result.success_once
        played = (result.qpos, result.steps_to_success, succeeded)
        sides.append(video.Side(label, *map(np.asarray, played)))
    overrides = episode_overrides(env, jax.random.split(jax.random.key(seed), episodes))
    with terminal.progress("rendering", video.count_frames(sides, grid), "frames") as bar:
        video.render(refined.config.task.name, overrides, sides, out, grid, bar.update)
    return {"video": str(out), "episodes": episodes, "seed": seed, "grid": list(grid)}
