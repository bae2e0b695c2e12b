"""Signs that a simulation has gone wrong: absurd speeds, joints far beyond their limits, NaN."""

from typing import NamedTuple

import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.physics.engine import Array, PhysicsState, Scene

ANOMALOUS_SPEED = 200.0  # rad/s or m/s; no joint of a sane simulation is as fast
ANOMALOUS_OVERRUN = 0.5  # rad or m beyond a joint's limit; Adroit's soft ones give way by 0.25


class Limits(NamedTuple):
    """Positions of the limited joints that turn about an axis or slide along one.

    Attributes:
      index: (joints,) where they are in qpos.
      low, high: (joints,) rad or m.
    """

    index: np.ndarray
    low: np.ndarray
    high: np.ndarray


def joint_limits(scene: Scene | None) -> Limits:
    """The limits that a scene's joints have; none without a scene of ours."""
    if scene is None:
        return Limits(np.zeros(0, int), np.zeros(0), np.zeros(0))
    model, one_number = scene.model, (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE)
    limited = (model.jnt_limited == 1) & np.isin(model.jnt_type, one_number)
    low, high = model.jnt_range[limited].T
    return Limits(model.jnt_qposadr[limited], low, high)


def is_anomalous(limits: Limits, physics: PhysicsState, obs: Array) -> Array:
    """Whether a state is anomalous, () bool: too fast, too far beyond a limit, or not finite."""
    speed = jnp.max(jnp.abs(physics.qvel), initial=0.0)
    joints = physics.qpos[limits.index]
    overrun = jnp.max(jnp.maximum(limits.low - joints, joints - limits.high), initial=0.0)
    is_sane = (speed < ANOMALOUS_SPEED) & (overrun < ANOMALOUS_OVERRUN)
    return ~is_sane | ~jnp.all(jnp.isfinite(obs))
