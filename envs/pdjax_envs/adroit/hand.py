"""The Adroit hand: what the four tasks share of their models.

The models are those of the gymnasium-robotics package (Apache-2.0), compiled from its files with
the changes that its environments make when they start (`adroit_hand/adroit_*.py`): weaker position
gains of wrist and fingers, and actions in [-1, 1] over each actuator's range. Kept apart from the
tasks because all of them share it. Holds no state.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.looks import add_looks
from pdjax_envs.physics.engine import PhysicsState, Scene
from pdjax_envs.task import Episode

CONTROL_HZ = 100.0
EPISODE_STEPS = 200  # control steps; gymnasium-robotics registers all four tasks so
N_SUBSTEPS = 5  # of 2 ms
HAND_JOINTS = 24
CONTROL_MODE = "joint_position"
# (first actuator, last actuator, position gain in N m/rad)
_GAINS = (("A_WRJ1", "A_WRJ0", 10.0), ("A_FFJ3", "A_THJ0", 1.0))


def asset(name: str) -> str:
    """Path of a model file of gymnasium-robotics.

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
    # Found without importing the package, which would load Gymnasium and print its notices.
    package = importlib.util.find_spec("gymnasium_robotics")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("Adroit's models need the package gymnasium-robotics: install it")
    return str(Path(package.origin).parent / "envs/assets/adroit_hand" / name)


def compile_model(spec: mujoco.MjSpec) -> mujoco.MjModel:
    """The model with the gains that the environments set."""
    model = spec.compile()
    for first, last, gain in _GAINS:
        rows = slice(model.actuator(first).id, model.actuator(last).id + 1)
        model.actuator_gainprm[rows, :3] = (gain, 0, 0)
        model.actuator_biasprm[rows, :3] = (0, -gain, 0)
    return model


def visual_model(
    name: str, eye: tuple[float, float, float], target: tuple[float, float, float]
) -> mujoco.MjModel:
    """The model to draw, seen from `eye` towards `target` (m), in our light instead of its own."""
    spec = mujoco.MjSpec.from_file(asset(name))
    for light in spec.lights:
        spec.delete(light)
    add_looks(spec, eye, target)
    return compile_model(spec)


def make_scene(
    model: mujoco.MjModel, override_rows: Mapping[str, tuple[str, ...]], fields: tuple[str, ...]
) -> Scene:
    """A scene whose derived fields are as old as those that gymnasium-robotics reads."""
    low, high = model.actuator_ctrlrange.T
    return Scene(
        model,
        n_substeps=N_SUBSTEPS,
        override_rows=override_rows,
        fields=fields,
        fresh_fields=False,
        ctrl_scale=(np.mean([low, high], axis=0), 0.5 * (high - low)),
    )


def action_parts(model: mujoco.MjModel) -> tuple[tuple[str, int], ...]:
    """Names of the actions, one an actuator, in order."""
    return tuple((model.actuator(i).name, 1) for i in range(model.nu))


def control(episode: Episode, physics: PhysicsState, action: jax.Array) -> jax.Array:
    """Actions are the actuators' targets, scaled by the engine."""
    del episode, physics
    return action


def bonus(condition: Any, value: float) -> jax.Array:
    """`value` where the condition holds, else 0."""
    return jnp.where(condition, value, 0.0)


def sparse(success: jax.Array) -> dict[str, jax.Array]:
    """The sparse reward of all four tasks: 10 at success, else -0.1."""
    return {"sparse": jnp.where(success, 10.0, -0.1)}


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Distance of two points (3,), m."""
    return jnp.linalg.norm(a - b)
