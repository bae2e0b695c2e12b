"""The Adroit hand: the parts of the models that the four Adroit tasks share.

The models come from the gymnasium-robotics package (Apache-2.0). They are compiled from its files
with the changes that its environments make at start-up (`adroit_hand/adroit_*.py`): weaker position
gains of wrist and fingers, and actions in [-1, 1] over each actuator's range. Holds no state.

The engines native and warp simulate the models as they are. For mjx, which lacks some features, all
four models change as follows; each task's docstring lists its further changes:

- `noslip_iterations` changes from 20 to 0: MJX has no solver against slip.
- A custom number `max_contact_points` limits the contact points. Without it MJX solves for all
  contact points that the model could ever have (188 to 499), most of them far apart. It keeps the
  deepest `MJX_CONTACTS` of each contact dimension; if all of them touch, the engine reports an
  overflow.

One difference is not a change of the model: contacts of boxes have no margin in MJX, so objects on
the table sink in by up to 1 mm.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.looks import add_looks
from pdjax_envs.physics.engine import Buffers, PhysicsState, Scene
from pdjax_envs.task import Episode, Task

CONTROL_HZ = 100.0
EPISODE_STEPS = 200  # control steps; the limit in gymnasium-robotics for all four tasks
N_SUBSTEPS = 5  # of 2 ms
HAND_JOINTS = 24
CONTROL_MODE = "joint_position"
# In MuJoCo C, experts and random actions made up to 15 contacts of one dimension.
MJX_CONTACTS = 24
# (first actuator, last actuator, position gain in N m/rad)
_GAINS = (("A_WRJ1", "A_WRJ0", 10.0), ("A_FFJ3", "A_THJ0", 1.0))


def asset(name: str) -> str:
    """Returns the path of a model file of gymnasium-robotics.

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
    # This finds the package without importing it, which would load Gymnasium and print notices.
    package = importlib.util.find_spec("gymnasium_robotics")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("Adroit's models need the package gymnasium-robotics: install it")
    return str(Path(package.origin).parent / "envs/assets/adroit_hand" / name)


def compile_model(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """Compiles the model with the gains that the environments set."""
    for index, geom in enumerate(spec.geoms):
        geom.name = geom.name or f"geom{index}"  # only objects with names can be overridden
    model = spec.compile()
    for first, last, gain in _GAINS:
        rows = slice(model.actuator(first).id, model.actuator(last).id + 1)
        model.actuator_gainprm[rows, :3] = (gain, 0, 0)
        model.actuator_biasprm[rows, :3] = (0, -gain, 0)
    return model


def visual_model(
    name: str, eye: tuple[float, float, float], target: tuple[float, float, float]
) -> mujoco.MjModel:
    """Returns the model to draw, seen from `eye` towards `target` (m), in the light of `looks`."""
    spec = mujoco.MjSpec.from_file(asset(name))
    for light in spec.lights:
        spec.delete(light)
    add_looks(spec, eye, target)
    return compile_model(spec)


def adapting(
    name: str, edit: Callable[[mujoco.MjSpec], None] = lambda spec: None
) -> Callable[[Scene, str], Scene]:
    """Returns a task's `adapt`, which changes the model for mjx; other engines take it as it is.

    Args:
      name: name of the model file.
      edit: changes the file's spec in place, for the features that MJX lacks in this task. Objects
        must keep their names and order, since tasks read derived fields by index. Every body keeps
        its inertia.
    """

    def adapt(scene: Scene, engine: str) -> Scene:
        if engine != "mjx":
            return scene
        spec = mujoco.MjSpec.from_file(asset(name))
        spec.option.noslip_iterations = 0
        spec.add_numeric(name="max_contact_points", size=1, data=[MJX_CONTACTS])
        edit(spec)
        for index, body in enumerate(spec.bodies[1:], start=1):
            body.explicitinertial = True
            body.mass, body.inertia = scene.model.body_mass[index], scene.model.body_inertia[index]
            body.ipos, body.iquat = scene.model.body_ipos[index], scene.model.body_iquat[index]
        return dataclasses.replace(scene, model=compile_model(spec))

    return adapt


def without_cylinders(spec: mujoco.MjSpec, *bodies: str) -> None:
    """Turns the bodies' colliding cylinders into capsules of the same radius and overall length.

    A cylinder that is too flat for a capsule becomes a box, see `as_box`.
    """
    for body in bodies:
        for geom in spec.body(body).geoms:
            if geom.type != mujoco.mjtGeom.mjGEOM_CYLINDER or not geom.contype | geom.conaffinity:
                continue
            radius, half_length, _ = geom.size
            if half_length > radius:
                geom.type = mujoco.mjtGeom.mjGEOM_CAPSULE
                geom.size = (radius, half_length - radius, 0)
            else:
                as_box(geom)


def as_box(cylinder: Any) -> None:
    """Turns a cylindrical geom or site of a spec into a box of the same length and volume."""
    radius, half_length, _ = cylinder.size
    side = 0.5 * np.sqrt(np.pi) * radius
    cylinder.type = mujoco.mjtGeom.mjGEOM_BOX
    cylinder.size = (side, side, half_length)


def make_scene(
    model: mujoco.MjModel,
    override_rows: Mapping[str, tuple[str, ...]],
    fields: tuple[str, ...],
    buffers: Buffers,
) -> Scene:
    """Builds a scene whose derived fields are one substep old, as in gymnasium-robotics."""
    low, high = model.actuator_ctrlrange.T
    return Scene(
        model,
        n_substeps=N_SUBSTEPS,
        override_rows=override_rows,
        fields=fields,
        fresh_fields=False,
        ctrl_scale=(np.mean([low, high], axis=0), 0.5 * (high - low)),
        buffers=buffers,
    )


def action_parts(model: mujoco.MjModel) -> tuple[tuple[str, int], ...]:
    """Returns the names of the actions, one per actuator, in order."""
    return tuple((model.actuator(i).name, 1) for i in range(model.nu))


def control(episode: Episode, physics: PhysicsState, action: jax.Array) -> jax.Array:
    """Returns the action: the actuators' targets, which the engine scales."""
    del episode, physics
    return action


AdroitTask = partial(
    Task,
    control_mode=CONTROL_MODE,
    episode_steps=EPISODE_STEPS,
    control_hz=CONTROL_HZ,
    control=control,
)
"""Builds a `Task` with the values that all four tasks share."""


def bonus(condition: Any, value: float) -> jax.Array:
    """Returns `value` if the condition holds, else 0."""
    return jnp.where(condition, value, 0.0)


def sparse(success: jax.Array) -> dict[str, jax.Array]:
    """Returns the sparse reward of all four tasks: 10 at success, else -0.1."""
    return {"sparse": jnp.where(success, 10.0, -0.1)}


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the distance of two points (3,), m."""
    return jnp.linalg.norm(a - b)
