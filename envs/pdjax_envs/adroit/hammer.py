"""Hammer: pick up the hammer and drive the nail into the board.

This is the environment AdroitHandHammer-v1 of gymnasium-robotics 1.4
(`adroit_hand/adroit_hammer.py`). On the native engine, model, observations, spawns, rewards and
success equal it bit for bit.

Changes for mjx, besides those that all Adroit tasks share (`hand.py`):

- mjx has no contacts between cylinders and boxes: the hammer's `head` and the nail's shaft become
  capsules of the same radius and overall length, the nail's flat head a box of the same volume.
- mjx has no cylindrical touch sensors: the sensor's site `S_target` becomes such a box too.
- Friction creeps without the solver against slip, and the soft limit of `nail_dir` would push a
  driven nail out again, just beyond the depth that counts as driven. The limit therefore has no
  margin (0.01 m in the original).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import mujoco

from pdjax_envs.adroit import hand
from pdjax_envs.physics.engine import Buffers, PhysicsState
from pdjax_envs.rotations import quat_to_euler
from pdjax_envs.task import Episode, Start, Task

BOARD_XY = (0.05, 0.0)  # m
BOARD_HEIGHT = (0.1, 0.25)  # m
DRIVEN = 0.01  # m, the nail's distance from its goal at success
DEPTH = 0.09  # m, how far the nail goes in
LIFTED = 0.04  # m, height above which the hammer and its head count as lifted
MODEL = "adroit_hammer.xml"
# Largest numbers in 60 episodes of experts, disturbed experts and random actions:
# 16 contacts, 24 near pairs of geoms, 128 constraints.
BUFFERS = Buffers(contacts=48, constraints=256)

OBSERVATION = (
    ("hand_qpos", 26),
    ("nail_depth", 1),
    ("hammer_qvel", 6),
    ("palm_pos", 3),
    ("hammer_pos", 3),
    ("hammer_euler", 3),
    ("nail_pos", 3),
    ("nail_force", 1),
)
MEANINGS = {
    "hand_qpos": "joint angles, rad: arm (2), wrist (2), fingers (22)",
    "nail_depth": "depth of the nail in the board, m",
    "hammer_qvel": "the hammer's velocity, m/s and rad/s, clipped to [-1, 1]",
    "palm_pos": "position of the palm, m, in the world",
    "hammer_pos": "position of the hammer, m, in the world",
    "hammer_euler": "Euler angles of the hammer, rad, about the fixed axes x, y, z",
    "nail_pos": "position of the nail's head, m, in the world",
    "nail_force": "force on the nail's head, N, clipped to [-1, 1]",
}


def sample_start(key: jax.Array) -> Start:
    """Draws the height of the board; hand and hammer are at rest (`reset_model`)."""
    low, high = BOARD_HEIGHT
    height = jax.random.uniform(key, (1,), minval=low, maxval=high)
    return make_start({"board_pos": jnp.concatenate([jnp.array(BOARD_XY), height])})


def get_state(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
    """Returns the state as `AdroitHandHammerEnv.get_env_state` does."""
    board = episode.overrides["body_pos"][0]
    return {"qpos": physics.qpos, "qvel": physics.qvel, "board_pos": board}


def make_start(state: Mapping[str, Any]) -> Start:
    """Builds a start from such a state; the robot is at rest if qpos and qvel are missing."""
    board = jnp.asarray(state["board_pos"])
    episode = Episode({"body_pos": board[None]}, ())
    return Start(episode, state.get("qpos", jnp.zeros(33)), state.get("qvel", jnp.zeros(33)))


STAGES = {
    "in the hand": lambda obs: jnp.linalg.norm(obs[33:36] - obs[36:39]) < 0.1,
    "nail hit": lambda obs: obs[26] > 0.01,
    "nail half in": lambda obs: obs[26] > DEPTH / 2,
}


def make_task() -> Task:
    """Builds AdroitHammer."""
    spec = mujoco.MjSpec.from_file(hand.asset(MODEL))
    model = hand.compile_model(spec)
    hammer_id, force_id = model.body("Object").id, model.sensor("S_nail").id
    palm_id, tool_id, nail_id, goal_id = (
        model.site(name).id for name in ("S_grasp", "tool", "S_target", "nail_goal")
    )

    def nail_distance(physics):
        sites = physics.fields["site_xpos"]
        return hand.distance(sites[nail_id], sites[goal_id])

    def observe(episode: Episode, physics: PhysicsState) -> jax.Array:
        """Returns the 46 numbers of `_get_obs`."""
        del episode
        fields = physics.fields
        parts = [
            physics.qpos[:-6],
            jnp.clip(physics.qvel[-6:], -1.0, 1.0),
            fields["site_xpos"][palm_id],
            fields["xpos"][hammer_id],
            quat_to_euler(fields["xquat"][hammer_id]),
            fields["site_xpos"][nail_id],
            jnp.clip(fields["sensordata"][force_id], -1.0, 1.0),
        ]
        return jnp.hstack(parts)

    def success(episode: Episode, physics: PhysicsState) -> jax.Array:
        """Returns whether the nail is driven in."""
        del episode
        return nail_distance(physics) < DRIVEN

    def dense_reward(episode: Episode, physics: PhysicsState) -> dict[str, jax.Array]:
        """Returns the terms of `step`; as in the original, the first grows with the distance."""
        del episode
        sites, hammer = physics.fields["site_xpos"], physics.fields["xpos"][hammer_id]
        tool, left = sites[tool_id], nail_distance(physics)
        return {
            "reach": 0.1 * hand.distance(sites[palm_id], hammer),
            "aim": -hand.distance(tool, sites[nail_id]),
            "drive": -10 * left,
            "velocity": -1e-2 * jnp.linalg.norm(physics.qvel),
            "lifted": hand.bonus((hammer[2] > LIFTED) & (tool[2] > LIFTED), 2.0),
            "nearly_driven": hand.bonus(left < 0.020, 25.0),
            "driven": hand.bonus(left < DRIVEN, 75.0),
        }

    fields = ("site_xpos", "xpos", "xquat", "sensordata")
    return hand.AdroitTask(
        name="AdroitHammer",
        summary="pick up the hammer and drive the nail in; 26-joint arm and hand",
        scene=hand.make_scene(model, {"body_pos": ("nail_board",)}, fields, BUFFERS),
        make_visual_model=lambda: hand.visual_model(
            MODEL, eye=(-0.6, -0.75, 0.6), target=(0.0, -0.15, 0.12)
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
        camera={"hammer_pos": 1, "nail_pos": 1},
        adapt=hand.adapting(MODEL, _edit_for_mjx),
    )


def _edit_for_mjx(spec: mujoco.MjSpec) -> None:
    hand.without_cylinders(spec, "nail", "Object")
    hand.as_box(spec.site("S_target"))
    spec.joint("nail_dir").margin = 0
