"""Draws recorded episodes side by side into a video, on a machine without a screen too.

MuJoCo picks its OpenGL library when it is first imported, so the drawing runs in a process of its
own, with EGL or else OSMesa: `python -m pdjax.render EPISODES.npz VIDEO`.
"""

import copy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BACKENDS = ("egl", "osmesa")
WIDTH, HEIGHT = 480, 400  # pixels of one side
LINGER = 12  # control steps shown after a success


class RenderError(RuntimeError):
    """Rendering is not possible here: one line that says what to install."""


class Side(NamedTuple):
    """One policy's episodes.

    Attributes:
      label: shown above.
      qpos: (control steps, episodes, nq) m and rad.
      steps: (episodes,) control steps until success, or the time limit.
      success: (episodes,) bool.
    """

    label: str
    qpos: np.ndarray
    steps: np.ndarray
    success: np.ndarray


def render(task: str, overrides: Mapping[str, Any], sides: Sequence[Side], path: Path) -> None:
    """Draws episodes one after another, the sides next to each other.

    Args:
      task: task name.
      overrides: model field -> (episodes, rows, ...) of the episodes.
      sides: policies that played the same episodes.
      path: video to write, .mp4 or .gif; appears only when it is complete.

    Raises:
      RenderError: no OpenGL library for drawing without a screen.
    """
    arrays: dict[str, Any] = {"task": np.array(task)}
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
            done = subprocess.run(
                [sys.executable, "-m", "pdjax.render", str(episodes), str(video)],
                env=os.environ | {"MUJOCO_GL": backend, "JAX_PLATFORMS": "cpu"},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(video, path)
                return
            reason = (done.stderr.strip() or "no message").splitlines()[-1]
            tried.append(f"{backend}: {reason[:120]}")
    raise RenderError(
        f"cannot render without a screen ({'; '.join(tried)}); install EGL (Debian: libegl1) or"
        " OSMesa (Debian: libosmesa6)"
    )


def _main(episodes: Path, video: Path) -> None:
    """The drawing process."""
    import imageio.v2 as imageio
    import mujoco

    from pdjax_envs import registry
    from pdjax_envs.physics.engine import apply_overrides

    with np.load(episodes) as arrays:
        loaded = {name: arrays[name] for name in arrays.files}
    task = registry.make_task(str(loaded["task"]))
    overrides = {k.removeprefix("override/"): v for k, v in loaded.items() if "override/" in k}
    count = len({name.split("/")[0] for name in loaded if name.startswith("side")})
    sides = [
        Side(str(loaded[f"side{i}/label"]),
             *(loaded[f"side{i}/{name}"] for name in ("qpos", "steps", "success")))
        for i in range(count)
    ]  # fmt: skip
    compiled = task.make_visual_model()
    options: dict[str, Any] = {"fps": int(task.control_hz)}
    if video.suffix == ".mp4":
        options |= {"codec": "libx264", "quality": 8, "macro_block_size": 8}
    with imageio.get_writer(video, **options) as writer:
        for episode in range(sides[0].qpos.shape[1]):
            model = copy.copy(compiled)
            values = {name: value[episode] for name, value in overrides.items()}
            apply_overrides(model, task.scene, values)
            with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
                for frame in _frames(model, renderer, sides, episode):
                    writer.append_data(frame)


def _frames(model: Any, renderer: Any, sides: list[Side], episode: int):
    """Frames (HEIGHT, sides * WIDTH, 3) uint8 of one episode; a finished side stands still."""
    import mujoco
    from PIL import Image, ImageDraw, ImageFont

    data = mujoco.MjData(model)
    font = ImageFont.load_default(size=17)
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
            draw.text((12, 10), f"{side.label}{state}", fill=color, font=font)
            drawn[index] = np.asarray(picture)
        yield np.concatenate(drawn, axis=1)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
