"""ManiSkill2's mobile robot: a base that slides and turns, a lift, a torso and two Panda arms.

Separate from the tasks because all tasks with large objects share it; the arms come from `panda`.
The numbers come from mani-skill2 0.5.3: `assets/descriptions/mobile_panda_dual_arm.urdf` (frames,
inertias, limits), `agents/configs/mobile_panda/defaults.py` (gains, force limits, action ranges)
and `agents/robots/mobile_panda.py` (observation). Joints are in SAPIEN's order: base x, y and turn,
lift, right arm and fingers, left arm and fingers.

As in SAPIEN, drives follow velocities by damping alone, within a force limit. They need an
integrator that is implicit in the actuators' velocity (`implicitfast`). At the force limit MuJoCo C
removes a drive's damping from the implicit part; MJX does not.

Differences from SAPIEN: collision shapes are primitives; the robot does not collide with itself,
and its torso does not collide with the floor (it reaches through the floor in ManiSkill2 too);
gravity is compensated but Coriolis forces are not.

Holds no state.
"""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.maniskill import panda

NUM_JOINTS = 22
START_LIFT = 0.9  # m
# Joint positions at the start of an episode: of an arm, rad, and of its fingers, m.
START_ARM = np.array([0, 0, 0, -1.5, 0, 3, 0.78, 0.02, 0.02])
BASE_SPEED = np.array([0.5, 0.5, 3.14, 0.5])  # m/s, m/s, rad/s, m/s at action 1
BASE_DAMPING, BASE_FORCE = 1000.0, 500.0  # N s/m and N m s/rad, N and N m
ARM_SPEED = 3.14  # rad/s at action 1
LIFT_RANGE = (0.0, 1.6)  # m
TIP = 0.035  # m, distance along the finger from its frame to the observed point

ACTION = (
    ("base_velocity", 2),
    ("base_turn", 1),
    ("lift_velocity", 1),
    ("left_arm_velocity", 7),
    ("left_gripper", 1),
    ("right_arm_velocity", 7),
    ("right_gripper", 1),
)
OBSERVATION = (
    ("qpos", 19),
    ("qvel", 19),
    ("base_pos", 2),
    ("base_orientation", 1),
    ("base_vel", 2),
    ("base_ang_vel", 1),
)
SENSORS = (("fingers_pos", 12), ("fingers_vel", 12))
MEANINGS = {
    "qpos": "lift, m; right arm's angles, rad, and fingers' openings, m; then the left arm's",
    "qvel": "velocities of `qpos`, m/s and rad/s",
    "base_pos": "x and y of the base in the world, m",
    "base_orientation": "direction that the base faces, rad about z, not wrapped",
    "base_vel": "velocity of the base, m/s, world axes",
    "base_ang_vel": "turning rate of the base, rad/s",
    "fingers_pos": "tips of fingers 2 and 1 of the right hand, then of the left, m, in the world",
    "fingers_vel": "velocities of fingers 1 and 2 of the right hand, then of the left, m/s",
}
FINGER_GEOMS = tuple(
    f"{side}_panda_{finger}finger_{part}"
    for side in ("right", "left")
    for finger in ("left", "right")
    for part in ("pad", "carriage")
)

# Without rotor inertia, contact forces would be too small: the constraint solver does not see the
# drives' damping, which only enters the integration.
_ARM_JOINT = panda.Joint(damping=0.0, armature=0.3)
_FINGER_JOINT = panda.Joint(damping=panda.DAMPING, armature=1.0)
_SHOULDER = (0.08083, 0.3012, 0.2885)  # m, the left arm's first joint in the chest's frame
_CHEST = 0.1315  # m, height of the chest above the lift
_FIRST_JOINT = 0.333  # m, from the base of an arm to its first joint
_TORSO = {"contype": panda.ROBOT_BIT, "conaffinity": panda.FIXTURE_BIT, "group": 3}
_WHITE, _DARK = (0.93, 0.94, 0.95, 1), (0.2, 0.21, 0.23, 1)


def add_mobile_panda(spec: mujoco.MjSpec, visual: bool) -> None:
    """Adds the robot, one actuator per joint in the joints' order, and the fingertips' sensors.

    Args:
      spec: the model under construction; its `sensordata` begins with `SENSORS`.
      visual: whether to add parts that are only drawn.
    """
    if visual:
        panda.add_meshes(spec)
    chest = _add_torso(spec.worldbody, visual)
    names = []
    for side, sign in (("right", -1), ("left", 1)):
        x, y, z = _SHOULDER
        mount = chest.add_body(
            name=f"{side}_shoulder",
            pos=(x, sign * (y - _FIRST_JOINT), z),
            quat=(np.sqrt(0.5), -sign * np.sqrt(0.5), 0, 0),  # z points outwards
        )
        hand = panda.add_arm(mount, f"{side}_panda_", _ARM_JOINT, _FINGER_JOINT, visual)
        for finger in hand.bodies:
            finger.add_site(name=f"{finger.name}_tip", pos=(0, 0, TIP), group=4)
        names += [f"{side}_panda_joint{index}" for index in range(1, 8)]
        names += [f"{side}_panda_finger_joint{index}" for index in (1, 2)]
    for name in ("base_x", "base_y", "base_turn", "lift"):
        _add_velocity_actuator(spec, name, BASE_DAMPING, BASE_FORCE)
    for name in names:
        if "finger" in name:
            panda.add_position_actuator(spec, name)
        else:
            _add_velocity_actuator(spec, name, panda.DAMPING, panda.FORCE_LIMIT)
    _add_sensors(spec)


def _add_torso(world: mujoco.MjsBody, visual: bool) -> mujoco.MjsBody:
    """Adds base, lift and chest; returns the chest."""
    slide, hinge = mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtJoint.mjJNT_HINGE
    box, capsule = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CAPSULE
    # One body replaces the URDF's two links of 1 kg that both x and y move; a third moves along x
    # alone.
    base = _add_body(world, "mobile_base", 2.0, (0, 0, 0), (0.04, 0.04, 0.02))
    base.add_joint(name="base_x", type=slide, axis=(1, 0, 0), armature=1.0)
    base.add_joint(name="base_y", type=slide, axis=(0, 1, 0))
    base.add_joint(name="base_turn", type=hinge, axis=(0, 0, 1))
    torso = _add_body(base, "adjustable_body", 10.0, (0, 0, 0), (0.04, 0.04, 0.02))
    torso.add_joint(
        name="lift",
        type=slide,
        axis=(0, 0, 1),
        range=LIFT_RANGE,
        limited=mujoco.mjtLimited.mjLIMITED_TRUE,
    )
    for x in (-0.05, 0.05):
        ends = (x, 0, -1.5, x, 0, -0.1)
        torso.add_geom(type=capsule, fromto=ends, size=(0.1, 0, 0), **_TORSO)
    waist = _add_body(
        torso,
        "body_base_link",
        1.722937,
        (-0.024012, 0.000139, 0.059566),
        (0.006398093, 0.007611664, 0.006331936),
        (-6.808969e-6, -0.000331509, 2.026354e-6),
    )
    chest = _add_body(
        waist,
        "body_link",
        1.482929,
        (0.05711, 0.000372, 0.238229),
        (0.015601032, 0.013969735, 0.008327993),
        (-1.5890903e-5, -0.003805596, -2.0695221e-5),
    )
    chest.pos = (0, 0, _CHEST)
    chest.add_geom(type=capsule, fromto=(0.03, 0, 0, 0.03, 0, 0.25), size=(0.1, 0, 0), **_TORSO)
    if visual:
        looks = {"contype": 0, "conaffinity": 0, "group": 2}
        cylinder = mujoco.mjtGeom.mjGEOM_CYLINDER
        base.add_geom(type=cylinder, pos=(0, 0, 0.06), size=(0.24, 0.05, 0), rgba=_DARK, **looks)
        torso.add_geom(type=box, pos=(0, 0, -0.8), size=(0.15, 0.1, 0.8), rgba=_WHITE, **looks)
        waist.add_geom(
            type=box, pos=(-0.02, 0, 0.07), size=(0.08, 0.085, 0.07), rgba=_DARK, **looks
        )
        chest.add_geom(type=box, pos=(0.04, 0, 0.17), size=(0.09, 0.11, 0.18), rgba=_WHITE, **looks)
        x, y, z = _SHOULDER
        ends = (x, -y, z, x, y, z)
        chest.add_geom(type=capsule, fromto=ends, size=(0.06, 0, 0), rgba=_DARK, **looks)
    return chest


def _add_body(parent, name, mass, com, inertia, products=(0, 0, 0)) -> mujoco.MjsBody:
    """Adds a body at its parent's origin; units kg, m and kg m^2 (xx yy zz and xy xz yz)."""
    return parent.add_body(
        name=name,
        mass=mass,
        ipos=com,
        fullinertia=(*inertia, *products),
        explicitinertial=True,
        gravcomp=1.0,
    )


def _add_velocity_actuator(spec: mujoco.MjSpec, joint: str, damping: float, force: float) -> None:
    """Adds a drive: force = damping * (ctrl - velocity), within the force limit."""
    spec.add_actuator(
        name=joint,
        target=joint,
        trntype=mujoco.mjtTrn.mjTRN_JOINT,
        gaintype=mujoco.mjtGain.mjGAIN_FIXED,
        biastype=mujoco.mjtBias.mjBIAS_AFFINE,
        gainprm=[damping] + [0] * 9,
        biasprm=[0, 0, -damping] + [0] * 7,
        forcerange=(-force, force),
        forcelimited=mujoco.mjtLimited.mjLIMITED_TRUE,
    )


def _add_sensors(spec: mujoco.MjSpec) -> None:
    """Adds sensors of the fingertips' positions and the finger frames' velocities, in the world.

    The order is ManiSkill2's: finger 2 before 1 for positions, finger 1 before 2 for velocities.
    """
    for kind, objtype, suffix, fingers in (
        (mujoco.mjtSensor.mjSENS_FRAMEPOS, mujoco.mjtObj.mjOBJ_SITE, "_tip", ("right", "left")),
        (mujoco.mjtSensor.mjSENS_FRAMELINVEL, mujoco.mjtObj.mjOBJ_XBODY, "", ("left", "right")),
    ):
        for side in ("right", "left"):
            for finger in fingers:  # the left finger is number 1
                name = f"{side}_panda_{finger}finger{suffix}"
                spec.add_sensor(type=kind, objtype=objtype, objname=name)


def control(turn: jax.Array, action: jax.Array) -> jax.Array:
    """Computes `base_pd_joint_vel_arm_pd_joint_vel`: the (22,) targets of the drives.

    Args:
      turn: () rad, direction that the base faces, in whose frame the action gives its velocity.
      action: (20,) in [-1, 1]: base, left arm and gripper, right arm and gripper; see `ACTION`.
    """
    action = jnp.clip(action, -1.0, 1.0)
    ahead, aside, turn_speed, lift_speed = action[:4] * BASE_SPEED
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    base = jnp.stack([cos * ahead - sin * aside, sin * ahead + cos * aside, turn_speed, lift_speed])
    low, high = panda.GRIPPER_RANGE
    left, right = (
        jnp.concatenate(
            [ARM_SPEED * part[:7], jnp.full(2, low + 0.5 * (part[7] + 1.0) * (high - low))]
        )
        for part in (action[4:12], action[12:20])
    )
    return jnp.concatenate([base, right, left])


def observe(qpos: jax.Array, qvel: jax.Array) -> list[jax.Array]:
    """Returns what ManiSkill2 calls the robot's proprioception; see `OBSERVATION`."""
    robot, speed = qpos[:NUM_JOINTS], qvel[:NUM_JOINTS]
    return [robot[3:], speed[3:], robot[:2], robot[2:3], speed[:2], speed[2:3]]
