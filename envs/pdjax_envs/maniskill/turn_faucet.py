"""TurnFaucet: turn a faucet's handle by nine tenths of its range.

Facts from mani-skill2 0.5.3 `envs/misc/turn_faucet.py` and its list of faucets: places, the robot's
place and rest pose with closed fingers, observation order, target, success, the handle's damping,
density, and 1 cm of air below the faucet.

Differences from SAPIEN: PartNet's faucets cannot be had, so a family of our own takes their place
(`faucets.py`): ten to demonstrate and train on, and four for the task TurnFaucetHeldOut. Each has
one handle (a third of PartNet's have two) and a limited joint. MuJoCo contacts at 200 Hz instead of
PhysX at 500 Hz; see `panda.py`, but without a camera on the hand. The joint's small friction is
left out: a carried handle with this damping stops by itself. Of the rewards there is the sparse one
only; the dense one measures distances between points that are sampled on meshes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.looks import add_looks
from pdjax_envs.maniskill import faucets, panda, tabletop
from pdjax_envs.maniskill.experts.turn_faucet import make_expert
from pdjax_envs.physics.engine import PhysicsState, Scene, row_ids
from pdjax_envs.rotations import quat_about_z, rotate
from pdjax_envs.task import Episode, Start, Task

BASE_POS = np.array([-0.56, 0.0, 0.0])  # m, the robot's, in place of `panda.BASE_POS`
REST_ARM = np.array([0, -0.785, 0, -2.356, 0, 1.57, 0.785])  # rad
FAUCET_XY = 0.05  # m, largest distance from the origin along x and y
FAUCET_YAW = np.pi / 12  # rad, largest
DENSITY = 8000.0  # kg/m^3
HANDLE_DAMPING = 2.0  # N m s/rad
# kg m^2. Rotor inertia for the same reason as the arm's, see `panda.py`: damping * time step is
# 0.01, a handle's own inertia 0.0008-0.0056. It still stops within some hundredths of a second.
HANDLE_ARMATURE = 0.03
FRICTION = 1.5  # the mean of the fingers' (2) and SAPIEN's default (1), as SAPIEN mixes them
HANDLE = panda.NUM_JOINTS  # index in qpos and qvel

OBSERVATION = (
    *tabletop.ROBOT_OBSERVATION,
    ("target_angle_diff", 1),
    ("target_joint_axis", 3),
    ("target_link_pos", 3),
    ("angle_dist", 1),
)
MEANINGS = tabletop.ROBOT_MEANINGS | {
    "target_angle_diff": "the angle that the handle has to pass, rad; it starts at 0",
    "target_joint_axis": "the handle's axis, about which it turns, a unit vector in the world",
    "target_link_pos": "where the handle's centre of mass was at the start, in the world, m",
    "angle_dist": "what is left of the angle, rad; negative at success",
}
ACTION = (("ee_delta_position", 3), ("ee_delta_rotation", 3), ("gripper", 1))

_SHAPES = (*faucets.FIXED, *faucets.MOVING)
# What differs between faucets; the pose of `faucet` is each episode's.
_FAUCET_ROWS = {
    "geom_size": _SHAPES,
    "geom_pos": _SHAPES,
    "geom_quat": _SHAPES,
    "body_pos": ("handle",),
    "body_quat": ("handle",),
    "body_mass": ("handle",),
    "body_subtreemass": ("faucet", "handle"),
    "body_ipos": ("handle",),
    "body_iquat": ("handle",),
    "body_inertia": ("handle",),
    "body_invweight0": ("handle",),
    "jnt_range": ("handle_joint",),
    "dof_M0": ("handle_joint",),
    "dof_invweight0": ("handle_joint",),
}
_OVERRIDE_ROWS = _FAUCET_ROWS | dict.fromkeys(("body_pos", "body_quat"), ("faucet", "handle"))


class FaucetParams(NamedTuple):
    """One episode's faucet.

    Attributes:
      model_id: () int32, its place in the family.
      faucet_pos: (3,) m.
      faucet_quat: (4,).
      target_angle: () rad, the handle's angle to pass; it starts at 0.
      target_joint_axis: (3,) unit vector in the world.
      target_link_pos: (3,) m, the handle's centre of mass at the start.
    """

    model_id: jax.Array
    faucet_pos: jax.Array
    faucet_quat: jax.Array
    target_angle: jax.Array
    target_joint_axis: jax.Array
    target_link_pos: jax.Array


def _add_faucet(spec: mujoco.MjSpec, faucet: faucets.Faucet) -> None:
    """Adds bodies `faucet` and `handle`."""
    body = spec.worldbody.add_body(name="faucet", pos=(0, 0, faucets.HEIGHT))
    handle = body.add_body(name="handle", pos=faucet.pivot, quat=faucet.quat, gravcomp=1.0)
    handle.add_joint(
        name="handle_joint",
        type=mujoco.mjtJoint.mjJNT_HINGE,
        axis=(0, 0, 1),
        range=(0, faucet.joint_range),
        limited=mujoco.mjtLimited.mjLIMITED_TRUE,
        damping=HANDLE_DAMPING,
        armature=HANDLE_ARMATURE,
    )
    for name, size, pos, quat in zip(_SHAPES, faucet.size, faucet.place, faucet.turn, strict=True):
        moving = name in faucets.MOVING
        (handle if moving else body).add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_CAPSULE,
            size=size,
            pos=pos,
            quat=quat,
            density=DENSITY if moving else 0,
            contype=panda.FIXTURE_BIT,
            conaffinity=0,
            priority=1,  # contacts take friction and dimension from the faucet
            friction=(FRICTION, 0.005, 0.0001),
        )


def _make_model(visual: bool) -> mujoco.MjModel:
    """The scene; the faucet is compiled at the largest of each shape."""
    spec = tabletop.make_spec("TurnFaucet", visual)
    spec.body("panda_link0").pos = BASE_POS
    spec.delete(spec.body("panda_camera"))
    # Only MJX reads this: it would otherwise solve for every possible contact, touching or not.
    spec.add_numeric(name="max_contact_points", data=[16], size=1)
    largest = np.max([faucet.size for faucet in FAMILY], axis=0)
    # Poses that are nobody's: MuJoCo takes for granted what coincides with a body's own frames.
    rng = np.random.default_rng(0)
    place, turn = rng.normal(size=(len(_SHAPES), 3)), rng.normal(size=(len(_SHAPES), 4))
    _add_faucet(spec, FAMILY[0]._replace(size=largest, place=place, turn=turn))
    if visual:
        spec.add_material(name="chrome", rgba=(0.72, 0.74, 0.77, 1), specular=0.9, shininess=0.8)
        spec.add_material(name="grip", rgba=(0.93, 0.45, 0.2, 1), specular=0.5, shininess=0.6)
        spec.body("faucet").add_geom(  # fills the air below
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            size=(0.045, faucets.HEIGHT / 2 + 0.002, 0),
            pos=(0, 0, 0.002 - faucets.HEIGHT / 2),
            material="chrome",
            contype=0,
            conaffinity=0,
        )
        for name in _SHAPES:
            spec.geom(name).material = "grip" if name in faucets.MOVING else "chrome"
        add_looks(spec, eye=(0.4, -0.9, 0.75), target=(-0.2, 0.0, 0.2))
    return spec.compile()


def _make_table() -> dict[str, np.ndarray]:
    """Model values of all faucets, field -> (14, rows, ...), as MuJoCo compiles them."""
    table: dict[str, list[np.ndarray]] = {field: [] for field in _FAUCET_ROWS}
    for faucet in FAMILY:
        spec = mujoco.MjSpec()
        spec.compiler.degree = False
        _add_faucet(spec, faucet)
        model = spec.compile()
        for field, names in _FAUCET_ROWS.items():
            table[field].append(getattr(model, field)[row_ids(model, field, names)])
    return {field: np.array(values, np.float32) for field, values in table.items()}


FAMILY = faucets.make_family()
_TABLE = _make_table()
_RANGE = _TABLE["jnt_range"][:, 0, 1]  # (14,) rad


def sample_start(key: jax.Array, models: tuple[int, ...] = faucets.TRAINING) -> Start:
    """One of the ten faucets for training (any of them alike), its place and the robot's noise.

    Source: mani_skill2 `_set_model`, `_initialize_articulations`, `_initialize_agent`.
    """
    keys = jax.random.split(key, 4)
    xy = FAUCET_XY * jax.random.uniform(keys[1], (2,), minval=-1.0)
    yaw = FAUCET_YAW * jax.random.uniform(keys[2], (), minval=-1.0)
    robot = tabletop.sample_robot(keys[3], REST_ARM)
    closed = robot.at[panda.ARM_JOINTS :].set(0.0)
    return make_start(
        {
            "qpos": jnp.append(closed, 0.0),
            "qvel": jnp.zeros(panda.NUM_JOINTS + 1),
            "model_id": jax.random.choice(keys[0], jnp.array(models)),
            "faucet_pos": jnp.append(xy, faucets.HEIGHT),
            "faucet_quat": quat_about_z(yaw),
        }
    )


def get_state(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Positions, velocities and the episode's faucet (`FaucetParams`)."""
    return {"qpos": physics.qpos, "qvel": physics.qvel, **episode.params._asdict()}


def make_start(state: Mapping[str, Any]) -> Start:
    """An episode that starts from such a state; what follows from the faucet may be missing."""
    model_id, pos, quat = (jnp.asarray(state[name]) for name in FaucetParams._fields[:3])
    row = {field: jnp.asarray(values)[model_id] for field, values in _TABLE.items()}
    pivot, turn = row["body_pos"][0], row["body_quat"][0]
    params = FaucetParams(
        model_id=model_id,
        faucet_pos=pos,
        faucet_quat=quat,
        target_angle=faucets.TARGET * jnp.asarray(_RANGE)[model_id],
        target_joint_axis=rotate(quat, rotate(turn, jnp.array([0.0, 0.0, 1.0]))),
        target_link_pos=pos + rotate(quat, pivot + rotate(turn, row["body_ipos"][0])),
    )
    overrides = row | {"body_pos": jnp.stack([pos, pivot]), "body_quat": jnp.stack([quat, turn])}
    return Start(Episode(overrides, params), state["qpos"], state["qvel"])


def resize(start: Start, factor: jax.Array) -> Start:
    """A faucet of another size on its place: its handle is elsewhere."""
    params = start.episode.params
    middle = params.faucet_pos + factor * (params.target_link_pos - params.faucet_pos)
    episode = start.episode._replace(params=params._replace(target_link_pos=middle))
    return start._replace(episode=episode)


def control(episode: Episode, physics: PhysicsState, action: jax.Array) -> jax.Array:
    """`pd_ee_delta_pose`: (7,) action to (9,) joint targets."""
    del episode
    return panda.delta_pose_control(physics.qpos[: panda.NUM_JOINTS], action)


def observe(episode: Episode, physics: PhysicsState) -> jax.Array:
    """The 40 numbers of ManiSkill2's state mode, in its order (`OBSERVATION`)."""
    params = episode.params
    qpos, qvel, base, tcp_pos, tcp_quat = tabletop.observe_robot(physics.qpos, physics.qvel)
    shift = jnp.array(BASE_POS - panda.BASE_POS)
    parts = [
        qpos,
        qvel,
        base.at[:3].add(shift),
        tcp_pos + shift,
        tcp_quat,
        params.target_angle[None],  # less the angle at the start, 0
        params.target_joint_axis,
        params.target_link_pos,
        (params.target_angle - physics.qpos[HANDLE])[None],
    ]
    return jnp.concatenate(parts)


def features(obs: jax.Array) -> jax.Array:
    """(8,) relations of tool and handle, from the observation alone; bounded to [-3, 3].

    The tool from where the handle's middle was at the start (3, per 5 cm), how a turn about an
    axis through there would move the tool (3, per 5 cm and rad), and the angles to go and turned so
    far (2, per 0.5 rad).
    """
    tool, turn, axis, middle, left = obs[25:28], obs[32], obs[33:36], obs[36:39], obs[39]
    offset = tool - middle
    angles = jnp.stack([left, turn - left])
    parts = [offset / 0.05, jnp.cross(axis, offset) / 0.05, angles / 0.5]
    return jnp.clip(jnp.concatenate(parts), -3.0, 3.0)


def success(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Whether the handle is past its target angle."""
    return physics.qpos[HANDLE] > episode.params.target_angle


def sparse_reward(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Sparse: 1 at success."""
    return {"success": success(episode, physics).astype(jnp.float32)}


def make_task() -> Task:
    """Builds TurnFaucet."""
    return Task(
        name="TurnFaucet",
        summary="turn the handle of one of ten faucets by nine tenths of its range; Panda",
        scene=Scene(_make_model(visual=False), tabletop.N_SUBSTEPS, _OVERRIDE_ROWS),
        make_visual_model=lambda: _make_model(visual=True),
        observation=OBSERVATION,
        meanings=MEANINGS,
        action=ACTION,
        control_mode="pd_ee_delta_pose",
        episode_steps=tabletop.EPISODE_STEPS,
        control_hz=tabletop.CONTROL_HZ,
        sample_start=sample_start,
        get_state=get_state,
        make_start=make_start,
        control=control,
        observe=observe,
        rewards={"sparse": sparse_reward},
        success=success,
        objects=("handle",),
        resize=resize,
        held_out=lambda key: sample_start(key, faucets.HELD_OUT),
        camera={"target_link_pos": 1},
        features=features,
        expert=make_expert,
    )
