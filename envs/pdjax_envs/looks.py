"""How scenes look in pictures: light, sky and the camera that videos are drawn from.

Separate from the tasks so that all scenes look alike. It changes only models that are drawn.
"""

import mujoco
import numpy as np

Point = tuple[float, float, float]


def add_looks(
    spec: mujoco.MjSpec, eye: Point, target: Point, fovy: float = 42, size: float = 1
) -> None:
    """Adds light, a sky and the camera `view`.

    Args:
      spec: the model under construction.
      eye: position of the camera, m, in the world.
      target: the point that the camera looks at, m, in the world.
      fovy: vertical field of view, degrees.
      size: size of the scene relative to a table; the light stands that much further away.
    """
    spec.visual.headlight.ambient, spec.visual.headlight.diffuse = [0.35] * 3, [0.35] * 3
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 1280, 960
    # These settings are cheap enough to draw without a graphics card.
    spec.visual.quality.shadowsize, spec.visual.quality.offsamples = 1024, 2
    light = (0.6 * size, -0.6 * size, 1.6 * size)
    spec.worldbody.add_light(pos=light, dir=(-0.4, 0.4, -1), diffuse=[0.6] * 3)
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=(0.85, 0.9, 0.95),
        rgb2=(0.55, 0.62, 0.7),
        width=256,
        height=256,
    )
    xyaxes = _look_at(np.array(eye), np.array(target))
    spec.worldbody.add_camera(name="view", pos=eye, xyaxes=xyaxes, fovy=fovy)


def _look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns MuJoCo's `xyaxes` of a camera at `eye` that looks at `target` with z up."""
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    return np.concatenate([right, np.cross(back, right)])
