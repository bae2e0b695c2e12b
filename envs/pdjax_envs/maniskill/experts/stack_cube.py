"""A scripted demonstrator for StackCube: waypoints for a tool that keeps its orientation.

It sees the same observation as a policy. It has seven phases: move above the red cube, descend,
close the fingers, lift, move above the green cube, lower, open. Fingers that close on a rotated
cube straighten it between them. If it loses the cube, it starts again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pdjax_envs.maniskill.panda import MAX_TRANSLATION
from pdjax_envs.rotations import quat_conjugate, rotate
from pdjax_envs.task import Expert

ABOVE, DOWN, CLOSE, LIFT, CARRY, LOWER, OPEN = range(7)
HOVER = 0.08  # m, height above the cube before the descent
TRAVEL = 0.09  # m, height of the red cube's middle above the green one's while moving
CUBE = 0.04  # m
GRIP, RELEASE = -1.0, 1.0
# Largest actions: with larger ones the joint drives lag unevenly, and the resulting tilt remains,
# because this control mode cannot rotate the tool back.
MOVE_LIMIT = (0.2, 0.12, 0.1, 0.2, 0.15, 0.1, 0.1)  # by phase
NEAR = (0.015, 0.005, 1e9, 0.02, 0.006, 0.004, 1e9)  # m, distance at which a phase meets its goal
STAY = (1, 3, 8, 1, 2, 3, 1_000)  # control steps at the goal before the next phase
SLIPS = 1.0  # chance per control step and unit of noise that open fingers start to close


class Carry(NamedTuple):
    """The `phase` () int32, and `timer` () int32, control steps since the phase met its goal."""

    phase: jax.Array
    timer: jax.Array


def make_expert() -> Expert:
    """Builds the demonstrator; pure functions for one environment."""
    return Expert(_init, _act, _disturb)


def _init(key: jax.Array) -> Carry:
    del key
    return Carry(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def _act(carry: Carry, obs: jax.Array, key: jax.Array) -> tuple[jax.Array, Carry]:
    del key  # the script itself is deterministic
    tool_pos, tool_quat, cube, goal = obs[25:28], obs[28:32], obs[32:35], obs[39:42]
    up = jnp.array([0.0, 0.0, 1.0])
    held = tool_pos - cube  # offset of the tool from the cube in the fingers
    goals = [
        cube + HOVER * up,
        cube,
        cube,
        tool_pos.at[2].set(goal[2] + TRAVEL + held[2]),
        goal + TRAVEL * up + held,
        goal + CUBE * up + held,
        tool_pos + 0.02 * up,
    ]
    error = jnp.stack(goals)[carry.phase] - tool_pos
    move = 1.5 * rotate(quat_conjugate(tool_quat), error) / MAX_TRANSLATION
    limit = jnp.array(MOVE_LIMIT)[carry.phase]
    move = move * jnp.minimum(1.0, limit / jnp.maximum(jnp.linalg.norm(move), 1e-6))
    closed = (carry.phase >= CLOSE) & (carry.phase < OPEN)
    # Once the fingers are open, wait for the release, then rise.
    move = jnp.where((carry.phase == OPEN) & (carry.timer < 4), 0.0, move)
    action = jnp.append(move, jnp.where(closed, GRIP, RELEASE))
    return jnp.clip(action, -1.0, 1.0), _next_phase(carry, jnp.linalg.norm(error), held)


def _next_phase(carry: Carry, distance: jax.Array, held: jax.Array) -> Carry:
    """Moves on once the goal has been met for a while; restarts if the cube was lost."""
    timer = jnp.where(distance < jnp.array(NEAR)[carry.phase], carry.timer + 1, 0)
    moving = (carry.phase > CLOSE) & (carry.phase < OPEN)
    lost = moving & (jnp.linalg.norm(held) > 0.04)
    phase = jnp.where(lost, ABOVE, carry.phase + (timer >= jnp.array(STAY)[carry.phase]))
    return Carry(phase, jnp.where(phase == carry.phase, timer, 0))


def _disturb(action: jax.Array, obs: jax.Array, key: jax.Array, noise: float) -> jax.Array:
    """Adds Gaussian noise to the arm; open fingers sometimes start to close too early."""
    del obs
    arm_key, finger_key = jax.random.split(key)
    arm = action[:3] + noise * jax.random.normal(arm_key, (3,))
    slip = (action[3] > 0) & jax.random.bernoulli(finger_key, SLIPS * noise)
    return jnp.clip(jnp.append(arm, jnp.where(slip, GRIP, action[3])), -1.0, 1.0)
