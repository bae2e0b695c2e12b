"""Renders episodes of a finished run, base and refined policy side by side.

Separate from `video`, which draws recorded episodes and knows no policies.
"""

import math
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pdjax.output import terminal
from pdjax.output.paths import check_file
from pdjax.rollout.evaluate import Evaluation, episode_overrides
from pdjax.rollout.playing import make_play, no_residual
from pdjax.rollout.worker_play import Games
from pdjax.runs import video
from pdjax.runs.load import Refined, load_refined
from pdjax.types import Params


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
    actors = {"base policy": no_residual(refined.actor), "refined": refined.actor}
    if grid != (1, 1):
        episodes, actors = grid[0] * grid[1], {"refined": refined.actor}
    draw = _draw_positions if refined.playing.env.open is None else _draw_in_workers
    draw(refined, actors, out, episodes, seed, grid)
    return {"video": str(out), "episodes": episodes, "seed": seed, "grid": list(grid)}


def _draw_positions(
    refined: Refined,
    actors: Mapping[str, Params],
    out: Path,
    episodes: int,
    seed: int,
    grid: tuple[int, int],
) -> None:
    """Plays episodes of each actor, then draws their positions with the task's own model."""
    env = refined.playing.env
    try:
        env.task.make_visual_model()
    except NotImplementedError as error:
        raise video.RenderError(f"cannot draw {env.task.name}: {error}") from None
    play = make_play(refined.playing)
    sides: list[video.Side] = []
    for label, actor in actors.items():
        result = play(seed, episodes, actor, refined.residual_scale, record=True)
        played = result.qpos, result.steps_to_success, _solved(result)
        sides.append(video.Side(label, *map(np.asarray, played)))
    overrides = episode_overrides(env, jax.random.split(jax.random.key(seed), episodes))
    with terminal.progress("rendering", video.count_frames(sides, grid), "frames") as bar:
        video.render(refined.config.task.name, overrides, sides, out, grid, bar.update)


def _draw_in_workers(
    refined: Refined,
    actors: Mapping[str, Params],
    out: Path,
    episodes: int,
    seed: int,
    grid: tuple[int, int],
) -> None:
    """Plays episodes of each actor in worker processes, which draw what they play."""
    task = refined.playing.env.task
    films: list[video.Film] = []
    longest = episodes * task.episode_steps
    with tempfile.TemporaryDirectory() as folder:
        with (
            closing(Games(refined.playing)) as games,
            terminal.progress("playing", len(actors) * longest, "control steps") as bar,
        ):
            for number, (label, actor) in enumerate(actors.items()):

                def tell(taken: int, before: int = number * longest) -> None:
                    bar.update(before + taken)

                album = _Album(Path(folder) / f"{number}.npy", episodes, task.episode_steps, tell)
                result = games.play(seed, episodes, actor, refined.residual_scale, keep=album.keep)
                tell(longest)
                steps = np.asarray(result.steps_to_success)
                solved = _solved(result)
                films.append(video.Film(label, str(album.file), album.taken, steps, solved))
        hz = 20.0 if math.isnan(task.control_hz) else task.control_hz
        with terminal.progress("rendering", video.count_frames(films, grid), "frames") as bar:
            video.join(task.name, hz, films, out, grid, bar.update)


class _Album:
    """Pictures of episodes, in a file because they may be many.

    Attributes:
      file: what they are in, see `video.Film`.
      taken: see there.
    """

    def __init__(self, file: Path, episodes: int, limit: int, tell: Callable[[int], None]):
        self.file, self._limit, self._tell = file, limit, tell
        self._pictures: Any = None
        self.taken = np.zeros(episodes, int)

    def keep(self, episode: int, step: int, picture: np.ndarray) -> None:
        """Adds a picture (H, W, 3) uint8 of a control step."""
        if self._pictures is None:
            shape = (len(self.taken), self._limit, *picture.shape)
            self._pictures = np.lib.format.open_memmap(self.file, "w+", np.uint8, shape)
        self._pictures[episode, step] = picture
        self.taken[episode] = step + 1
        self._tell(int(self.taken.sum()))


def _solved(result: Evaluation) -> np.ndarray:
    """Returns (episodes,) bool, success at any step; False if the task has no success."""
    once = result.success_once
    return np.zeros(len(result.steps_to_success), bool) if once is None else np.asarray(once)
