"""Relocate: pick up the ball and carry it to the target in the air.

This is the environment AdroitHandRelocate-v1 of gymnasium-robotics 1.4
(`adroit_hand/adroit_relocate.py`). On the native engine, model, observations, spawns, rewards
and success equal it bit for bit.

The only changes for mjx are those that all Adroit tasks share (`hand.py`).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import mujoco

from pdjax_envs.adroit import hand
from pdjax_envs.physics.engine import Buffers, PhysicsState
from pdjax_envs.task import Episode, Start, Task

BALL_LOW, BALL_HIGH = (-0.15, -0.15), (0.15, 0.3)  # m
BALL_HEIGHT = 0.035  # m, on the table
TARGET_LOW, TARGET_HIGH = (-0.2, -0.2, 0.15), (0.2, 0.2, 0.35)  # m
NEAR = 0.1  # m, largest distance of the ball from the target at success
LIFTED = 0.04  # m, height above which the ball counts as lifted
MODEL = "adroit_relocate.xml"
# Largest numbers in 60 episodes of experts, disturbed experts and random actions:
# 12 contacts, 19 near pairs of geoms, 110 constraints.
BUFFERS = Buffers(contacts=40, constraints=224)

OBSERVATION = (
    ("hand_qpos", 30),
    ("palm_minus_ball", 3),
    ("palm_minus_target", 3),
    ("ball_minus_target", 3),
)
MEANINGS = {
    "hand_qpos": "arm slides (3), m, and rotations (3), wrist (2), fingers (22), rad",
    "palm_minus_ball": "m, world axes",
    "palm_minus_target": "m, world axes",
    "ball_minus_target": "m, world axes",
}


def sample_start(key: jax.Array) -> Start:
    """Draws the places of ball and target; the hand is at rest (`reset_model`)."""
    ball_key, target_key = jax.random.split(key)
    ball = jax.random.uniform(
        ball_key, (2,), minval=jnp.array(BALL_LOW), maxval=jnp.array(BALL_HIGH)
    )
    target = jax.random.uniform(
        target_key, (3,), minval=jnp.array(TARGET_LOW), maxval=jnp.array(TARGET_HIGH)
    )
    return make_start({"obj_pos": jnp.append(ball, BALL_HEIGHT), "target_pos": target})


def get_state(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Returns the state that `set_env_state` accepts; `obj_pos` is the ball's zero position."""
    overrides = episode.overrides
    return {
        "qpos": physics.qpos,
        "qvel": physics.qvel,
        "obj_pos": overrides["body_pos"][0],
        "target_pos": overrides["site_pos"][0],
    }


def make_start(state: Mapping[str, Any]) -> Start:
    """Builds a start from such a state; the robot is at rest if qpos and qvel are missing."""
    overrides = {
        "body_pos": jnp.asarray(state["obj_pos"])[None],
        "site_pos": jnp.asarray(state["target_pos"])[None],
    }
    qpos, qvel = (state.get(name, jnp.zeros(36)) for name in ("qpos", "qvel"))
    return Start(Episode(overrides, ()), qpos, qvel)


def resize(start: Start, factor: jax.Array) -> Start:
    """Scales the ball and keeps it on the table."""
    overrides = dict(start.episode.overrides)
    overrides["body_pos"] = overrides["body_pos"].at[0, 2].multiply(factor)
    return start._replace(episode=start.episode._replace(overrides=overrides))


STAGES = {
    "in the hand": lambda obs: jnp.linalg.norm(obs[30:33]) < 0.08,
    "within 30 cm of the target": lambda obs: jnp.linalg.norm(obs[36:39]) < 0.3,
    "within 15 cm of the target": lambda obs: jnp.linalg.norm(obs[36:39]) < 0.15,
}


def make_task() -> Task:
    """Builds AdroitRelocate."""
    spec = mujoco.MjSpec.from_file(hand.asset(MODEL))
    model = hand.compile_model(spec)
    ball_id = model.body("Object").id
    palm_id, target_id = model.site("S_grasp").id, model.site("target").id

    def readings(physics):
        """Returns the positions of palm, ball and target."""
        sites = physics.fields["site_xpos"]
        return sites[palm_id], physics.fields["xpos"][ball_id], sites[target_id]

    def observe(episode: Episode, physics: PhysicsState) -> jax.Array:
        """Returns the 39 numbers of `_get_obs`."""
        del episode
        palm, ball, target = readings(physics)
        return jnp.hstack([physics.qpos[:-6], palm - ball, palm - target, ball - target])

    def success(episode: Episode, physics: PhysicsState) -> jax.Array:
        """Returns whether the ball is at the target."""
        del episode
        _, ball, target = readings(physics)
        return hand.distance(ball, target) < NEAR

    def dense_reward(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
        """Returns the terms of `step`; as in the original, the first grows with the distance."""
        del episode
        palm, ball, target = readings(physics)
        lifted, left = ball[2] > LIFTED, hand.distance(ball, target)
        return {
            "reach": 0.1 * hand.distance(palm, ball),
            "lifted": hand.bonus(lifted, 1.0),
            "carry": jnp.where(lifted, -0.5 * (hand.distance(palm, target) + left), 0.0),
            "near": hand.bonus(left < NEAR, 10.0),
            "very_near": hand.bonus(left < 0.05, 20.0),
        }

    return hand.AdroitTask(
        name="AdroitRelocate",
        summary="pick up the ball and carry it to the target; 30-joint arm and hand",
        scene=hand.make_scene(
            model,
            {"body_pos": ("Object",), "site_pos": ("target",)},
            ("site_xpos", "xpos"),
            BUFFERS,
        ),
        make_visual_model=lambda: hand.visual_model(
            MODEL, eye=(-0.8, -0.9, 0.75), target=(0.0, -0.05, 0.12)
        ),
        observation=OBSERVATION,
        meanings=MEANINGS,
        action=hand.action_parts(model),
        sample_start=sample_start,
        get_state=get_state,
        make_start=make_start,
        observe=observe,
        rewards={"sparse": lambda e, p: hand.sparse(success(e, p)), "dense": dense_reward},
        success=success,
        stages=STAGES,
        objects=("Object",),
        resize=resize,
        camera={"palm_minus_ball": -1, "palm_minus_target": -1},
        adapt=hand.adapting(MODEL),
    )
