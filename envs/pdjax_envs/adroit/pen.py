"""Pen: turn the pen in the hand until it points as the target does.

This is the environment AdroitHandPen-v1 of gymnasium-robotics 1.4 (`adroit_hand/adroit_pen.py`).
On the native engine, model, observations, spawns, rewards and success equal it bit for bit.

The mjx engine has no contacts between cylinders and boxes. For it, besides the changes that all
Adroit tasks share (`hand.py`), the geoms `pen` and `target` become capsules of the same radius and
overall length.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import mujoco

from pdjax_envs.adroit import hand
from pdjax_envs.physics.engine import Buffers, PhysicsState
from pdjax_envs.rotations import quat_from_euler
from pdjax_envs.task import Episode, Start, Task

PEN_LENGTH = 0.13  # m, distance of the sites at its ends
NEAR = 0.075  # m, largest distance of the pen from its place in the hand
DROPPED = 0.075  # m, height below which the pen counts as dropped
MODEL = "adroit_pen.xml"
# Largest numbers in 60 episodes of experts, disturbed experts and random actions:
# 10 contacts, 15 near pairs of geoms, 83 constraints.
BUFFERS = Buffers(contacts=32, constraints=160)

OBSERVATION = (
    ("hand_qpos", 24),
    ("pen_pos", 3),
    ("pen_qvel", 6),
    ("pen_direction", 3),
    ("target_direction", 3),
    ("pen_minus_place", 3),
    ("pen_minus_target_direction", 3),
)
MEANINGS = {
    "hand_qpos": "joint angles, rad: wrist (2), fingers (22)",
    "pen_pos": "position of the pen, m, in the world",
    "pen_qvel": "the pen's velocity, m/s and rad/s",
    "pen_direction": "unit vector along the pen, world axes",
    "target_direction": "unit vector along the target",
    "pen_minus_place": "offset of the pen from its place in the hand, m",
    "pen_minus_target_direction": "difference between the two directions",
}


def sample_start(key: jax.Array) -> Start:
    """Draws a target direction; the pen lies in the resting hand (`reset_model`)."""
    angles = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)  # rad, about x and y
    return make_start({"desired_orien": quat_from_euler(jnp.append(angles, 0.0))})


def get_state(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Returns the state as `AdroitHandPenEnv.get_env_state` does."""
    target = episode.overrides["body_quat"][0]
    return {"qpos": physics.qpos, "qvel": physics.qvel, "desired_orien": target}


def make_start(state: Mapping[str, Any]) -> Start:
    """Builds a start from such a state; the robot is at rest if qpos and qvel are missing."""
    target = jnp.asarray(state["desired_orien"])
    episode = Episode({"body_quat": target[None]}, ())
    return Start(episode, state.get("qpos", jnp.zeros(30)), state.get("qvel", jnp.zeros(30)))


STAGES = {
    "in the hand": lambda obs: obs[26] > DROPPED,
    "nearly turned": lambda obs: (obs[26] > DROPPED) & (jnp.dot(obs[33:36], obs[36:39]) > 0.9),
}


def make_task() -> Task:
    """Builds AdroitPen."""
    spec = mujoco.MjSpec.from_file(hand.asset(MODEL))
    model = hand.compile_model(spec)
    pen_id, place_id = model.body("Object").id, model.site("eps_ball").id
    ends = [model.site(f"object_{end}").id for end in ("top", "bottom")]
    target_ends = [model.site(f"target_{end}").id for end in ("top", "bottom")]

    def readings(physics):
        """Returns the pen's position, its place in the hand, and both directions."""
        sites = physics.fields["site_xpos"]
        pen = (sites[ends[0]] - sites[ends[1]]) / PEN_LENGTH
        target = (sites[target_ends[0]] - sites[target_ends[1]]) / PEN_LENGTH
        return physics.fields["xpos"][pen_id], sites[place_id], pen, target

    def closeness(physics):
        pos, place, pen, target = readings(physics)
        return hand.distance(pos, place), jnp.dot(pen, target)

    def observe(episode: Episode, physics: PhysicsState) -> jax.Array:
        """Returns the 45 numbers of `_get_obs`."""
        del episode
        pos, place, pen, target = readings(physics)
        parts = [physics.qpos[:-6], pos, physics.qvel[-6:], pen, target, pos - place, pen - target]
        return jnp.hstack(parts)

    def success(episode: Episode, physics: PhysicsState) -> jax.Array:
        """Returns whether the pen is in the hand and points the right way."""
        del episode
        distance, similarity = closeness(physics)
        return (distance < NEAR) & (similarity > 0.95)

    def dense_reward(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
        """Returns the terms of `step`."""
        distance, similarity = closeness(physics)
        return {
            "distance": -distance,
            "similarity": similarity,
            "nearly_turned": hand.bonus((distance < NEAR) & (similarity > 0.9), 10.0),
            "turned": hand.bonus(success(episode, physics), 50.0),
            "dropped": hand.bonus(physics.fields["xpos"][pen_id][2] < DROPPED, -5.0),
        }

    return hand.AdroitTask(
        name="AdroitPen",
        summary="turn the pen in the hand to the target's direction; 24-joint hand",
        scene=hand.make_scene(model, {"body_quat": ("target",)}, ("site_xpos", "xpos"), BUFFERS),
        make_visual_model=lambda: hand.visual_model(
            MODEL, eye=(-0.35, -0.75, 0.6), target=(0.05, -0.28, 0.2)
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
        resize="mjx replaces its cylinders by shapes of other sizes",
        camera={"pen_pos": 1, "pen_minus_place": 1},
        adapt=hand.adapting(MODEL, _edit_for_mjx),
    )


def _edit_for_mjx(spec: mujoco.MjSpec) -> None:
    hand.without_cylinders(spec, "Object", "target")
