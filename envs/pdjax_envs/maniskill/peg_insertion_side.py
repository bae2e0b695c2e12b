"""PegInsertionSide: grasp a peg on the table and push it sideways into a box with a 3 mm clearance.

Spawn ranges, sizes, observation order and both rewards come from mani-skill2 0.5.3
`envs/assembly/peg_insertion_side.py`, the success test from the reference implementation's
`PegInsertionSide-v2` (policy_decorator `envs/maniskill_fixed.py`), in which the depth of the peg's
head has an upper bound too.

Differences from SAPIEN: MuJoCo computes contacts at 200 Hz, PhysX at 500 Hz; spheres of 1 mm at the
corners of the peg's front narrow the hole for them, see `_corners`; see also `panda.py`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.looks import add_looks
from pdjax_envs.maniskill import panda, peg_relations, peg_reward, tabletop
from pdjax_envs.maniskill.experts.peg_insertion_side import make_expert
from pdjax_envs.physics.engine import PhysicsState, Scene
from pdjax_envs.rotations import quat_about_z, rotate, to_frame
from pdjax_envs.task import Episode, Start, Task

CLEARANCE = 0.003  # m, the hole's half width minus the peg's
PEG_HALF_LENGTH = (0.075, 0.125)  # m
PEG_HALF_WIDTH = (0.015, 0.025)  # m
PEG_XY = ((-0.1, -0.3), (0.1, 0.0))  # m, low and high
PEG_YAW_SPREAD = np.pi / 3  # rad about pi/2
BOX_XY = ((-0.05, 0.2), (0.05, 0.4))  # m
BOX_YAW_SPREAD = np.pi / 8  # rad about pi/2
LARGEST = 1.1  # shifts may scale these sizes so far; bounding volumes are compiled for it
SUCCESS_DEPTH = (-0.015, 0.075)  # m, depth of the peg's head along the hole, from the box's middle
SET_BACK = 2e-4  # m, see `_walls`
CORNER_RADIUS = 1e-3  # m, see `_corners`
REST_ARM = panda.REST_ARM * np.array([1, 1, 1, 1, 1, 1, -1])  # the hand is turned by 90 degrees

OBSERVATION = (
    *tabletop.ROBOT_OBSERVATION,
    ("peg_pose", 7),
    ("peg_half_size", 3),
    ("box_hole_pose", 7),
    ("box_hole_radius", 1),
)
MEANINGS = tabletop.ROBOT_MEANINGS | {
    "peg_pose": "middle of the peg in the world: position, m, and quaternion; x points to its head",
    "peg_half_size": "half the length, width and height of the peg, m",
    "box_hole_pose": "middle of the hole in the world: position, m, and quaternion; x goes inwards",
    "box_hole_radius": "half the width of the hole, m",
}
ACTION = (("ee_delta_position", 3), ("ee_delta_rotation", 3), ("gripper", 1))

_WALLS = ("wall_left", "wall_right", "wall_top", "wall_bottom")
_CORNERS = ("corner_0", "corner_1", "corner_2", "corner_3")
_OVERRIDE_ROWS = {
    "geom_size": ("peg", "peg_head", *_CORNERS, *_WALLS),
    "geom_pos": ("peg_head", *_CORNERS, *_WALLS),
    "body_pos": ("box",),
    "body_quat": ("box",),
    "body_mass": ("peg",),
    "body_subtreemass": ("peg",),
    "body_inertia": ("peg",),
    "body_invweight0": ("peg",),
    "dof_M0": ("peg_joint",),
    "dof_invweight0": ("peg_joint",),
}


class PegParams(NamedTuple):
    """The sizes of one episode, all in m; `hole_offset` (2,) is y, z in the box's frame."""

    peg_half_length: jax.Array
    peg_half_width: jax.Array
    hole_offset: jax.Array
    hole_half_width: jax.Array
    box_pos: jax.Array
    box_quat: jax.Array


def _make_model(visual: bool) -> mujoco.MjModel:
    """Builds the model, with the peg and the walls at their largest."""
    spec = tabletop.make_spec("PegInsertionSide", visual)
    # Only MJX reads this number. Without it, MJX would solve for all 216 possible contacts,
    # touching or not. Demonstrations have 12 or fewer of one kind at a time.
    spec.add_numeric(name="max_contact_points", data=[24], size=1)
    _add_peg(spec)
    _add_box(spec)
    if visual:
        # mani_skill2's render camera, from (0.5, -0.5, 0.8) at (0.05, -0.1, 0.4), drawn closer
        add_looks(spec, eye=(0.75, -0.35, 0.62), target=(-0.1, 0.08, 0.12))
    return spec.compile()


def _add_peg(spec: mujoco.MjSpec) -> None:
    length, width = LARGEST * PEG_HALF_LENGTH[1], LARGEST * PEG_HALF_WIDTH[1]
    mass, inertia = _box_inertia(length, width)
    body = spec.worldbody.add_body(name="peg", pos=(0, -0.15, width))
    body.mass, body.inertia, body.ipos = mass, inertia, (0, 0, 0)
    body.explicitinertial = True
    body.add_joint(name="peg_joint", type=mujoco.mjtJoint.mjJNT_FREE)
    box = mujoco.mjtGeom.mjGEOM_BOX
    body.add_geom(
        name="peg",
        type=box,
        size=(length, width, width),
        **tabletop.OBJECT,
        rgba=(0.93, 0.96, 0.98, 1),
    )
    tabletop.lay_on_floor(spec, "peg")
    body.add_geom(
        name="peg_head",
        type=box,
        pos=(length / 2, 0, 0),
        size=(length / 2, width, width),
        contype=0,
        conaffinity=0,
        rgba=(0.93, 0.45, 0.34, 1),
    )
    for name, pos in zip(_CORNERS, _corners(length, width, np), strict=True):
        body.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_SPHERE,
            size=(CORNER_RADIUS, 0, 0),
            pos=pos,
            contype=0,
            conaffinity=panda.FIXTURE_BIT,
            group=3,
        )


def _add_box(spec: mujoco.MjSpec) -> None:
    length, width = LARGEST * PEG_HALF_LENGTH[1], LARGEST * PEG_HALF_WIDTH[0]
    body = spec.worldbody.add_body(name="box", pos=(0, 0.3, length))
    sizes, positions = _walls(length, width + CLEARANCE, np.zeros(2), np)
    # The hole may be off the middle, so each wall may be this much thicker.
    slack = 0.25 * (length - width)
    for index, (name, size, pos) in enumerate(zip(_WALLS, sizes, positions, strict=True)):
        size = size + slack * (np.arange(3) == (1 if index < 2 else 2))
        body.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=size,
            pos=pos,
            contype=panda.FIXTURE_BIT,
            conaffinity=0,
            rgba=(1.0, 0.82, 0.54, 1),
        )


def _box_inertia(half_length, half_width):
    """Returns the peg's mass, kg, and principal inertias, kg m^2, as floats or traced scalars."""
    mass = tabletop.DENSITY * 8 * half_length * half_width**2
    along = mass / 3 * 2 * half_width**2
    across = mass / 3 * (half_length**2 + half_width**2)
    return mass, (along, across, across)


def _corners(half_length, half_width, xp):
    """Returns the centres (4, 3) of small spheres at the corners of the peg's front face.

    A peg that meets the face of the box up to 1 mm beside the hole must stop there. After one step
    of physics it may be 1 mm inside, and MuJoCo would push it sideways into the hole, which is the
    shorter way out of the contact of two boxes. The spheres meet the face before that.
    """
    places = [(y * half_width, z * half_width) for y in (-1, 1) for z in (-1, 1)]
    return xp.stack([xp.stack([half_length, *place]) for place in places])


def _walls(outer, inner, center, xp):
    """Returns half sizes and centres (4, 3) of the walls of the hole; `xp` is numpy or jax.numpy.

    `center` (2,) is the hole's offset in y and z. Source: mani_skill2 `_build_box_with_hole`. Where
    walls overlap at the edges of the box, one is set back a little, because faces in the same plane
    flicker when drawn.
    """
    thickness = (outer - inner) * 0.5
    y, z = center[0] * 0.5, center[1] * 0.5
    offset = thickness + inner
    zero = xp.zeros_like(thickness + y)
    full, back = outer + zero, outer - SET_BACK + zero
    sizes = [
        [back, thickness - y, back],
        [back, thickness + y, back],
        [full, back, thickness - z],
        [full, back, thickness + z],
    ]
    positions = [
        [zero, offset + y, zero],
        [zero, -offset + y, zero],
        [zero, zero, offset + z],
        [zero, zero, -offset + z],
    ]
    stack = lambda rows: xp.stack([xp.stack(row) for row in rows])  # noqa: E731
    return stack(sizes), stack(positions)


def sample_start(key: jax.Array) -> Start:
    """Draws sizes, places and the robot's noise (mani_skill2 `_load_actors`, `_initialize_*`)."""
    keys = iter(jax.random.split(key, 8))
    half_length = jax.random.uniform(
        next(keys), (), minval=PEG_HALF_LENGTH[0], maxval=PEG_HALF_LENGTH[1]
    )
    half_width = jax.random.uniform(
        next(keys), (), minval=PEG_HALF_WIDTH[0], maxval=PEG_HALF_WIDTH[1]
    )
    center = 0.5 * (half_length - half_width) * jax.random.uniform(next(keys), (2,), minval=-1.0)
    peg_xy = jax.random.uniform(
        next(keys), (2,), minval=jnp.array(PEG_XY[0]), maxval=jnp.array(PEG_XY[1])
    )
    peg_yaw = np.pi / 2 + PEG_YAW_SPREAD * jax.random.uniform(next(keys), (), minval=-1.0)
    box_xy = jax.random.uniform(
        next(keys), (2,), minval=jnp.array(BOX_XY[0]), maxval=jnp.array(BOX_XY[1])
    )
    box_yaw = np.pi / 2 + BOX_YAW_SPREAD * jax.random.uniform(next(keys), (), minval=-1.0)
    robot = tabletop.sample_robot(next(keys), REST_ARM)

    params = PegParams(
        peg_half_length=half_length,
        peg_half_width=half_width,
        hole_offset=center,
        hole_half_width=half_width + CLEARANCE,
        box_pos=jnp.append(box_xy, half_length),
        box_quat=quat_about_z(box_yaw),
    )
    peg = jnp.concatenate([peg_xy, half_width[None], quat_about_z(peg_yaw)])
    qpos = jnp.concatenate([robot, peg])
    return make_start({"qpos": qpos, "qvel": jnp.zeros(panda.NUM_JOINTS + 6), **params._asdict()})


def get_state(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Returns positions, velocities and the episode's sizes and places (`PegParams`)."""
    return {"qpos": physics.qpos, "qvel": physics.qvel, **episode.params._asdict()}


def make_start(state: Mapping[str, Any]) -> Start:
    """Builds a start from such a state."""
    params = PegParams(*(jnp.asarray(state[name]) for name in PegParams._fields))
    return Start(Episode(_overrides(params), params), state["qpos"], state["qvel"])


def _overrides(params: PegParams) -> dict[str, jax.Array]:
    """Returns the model values of one episode, with rows in the order of `_OVERRIDE_ROWS`."""
    length, width = params.peg_half_length, params.peg_half_width
    zero = jnp.zeros(())
    mass, inertia = _box_inertia(length, width)
    inertia = jnp.stack(inertia)
    walls, wall_pos = _walls(length, params.hole_half_width, params.hole_offset, jnp)
    peg = jnp.stack([length, width, width])
    # The head is drawn slightly larger than the peg beneath it.
    head = jnp.stack([length / 2, width + 2e-4, width + 2e-4])
    head_pos = jnp.stack([length / 2 + 2e-4, zero, zero])
    corners = jnp.tile(jnp.array([CORNER_RADIUS, 0.0, 0.0]), (len(_CORNERS), 1))
    # These are the values that mj_setConst derives for a free body: its mass matrix and the inverse
    # inertias that scale the softness of constraints.
    inverse = jnp.stack([1 / mass, jnp.mean(1 / inertia)])
    return {
        "geom_size": jnp.concatenate([jnp.stack([peg, head]), corners, walls]),
        "geom_pos": jnp.concatenate([head_pos[None], _corners(length, width, jnp), wall_pos]),
        "body_pos": params.box_pos[None],
        "body_quat": params.box_quat[None],
        "body_mass": mass[None],
        "body_subtreemass": mass[None],
        "body_inertia": inertia[None],
        "body_invweight0": inverse[None],
        "dof_M0": jnp.concatenate([jnp.repeat(mass, 3), inertia]),
        "dof_invweight0": jnp.repeat(inverse, 3),
    }


def resize(start: Start, factor: jax.Array) -> Start:
    """Scales the peg and keeps it on the floor; the box fits it with the same clearance."""
    old = start.episode.params
    params = old._replace(
        peg_half_length=factor * old.peg_half_length,
        peg_half_width=factor * old.peg_half_width,
        hole_offset=factor * old.hole_offset,
        hole_half_width=factor * old.peg_half_width + CLEARANCE,
        box_pos=old.box_pos.at[2].multiply(factor),
    )
    overrides, box = dict(start.episode.overrides), _overrides(params)
    overrides["body_pos"] = box["body_pos"]
    for field in ("geom_size", "geom_pos"):
        walls = slice(-len(_WALLS), None)
        overrides[field] = overrides[field].at[walls].set(box[field][walls])
    qpos = start.qpos.at[panda.NUM_JOINTS + 2].multiply(factor)
    return Start(Episode(overrides, params), qpos, start.qvel)


def control(episode: Episode, physics: PhysicsState, action: jax.Array) -> jax.Array:
    """Turns a `pd_ee_delta_pose` action (7,) into joint targets (9,)."""
    del episode
    return panda.delta_pose_control(physics.qpos[: panda.NUM_JOINTS], action)


def observe(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Returns the 50 numbers of ManiSkill2's state mode, in its order (`OBSERVATION`)."""
    params = episode.params
    hole_pos = params.box_pos + rotate(params.box_quat, jnp.append(0.0, params.hole_offset))
    width = params.peg_half_width
    parts = [
        *tabletop.observe_robot(physics.qpos, physics.qvel),
        physics.qpos[panda.NUM_JOINTS :],
        jnp.stack([params.peg_half_length, width, width]),
        hole_pos,
        params.box_quat,
        params.hole_half_width[None],
    ]
    return jnp.concatenate(parts)


def peg_head_at_hole(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Returns the middle (3,) of the peg's front face in the hole's frame, m; x points inwards."""
    params = episode.params
    pos, quat = physics.qpos[panda.NUM_JOINTS :][:3], physics.qpos[panda.NUM_JOINTS :][3:]
    head = pos + rotate(quat, jnp.stack([params.peg_half_length, *jnp.zeros(2)]))
    hole = params.box_pos + rotate(params.box_quat, jnp.append(0.0, params.hole_offset))
    return to_frame(hole, params.box_quat, head)


def success(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Returns whether the peg's head is inside the hole and deep enough."""
    head = peg_head_at_hole(episode, physics)
    radius = episode.params.hole_half_width
    deep = (head[0] >= SUCCESS_DEPTH[0]) & (head[0] <= SUCCESS_DEPTH[1])
    return deep & (jnp.abs(head[1]) <= radius) & (jnp.abs(head[2]) <= radius)


def sparse_reward(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Returns 1 at success, else 0."""
    return {"success": success(episode, physics).astype(jnp.float32)}


def dense_reward(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Returns the terms of mani_skill2's `compute_dense_reward`, up to 25; see `peg_reward`."""
    return peg_reward.dense_terms(episode, physics, success(episode, physics))


def make_task() -> Task:
    """Builds PegInsertionSide."""
    return Task(
        name="PegInsertionSide",
        summary="grasp a peg and insert it sideways into a box (3 mm clearance); Panda",
        scene=Scene(
            _make_model(visual=False),
            n_substeps=tabletop.N_SUBSTEPS,
            override_rows=_OVERRIDE_ROWS,
        ),
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
        rewards={"sparse": sparse_reward, "dense": dense_reward},
        success=success,
        objects=("peg",),
        resize=resize,
        camera={"peg_pose": 1, "box_hole_pose": 1},
        features=peg_relations.features,
        stages=peg_relations.STAGES,
        expert=make_expert,
    )
