"""Door: undo the latch and swing the door open.

This is the environment AdroitHandDoor-v1 of gymnasium-robotics 1.4 (`adroit_hand/adroit_door.py`).
On the native engine, model, observations, spawns, rewards and success equal it bit for bit.

The mjx engine has no contacts between cylinders and boxes. For it, besides the changes that all
Adroit tasks share (`hand.py`), the two cylinders of `frame`, the two of `door` and the one of
`latch` become capsules of the same radius and overall length.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import mujoco

from pdjax_envs.adroit import hand
from pdjax_envs.physics.engine import Buffers, PhysicsState
from pdjax_envs.task import Episode, Start, Task

FRAME_LOW, FRAME_HIGH = (-0.3, 0.25, 0.252), (-0.2, 0.35, 0.35)  # m, the frame's position
OPEN = 1.35  # rad, hinge angle at success
HINGE, LATCH = -2, -1  # in qpos
MODEL = "adroit_door.xml"
# Largest numbers in 60 episodes of experts, disturbed experts and random actions:
# 24 contacts, 22 near pairs of geoms, 135 constraints.
BUFFERS = Buffers(contacts=48, constraints=256)

OBSERVATION = (
    ("hand_qpos", 27),
    ("latch_angle", 1),
    ("door_angle", 1),
    ("palm_pos", 3),
    ("handle_pos", 3),
    ("palm_minus_handle", 3),
    ("door_is_open", 1),
)
MEANINGS = {
    "hand_qpos": "joint angles, rad: arm rotations (3), wrist (2), fingers (22); without the arm's"
    " slide",
    "latch_angle": "angle of the latch, rad; the latch holds the door while it is near 0",
    "door_angle": "angle of the hinge, rad",
    "palm_pos": "position of the palm, m, in the world",
    "handle_pos": "position of the handle, m, in the world",
    "palm_minus_handle": "m, world axes",
    "door_is_open": "1 if the hinge is beyond 1 rad, else -1",
}


def sample_start(key: jax.Array) -> Start:
    """Draws the place of the door's frame; hand and door are at rest (`reset_model`)."""
    low, high = jnp.array(FRAME_LOW), jnp.array(FRAME_HIGH)
    return make_start({"door_body_pos": jax.random.uniform(key, (3,), minval=low, maxval=high)})


def get_state(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Returns the state as `AdroitHandDoorEnv.get_env_state` does."""
    frame = episode.overrides["body_pos"][0]
    return {"qpos": physics.qpos, "qvel": physics.qvel, "door_body_pos": frame}


def make_start(state: Mapping[str, Any]) -> Start:
    """Builds a start from such a state; the robot is at rest if qpos and qvel are missing."""
    frame = jnp.asarray(state["door_body_pos"])
    episode = Episode({"body_pos": frame[None]}, ())
    return Start(episode, state.get("qpos", jnp.zeros(30)), state.get("qvel", jnp.zeros(30)))


def success(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Returns whether the door is open wide enough."""
    del episode
    return physics.qpos[HINGE] >= OPEN


STAGES = {
    "at the handle": lambda obs: jnp.linalg.norm(obs[35:38]) < 0.1,
    "ajar": lambda obs: obs[28] > 0.1,
    "half open": lambda obs: obs[28] > OPEN / 2,
}


def make_task() -> Task:
    """Builds AdroitDoor."""
    spec = mujoco.MjSpec.from_file(hand.asset(MODEL))
    model = hand.compile_model(spec)
    palm_id, handle_id = model.site("S_grasp").id, model.site("S_handle").id

    def places(physics):
        sites = physics.fields["site_xpos"]
        return sites[palm_id], sites[handle_id]

    def observe(episode: Episode, physics: PhysicsState) -> jax.Array:
        """Returns the 39 numbers of `_get_obs`."""
        del episode
        palm, handle = places(physics)
        qpos = physics.qpos
        door = qpos[HINGE]
        parts = [
            qpos[1:-2],
            qpos[LATCH],
            door,
            palm,
            handle,
            palm - handle,
            jnp.where(door > 1, 1.0, -1.0),
        ]
        return jnp.hstack(parts)

    def dense_reward(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
        """Returns the terms of `step`; as in the original, the first grows with the distance."""
        del episode
        palm, handle = places(physics)
        door = physics.qpos[HINGE]
        return {
            "reach": 0.1 * hand.distance(palm, handle),
            "open": -0.1 * (door - 1.57) ** 2,
            "velocity": -1e-5 * jnp.sum(physics.qvel**2),
            "ajar": hand.bonus(door > 0.2, 2.0),
            "half_open": hand.bonus(door > 1.0, 8.0),
            "wide_open": hand.bonus(door > OPEN, 10.0),
        }

    return hand.AdroitTask(
        name="AdroitDoor",
        summary="undo the latch and open the door; 28-joint arm and hand",
        scene=hand.make_scene(model, {"body_pos": ("frame",)}, ("site_xpos",), BUFFERS),
        make_visual_model=lambda: hand.visual_model(
            MODEL, eye=(-0.95, -0.75, 0.75), target=(0.05, 0.05, 0.15)
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
        objects=("door", "latch"),
        resize="door, latch and frame fit only each other",
        camera={"handle_pos": 1, "palm_minus_handle": -1},
        adapt=hand.adapting(MODEL, _edit_for_mjx),
    )


def _edit_for_mjx(spec: mujoco.MjSpec) -> None:
    hand.without_cylinders(spec, "frame", "door", "latch")
