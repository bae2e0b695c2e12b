"""The scene that ManiSkill2's tabletop tasks share: floor, Panda, solver settings, test of a grasp.

Separate from the robot, which other scenes may use, and from the tasks, which add their objects.
"""

import jax
import jax.numpy as jnp
import mujoco

from pdjax_envs.maniskill import panda
from pdjax_envs.rotations import rotate, to_frame

PHYSICS_STEP = 0.005  # s
CONTROL_HZ = 20.0
N_SUBSTEPS = round(1 / (CONTROL_HZ * PHYSICS_STEP))
EPISODE_STEPS = 200  # control steps
ROBOT_NOISE = 0.02  # rad, standard deviation of each arm joint at the start
FINGERS_OPEN = 0.04  # m
DENSITY = 1000.0  # kg/m^3, SAPIEN's default
TOUCH = 0.001  # m
PAD = (0.00875, 0.00925)  # m, half size of a finger's pad across and along the finger
# Contacts of MuJoCo: time constant, s, and damping ratio; impedance at no and full depth, and the
# depth, m; how much stiffer friction is than the normal direction.
CONTACT_SOLREF, CONTACT_SOLIMP, FRICTION_STIFFNESS = (0.01, 1), (0.99, 0.99, 0.001), 300
SLIDING_TIME = 0.1  # s, in which the floor's friction stops an object; see `lay_on_floor`
# Collision bits of loose objects; see `panda`.
OBJECT = {
    "contype": 0,
    "conaffinity": panda.FLOOR_BIT | panda.ROBOT_BIT | panda.FIXTURE_BIT,
}


def make_spec(name: str, visual: bool) -> mujoco.MjSpec:
    """Starts a model with floor and robot.

    Args:
      name: name of the model.
      visual: whether to add parts that are only drawn.
    """
    spec = mujoco.MjSpec()
    spec.modelname = name
    spec.compiler.degree = False
    option = spec.option
    option.timestep = PHYSICS_STEP
    option.integrator = mujoco.mjtIntegrator.mjINT_EULER  # joint damping is implicit
    # A grasp is as rigid as in SAPIEN. With pyramidal cones objects slip out; with MuJoCo's softer
    # contacts they turn and creep in the hand, and align themselves with the pads.
    option.cone, option.impratio = mujoco.mjtCone.mjCONE_ELLIPTIC, FRICTION_STIFFNESS
    spec.default.geom.solref, spec.default.geom.solimp[:3] = CONTACT_SOLREF, CONTACT_SOLIMP
    # The bodies' bounding volume trees would use the compiled sizes, not the episode's.
    option.disableflags |= mujoco.mjtDisableBit.mjDSBL_MIDPHASE.value
    spec.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=(2, 2, 0.1),
        contype=panda.FLOOR_BIT,
        conaffinity=0,
        rgba=(0.55, 0.57, 0.6, 1),
    )
    panda.add_panda(spec, visual)
    return spec


def lay_on_floor(spec: mujoco.MjSpec, name: str) -> None:
    """Adds the contact of a loose object's shape `name` with the floor.

    MuJoCo's friction cone pushes a sliding object away from the floor, with an acceleration of
    friction times speed times twice the rate at which friction stops it. A cube that a finger
    pushes at .3 m/s would take off and tilt. A slower friction leaves it on the floor.
    """
    pair = spec.add_pair(geomname1="floor", geomname2=name, solref=CONTACT_SOLREF)
    pair.solimp[:3] = CONTACT_SOLIMP
    pair.solreffriction = (SLIDING_TIME, 1)


def sample_robot(key: jax.Array, rest_arm: jax.typing.ArrayLike) -> jax.Array:
    """Draws joint positions (9,) near `rest_arm` (7,) rad, with open fingers."""
    arm = jnp.asarray(rest_arm) + ROBOT_NOISE * jax.random.normal(key, (panda.ARM_JOINTS,))
    return jnp.concatenate([arm, jnp.full(2, FINGERS_OPEN)])


def observe_robot(qpos: jax.Array, qvel: jax.Array) -> list[jax.Array]:
    """Returns joint positions (9,), velocities (9,), the poses of base (7,) and tool (7,)."""
    return [
        qpos[: panda.NUM_JOINTS],
        qvel[: panda.NUM_JOINTS],
        jnp.array([*panda.BASE_POS, 1.0, 0.0, 0.0, 0.0]),
        *panda.tcp_pose(qpos[: panda.ARM_JOINTS]),
    ]


def box_axes(tool_quat: jax.Array, quat: jax.Array) -> list[jax.Array]:
    """Returns a box's three axes (3,) in the tool's frame, along whose y axis the fingers move."""
    origin = jnp.zeros(3)
    return [to_frame(origin, tool_quat, rotate(quat, axis)) for axis in jnp.eye(3)]


def pinched(qpos: jax.Array, pos: jax.Array, quat: jax.Array, half_size: jax.Array) -> jax.Array:
    """Returns whether both finger pads touch a box: they are within `TOUCH` and not beside it.

    Args:
      qpos: positions; the robot's joint positions come first, rad and m.
      pos: (3,) m, middle of the box in the world.
      quat: (4,) orientation of the box.
      half_size: (3,) m, half size of the box.

    Returns:
      () bool.
    """
    tool_pos, tool_quat = panda.tcp_pose(qpos[: panda.ARM_JOINTS])
    center = to_frame(tool_pos, tool_quat, pos)
    axes = box_axes(tool_quat, quat)
    reach = half_size @ jnp.abs(jnp.stack(axes))  # (3,) m, extent to each side
    left, right = qpos[panda.ARM_JOINTS], qpos[panda.ARM_JOINTS + 1]
    touching = (left - (center[1] + reach[1]) <= TOUCH) & (right - (reach[1] - center[1]) <= TOUCH)
    beside = (jnp.abs(center[0]) <= reach[0] + PAD[0]) & (jnp.abs(center[2]) <= reach[2] + PAD[1])
    return touching & beside


def nearness(distance: jax.Array) -> jax.Array:
    """Returns 1 - tanh(distance) as in mani_skill2's rewards: 1 at distance 0, 0 far away."""
    return 1 - jnp.tanh(distance)


ROBOT_OBSERVATION = (("qpos", 9), ("qvel", 9), ("base_pose", 7), ("tcp_pose", 7))

ROBOT_MEANINGS = {
    "qpos": "angles of the seven arm joints, rad, and openings of the two fingers, m",
    "qvel": "velocities of `qpos`, rad/s and m/s",
    "base_pose": "pose of the robot's base in the world: position, m, and quaternion (w, x, y, z)",
    "tcp_pose": "pose of the tool centre point in the world: position, m, quaternion with x >= 0",
}
