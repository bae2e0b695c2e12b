"""PushChair: push an office chair to the target on the floor and leave it there, upright.

Spawns, success, observation order and episode length come from mani-skill2 0.5.3
`envs/ms1/push_chair.py` and `envs/ms1/base_env.py`, the velocity drives from `agents/controllers`,
the robot from `mobile_panda.py`. PushChair has five chairs. PushChairHeldOut has three others, to
test a policy on chairs that it has never seen.

The chair's joint state is padded to 25 joints as in the original, whose chairs have wheels.

Differences from the original:

- Chairs come from a procedural family (`chairs.py`) instead of PartNet-Mobility; the origin of a
  chair's frame is where the seat meets the base.
- The seat starts at a random angle to its base and turns with viscous friction only.
- The current velocity decides whether the chair stands still, not its motion over the last control
  step. The limit of the turning rate, 0.2 in units of pi rad/s, is the original's.
- The target is drawn as a disc with the radius that counts as success.
- There is no dense reward: the original measures distances of the hands from points sampled on
  PartNet's meshes.
- MuJoCo computes contacts at 200 Hz, PhysX at 500 Hz.
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
DISTANCE = (0.8, 1.2)  # m, from the target to the chair and from the chair to the robot
CHAIR_TURN = 0.4 * np.pi  # rad, largest angle away from facing the target
ROBOT_SIDE = 0.2 * np.pi  # rad about the chair, largest angle away from right behind it
ROBOT_TURN = 0.05 * np.pi  # rad, largest angle away from facing the chair
SEAT_DAMPING = (5.0, 15.0)  # N m s/rad
CLOSE = 0.15  # m, largest distance of the chair from the target at success
TILT = 0.05 * np.pi  # rad, largest tilt at success
STATIC = (0.1, 0.2 * np.pi)  # m/s and rad/s, largest velocities at success
MAX_DOF = 25  # length of the chair's padded joint state
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
    "chair_pose": "base of the chair in the world: the point under the seat, m, and quaternion",
    "chair_vel": "velocity of the chair's base, m/s, world axes",
    "chair_ang_vel": "angular velocity of the chair's base, rad/s, world axes",
    "chair_qpos": "angle of the seat on the base, rad; the rest is padding",
    "chair_qvel": "turning rate of the seat on the base, rad/s; the rest is padding",
}

# Floor and fingers keep their friction; the overrides include it so that shifts can scale it.
_ROUGH = ("floor", *mobile_panda.FINGER_GEOMS)
_FRICTION = [(1.0, 0.005, 1e-4)] + [(panda.FINGER_FRICTION, 0.05, 1e-4)] * (len(_ROUGH) - 1)
_OVERRIDE_ROWS = chairs.OVERRIDE_ROWS | {
    "geom_friction": (*_ROUGH, *chairs.OVERRIDE_ROWS["geom_friction"])
}


class ChairParams(NamedTuple):
    """The seed `chair` () int32, see `chairs`, and the damping `seat_damping` () N m s/rad."""

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
    # The bodies' bounding volume trees would use the compiled sizes, not the episode's.
    option.disableflags |= mujoco.mjtDisableBit.mjDSBL_MIDPHASE.value
    # Only MJX reads these. Without them it would solve for every possible contact, touching or not.
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
    """Draws a chair near the target, roughly facing it, and the robot behind and facing the chair.

    Source: mani_skill2 `_initialize_chair`, `_initialize_robot`, `_set_joint_physical_parameters`.
    """
    kind_key, place_key, damping_key = jax.random.split(key, 3)
    chair = jax.random.choice(kind_key, jnp.array(kinds, jnp.int32))
    spread = jax.random.uniform(place_key, (7,), minval=-1.0)  # each in [-1, 1)
    middle, half = np.mean(DISTANCE), np.ptp(DISTANCE) / 2
    around = np.pi * spread[0]  # direction of the chair as seen from the target
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
    """Returns positions, velocities and the chair (`ChairParams`)."""
    return {"qpos": physics.qpos, "qvel": physics.qvel, **episode.params._asdict()}


def make_start(state: Mapping[str, Any]) -> Start:
    """Builds a start from such a state."""
    params = ChairParams(*(jnp.asarray(state[name]) for name in ChairParams._fields))
    overrides = chairs.overrides(*params)
    friction = jnp.concatenate([jnp.array(_FRICTION), overrides["geom_friction"]])
    episode = Episode(overrides | {"geom_friction": friction}, params)
    return Start(episode, state["qpos"], state["qvel"])


def resize(start: Start, factor: jax.Array) -> Start:
    """Scales the chair and keeps it on the floor; the casters' distance from the middle changes."""
    overrides = dict(start.episode.overrides)
    turning = overrides["dof_damping"].at[chairs.TURNING_ROW].multiply(factor**2)
    overrides["dof_damping"] = turning
    qpos = start.qpos.at[CHAIR.start + 2].multiply(factor)
    return Start(start.episode._replace(overrides=overrides), qpos, start.qvel)


def control(episode: Episode, physics: PhysicsState, action: jax.Array) -> jax.Array:
    """Turns a `base_pd_joint_vel_arm_pd_joint_vel` action (20,) into drive targets (22,)."""
    del episode
    return mobile_panda.control(physics.qpos[2], action)


def observe(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Returns the 131 numbers of ManiSkill2's state mode, in its order (`OBSERVATION`)."""
    del episode
    qpos, qvel = physics.qpos, physics.qvel
    pose, velocity = qpos[CHAIR], qvel[CHAIR_VEL]
    padding = jnp.zeros(MAX_DOF - 1)
    parts = [
        *mobile_panda.observe(qpos, qvel),
        pose,
        velocity[:3],
        rotate(pose[3:], velocity[3:]),  # MuJoCo gives it in the chair's frame
        *(qpos[-1:], padding, qvel[-1:], padding),
        physics.fields["sensordata"],
    ]
    return jnp.concatenate(parts)


STAGES = {
    "upright": lambda obs: _tilt(obs[47:51]) < TILT,
    "within 50 cm of the target": lambda obs: jnp.linalg.norm(obs[44:46]) < 0.5,
    "at the target": lambda obs: jnp.linalg.norm(obs[44:46]) <= CLOSE,
}


def features(obs: jax.Array) -> jax.Array:
    """Computes (10,) relations of chair, target and robot from the observation, within [-3, 3].

    In the robot's frame: the target relative to the chair (2, per 15 cm), the chair relative to a
    point 80 cm ahead of the robot (2, per 20 cm) and the chair's velocity (2, per 0.1 m/s).
    Further: the chair's distance from the target (1, per 15 cm), its turning rate (1, per 0.2 pi
    rad/s), its tilt (1, per 0.05 pi) and the lift's height above the chair's frame (1, per 20 cm).
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
    """Returns the angle () between the frame's z axis and the world's, rad."""
    # cos(tilt) = 1 - 2 (x^2 + y^2); arcsin of the half angle is precise near 0
    return 2 * jnp.arcsin(jnp.minimum(1.0, jnp.sqrt(quat[1] ** 2 + quat[2] ** 2)))


def success(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Returns whether the chair is close to the target, upright and standing still."""
    del episode
    pose, velocity = physics.qpos[CHAIR], physics.qvel[CHAIR_VEL]
    close = jnp.linalg.norm(pose[:2]) < CLOSE
    static = jnp.linalg.norm(velocity[:3]) <= STATIC[0]
    static &= jnp.linalg.norm(velocity[3:]) <= STATIC[1]
    return close & (_tilt(pose[3:]) < TILT) & static


def sparse_reward(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Returns 1 at success, else 0."""
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
        stages=STAGES,
        expert=make_expert,
    )
