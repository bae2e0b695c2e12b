"""A task and a controller that both notebooks use: push a peg into a narrow slot.

The world is a MuJoCo model written out below. The controller drives towards the slot with a camera
that is off by a few millimetres in each episode, so it often hits the wall beside the slot.
"""

import jax
import jax.numpy as jnp
import mujoco

import pdjax
from pdjax_envs.physics.engine import PhysicsState, Scene
from pdjax_envs.task import Episode, Start, Task

CLEARANCE = 0.002  # m, between the peg and either side of the slot
DEEP = 0.33  # m, x of a peg that is inside
EPISODE_STEPS = 60

MODEL = f"""
<mujoco>
  <option timestep="0.005" gravity="0 0 0"/>
  <worldbody>
    <camera name="top" pos="0.2 0 0.6" xyaxes="1 0 0 0 1 0"/>
    <light pos="0.2 0 1" dir="0 0 -1"/>
    <body name="peg">
      <joint name="x" type="slide" axis="1 0 0" damping="2"/>
      <joint name="y" type="slide" axis="0 1 0" damping="2"/>
      <geom type="sphere" size="0.01" mass="0.1" rgba="0.9 0.3 0.2 1"/>
    </body>
    <geom type="box" pos="0.35 {0.01 + CLEARANCE + 0.1} 0" size="0.05 0.1 0.02"/>
    <geom type="box" pos="0.35 {-0.01 - CLEARANCE - 0.1} 0" size="0.05 0.1 0.02"/>
  </worldbody>
  <actuator>
    <velocity joint="x" kv="8" ctrlrange="-1 1"/>
    <velocity joint="y" kv="8" ctrlrange="-1 1"/>
  </actuator>
</mujoco>
"""


def make_task() -> Task:
    """Builds the task: observe the peg's position and velocity, command its velocity."""

    def sample_start(key: jax.Array) -> Start:
        y = jax.random.uniform(key, minval=-0.1, maxval=0.1)
        return Start(Episode({}, ()), jnp.stack([0.0, y]), jnp.zeros(2))

    def observe(episode: Episode, physics: PhysicsState) -> jax.Array:
        del episode
        return jnp.concatenate([10 * physics.qpos, physics.qvel])

    def success(episode: Episode, physics: PhysicsState) -> jax.Array:
        del episode
        return physics.qpos[0] > DEEP

    return Task(
        name="Slot",
        summary="push a peg into a slot with 2 mm clearance",
        scene=Scene(mujoco.MjModel.from_xml_string(MODEL), n_substeps=10),
        observation=(("position", 2), ("velocity", 2)),
        meanings={"position": "of the peg, x and y, in 0.1 m", "velocity": "of the peg, in m/s"},
        action=(("velocity", 2),),
        control=lambda episode, physics, action: 0.2 * action,  # m/s
        episode_steps=EPISODE_STEPS,
        control_hz=20.0,
        sample_start=sample_start,
        observe=observe,
        success=success,
    )


class Controller:
    """Drives to the slot's y first, then ahead; its camera is off by about 4 mm in each episode."""

    def init_carry(self, key: jax.Array) -> jax.Array:
        """Draws the episode's error of the camera, in m."""
        return 0.004 * jax.random.normal(key)

    def apply(self, params, carry, obs_history, key):
        """Returns a chunk of two velocities in [-1, 1], and the carry."""
        del params, key
        y = obs_history[-1, 1] / 10
        error = carry - y
        ahead = jnp.where(jnp.abs(error) < 0.01, 1.0, 0.0)
        action = jnp.clip(jnp.stack([ahead, 20.0 * error]), -0.8, 0.8)
        return jnp.stack([action, action]), carry


def make_base() -> pdjax.BasePolicy:
    """Builds the frozen base policy from the controller."""
    return pdjax.base_policy(Controller(), obs_dim=4, act_dim=2, act_horizon=2)
