"""Draws a state of a task as a picture, in this process and without a screen.

Separate from the tasks because it alone needs OpenGL, which it looks for when it first draws;
importing it imports neither MuJoCo nor JAX. Not pure: a `Drawer` holds an OpenGL context.
"""

import copy
import ctypes.util
import importlib
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pdjax_envs.reading import reason

if TYPE_CHECKING:
    from pdjax_envs.task import Task

WIDTH, HEIGHT = 480, 400  # pixels
LARGEST = 4096  # pixels of a side
MOST_GEOMS = 10_000  # shapes in a picture; MuJoCo leaves out what is beyond
# MuJoCo's name of an OpenGL library that needs no screen, and the library.
_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}


class RenderError(RuntimeError):
    """Rendering is not possible on this machine; the message says what to install."""


class Drawer:
    """Draws states of one task from the camera `view` of its visual model.

    The environment variable MUJOCO_GL chooses the OpenGL library (egl, osmesa, glfw). Without it,
    Linux gets EGL, or else OSMesa.
    """

    def __init__(self, task: "Task", width: int = WIDTH, height: int = HEIGHT):
        """Builds the model and an OpenGL context.

        Args:
          task: the task.
          width: of a picture, pixels.
          height: of a picture, pixels.

        Raises:
          NotImplementedError: the task has no model to draw.
          RenderError: this machine cannot draw.
        """
        import mujoco

        self._task = task
        self._model = model = copy.copy(task.make_visual_model())
        model.vis.global_.offwidth, model.vis.global_.offheight = width, height
        self._data = mujoco.MjData(model)
        self._scene, self._options = mujoco.MjvScene(model, MOST_GEOMS), mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = model.camera("view").id
        self._view = mujoco.MjrRect(0, 0, width, height)
        self._context, self._meshes = _open(model, width, height)

    def draw(self, qpos: np.ndarray, overrides: Mapping[str, Any]) -> np.ndarray:
        """Returns a picture, (height, width, 3) uint8.

        Args:
          qpos: (nq,) positions, m and rad.
          overrides: model field -> (rows, ...) values of the episode.
        """
        import mujoco

        from pdjax_envs.physics.engine import apply_overrides

        if self._task.scene is not None:
            apply_overrides(self._model, self._task.scene, overrides)
        self._data.qpos[:] = qpos
        mujoco.mj_forward(self._model, self._data)
        self._context.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(
            self._model, self._data, self._options, None, self._camera, everything, self._scene
        )
        mujoco.mjr_render(self._view, self._scene, self._meshes)
        picture = np.empty((self._view.height, self._view.width, 3), np.uint8)
        mujoco.mjr_readPixels(picture, None, self._view, self._meshes)
        return np.flipud(picture).copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Frees the OpenGL context; the drawer cannot draw any more."""
        self._context.make_current()
        self._meshes.free()
        self._context.free()


def check_size(width: int, height: int) -> None:
    """Raises ValueError unless a picture may have this size."""
    for name, size in (("width", width), ("height", height)):
        if not isinstance(size, int | np.integer) or not 1 <= size <= LARGEST:
            raise ValueError(f"{name}={size!r}, expected 1 to {LARGEST} pixels")


def _open(model: Any, width: int, height: int) -> tuple[Any, Any]:
    """Returns an OpenGL context and MuJoCo's drawing context in it, with the model's meshes."""
    import mujoco

    name = _backend()
    try:
        module = f"mujoco.{name}" if name else "mujoco.gl_context"
        context = importlib.import_module(module).GLContext(width, height)
        context.make_current()
        meshes = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, meshes)
    except Exception as error:  # each library fails in a way of its own
        raise RenderError(
            f"cannot draw with {name or 'the default of MuJoCo'} ({reason(error)}); choose another"
            f" OpenGL library with MUJOCO_GL, one of {', '.join(_LIBRARIES)}, glfw"
        ) from None
    return context, meshes


def _backend() -> str:
    """Returns MuJoCo's name for the OpenGL library to use; "" leaves it to MuJoCo."""
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    if chosen in (*_LIBRARIES, "glfw"):
        return chosen
    if not sys.platform.startswith("linux"):
        return ""
    for name, library in _LIBRARIES.items():
        if ctypes.util.find_library(library):
            return name
    raise RenderError(
        "cannot draw without a screen: neither EGL nor OSMesa is installed; install EGL (Debian:"
        " libegl1) or OSMesa (Debian: libosmesa6)"
    )
