"""OwnTask: push the block to the green place on the table.

Change what you need; `pdjax envs check own_task.py:make_task` tells whether all fits together.
"""

from pathlib import Path

import jax.numpy as jnp

from pdjax_envs import State, Task, make_mujoco_task

NEAR = 0.02  # m, distance from the block to its place at success


# Each function reads the state of one environment. Use jax.numpy, and jnp.where instead of `if`.


def block(state: State):
    """Returns where the block is, x and y, m."""
    return state.body("block")[:2]


def to_goal(state: State):
    """Returns the way from the block to its place, x and y, m."""
    return state.site("goal")[:2] - block(state)


def success(state: State):
    """Returns whether the block is in its place, at rest."""
    slow = jnp.abs(state.qvel("block_x")) + jnp.abs(state.qvel("block_y")) < 0.05  # m/s
    return (jnp.linalg.norm(to_goal(state)) < NEAR) & slow


def dense_reward(state: State):
    """Returns named terms, whose sum is the reward; only `task.reward=dense` uses it."""
    reach = jnp.linalg.norm(state.body("finger")[:2] - block(state))
    return {"reach": -reach, "push": -3 * jnp.linalg.norm(to_goal(state))}


def make_task() -> Task:
    """Builds the task."""
    return make_mujoco_task(
        "OwnTask",  # name in demonstrations, policies and results
        Path(__file__).with_name("own_task.xml"),
        summary="push a block to its place on a table",
        episode_steps=100,  # time limit
        control_hz=20,
        control="actuators",  # an action in [-1, 1] for each, scaled to its ctrlrange
        start={"finger_x": -0.25, "block_x": -0.05},  # joint -> m or rad
        noise={"finger_y": 0.1, "block_x": 0.05, "block_y": 0.1, "block_turn": 0.5},
        observe={
            "finger": lambda state: state.body("finger")[:2],
            "finger_velocity": lambda state: jnp.stack(
                [state.qvel("finger_x"), state.qvel("finger_y")]
            ),
            "block": block,
            "block_turn": lambda state: state.qpos("block_turn"),
            "block_velocity": lambda state: jnp.stack(
                [state.qvel("block_x"), state.qvel("block_y"), state.qvel("block_turn")]
            ),
            "finger_to_block": lambda state: block(state) - state.body("finger")[:2],
            "block_to_goal": to_goal,
        },
        meanings={
            "finger": "position of the finger, x and y, m",
            "finger_velocity": "x and y, m/s",
            "block": "position of the block, x and y, m",
            "block_turn": "turn of the block, rad",
            "block_velocity": "x and y, m/s, and turn, rad/s",
            "finger_to_block": "x and y, m",
            "block_to_goal": "x and y, m",
        },
        success=success,
        reward=dense_reward,
        randomize={  # factors, drawn in each episode
            "dof_damping": {"block_x": (0.7, 1.5), "block_y": (0.7, 1.5)},
        },
    )
