"""Draws recorded episodes side by side into a video, even on a machine without a screen.

MuJoCo chooses its OpenGL library when it is first imported, so a separate process does the drawing,
with EGL or else OSMesa: `python -m pdjax.runs.video EPISODES.npz VIDEO`.
"""

import contextlib
import copy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdjax_envs.drawing import HEIGHT, WIDTH, RenderError

BACKENDS = ("egl", "osmesa")
LARGEST = 1280  # pixels of a frame's width; a wide grid has smaller pictures
LINGER = 12  # control steps shown after a success
NO_OPENGL = 3  # exit code of the drawing process where OpenGL does not work


class Side(NamedTuple):
    """One policy's episodes.

    Attributes:
      label: name shown in the picture.
      qpos: (control steps, episodes, nq) positions, m and rad.
      steps: (episodes,) int, control steps until success, or the time limit.
      success: (episodes,) bool.
    """

    label: str
    qpos: np.ndarray
    steps: np.ndarray
    success: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        """(episodes,) control steps to show."""
        return np.minimum(self.steps + LINGER, len(self.qpos))


def render(
    task: str,
    overrides: Mapping[str, Any],
    sides: Sequence[Side],
    path: Path,
    grid: tuple[int, int] = (1, 1),
    progress: Callable[[int], None] = lambda frames: None,
) -> None:
    """Draws episodes in rows and columns, with the sides of an episode next to each other.

    Args:
      task: name of the task.
      overrides: model field -> (episodes, rows, ...), the values in each episode.
      sides: the policies, which played the same episodes.
      path: video to write, .mp4 or .gif; it appears only when it is complete.
      grid: rows and columns of episodes shown at once; further episodes follow.
      progress: called with the number of frames drawn so far; the total is `count_frames`.

    Raises:
      RenderError: there is no OpenGL library that draws without a screen, or the drawing failed for
        another reason, which the message gives.
    """
    arrays = {"task": task, **{f"override/{name}": value for name, value in overrides.items()}}
    _make(task, arrays, sides, path, grid, progress)


def _make(
    task: str,
    arrays: Mapping[str, Any],
    sides: Sequence["Side | Film"],
    path: Path,
    grid: tuple[int, int],
    progress: Callable[[int], None],
) -> None:
    """Makes a video in another process, which gets the arrays and the fields of the sides."""
    given = {**arrays, "grid": grid}
    for index, side in enumerate(sides):
        given |= {f"side{index}/{name}": value for name, value in side._asdict().items()}
    chosen = os.environ.get("MUJOCO_GL")
    with tempfile.TemporaryDirectory() as folder:
        episodes, video = Path(folder) / "episodes.npz", Path(folder) / f"video{path.suffix}"
        written: dict[str, Any] = {name: np.asarray(value) for name, value in given.items()}
        np.savez(episodes, **written)
        tried = []
        for backend in (chosen,) if chosen else BACKENDS:
            code, failure = _draw(backend, [str(episodes), str(video)], progress)
            if code not in (0, NO_OPENGL):
                raise RenderError(f"cannot draw {task}: {failure}")
            if code == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(video, path)
                return
            tried.append(f"{backend}: {failure}")
    raise RenderError(
        f"cannot render without a screen ({'; '.join(tried)}); install EGL (Debian: libegl1) or"
        " OSMesa (Debian: libosmesa6)"
    )


def _draw(backend: str, arguments: list[str], progress: Callable[[int], None]) -> tuple[int, str]:
    """Runs the drawing process; returns its exit code, and why it failed."""
    with tempfile.TemporaryFile("w+") as errors:
        drawing = subprocess.Popen(
            [sys.executable, "-m", "pdjax.runs.video", *arguments],
            env=os.environ | {"MUJOCO_GL": backend, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        with drawing:
            for line in drawing.stdout or ():
                if line.strip().isdigit():
                    progress(int(line))
        errors.seek(0)
        reason = (errors.read().strip() or "no message").splitlines()[-1][:120]
        return drawing.returncode, reason


def count_frames(sides: Sequence["Side | Film"], grid: tuple[int, int] = (1, 1)) -> int:
    """Returns the number of frames of the video that `render` makes."""
    last = np.max([side.ends for side in sides], axis=0)
    at_once = grid[0] * grid[1]
    return int(sum(last[first : first + at_once].max() for first in range(0, len(last), at_once)))


class Film(NamedTuple):
    """One policy's episodes as pictures that its simulator drew.

    Attributes:
      label: name shown in the picture.
      pictures: file of an array (episodes, control steps, H, W, 3) uint8, as `np.save` writes it.
      taken: (episodes,) int, how many of them were taken before the episode ended.
      steps, success: see `Side`.
    """

    label: str
    pictures: str
    taken: np.ndarray
    steps: np.ndarray
    success: np.ndarray

    @property
    def ends(self) -> np.ndarray:
        """(episodes,) control steps to show; a blank picture if none was taken."""
        return np.clip(np.minimum(self.steps + LINGER, self.taken), 1, None)


def join(
    task: str,
    fps: float,
    films: Sequence[Film],
    path: Path,
    grid: tuple[int, int] = (1, 1),
    progress: Callable[[int], None] = lambda frames: None,
) -> None:
    """Puts pictures of episodes into a video, arranged as `render` does.

    Args:
      task: name of the task.
      fps: pictures a second.
      films: the policies, which played the same episodes.
      path, grid, progress: see `render`.

    Raises:
      RenderError: it failed; the message says why.
    """
    _make(task, {"fps": fps}, films, path, grid, progress)


def _size(width: int, height: int, columns: int) -> tuple[int, int]:
    """Returns (height, width) of a picture, so that a wide grid has smaller ones."""
    scale = min(1.0, LARGEST / (columns * width))
    height, width = (max(8, round(scale * n / 8) * 8) for n in (height, width))
    return height, width  # encoders want multiples of 8


def _write(
    video: Path,
    fps: float,
    play: Callable[[Sequence[int]], Iterable[Iterator[np.ndarray]]],
    episodes: int,
    grid: tuple[int, int],
    progress: Callable[[int], None],
) -> None:
    """Writes a video: as many episodes at once as fit into the grid, then the next.

    Args:
      video: the file.
      fps: pictures a second.
      play: episodes -> the frames of each.
      episodes: how many there are.
      grid: rows and columns.
      progress: see `render`.
    """
    import imageio.v2 as imageio

    options: dict[str, Any] = {"fps": max(1, round(fps))}
    if video.suffix == ".mp4":
        options |= {"codec": "libx264", "quality": 8, "macro_block_size": 8}
    at_once, drawn = grid[0] * grid[1], 0
    with imageio.get_writer(video, **options) as writer:
        for first in range(0, episodes, at_once):
            players = list(play(range(first, min(first + at_once, episodes))))
            for frame in _tiled(players, *grid):
                writer.append_data(frame)
                drawn += 1
                progress(drawn)


def _main(episodes: Path, video: Path) -> None:
    """Makes the video, in a process of its own."""
    with np.load(episodes) as arrays:
        loaded = {name: arrays[name] for name in arrays.files}
    draw = _join_pictures if "side0/pictures" in loaded else _draw_positions
    draw(loaded, video, lambda drawn: print(drawn, flush=True))  # `_draw` reads it


def _join_pictures(
    loaded: Mapping[str, np.ndarray], video: Path, tell: Callable[[int], None]
) -> None:
    """Makes a video of the films that `_make` wrote."""
    from PIL import Image

    films = [
        Film(str(label), str(pictures), *rest)
        for label, pictures, *rest in _sides(loaded, Film._fields)
    ]
    albums = [np.load(film.pictures, mmap_mode="r") for film in films]
    rows, columns = map(int, loaded["grid"])
    height, width = albums[0].shape[2:4]
    size = _size(width, height, columns * len(films))

    def player(episode: int) -> Iterator[np.ndarray]:
        def picture(index: int, step: int) -> np.ndarray:
            found = Image.fromarray(np.asarray(albums[index][episode, step]))
            return np.asarray(found.resize((size[1], size[0])))

        return _frames(picture, films, episode)

    def play(shown: Sequence[int]) -> Iterator[Iterator[np.ndarray]]:
        return map(player, shown)

    _write(video, float(loaded["fps"]), play, len(films[0].steps), (rows, columns), tell)


def _sides(loaded: Mapping[str, np.ndarray], fields: Sequence[str]) -> Iterator[list[np.ndarray]]:
    """Yields the fields of each side."""
    count = len({name.split("/")[0] for name in loaded if name.startswith("side")})
    for index in range(count):
        yield [loaded[f"side{index}/{name}"] for name in fields]


def _draw_positions(
    loaded: Mapping[str, np.ndarray], video: Path, tell: Callable[[int], None]
) -> None:
    """Makes a video of the sides that `_make` wrote, with the task's own model."""
    with _needing_opengl():
        import mujoco

    from pdjax_envs import registry
    from pdjax_envs.physics.engine import apply_overrides

    task = registry.make_task(str(loaded["task"]))
    overrides = {k.removeprefix("override/"): v for k, v in loaded.items() if "override/" in k}
    sides = [Side(str(label), *rest) for label, *rest in _sides(loaded, Side._fields)]
    compiled = task.make_visual_model()
    rows, columns = map(int, loaded["grid"])
    size = _size(WIDTH, HEIGHT, columns * len(sides))
    with contextlib.ExitStack() as renderers:

        def player(episode: int) -> Iterator[np.ndarray]:
            model = copy.copy(compiled)
            values = {name: value[episode] for name, value in overrides.items()}
            apply_overrides(model, task.scene, values)
            with _needing_opengl():
                renderer = renderers.enter_context(mujoco.Renderer(model, *size))
            data = mujoco.MjData(model)

            def picture(index: int, step: int) -> np.ndarray:
                data.qpos[:] = sides[index].qpos[step, episode]
                mujoco.mj_forward(model, data)
                renderer.update_scene(data, camera="view")
                return renderer.render()

            return _frames(picture, sides, episode)

        def play(shown: Sequence[int]) -> Iterator[Iterator[np.ndarray]]:
            renderers.close()  # of the episodes before
            return map(player, shown)

        _write(video, task.control_hz, play, sides[0].qpos.shape[1], (rows, columns), tell)


@contextlib.contextmanager
def _needing_opengl() -> Iterator[None]:
    """Ends the drawing process with `NO_OPENGL` if the block fails."""
    try:
        yield
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(NO_OPENGL)


def _tiled(players: list[Iterator[np.ndarray]], rows: int, columns: int) -> Iterator[np.ndarray]:
    """Yields frames of all players in rows and columns; one that has ended stands still."""
    current: list[Any] = [None] * len(players)
    while True:
        new = [next(player, None) for player in players]
        if all(frame is None for frame in new):
            return
        current = [old if frame is None else frame for old, frame in zip(current, new, strict=True)]
        tiles = current + [np.zeros_like(current[0])] * (rows * columns - len(current))
        lines = [
            np.concatenate(tiles[r * columns : (r + 1) * columns], axis=1) for r in range(rows)
        ]
        yield np.concatenate(lines, axis=0)


def _frames(
    picture: Callable[[int, int], np.ndarray],
    sides: Sequence[Side | Film],
    episode: int,
) -> Iterator[np.ndarray]:
    """Yields an episode's frames (height, sides * width, 3) uint8; a finished side stands still.

    Args:
      picture: (number of a side, control step) -> picture (height, width, 3) uint8.
      sides: the policies.
      episode: which one.
    """
    from PIL import Image, ImageDraw, ImageFont

    ends = [int(side.ends[episode]) for side in sides]
    drawn: list[Any] = [None] * len(sides)
    for step in range(max(ends)):
        for index, (side, end) in enumerate(zip(sides, ends, strict=True)):
            if step >= end and drawn[index] is not None:
                continue
            shown = Image.fromarray(picture(index, step))
            font = ImageFont.load_default(size=max(10, round(17 * shown.height / HEIGHT)))
            won = bool(side.success[episode]) and step + 1 >= side.steps[episode]
            failed = not side.success[episode] and step + 1 >= end
            state = "  success" if won else "  over" if failed else ""
            color = (22, 120, 60) if won else (170, 40, 30) if failed else (30, 30, 30)
            ImageDraw.Draw(shown).text((8, 6), f"{side.label}{state}", fill=color, font=font)
            drawn[index] = np.asarray(shown)
        yield np.concatenate(drawn, axis=1)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
