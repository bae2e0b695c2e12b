"""TurnFaucet: turn a faucet's handle by nine tenths of its range.

These facts come from mani-skill2 0.5.3 `envs/misc/turn_faucet.py` and its list of faucets: places,
the robot's place and rest pose with closed fingers, observation order, target, success, the
handle's damping, density, and 1 cm of air below the faucet.

Differences from SAPIEN:

- PartNet's faucets are not available; a procedural family replaces them (`faucets.py`): ten faucets
  for demonstrations and training, and four for the task TurnFaucetHeldOut. Each has one handle (a
  third of PartNet's have two) and a limited joint.
- MuJoCo computes contacts at 200 Hz, PhysX at 500 Hz; see also `panda.py`. The hand has no camera.
- The joint's small friction is left out: a handle with this damping stops by itself.
- There is only the sparse reward; the dense one measures distances between points that are sampled
  on meshes.
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

BASE_POS = np.array([-0.56, 0.0, 0.0])  # m, the robot's base, instead of `panda.BASE_POS`
REST_ARM = np.array([0, -0.785, 0, -2.356, 0, 1.57, 0.785])  # rad
FAUCET_XY = 0.05  # m, largest distance from the origin along x and y
FAUCET_YAW = np.pi / 12  # rad, largest angle
DENSITY = 8000.0  # kg/m^3
HANDLE_DAMPING = 2.0  # N m s/rad
# kg m^2. Rotor inertia, for the same reason as in the arm, see `panda.py`: damping * time step is
# 0.01 and a handle's own inertia 0.0008-0.0056. The handle still stops within some hundredths of a
# second.
HANDLE_ARMATURE = 0.03
FRICTION = 1.5  # the mean of the fingers' (2) and SAPIEN's default (1), as SAPIEN computes it
HANDLE = panda.NUM_JOINTS  # index in qpos and qvel

OBSERVATION = (
    *tabletop.ROBOT_OBSERVATION,
    ("target_angle_diff", 1),
    ("target_joint_axis", 3),
    ("target_link_pos", 3),
    ("angle_dist", 1),
)
MEANINGS = tabletop.ROBOT_MEANINGS | {
    "target_angle_diff": "angle that the handle has to pass, rad; the handle starts at 0",
    "target_joint_axis": "axis about which the handle turns, unit vector in the world",
    "target_link_pos": "the handle's centre of mass at the start, in the world, m",
    "angle_dist": "remaining angle, rad; negative at success",
}
ACTION = (("ee_delta_position", 3), ("ee_delta_rotation", 3), ("gripper", 1))

_SHAPES = (*faucets.FIXED, *faucets.MOVING)
# The model values that differ between faucets; each episode sets the pose of `faucet`.
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
    """The faucet of one episode.

    Attributes:
      model_id: () int32, its index in the family.
      faucet_pos: (3,) m.
      faucet_quat: (4,).
      target_angle: () rad, the angle that the handle has to pass; it starts at 0.
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
    """Adds the bodies `faucet` and `handle`."""
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
            priority=1,  # the faucet sets friction and dimension of contacts
            friction=(FRICTION, 0.005, 0.0001),
        )


def _make_model(visual: bool) -> mujoco.MjModel:
    """Builds the model, with each shape of the faucet at its largest."""
    spec = tabletop.make_spec("TurnFaucet", visual)
    spec.body("panda_link0").pos = BASE_POS
    spec.delete(spec.body("panda_camera"))
    # Only MJX reads this. Without it MJX would solve for every possible contact, touching or not.
    spec.add_numeric(name="max_contact_points", data=[16], size=1)
    largest = np.max([faucet.size for faucet in FAMILY], axis=0)
    # Arbitrary poses: MuJoCo relies on frames that coincide with a body's own frame.
    rng = np.random.default_rng(0)
    place, turn = rng.normal(size=(len(_SHAPES), 3)), rng.normal(size=(len(_SHAPES), 4))
    _add_faucet(spec, FAMILY[0]._replace(size=largest, place=place, turn=turn))
    if visual:
        spec.add_material(name="chrome", rgba=(0.72, 0.74, 0.77, 1), specular=0.9, shininess=0.8)
        spec.add_material(name="grip", rgba=(0.93, 0.45, 0.2, 1), specular=0.5, shininess=0.6)
        spec.body("faucet").add_geom(  # fills the gap below
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
    """Returns the model values of all faucets as MuJoCo compiles them: field -> (14, rows, ...)."""
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
    """Draws one of the ten training faucets with equal chance, its place and the robot's noise.

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
    """Returns positions, velocities and the episode's faucet (`FaucetParams`)."""
    return {"qpos": physics.qpos, "qvel": physics.qvel, **episode.params._asdict()}


def make_start(state: Mapping[str, Any]) -> Start:
    """Builds a start from such a state; values that follow from the faucet may be missing."""
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
    """Scales the faucet at its place, which moves its handle."""
    params = start.episode.params
    middle = params.faucet_pos + factor * (params.target_link_pos - params.faucet_pos)
    episode = start.episode._replace(params=params._replace(target_link_pos=middle))
    return start._replace(episode=episode)


def control(episode: Episode, physics: PhysicsState, action: jax.Array) -> jax.Array:
    """Turns a `pd_ee_delta_pose` action (7,) into joint targets (9,)."""
    del episode
    return panda.delta_pose_control(physics.qpos[: panda.NUM_JOINTS], action)


def observe(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Returns the 40 numbers of ManiSkill2's state mode, in its order (`OBSERVATION`)."""
    params = episode.params
    qpos, qvel, base, tcp_pos, tcp_quat = tabletop.observe_robot(physics.qpos, physics.qvel)
    shift = jnp.array(BASE_POS - panda.BASE_POS)
    parts = [
        qpos,
        qvel,
        base.at[:3].add(shift),
        tcp_pos + shift,
        tcp_quat,
        params.target_angle[None],  # minus the angle at the start, 0
        params.target_joint_axis,
        params.target_link_pos,
        (params.target_angle - physics.qpos[HANDLE])[None],
    ]
    return jnp.concatenate(parts)


def _turned(obs: jax.Array) -> jax.Array:
    """Returns the share of its angle that the handle has turned."""
    return 1 - obs[39] / obs[32]


STAGES = {
    "turned by a tenth": lambda obs: _turned(obs) > 0.1,
    "turned by half": lambda obs: _turned(obs) > 0.5,
    "turned by nine tenths": lambda obs: _turned(obs) > 0.9,
}


def features(obs: jax.Array) -> jax.Array:
    """Computes (8,) relations of tool and handle from the observation, within [-3, 3].

    The tool relative to the handle's middle at the start (3, per 5 cm), the motion of the tool in a
    turn about an axis through that point (3, per 5 cm and rad), and the angles that remain and that
    the handle has turned so far (2, per 0.5 rad).
    """
    tool, turn, axis, middle, left = obs[25:28], obs[32], obs[33:36], obs[36:39], obs[39]
    offset = tool - middle
    angles = jnp.stack([left, turn - left])
    parts = [offset / 0.05, jnp.cross(axis, offset) / 0.05, angles / 0.5]
    return jnp.clip(jnp.concatenate(parts), -3.0, 3.0)


def success(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Returns whether the handle is past its target angle."""
    return physics.qpos[HANDLE] > episode.params.target_angle


def sparse_reward(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Returns 1 at success, else 0."""
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
        stages=STAGES,
        expert=make_expert,
    )
