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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    arrays: dict[str, Any] = {"task": np.array(task), "grid": np.array(grid)}
    arrays |= {f"override/{name}": value for name, value in overrides.items()}
    for index, side in enumerate(sides):
        fields = {"label": np.array(side.label), **side._asdict()}
        arrays |= {f"side{index}/{name}": value for name, value in fields.items()}
    chosen = os.environ.get("MUJOCO_GL")
    with tempfile.TemporaryDirectory() as folder:
        episodes, video = Path(folder) / "episodes.npz", Path(folder) / f"video{path.suffix}"
        np.savez(episodes, **arrays)
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


def count_frames(sides: Sequence[Side], grid: tuple[int, int] = (1, 1)) -> int:
    """Returns the number of frames of the video that `render` makes."""
    limit, count = sides[0].qpos.shape[:2]
    last = np.max([np.minimum(side.steps + LINGER, limit) for side in sides], axis=0)
    at_once = grid[0] * grid[1]
    return int(sum(last[first : first + at_once].max() for first in range(0, count, at_once)))


def _main(episodes: Path, video: Path) -> None:
    """Draws the video, in a process of its own."""
    import imageio.v2 as imageio

    with _needing_opengl():
        import mujoco

    from pdjax_envs import registry
    from pdjax_envs.physics.engine import apply_overrides

    with np.load(episodes) as arrays:
        loaded = {name: arrays[name] for name in arrays.files}
    task = registry.make_task(str(loaded["task"]))
    overrides = {k.removeprefix("override/"): v for k, v in loaded.items() if "override/" in k}
    count = len({name.split("/")[0] for name in loaded if name.startswith("side")})
    sides = [
        Side(
            str(loaded[f"side{i}/label"]),
            *(loaded[f"side{i}/{name}"] for name in ("qpos", "steps", "success")),
        )
        for i in range(count)
    ]
    compiled = task.make_visual_model()
    options: dict[str, Any] = {"fps": int(task.control_hz)}
    if video.suffix == ".mp4":
        options |= {"codec": "libx264", "quality": 8, "macro_block_size": 8}
    rows, columns = loaded["grid"]
    at_once, episodes_in_all = rows * columns, sides[0].qpos.shape[1]
    scale = min(1.0, LARGEST / (columns * len(sides) * WIDTH))
    size = (
        round(scale * HEIGHT / 8) * 8,
        round(scale * WIDTH / 8) * 8,
    )  # encoders want multiples of 8
    drawn = 0
    with imageio.get_writer(video, **options) as writer:
        for first in range(0, episodes_in_all, at_once):
            shown = range(first, min(first + at_once, episodes_in_all))
            players = []
            with contextlib.ExitStack() as renderers:
                for episode in shown:
                    model = copy.copy(compiled)
                    values = {name: value[episode] for name, value in overrides.items()}
                    apply_overrides(model, task.scene, values)
                    with _needing_opengl():
                        renderer = renderers.enter_context(mujoco.Renderer(model, *size))
                    players.append(_frames(model, renderer, sides, episode))
                for frame in _tiled(players, rows, columns):
                    writer.append_data(frame)
                    drawn += 1
                    print(drawn, flush=True)  # `_draw` reads it


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


def _frames(model: Any, renderer: Any, sides: list[Side], episode: int) -> Iterator[np.ndarray]:
    """Yields an episode's frames (height, sides * width, 3) uint8; a finished side stands still."""
    import mujoco
    from PIL import Image, ImageDraw, ImageFont

    data = mujoco.MjData(model)
    font = ImageFont.load_default(size=max(10, round(17 * renderer.height / HEIGHT)))
    limit = len(sides[0].qpos)
    ends = [min(int(side.steps[episode]) + LINGER, limit) for side in sides]
    drawn: list[Any] = [None] * len(sides)
    for step in range(max(ends)):
        for index, (side, end) in enumerate(zip(sides, ends, strict=True)):
            if step >= end and drawn[index] is not None:
                continue
            data.qpos[:] = side.qpos[step, episode]
            mujoco.mj_forward(model, data)
            renderer.update_scene(data, camera="view")
            picture = Image.fromarray(renderer.render())
            won = bool(side.success[episode]) and step + 1 >= side.steps[episode]
            failed = not side.success[episode] and step + 1 >= limit
            state = "  success" if won else "  time is up" if failed else ""
            color = (22, 120, 60) if won else (170, 40, 30) if failed else (30, 30, 30)
            draw = ImageDraw.Draw(picture)
            draw.text((8, 6), f"{side.label}{state}", fill=color, font=font)
            drawn[index] = np.asarray(picture)
        yield np.concatenate(drawn, axis=1)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
