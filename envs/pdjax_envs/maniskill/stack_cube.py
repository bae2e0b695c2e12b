"""StackCube: put the red cube on the green one and let go.

Spawns, sizes, observation order, success and dense reward come from mani-skill2 0.5.3
`envs/pick_and_place/stack_cube.py`, the control mode from `agents/controllers/pd_ee_pose.py`
(translation in the tool's frame, while the tool keeps its orientation).

Differences from SAPIEN: MuJoCo computes contacts at 200 Hz, PhysX at 500 Hz; see also `panda.py`. A
cube counts as grasped if both finger pads touch it by geometry (within 1 mm) instead of by contact
impulses, so that all engines agree. Success and dense reward therefore differ if the fingers are
less than 1 mm from the cube without pressing it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.looks import add_looks
from pdjax_envs.maniskill import panda, tabletop
from pdjax_envs.maniskill.experts.stack_cube import make_expert
from pdjax_envs.physics.engine import PhysicsState, Scene
from pdjax_envs.rotations import quat_about_z
from pdjax_envs.task import Episode, Start, Task

HALF_SIZE = 0.02  # m
REGION = ((-0.1, -0.2), (0.1, 0.2))  # m, low and high, place of each cube about a common shift
SHIFT = 0.1  # m
# Smallest distance of the centres: mani_skill2's sampler adds the radii of both cubes.
APART = 2 * (np.sqrt(2) * HALF_SIZE + 0.001)  # m
TRIALS = 32  # draws for the second cube; all of them fail in fewer than one start in 10^20
ON_TOP = 0.005  # m, tolerance at success: horizontally beyond half a diagonal, and vertically
STATIC = (1e-3, 1e-2)  # m/s and rad/s, largest velocities at success
FINGERS_WIDE = 2 * tabletop.FINGERS_OPEN  # m
A, B = slice(9, 16), slice(16, 23)  # poses in qpos
A_VEL, B_VEL = slice(9, 15), slice(15, 21)
# (4, 3, 3), the cube's axes in the tool's frame for which fingers from above close on its sides.
_HOLDS = np.array(
    [[[c, s, 0], [s, -c, 0], [0, 0, -1]] for c, s in ((1, 0), (-1, 0), (0, 1), (0, -1))]
)

OBSERVATION = (
    *tabletop.ROBOT_OBSERVATION,
    ("cube_a_pose", 7),
    ("cube_b_pose", 7),
    ("tcp_to_cube_a", 3),
    ("tcp_to_cube_b", 3),
    ("cube_a_to_cube_b", 3),
)
MEANINGS = tabletop.ROBOT_MEANINGS | {
    "cube_a_pose": "pose of the red cube in the world: position, m, and quaternion (w, x, y, z)",
    "cube_b_pose": "pose of the green cube in the world: position, m, and quaternion (w, x, y, z)",
    "tcp_to_cube_a": "offset from the tool to the red cube, m, world axes",
    "tcp_to_cube_b": "offset from the tool to the green cube, m, world axes",
    "cube_a_to_cube_b": "offset from the red cube to the green one, m, world axes",
}
ACTION = (("ee_delta_position", 3), ("gripper", 1))


class CubeParams(NamedTuple):
    """The `half_size` () of both cubes, m."""

    half_size: jax.Array


def _make_model(visual: bool) -> mujoco.MjModel:
    spec = tabletop.make_spec("StackCube", visual)
    for name, y, color in (("cube_a", -0.1, (0.86, 0.2, 0.18)), ("cube_b", 0.1, (0.2, 0.65, 0.3))):
        body = spec.worldbody.add_body(name=name, pos=(0, y, HALF_SIZE))
        body.add_joint(name=f"{name}_joint", type=mujoco.mjtJoint.mjJNT_FREE)
        body.add_geom(
            name=name,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[HALF_SIZE] * 3,
            density=tabletop.DENSITY,
            # The cubes collide with each other too.
            contype=panda.FIXTURE_BIT,
            conaffinity=tabletop.OBJECT["conaffinity"],
            rgba=(*color, 1),
        )
        tabletop.lay_on_floor(spec, name)
    if visual:
        add_looks(spec, eye=(0.7, -0.45, 0.6), target=(-0.08, 0.0, 0.08))
    return spec.compile()


def sample_start(key: jax.Array) -> Start:
    """Draws both cubes on the floor, apart, at any angle; the robot is near its rest pose.

    Source: mani_skill2 `_initialize_actors`, whose sampler redraws the second cube until it is
    clear of the first.
    """
    keys = jax.random.split(key, 5)
    low, high = jnp.array(REGION[0]), jnp.array(REGION[1])
    shift = jax.random.uniform(keys[0], (2,), minval=-SHIFT, maxval=SHIFT)
    draws = jax.random.uniform(keys[1], (TRIALS, 2), minval=low, maxval=high)
    first = jax.random.uniform(keys[2], (2,), minval=low, maxval=high)
    clear = jnp.linalg.norm(draws - first, axis=1) > APART
    second = draws[jnp.argmax(clear)]  # the first one that is clear
    yaws = jax.random.uniform(keys[3], (2,), maxval=2 * np.pi)
    poses = [
        jnp.concatenate([shift + place, jnp.array([HALF_SIZE]), quat_about_z(yaw)])
        for place, yaw in zip((first, second), yaws, strict=True)
    ]
    robot = tabletop.sample_robot(keys[4], panda.REST_ARM)
    return make_start({"qpos": jnp.concatenate([robot, *poses]), "qvel": jnp.zeros(21)})


def get_state(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Returns positions and velocities; an episode draws nothing else."""
    del episode
    return {"qpos": physics.qpos, "qvel": physics.qvel}


def make_start(state: Mapping[str, Any]) -> Start:
    """Builds a start from such a state."""
    return Start(Episode({}, CubeParams(jnp.float32(HALF_SIZE))), state["qpos"], state["qvel"])


def resize(start: Start, factor: jax.Array) -> Start:
    """Scales the cubes and keeps them on the floor; moves the green one if they would overlap."""
    params = CubeParams(factor * start.episode.params.half_size)
    apart = start.qpos[B][:2] - start.qpos[A][:2]
    distance = jnp.linalg.norm(apart)
    away = (jnp.maximum(1.0, factor * APART / distance) - 1.0) * apart
    qpos = start.qpos.at[jnp.array([A.start + 2, B.start + 2])].multiply(factor)
    qpos = qpos.at[B.start : B.start + 2].add(away)
    return Start(start.episode._replace(params=params), qpos, start.qvel)


def control(episode: Episode, physics: PhysicsState, action: jax.Array) -> jax.Array:
    """Turns a `pd_ee_delta_pos` action (4,) into joint targets (9,); the tool does not rotate."""
    del episode
    still = jnp.concatenate([action[:3], jnp.zeros(3), action[3:]])
    return panda.delta_pose_control(physics.qpos[: panda.NUM_JOINTS], still)


def observe(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Returns the 55 numbers of ManiSkill2's state mode, in its order (`OBSERVATION`)."""
    del episode
    robot = tabletop.observe_robot(physics.qpos, physics.qvel)
    tcp, cube_a, cube_b = robot[3], physics.qpos[A], physics.qpos[B]
    parts = [*robot, cube_a, cube_b, cube_a[:3] - tcp, cube_b[:3] - tcp, cube_b[:3] - cube_a[:3]]
    return jnp.concatenate(parts)


def grasped(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Returns whether both finger pads touch the red cube."""
    cube = physics.qpos[A]
    half_size = jnp.repeat(episode.params.half_size, 3)
    return tabletop.pinched(physics.qpos, cube[:3], cube[3:], half_size)


def stacked(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Returns whether the red cube is on the green one."""
    half_size = episode.params.half_size
    offset = physics.qpos[A][:3] - physics.qpos[B][:3]
    near = jnp.linalg.norm(offset[:2]) <= np.sqrt(2) * half_size + ON_TOP
    return near & (jnp.abs(offset[2] - 2 * half_size) <= ON_TOP)


def success(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Returns whether the red cube is on the green one, at rest and released."""
    velocity = physics.qvel[A_VEL]
    static = jnp.linalg.norm(velocity[:3]) <= STATIC[0]
    static &= jnp.linalg.norm(velocity[3:]) <= STATIC[1]
    return stacked(episode, physics) & static & ~grasped(episode, physics)


def sparse_reward(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Returns 1 at success, else 0."""
    return {"success": success(episode, physics).astype(jnp.float32)}


def dense_reward(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Returns the terms of mani_skill2's `compute_dense_reward`, up to 15."""
    half_size = episode.params.half_size
    tool_pos, tool_quat = panda.tcp_pose(physics.qpos[: panda.ARM_JOINTS])
    cube_a, cube_b = physics.qpos[A], physics.qpos[B]
    left = cube_b[:3].at[2].add(2 * half_size) - cube_a[:3]  # to the place on the green cube
    done, held = success(episode, physics), grasped(episode, physics)
    placed = (jnp.linalg.norm(left[:2]) < 0.8 * half_size) & (jnp.abs(left[2]) <= 0.005)
    before, there = ~done & ~placed, ~done & placed

    # |R - R'|^2 / 8 for the nearest of the four ways to hold the cube from above
    turn = jnp.stack(tabletop.box_axes(tool_quat, cube_a[3:]))
    apart = jnp.min(jnp.sum((turn - _HOLDS) ** 2, axis=(1, 2)))
    velocity = physics.qvel[B_VEL]
    disturbed = jnp.linalg.norm(velocity[:3]) + jnp.linalg.norm(velocity[3:])
    # A cube that is below the place, or more than 2 cm above it, must first reach its height.
    wrong_height = 2 * jnp.maximum(left[2], jnp.maximum(0.0, -0.02 - left[2]))
    carry = 2 * tabletop.nearness(5 * wrong_height) + 4 * tabletop.nearness(
        5 * jnp.linalg.norm(left)
    )
    opened = jnp.where(held, jnp.sum(physics.qpos[7:9]) / FINGERS_WIDE, 1.0)
    return {
        "rotation": jnp.where(before, tabletop.nearness(apart / 8), 0.0),
        "disturbed": jnp.where(before, -disturbed, 0.0),
        "reach": jnp.where(
            before, tabletop.nearness(3 * jnp.linalg.norm(tool_pos - cube_a[:3])), 0.0
        ),
        "grasp": jnp.where(before & held, 1.0, 0.0),
        "carry": jnp.where(before & held, carry, 0.0),
        "placed": jnp.where(there, 10.0, 0.0),
        "let_go": jnp.where(there, 2 * opened, 0.0),
        "success": jnp.where(done, 15.0, 0.0),
    }


def _from_place(obs: jax.Array) -> jax.Array:
    """Returns the red cube's place (3,) on the green one relative to the red cube, m."""
    return obs[52:55] + jnp.array([0.0, 0.0, 2 * HALF_SIZE])


STAGES = {
    "lifted": lambda obs: obs[34] - HALF_SIZE > 0.01,
    "within 2 cm of its place": lambda obs: jnp.linalg.norm(_from_place(obs)) < 0.02,
    "on the green cube": lambda obs: jnp.linalg.norm(_from_place(obs)) < 0.005,
}


def features(obs: jax.Array) -> jax.Array:
    """Computes (8,) relations of tool and cubes from the observation, within [-3, 3].

    The tool relative to the red cube (3, per 2 cm), the red cube relative to its place on the green
    one (3, per 2 cm), the fingers' opening minus the cube's width (1, per 1 cm) and the red cube's
    height above the floor (1, per 2 cm).
    """
    parts = [
        -obs[46:49] / 0.02,
        -_from_place(obs) / 0.02,
        (obs[7:8] - HALF_SIZE) / 0.01,
        (obs[34:35] - HALF_SIZE) / 0.02,
    ]
    return jnp.clip(jnp.concatenate(parts), -3.0, 3.0)


def make_task() -> Task:
    """Builds StackCube."""
    return Task(
        name="StackCube",
        summary="put the red cube on the green one and let go; Panda",
        scene=Scene(_make_model(visual=False), n_substeps=tabletop.N_SUBSTEPS),
        make_visual_model=lambda: _make_model(visual=True),
        observation=OBSERVATION,
        meanings=MEANINGS,
        action=ACTION,
        control_mode="pd_ee_delta_pos",
        episode_steps=tabletop.EPISODE_STEPS,
        control_hz=tabletop.CONTROL_HZ,
        sample_start=sample_start,
        get_state=get_state,
        make_start=make_start,
        control=control,
        observe=observe,
        rewards={"sparse": sparse_reward, "dense": dense_reward},
        success=success,
        objects=("cube_a", "cube_b"),
        resize=resize,
        camera={"cube_a_pose": 1, "cube_b_pose": 1, "tcp_to_cube_a": 1, "tcp_to_cube_b": 1},
        features=features,
        stages=STAGES,
        expert=make_expert,
    )
