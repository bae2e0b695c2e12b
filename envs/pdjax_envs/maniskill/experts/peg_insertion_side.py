"""A scripted demonstrator for PegInsertionSide: differential control through waypoints.

It sees the same observation as a policy. It has six phases: move above the peg, descend, close the
fingers, lift, align before the hole, insert. The last three steer the peg itself, which corrects a
crooked grasp. If it drops the peg, it starts again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pdjax_envs.maniskill.panda import MAX_ROTATION, MAX_TRANSLATION
from pdjax_envs.rotations import quat_about_z, quat_conjugate, quat_multiply, quat_to_rotvec, rotate
from pdjax_envs.task import Expert

ABOVE, DOWN, CLOSE, LIFT, ALIGN, INSERT = range(6)
HOVER = 0.08  # m, height of the tool above the peg before the descent
STANDOFF = 0.03  # m, gap between the peg's head and the box before the insertion
HOLD_BEHIND = 0.06  # m, from the grasp to the peg's middle, as in ManiSkill2's dense reward
CLOSE_STEPS = 8  # control steps for the fingers to close
# Largest actions: beyond these the joint drives saturate, lag unevenly and tilt the tool. The
# descent is slower and settles before the fingers close, because haste there is hard to imitate.
MOVE_LIMIT = (0.35, 0.2, 0.2, 0.35, 0.35, 0.35)  # by phase
TURN_LIMIT = 0.8
SETTLE_STEPS = 4  # control steps to wait at the peg before the fingers close
OPEN, SHUT = 1.0, -1.0
FINGER_SLIPS = 3.0  # chance per control step and unit of noise that open fingers start to close


class Carry(NamedTuple):
    """The `phase` () int32, and `timer` () int32, control steps since the phase met its goal."""

    phase: jax.Array
    timer: jax.Array


class _View(NamedTuple):
    """The observation by name; see `peg_insertion_side.OBSERVATION`."""

    tool_pos: jax.Array
    tool_quat: jax.Array
    peg_pos: jax.Array
    peg_quat: jax.Array
    half_length: jax.Array
    hole_pos: jax.Array
    hole_quat: jax.Array


def _view(obs: jax.Array) -> _View:
    return _View(obs[25:28], obs[28:32], obs[32:35], obs[35:39], obs[39], obs[42:45], obs[45:49])


def make_expert() -> Expert:
    """Builds the demonstrator; pure functions for one environment."""
    return Expert(_init, _act, _disturb)


def _init(key: jax.Array) -> Carry:
    del key
    return Carry(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def _act(carry: Carry, obs: jax.Array, key: jax.Array) -> tuple[jax.Array, Carry]:
    del key  # the script itself is deterministic
    view = _view(obs)
    along = rotate(view.peg_quat, jnp.array([1.0, 0.0, 0.0]))
    yaw = jnp.arctan2(along[1], along[0])

    # Hold the peg behind its middle, so that the hand's camera stays clear of the box.
    hold = view.peg_pos - HOLD_BEHIND * along
    grip_quat = quat_multiply(quat_about_z(yaw), jnp.array([0.0, 1.0, 0.0, 0.0]))  # tool z down
    up = jnp.array([0.0, 0.0, 1.0])

    # The goal of the peg is on the hole's axis, with its head before the box or inside it.
    into = rotate(view.hole_quat, jnp.array([1.0, 0.0, 0.0]))
    head_before = view.hole_pos - (view.half_length + STANDOFF) * into
    peg_before = head_before - view.half_length * into
    peg_inside = view.hole_pos - (view.half_length - 0.02) * into
    lifted = view.peg_pos.at[2].set(view.hole_pos[2])

    # To steer the peg, the tool moves with it as a rigid body.
    def steer(peg_goal, quat_goal):
        turn = quat_multiply(quat_goal, quat_conjugate(view.peg_quat))
        pos = peg_goal + rotate(turn, view.tool_pos - view.peg_pos)
        return pos, quat_multiply(turn, view.tool_quat)

    # During the insertion, a lateral error holds the peg back until it is on the axis again.
    head = view.peg_pos + view.half_length * along
    lateral = head - view.hole_pos - jnp.dot(head - view.hole_pos, into) * into
    depth_left = jnp.dot(peg_inside - view.peg_pos, into)
    on_track = jnp.exp(-((jnp.linalg.norm(lateral) / 0.004) ** 2))
    advance = jnp.clip(depth_left, -0.02, 0.03) * on_track
    on_axis = view.hole_pos + jnp.dot(view.peg_pos - view.hole_pos, into) * into
    goals = [
        (hold + HOVER * up, grip_quat),
        (hold, grip_quat),
        (hold, grip_quat),
        steer(lifted, view.peg_quat),
        steer(peg_before, view.hole_quat),
        steer(on_axis + advance * into, view.hole_quat),
    ]
    goal_pos = jnp.stack([pos for pos, _ in goals])[carry.phase]
    goal_quat = jnp.stack([quat for _, quat in goals])[carry.phase]

    limit = jnp.array(MOVE_LIMIT)[carry.phase]
    action, error, angle = _move(view, goal_pos, goal_quat, limit)
    grip = jnp.where(carry.phase >= CLOSE, SHUT, OPEN)
    held = jnp.linalg.norm(view.tool_pos - hold) < 0.04
    return jnp.append(action, grip), _next_phase(carry, error, angle, held)


def _disturb(action: jax.Array, obs: jax.Array, key: jax.Array, noise: float) -> jax.Array:
    """Adds Gaussian noise to the arm; open fingers sometimes start to close too early."""
    del obs
    arm_key, finger_key = jax.random.split(key)
    arm = action[:6] + noise * jax.random.normal(arm_key, (6,))
    slip = (action[6] > 0) & jax.random.bernoulli(finger_key, FINGER_SLIPS * noise)
    return jnp.clip(jnp.append(arm, jnp.where(slip, SHUT, action[6])), -1.0, 1.0)


def _move(view: _View, goal_pos, goal_quat, move_limit):
    """Returns a proportional action (6,) towards a tool pose, and the distance and angle left."""
    back = quat_conjugate(view.tool_quat)
    move = rotate(back, goal_pos - view.tool_pos)
    turn = quat_to_rotvec(quat_multiply(back, goal_quat))
    move_action = 1.5 * move / MAX_TRANSLATION
    turn_action = 1.5 * turn / MAX_ROTATION
    action = jnp.concatenate([_limit(move_action, move_limit), _limit(turn_action, TURN_LIMIT)])
    return action, jnp.linalg.norm(move), jnp.linalg.norm(turn)


def _limit(vector, longest):
    return vector * jnp.minimum(1.0, longest / jnp.maximum(jnp.linalg.norm(vector), 1e-6))


def _next_phase(carry: Carry, error, angle, held) -> Carry:
    """Moves on once the goal is near; returns to the first phase if the peg was lost."""
    near = jnp.array([0.015, 0.004, 1e9, 0.02, 0.004, -1.0])[carry.phase]
    straight = jnp.array([0.1, 0.05, 1e9, 1e9, 0.02, -1.0])[carry.phase]
    there = (error < near) & (angle < straight)
    timer = jnp.where(there, carry.timer + 1, 0)  # control steps at the goal
    stay = jnp.array([1, SETTLE_STEPS, CLOSE_STEPS, 1, 2, 1])[carry.phase]
    lost = (carry.phase > CLOSE) & ~held
    phase = jnp.where(lost, ABOVE, carry.phase + (timer >= stay))
    return Carry(phase, jnp.where(phase == carry.phase, timer, 0))
