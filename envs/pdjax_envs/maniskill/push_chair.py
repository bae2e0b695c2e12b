"""PushChair: push an office chair to the target on the floor and leave it there, upright.

Facts from mani-skill2 0.5.3 `envs/ms1/push_chair.py` and `envs/ms1/base_env.py` (spawns, success,
observation order, episode length) and `agents/controllers` (velocity drives); the robot is
`mobile_panda.py`'s. PushChair has five chairs; PushChairHeldOut three others, to ask what a policy
does with chairs that it has never seen.

The padding of the chair's joint state to 25 joints is the original's, whose chairs have wheels.
Differences from it: chairs are a procedural family (`chairs.py`), whose frame is where the
seat meets its base, instead of PartNet-Mobility's; the seat starts at a random angle to its base
and turns with viscous friction only; the chair stands still where its velocity at this instant says
so, instead of its motion over the last control step (the limit of the turning rate, 0.2 in units of
pi rad/s, is the original's); the target is drawn as a disc of the radius that counts. There is no
dense reward: the original measures the hands' distance from points sampled on PartNet's meshes.
MuJoCo contacts at 200 Hz instead of PhysX at 500 Hz.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.looks import add_looks
from pdjax_envs.maniskill import chairs, mobile_panda, panda
from pdjax_envs.maniskill.experts.push_chair import make_expert
from pdjax_envs.physics.engine import PhysicsState, Scene
from pdjax_envs.rotations import quat_about_z, rotate
from pdjax_envs.task import Episode, Start, Task

PHYSICS_STEP = 0.005  # s
CONTROL_HZ = 20.0
EPISODE_STEPS = 200  # control steps
DISTANCE = (0.8, 1.2)  # m, chair from the target and robot from the chair
CHAIR_TURN = 0.4 * np.pi  # rad, from facing the target
ROBOT_SIDE = 0.2 * np.pi  # rad about the chair, from right behind it
ROBOT_TURN = 0.05 * np.pi  # rad, from facing the chair
SEAT_DAMPING = (5.0, 15.0)  # N m s/rad
CLOSE = 0.15  # m, chair from the target at success
TILT = 0.05 * np.pi  # rad
STATIC = (0.1, 0.2 * np.pi)  # m/s and rad/s
MAX_DOF = 25  # of the chair's padded joint state
NUM_POS, NUM_VEL = mobile_panda.NUM_JOINTS + 8, mobile_panda.NUM_JOINTS + 7
CHAIR = slice(mobile_panda.NUM_JOINTS, mobile_panda.NUM_JOINTS + 7)  # pose in qpos
CHAIR_VEL = slice(mobile_panda.NUM_JOINTS, mobile_panda.NUM_JOINTS + 6)

OBSERVATION = (
    *mobile_panda.OBSERVATION,
    ("chair_pose", 7),
    ("chair_vel", 3),
    ("chair_ang_vel", 3),
    ("chair_qpos", MAX_DOF),
    ("chair_qvel", MAX_DOF),
    *mobile_panda.SENSORS,
)
MEANINGS = mobile_panda.MEANINGS | {
    "chair_pose": "the chair's base in the world: where the seat meets it, m, and quaternion",
    "chair_vel": "its velocity, m/s, world axes",
    "chair_ang_vel": "its angular velocity, rad/s, world axes",
    "chair_qpos": "the seat's angle on the base, rad; the rest is padding",
    "chair_qvel": "the seat's turning rate on the base, rad/s; the rest is padding",
}

# Floor and fingers keep their friction; it is among the overrides so that shifts can scale all.
_ROUGH = ("floor", *mobile_panda.FINGER_GEOMS)
_FRICTION = [(1.0, 0.005, 1e-4)] + [(panda.FINGER_FRICTION, 0.05, 1e-4)] * (len(_ROUGH) - 1)
_OVERRIDE_ROWS = chairs.OVERRIDE_ROWS | {
    "geom_friction": (*_ROUGH, *chairs.OVERRIDE_ROWS["geom_friction"])
}


class ChairParams(NamedTuple):
    """`chair` () int32, which one, see `chairs`; `seat_damping` () N m s/rad of its turning."""

    chair: jax.Array
    seat_damping: jax.Array


def _make_model(visual: bool) -> mujoco.MjModel:
    spec = mujoco.MjSpec()
    spec.modelname = "PushChair"
    spec.compiler.degree = False
    option = spec.option
    option.timestep = PHYSICS_STEP
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST  # see `mobile_panda`
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    # Bodies' bounding volume trees would hold the compiled sizes, not the episode's.
    option.disableflags |= mujoco.mjtDisableBit.mjDSBL_MIDPHASE.value
    # Only MJX reads these: it would otherwise solve for every possible contact, touching or not.
    spec.add_numeric(name="max_contact_points", data=[24], size=1)
    spec.add_numeric(name="max_geom_pairs", data=[12], size=1)
    spec.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=(4, 4, 0.1),
        contype=panda.FLOOR_BIT,
        conaffinity=0,
        rgba=(0.55, 0.57, 0.6, 1),
    )
    mobile_panda.add_mobile_panda(spec, visual)
    chairs.add_chair(spec, chairs.make_chair(chairs.TRAINING[0]))
    if visual:
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            size=(CLOSE, 0.002, 0),
            contype=0,
            conaffinity=0,
            rgba=(0.9, 0.1, 0.1, 1),
        )
        add_looks(spec, eye=(2.6, 3.6, 2.7), target=(0.0, 0.0, 0.5), size=3)
    model = spec.compile()
    chairs.prepare(model)
    return model


def sample_start(key: jax.Array, kinds: tuple[int, ...] = chairs.TRAINING) -> Start:
    """A chair about the target, facing it roughly; the robot behind the chair, facing it.

    Source: mani_skill2 `_initialize_chair`, `_initialize_robot`, `_set_joint_physical_parameters`.
    """
    kind_key, place_key, damping_key = jax.random.split(key, 3)
    chair = jax.random.choice(kind_key, jnp.array(kinds, jnp.int32))
    spread = jax.random.uniform(place_key, (7,), minval=-1.0)  # each in [-1, 1)
    middle, half = np.mean(DISTANCE), np.ptp(DISTANCE) / 2
    around = np.pi * spread[0]  # where the chair is, seen from the target
    facing = around - np.pi + CHAIR_TURN * spread[1]
    seat = np.pi * spread[2]  # the seat's angle on its base
    chair_xy = (middle + half * spread[3]) * _direction(around)
    behind = facing + np.pi + ROBOT_SIDE * spread[4]
    robot_xy = chair_xy + (middle + half * spread[5]) * _direction(behind)
    turn = behind - np.pi + ROBOT_TURN * spread[6]
    params = ChairParams(
        chair,
        jax.random.uniform(damping_key, (), minval=SEAT_DAMPING[0], maxval=SEAT_DAMPING[1]),
    )
    height = jnp.asarray(chairs.heights())[chair]
    arm = jnp.asarray(mobile_panda.START_ARM)
    parts = [
        robot_xy,
        jnp.stack([turn, jnp.float32(mobile_panda.START_LIFT)]),
        arm,
        arm,
        chair_xy,
        height[None],
        quat_about_z(facing - seat),
        seat[None],
    ]
    qpos = jnp.concatenate(parts)
    return make_start({"qpos": qpos, "qvel": jnp.zeros(NUM_VEL), **params._asdict()})


def _direction(angle: jax.Array) -> jax.Array:
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def get_state(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Positions, velocities and which chair it is (`ChairParams`)."""
    return {"qpos": physics.qpos, "qvel": physics.qvel, **episode.params._asdict()}


def make_start(state: Mapping[str, Any]) -> Start:
    """An episode that starts from such a state."""
    params = ChairParams(*(jnp.asarray(state[name]) for name in ChairParams._fields))
    overrides = chairs.overrides(*params)
    friction = jnp.concatenate([jnp.array(_FRICTION), overrides["geom_friction"]])
    episode = Episode(overrides | {"geom_friction": friction}, params)
    return Start(episode, state["qpos"], state["qvel"])


def resize(start: Start, factor: jax.Array) -> Start:
    """A chair of another size on the floor; its casters are further from the middle."""
    overrides = dict(start.episode.overrides)
    turning = overrides["dof_damping"].at[chairs.TURNING_ROW].multiply(factor**2)
    overrides["dof_damping"] = turning
    qpos = start.qpos.at[CHAIR.start + 2].multiply(factor)
    return Start(start.episode._replace(overrides=overrides), qpos, start.qvel)


def control(episode: Episode, physics: PhysicsState, action: jax.Array) -> jax.Array:
    """`base_pd_joint_vel_arm_pd_joint_vel`: (20,) action to (22,) targets of the drives."""
    del episode
    return mobile_panda.control(physics.qpos[2], action)


def observe(episode: Episode, physics: PhysicsState) -> jax.Array:
    """The 131 numbers of ManiSkill2's state mode, in its order (`OBSERVATION`)."""
    del episode
    qpos, qvel = physics.qpos, physics.qvel
    pose, velocity = qpos[CHAIR], qvel[CHAIR_VEL]
    padding = jnp.zeros(MAX_DOF - 1)
    parts = [
        *mobile_panda.observe(qpos, qvel),
        pose,
        velocity[:3],
        rotate(pose[3:], velocity[3:]),  # MuJoCo's is in the chair's frame
        *(qpos[-1:], padding, qvel[-1:], padding),
        physics.fields["sensordata"],
    ]
    return jnp.concatenate(parts)


def features(obs: jax.Array) -> jax.Array:
    """(10,) relations of chair, target and robot, from the observation alone; within [-3, 3].

    In the robot's frame: the target from the chair (2, per 15 cm), the chair from 80 cm before the
    robot (2, per 20 cm) and the chair's velocity (2, per 0.1 m/s). The chair's distance from the
    target (1, per 15 cm) and turning rate (1, per 0.2 pi rad/s), its tilt (1, per 0.05 pi) and the
    lift above the chair's frame (1, per 20 cm).
    """
    turn, chair, quat, velocity = obs[40], obs[44:47], obs[47:51], obs[51:54]
    ahead = _direction(turn)
    aside = jnp.stack([-ahead[1], ahead[0]])

    def seen(vector):
        return jnp.stack([vector @ ahead, vector @ aside])

    from_robot = seen(chair[:2] - obs[38:40]) - jnp.array([0.8, 0.0])
    parts = [
        seen(-chair[:2]) / CLOSE,
        from_robot / 0.2,
        seen(velocity[:2]) / STATIC[0],
        jnp.linalg.norm(chair[:2])[None] / CLOSE,
        obs[56:57] / STATIC[1],
        _tilt(quat)[None] / TILT,
        (obs[0:1] - chair[2:]) / 0.2,
    ]
    return jnp.clip(jnp.concatenate(parts), -3.0, 3.0)


def _tilt(quat: jax.Array) -> jax.Array:
    """() rad, between the frame's z axis and the world's."""
    # cos(tilt) = 1 - 2 (x^2 + y^2); arcsin of the half angle keeps its precision near 0
    return 2 * jnp.arcsin(jnp.minimum(1.0, jnp.sqrt(quat[1] ** 2 + quat[2] ** 2)))


def success(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Whether the chair is close to the target, upright and standing still."""
    del episode
    pose, velocity = physics.qpos[CHAIR], physics.qvel[CHAIR_VEL]
    close = jnp.linalg.norm(pose[:2]) < CLOSE
    static = jnp.linalg.norm(velocity[:3]) <= STATIC[0]
    static &= jnp.linalg.norm(velocity[3:]) <= STATIC[1]
    return close & (_tilt(pose[3:]) < TILT) & static


def sparse_reward(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """1 at success."""
    return {"success": success(episode, physics).astype(jnp.float32)}


def make_task() -> Task:
    """Builds PushChair."""
    return Task(
        name="PushChair",
        summary="push an office chair to a target and leave it standing; mobile base, two Pandas",
        scene=Scene(
            _make_model(visual=False),
            n_substeps=round(1 / (CONTROL_HZ * PHYSICS_STEP)),
            override_rows=_OVERRIDE_ROWS,
            fields=("sensordata",),
        ),
        make_visual_model=lambda: _make_model(visual=True),
        observation=OBSERVATION,
        meanings=MEANINGS,
        action=mobile_panda.ACTION,
        control_mode="base_pd_joint_vel_arm_pd_joint_vel",
        episode_steps=EPISODE_STEPS,
        control_hz=CONTROL_HZ,
        sample_start=sample_start,
        get_state=get_state,
        make_start=make_start,
        control=control,
        observe=observe,
        rewards={"sparse": sparse_reward},
        success=success,
        objects=("chair", "chair_seat"),
        resize=resize,
        held_out=partial(sample_start, kinds=chairs.HELD_OUT),
        camera={"chair_pose": 1},
        features=features,
        expert=make_expert,
    )
