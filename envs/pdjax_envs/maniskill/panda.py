"""The Franka Panda arm of ManiSkill2: its MuJoCo model, kinematics and end-effector control.

Separate from the tasks because all ManiSkill tasks share the arm. The numbers come from mani-skill2
0.5.3: `assets/descriptions/panda_v3.urdf` (frames, inertias, limits, the camera on the hand) and
`agents/configs/panda/defaults.py` (gains, force limits, action ranges). Collision shapes are
primitives, so that every physics engine computes the same contacts.

The inertias are those that SAPIEN 2.2 works with: its loader turns the principal axes of links 1,
3, 4 and 7 of the URDF. Differences from SAPIEN: gravity is compensated but Coriolis forces are not;
only the distal links collide with objects.

Holds no state; the kinematics are pure JAX for one arm (use `jax.vmap`).
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.rotations import cos_sin, from_rotvec, quat_from_columns

ARM_JOINTS = 7
NUM_JOINTS = 9  # seven of the arm, two fingers
BASE_POS = (-0.615, 0.0, 0.0)  # m, in the world; mani_skill2 envs/assembly/base_env.py
ACTION_DIM = 7  # translation (3), rotation vector (3), gripper (1)
MAX_TRANSLATION = 0.1  # m per control step at action 1, in the end-effector's frame
MAX_ROTATION = 0.1  # rad, norm of the rotation vector at action norm 1
GRIPPER_RANGE = (-0.01, 0.04)  # m, finger target at action -1 and 1; negative to press thin objects
STIFFNESS, DAMPING, FORCE_LIMIT = 1e3, 1e2, 100.0  # N m/rad, N m s/rad, N m (N for the fingers)
SAPIEN_STEP = 0.002  # s
FINGER_FRICTION = 1.5  # PhysX takes the mean of a pair: 2 of the gripper, 1 of everything else

# Collision bits: a pair collides if the contype of one matches the conaffinity of the other.
FLOOR_BIT, ROBOT_BIT, FIXTURE_BIT = 1, 2, 4


class _Link(NamedTuple):
    """One moving link: transform from its parent, inertia, joint range, collision capsules."""

    pos: tuple[float, float, float]  # m, joint origin in the parent's frame
    tilt: int  # rotation about x of the fixed transform, in quarter turns
    mass: float  # kg
    com: tuple[float, float, float]  # m
    inertia: tuple[float, float, float, float, float, float]  # kg m^2, xx yy zz xy xz yz
    joint_range: tuple[float, float]  # rad
    capsules: tuple[tuple[float, ...], ...]  # m, from (3), to (3), radius
    distal: bool  # collides with objects, not only with the floor


_LINKS = (
    _Link(
        (0, 0, 0.333),
        0,
        4.970684,
        (0.003875, 0.002081, -0.04762),
        (0.706007, 0.00988179, 0.703208, -0.0280724, -0.000520226, -0.0125479),
        (-2.8973, 2.8973),
        (),
        False,
    ),
    _Link(
        (0, 0, 0),
        -1,
        0.646926,
        (-0.003141, -0.02872, 0.003495),
        (0.007962, 0.02811, 0.025995, -0.003925, 0.010254, 0.000704),
        (-1.7628, 1.7628),
        (),
        False,
    ),
    _Link(
        (0, -0.316, 0),
        1,
        3.228604,
        (2.7518e-02, 3.9252e-02, -6.6502e-02),
        (0.0291848, 0.021959, 0.0330832, 0.0155058, -0.0101793, 0.0128044),
        (-2.8973, 2.8973),
        ((0, 0, -0.15, 0.03, 0, -0.02, 0.07),),
        False,
    ),
    _Link(
        (0.0825, 0, 0),
        1,
        3.587895,
        (-5.317e-02, 1.04419e-01, 2.7454e-02),
        (0.0106244, 0.0281481, 0.0349556, -0.000112292, -0.000295062, 5.63246e-05),
        (-3.0718, -0.0698),
        ((-0.03, 0.02, 0, -0.08, 0.12, 0, 0.065),),
        False,
    ),
    _Link(
        (-0.0825, 0.384, 0),
        -1,
        1.225946,
        (-1.1953e-02, 4.1065e-02, -3.8437e-02),
        (0.035549, 0.029474, 0.008627, -0.002117, -0.004037, 0.000229),
        (-2.8973, 2.8973),
        ((0, 0.06, -0.2, 0, 0.075, -0.06, 0.045), (0, 0.04, -0.03, 0, 0, -0.01, 0.06)),
        True,
    ),
    _Link(
        (0, 0, 0),
        1,
        1.666555,
        (6.0149e-02, -1.4117e-02, -1.0517e-02),
        (0.001964, 0.004354, 0.005433, 0.000109, -0.001158, 0.000341),
        (-0.0175, 3.7525),
        ((0.0, 0, 0, 0.085, 0, 0, 0.05),),
        True,
    ),
    _Link(
        (0.088, 0, 0),
        1,
        0.735522,
        (1.0517e-02, -4.252e-03, 6.1597e-02),
        (0.00483459, 0.00999535, 0.0125281, 0.00129021, -0.000141695, 0.000741146),
        (-2.8973, 2.8973),
        ((0, 0, 0.0, 0, 0, 0.07, 0.045),),
        True,
    ),
)


class Joint(NamedTuple):
    """What a joint adds to its link: `damping`, N m s/rad, and rotor inertia `armature`, kg m^2.

    For fingers N s/m and kg.
    """

    damping: float
    armature: float


_FLANGE = 0.107  # m, link 7 to the hand along z, followed by a turn of -45 degrees about z
_TCP = 0.1034  # m, hand to the tool centre point along z
_FINGER_BASE = 0.0584  # m, hand to the finger joints along z

# Collision boxes of one finger, centre and half size in m (panda_v3.urdf); y is mirrored for the
# right finger. The sloped middle part has no box: pad and carriage enclose it.
_FINGER_PAD = ((0, 0.00758, 0.04525), (0.00875, 0.0076, 0.00925))
_FINGER_CARRIAGE = ((0, 0.0185, 0.015), (0.011, 0.0075, 0.0145))

# Joint angles at the start of an episode before noise, rad (envs/assembly/base_env.py).
REST_ARM = np.array([0, np.pi / 8, 0, -np.pi * 5 / 8, 0, np.pi * 3 / 4, np.pi / 4])


def add_panda(spec: mujoco.MjSpec, visual: bool) -> None:
    """Adds the arm, hand and nine position actuators to a model under construction.

    Args:
      spec: the model; gets the bodies `panda_link0` ... `panda_hand`, `panda_leftfinger` and
        `panda_rightfinger`, the site `tcp` and the joints `panda_joint1` ... `panda_finger_joint2`.
      visual: whether to add the Franka meshes of the gymnasium-robotics package, for rendering.
    """
    if visual:
        add_meshes(spec)
    base = spec.worldbody.add_body(name="panda_link0", pos=BASE_POS)
    if visual:
        _add_visual(base, "link0")
    joint, damping = _drive(spec.option.timestep)
    hand = add_arm(base, "panda_", joint, joint, visual, camera=True)
    hand.add_site(name="tcp", pos=(0, 0, _TCP), size=(0.005, 0.005, 0.005), group=4)
    for index in range(1, ARM_JOINTS + 1):
        add_position_actuator(spec, f"panda_joint{index}", damping)
    for index in (1, 2):
        add_position_actuator(spec, f"panda_finger_joint{index}", damping)


def _drive(step: float) -> tuple[Joint, float]:
    """Returns the joint and the actuator's damping that move as a drive of PhysX does.

    PhysX solves a drive with stiffness K and damping D implicitly in each step h, where the force
    limit applies to both terms: (M + h D + h^2 K) dv = h (K (target - q) - (D + h K) v). Here the
    joint has the inertia h D + h^2 K, and the actuator the damping D + h K. So contacts, too, meet
    the inertia that the integration uses; with damping in the joint, forces in a grasp fall short.
    Of D, the value makes steps of `step` approach a target as fast as SAPIEN's do.
    """
    per_step = (1 + SAPIEN_STEP * STIFFNESS / DAMPING) ** (step / SAPIEN_STEP)
    damping = step * STIFFNESS / (per_step - 1) + step * STIFFNESS
    return Joint(damping=0.0, armature=step * damping), damping


def add_arm(
    mount: mujoco.MjsBody,
    prefix: str,
    joint: Joint,
    finger: Joint,
    visual: bool,
    camera: bool = False,
) -> mujoco.MjsBody:
    """Adds the seven links, the hand and two fingers of an arm, without actuators.

    Args:
      mount: the body that carries the arm's base frame.
      prefix: prefix of all names: links `<prefix>link1`, `<prefix>hand`, `<prefix>leftfinger`,
        joints `<prefix>joint1`, `<prefix>finger_joint1`, ...
      joint: of each of the seven joints.
      finger: of the two fingers' joints.
      visual: whether to add the meshes of `add_meshes`.
      camera: whether the hand carries a camera.

    Returns:
      The body of the hand.
    """
    parent = mount
    for index, link in enumerate(_LINKS, start=1):
        body = parent.add_body(
            name=f"{prefix}link{index}",
            pos=link.pos,
            quat=_quarter_turn_x(link.tilt),
            mass=link.mass,
            ipos=link.com,
            fullinertia=link.inertia,
            explicitinertial=True,
            gravcomp=1.0,
        )
        body.add_joint(
            name=f"{prefix}joint{index}",
            type=mujoco.mjtJoint.mjJNT_HINGE,
            axis=(0, 0, 1),
            range=link.joint_range,
            damping=joint.damping,
            armature=joint.armature,
            limited=mujoco.mjtLimited.mjLIMITED_TRUE,
        )
        for capsule in link.capsules:
            body.add_geom(
                type=mujoco.mjtGeom.mjGEOM_CAPSULE,
                fromto=capsule[:6],
                size=(capsule[6], 0, 0),
                **_collision(link.distal),
            )
        if visual:
            _add_visual(body, f"link{index}")
        parent = body
    hand = _add_hand(parent, prefix, visual)
    if camera:
        _add_camera(hand, prefix)
    _add_fingers(hand, prefix, finger, visual)
    return hand


def add_position_actuator(spec: mujoco.MjSpec, joint: str, damping: float = 0.0) -> None:
    """Adds a drive to a joint position, with the joint's name and `damping`, N m s/rad or N s/m."""
    spec.add_actuator(
        name=joint,
        target=joint,
        trntype=mujoco.mjtTrn.mjTRN_JOINT,
        gaintype=mujoco.mjtGain.mjGAIN_FIXED,
        biastype=mujoco.mjtBias.mjBIAS_AFFINE,
        gainprm=[STIFFNESS] + [0] * 9,
        biasprm=[0, -STIFFNESS, -damping] + [0] * 7,
        forcerange=(-FORCE_LIMIT, FORCE_LIMIT),
        forcelimited=mujoco.mjtLimited.mjLIMITED_TRUE,
    )


def _add_hand(link7: mujoco.MjsBody, prefix: str, visual: bool) -> mujoco.MjsBody:
    hand = link7.add_body(
        name=f"{prefix}hand",
        pos=(0, 0, _FLANGE),
        quat=(np.cos(-np.pi / 8), 0, 0, np.sin(-np.pi / 8)),
        gravcomp=1.0,
    )
    hand.mass, hand.ipos = 0.73, (-0.01, 0, 0.03)
    hand.fullinertia, hand.explicitinertial = (0.001, 0.0025, 0.0017, 0, 0, 0), True
    box = mujoco.mjtGeom.mjGEOM_BOX
    hand.add_geom(type=box, pos=(0, 0, 0.03), size=(0.02, 0.1, 0.035), **_collision(True))
    if visual:
        _add_visual(hand, "hand")
    return hand


def _add_fingers(hand: mujoco.MjsBody, prefix: str, joint: Joint, visual: bool) -> None:
    for side, sign in (("left", 1), ("right", -1)):
        finger = hand.add_body(name=f"{prefix}{side}finger", pos=(0, 0, _FINGER_BASE), gravcomp=1.0)
        finger.mass, finger.ipos, finger.explicitinertial = 0.015, (0, 0, 0), True
        finger.fullinertia = (2.375e-6, 2.375e-6, 7.5e-7, 0, 0, 0)
        finger.add_joint(
            name=f"{prefix}finger_joint{1 if sign > 0 else 2}",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=(0, sign, 0),
            range=(0, 0.04),
            damping=joint.damping,
            limited=mujoco.mjtLimited.mjLIMITED_TRUE,
            armature=joint.armature,
        )
        for part, (pos, size) in (("pad", _FINGER_PAD), ("carriage", _FINGER_CARRIAGE)):
            finger.add_geom(
                name=f"{prefix}{side}finger_{part}",
                type=mujoco.mjtGeom.mjGEOM_BOX,
                pos=(pos[0], sign * pos[1], pos[2]),
                size=size,
                friction=(FINGER_FRICTION, 0.05, 0.0001),
                condim=4,
                **_collision(True),
            )
        if visual:
            _add_visual(finger, "finger", (1, 0, 0, 0) if sign > 0 else (0, 0, 0, 1))


def _add_camera(hand: mujoco.MjsBody, prefix: str) -> None:
    """Adds the camera on the hand; its centre of mass is beside its box's middle, as in SAPIEN."""
    camera = hand.add_body(name=f"{prefix}camera", pos=(0.0465, 0, 0.036), gravcomp=1.0)
    camera.mass, camera.ipos, camera.explicitinertial = 0.564, (0, -0.02, 0), True
    camera.fullinertia = (0.003879257, 0.00049894, 0.003881243, 0, 0, 0)
    camera.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=(0.0115, 0.0495, 0.010025),
        rgba=(0.15, 0.15, 0.17, 1),
        **_collision(True),
    ).group = 2  # the camera has no mesh, so its box is drawn


def _collision(distal: bool) -> dict[str, int]:
    """Returns the collision bits of a robot shape; pictures hide group 3."""
    if not distal:
        return {"contype": 0, "conaffinity": FLOOR_BIT, "group": 3}
    return {"contype": ROBOT_BIT, "conaffinity": FLOOR_BIT | FIXTURE_BIT, "group": 3}


def _quarter_turn_x(quarters: int) -> tuple[float, float, float, float]:
    return (np.cos(quarters * np.pi / 4), np.sin(quarters * np.pi / 4), 0.0, 0.0)


def add_meshes(spec: mujoco.MjSpec) -> None:
    """Adds the Franka meshes of the gymnasium-robotics package, for `add_arm`.

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
    # This finds the package without importing it, which would load Gymnasium and print notices.
    package = importlib.util.find_spec("gymnasium_robotics")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "the Franka meshes need the package gymnasium-robotics: install it"
        )
    root = Path(package.origin).parent / "envs/assets/kitchen_franka/franka_assets/meshes/visual"
    for name in [f"link{i}" for i in range(8)] + ["hand", "finger"]:
        spec.add_mesh(name=name, file=str(root / f"{name}.stl"))
    spec.add_material(name="panda", rgba=(0.93, 0.94, 0.95, 1), specular=0.4, shininess=0.5)
    spec.add_material(name="panda_finger", rgba=(0.35, 0.36, 0.38, 1), specular=0.3)


def _add_visual(body: mujoco.MjsBody, mesh: str, quat=(1, 0, 0, 0)) -> None:
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_MESH,
        meshname=mesh,
        quat=quat,
        contype=0,
        conaffinity=0,
        group=2,
        material="panda_finger" if mesh == "finger" else "panda",
    )


class ArmFrames(NamedTuple):
    """Poses of the arm's joints and tool centre point, in the robot's base frame.

    Attributes:
      pos: (3,) m, position of the tool centre point.
      columns: (3, 3), row i is the tool's i-th axis (a column of its rotation matrix).
      origins: (7, 3) m, a point on each joint's axis.
      axes: (7, 3), unit vectors along the joints' axes.
    """

    pos: jax.Array
    columns: jax.Array
    origins: jax.Array
    axes: jax.Array


def forward_kinematics(arm_qpos: jax.Array) -> ArmFrames:
    """Computes the frames of the arm at joint angles (7,) in rad.

    It uses vectors instead of 3x3 products: every fixed turn is a quarter turn about x, which only
    swaps columns, and batched tiny matrix products are slow on CPUs.
    """
    pos = jnp.zeros(3)
    x, y, z = jnp.eye(3)
    cos, sin = cos_sin(arm_qpos)
    origins, axes = [], []
    for index, link in enumerate(_LINKS):
        for offset, axis in zip(link.pos, (x, y, z), strict=True):
            if offset:
                pos = pos + offset * axis
        if link.tilt == 1:
            y, z = z, -y
        elif link.tilt == -1:
            y, z = -z, y
        x, y = cos[index] * x + sin[index] * y, cos[index] * y - sin[index] * x
        origins.append(pos)
        axes.append(z)
    pos = pos + (_FLANGE + _TCP) * z
    half = np.float32(np.sqrt(0.5))
    x, y = half * (x - y), half * (x + y)  # the hand is turned by -45 degrees
    return ArmFrames(pos, jnp.stack([x, y, z]), jnp.stack(origins), jnp.stack(axes))


def tool_jacobian(frames: ArmFrames) -> jax.Array:
    """Returns (6, 7), d(position, rotation) of the tool / d(joint angles), in the base frame."""
    linear = jnp.cross(frames.axes, frames.pos - frames.origins)
    return jnp.concatenate([linear, frames.axes], axis=1).T


def tcp_pose(arm_qpos: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the tool centre point's world position (3,), m, and quaternion (4,), w x y z.

    Of the two quaternions of a rotation it returns the one with x >= 0, as SAPIEN does wherever a
    tool works. A tool that points down has w near 0, one in StackCube also y: a sign that followed
    these would jump from step to step.
    """
    frames = forward_kinematics(arm_qpos)
    quat = quat_from_columns(*frames.columns)
    return frames.pos + jnp.array(BASE_POS), jnp.where(quat[1] < 0, -quat, quat)


def delta_pose_control(robot_qpos: jax.Array, action: jax.Array, iterations: int = 3) -> jax.Array:
    """Computes the joint targets of one `pd_ee_delta_pose` action.

    The target is the current tool pose times the delta (in the tool's frame); damped Gauss-Newton
    steps solve for the joint angles. Source: mani_skill2 agents/controllers/pd_ee_pose.py, which
    lets Pinocchio iterate to convergence. Three steps leave an error under 0.1 mm for the largest
    action.

    Args:
      robot_qpos: (9,) joint positions, rad and m.
      action: (7,) in [-1, 1]: translation, rotation vector, gripper (1 = open).
      iterations: Gauss-Newton steps.

    Returns:
      (9,) position targets of the actuators.
    """
    action = jnp.clip(action, -1.0, 1.0)
    start = forward_kinematics(robot_qpos[:ARM_JOINTS])
    goal_pos, goal_columns = _goal(start, action)

    def gauss_newton(arm, frames):
        # Rotation error: half the sum of the cross products of matching axes.
        rotation_error = 0.5 * jnp.sum(jnp.cross(frames.columns, goal_columns), axis=0)
        error = jnp.concatenate([goal_pos - frames.pos, rotation_error])
        return arm + _damped_solve(tool_jacobian(frames), error)

    def iterate(_, carry):
        # The loop carries the frames although they follow from the angles: XLA's CPU compiler
        # stores what a loop carries, and would otherwise recompute the frames at each use.
        arm = gauss_newton(*carry)
        return arm, forward_kinematics(arm)

    carry = (robot_qpos[:ARM_JOINTS], start)
    arm = gauss_newton(*jax.lax.fori_loop(0, iterations - 1, iterate, carry))
    low, high = np.array([link.joint_range for link in _LINKS]).T
    arm = jnp.clip(arm, low, high)
    fingers = GRIPPER_RANGE[0] + 0.5 * (action[6] + 1.0) * (GRIPPER_RANGE[1] - GRIPPER_RANGE[0])
    return jnp.concatenate([arm, jnp.full(2, fingers)])


def _goal(start: ArmFrames, action: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the commanded position (3,) and axes (3, 3) of the tool, as in `ArmFrames`."""
    move = MAX_TRANSLATION * action[:3]
    turn = action[3:6] / jnp.maximum(1.0, jnp.linalg.norm(action[3:6])) * MAX_ROTATION
    pos = start.pos + jnp.sum(move[:, None] * start.columns, axis=0)
    rotated = jnp.stack(from_rotvec(turn))  # columns, in the tool's frame
    return pos, jnp.sum(rotated[:, :, None] * start.columns, axis=1)


def _damped_solve(jacobian: jax.Array, error: jax.Array, damping: float = 1e-4) -> jax.Array:
    """Returns J^T (J J^T + damping)^-1 error, (7,), for J (6, 7) and error (6,).

    The L D L^T factorisation is written out, because batched LAPACK calls and loops take several
    times as long.
    """
    gram = jnp.sum(jacobian[:, None, :] * jacobian[None, :, :], axis=-1)  # (6, 6)
    size = error.shape[0]
    lower: list[list[jax.Array]] = [[] for _ in range(size)]  # L below its unit diagonal
    inverse_pivots: list[jax.Array] = []  # 1 / D
    forward: list[jax.Array] = []  # L^-1 error
    for i in range(size):
        scaled: list[jax.Array] = []  # row i of L D
        for j in range(i):
            scaled.append(gram[i, j] - _dot(lower[j], scaled))
            lower[i].append(scaled[j] * inverse_pivots[j])
        inverse_pivots.append(1.0 / (gram[i, i] + damping - _dot(lower[i], scaled)))
        forward.append(error[i] - _dot(lower[i], forward))
    solution: list[jax.Array] = []
    for i in reversed(range(size)):
        below = [row[i] for row in lower[i + 1 :]]
        solution.insert(0, forward[i] * inverse_pivots[i] - _dot(below, solution))
    return jnp.stack(solution) @ jacobian


def _dot(a: list[jax.Array], b: list[jax.Array]) -> jax.Array | float:
    """Returns the sum of the products of scalars; 0 if there are none."""
    return sum((x * y for x, y in zip(a, b, strict=True)), start=0.0)
