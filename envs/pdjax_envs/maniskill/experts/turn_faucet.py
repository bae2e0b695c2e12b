"""A scripted demonstrator for TurnFaucet: pushes the handle round with closed fingers.

It sees the same observation as a policy, and knows the family of faucets: which one stands there it
tells from the handle's height, its axis and the angle to turn, and where to push from the family.
How the faucet is turned shows only in an axis that leans. Three phases: over the place behind the
handle, down, push. A tool that slips off the handle or gets stuck goes back to the start, up first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdjax_envs.maniskill import faucets
from pdjax_envs.maniskill.panda import MAX_ROTATION, MAX_TRANSLATION
from pdjax_envs.rotations import (
    from_rotvec,
    quat_about_z,
    quat_conjugate,
    quat_multiply,
    quat_to_rotvec,
    rotate,
)
from pdjax_envs.task import Expert

OVER, DOWN, PUSH = range(3)
HOVER = 0.38  # m, height of the tool above all faucets
STANDOFF = 0.02  # m between fingers and handle before the push
LEAD = 0.35  # rad, how far ahead of the handle the pushing tool aims
OVERSHOOT = 0.1  # rad beyond the target
FINGERS = (0.00875, 0.0152, 0.0093)  # m, half size of the closed fingers about the tool's centre
NEAR = (0.02, 0.008, -1.0)  # m, distance at which a phase's goal is met
STAY = (1, 2, 1)  # control steps at the goal before the next phase
MOVE_LIMIT = (0.35, 0.3, 0.3)  # largest actions by phase; haste tilts the tool
TURN_LIMIT = 1.0
STRAIGHT = 0.3  # rad that the tool may be away from its orientation before it goes down
ASIDE = 1.2  # rad by which the hand, which is wide, is turned away from a column beside the handle
PATIENCE = 60  # control steps in a phase; what takes longer is stuck
SLIPPED = 0.05  # m from where the pushing tool should be
SHUT = -1.0
LEANS = 0.02  # horizontal part of an axis that shows how the faucet is turned


class Carry(NamedTuple):
    """`phase` () int32; control steps, () int32, in it and (`timer`) with its goal met."""

    phase: jax.Array
    steps: jax.Array
    timer: jax.Array


class _Known(NamedTuple):
    """The family in the faucets' frames, m and rad; first axis: faucets.

    Attributes:
      seen: (3,) what tells faucets apart: the handle's height, its axis' z, the angle to turn.
      axis: (3,) of the joint.
      hold: (3,) from the pivot to where to push, at the start.
      offset: (3,) from the handle's centre of mass to its pivot, at the start.
      radius: () of the arm where it is pushed.
      aside: () bool, whether the handle stands beside the column: the hand turns by `ASIDE`.
    """

    seen: jax.Array
    axis: jax.Array
    hold: jax.Array
    offset: jax.Array
    radius: jax.Array
    aside: jax.Array


def make_expert() -> Expert:
    """Builds the demonstrator; pure functions for one environment."""
    known = _learn()

    def act(carry: Carry, obs: jax.Array, key: jax.Array) -> tuple[jax.Array, Carry]:
        del key  # the script itself is deterministic
        return _act(known, carry, obs)

    return Expert(_init, act, _disturb)


def _learn() -> _Known:
    rows = []
    for faucet in faucets.make_family():
        quat = jnp.asarray(faucet.quat)
        axis, hold, middle = (
            rotate(quat, jnp.asarray(vector))
            for vector in (np.array([0.0, 0.0, 1.0]), faucet.handhold, faucet.middle)
        )
        height = faucets.HEIGHT + faucet.pivot[2] + middle[2]
        seen = jnp.stack([height, axis[2], faucets.TARGET * jnp.asarray(faucet.joint_range)])
        radius = jnp.asarray(faucet.size[-1, 0])
        rows.append(_Known(seen, axis, hold, -middle, radius, jnp.asarray(faucet.kind == "cross")))
    return jax.tree.map(lambda *parts: jnp.stack(parts), *rows)


def _init(key: jax.Array) -> Carry:
    del key
    return Carry(*jnp.zeros((3,), jnp.int32))


def _act(known: _Known, carry: Carry, obs: jax.Array) -> tuple[jax.Array, Carry]:
    tool_pos, tool_quat, turn, axis = obs[25:28], obs[28:32], obs[32], obs[33:36]
    link_pos, left = obs[36:39], obs[39]
    seen = jnp.stack([link_pos[2], axis[2], turn])
    which = jnp.argmin(jnp.sum((known.seen - seen) ** 2, axis=1))
    faucet = jax.tree.map(lambda values: values[which], known)
    yaw = jnp.arctan2(axis[1], axis[0]) - jnp.arctan2(faucet.axis[1], faucet.axis[0])
    facing = quat_about_z(jnp.where(jnp.linalg.norm(axis[:2]) > LEANS, yaw, 0.0))
    pivot = link_pos + rotate(facing, faucet.offset)
    hold = rotate(facing, faucet.hold)
    # Tool z down; the hand is wide along y, or nearly along x.
    down = jnp.array([0.0, 1.0, 0.0, 0.0])
    goal_quat = quat_multiply(quat_about_z(jnp.where(faucet.aside, ASIDE, 0.0)), down)

    def behind(angle, gap):
        """Where the tool touches the arm from behind at an angle of the handle, less a gap."""
        x, y, z = from_rotvec(angle * axis)
        place = hold[0] * x + hold[1] * y + hold[2] * z
        push = jnp.cross(axis, place)
        push = push / jnp.linalg.norm(push)
        across = rotate(quat_conjugate(goal_quat), push)
        reach = jnp.sum(jnp.abs(across) * jnp.array(FINGERS)) + faucet.radius
        return pivot + place - (reach + gap) * push

    angle = turn - left
    waiting = behind(angle, STANDOFF)
    far = jnp.linalg.norm((tool_pos - waiting)[:2]) > 2 * NEAR[OVER]
    rise = far & (tool_pos[2] < HOVER - 2 * NEAR[OVER])  # straight up, whatever stands around
    over = jnp.where(rise, tool_pos, waiting).at[2].set(HOVER)
    pushing = behind(jnp.minimum(angle + LEAD, turn + OVERSHOOT), 0.0)
    goal_pos = jnp.stack([over, waiting, pushing])[carry.phase]

    back = quat_conjugate(tool_quat)
    move = rotate(back, goal_pos - tool_pos)
    rotation = quat_to_rotvec(quat_multiply(back, goal_quat))
    limit = jnp.array(MOVE_LIMIT)[carry.phase]
    action = jnp.concatenate(
        [
            _limit(1.5 * move / MAX_TRANSLATION, limit),
            _limit(1.5 * rotation / MAX_ROTATION, TURN_LIMIT),
            jnp.array([SHUT]),
        ]
    )
    slip = jnp.linalg.norm(tool_pos - behind(angle, 0.0))
    return action, _next_phase(carry, jnp.linalg.norm(move), jnp.linalg.norm(rotation), slip)


def _limit(vector: jax.Array, longest: jax.Array | float) -> jax.Array:
    return vector * jnp.minimum(1.0, longest / jnp.maximum(jnp.linalg.norm(vector), 1e-6))


def _next_phase(carry: Carry, distance: jax.Array, angle: jax.Array, slip: jax.Array) -> Carry:
    """Moves on when the goal has been met for a while; back to the start when the tool slipped."""
    there = (distance < jnp.array(NEAR)[carry.phase]) & (angle < STRAIGHT)
    timer = jnp.where(there, carry.timer + 1, 0)
    lost = (carry.phase == PUSH) & (slip > SLIPPED)
    lost |= (carry.phase > OVER) & (carry.steps > PATIENCE)
    phase = jnp.where(lost, OVER, carry.phase + (timer >= jnp.array(STAY)[carry.phase]))
    same = phase == carry.phase
    return Carry(phase, jnp.where(same, carry.steps + 1, 0), jnp.where(same, timer, 0))


def _disturb(action: jax.Array, obs: jax.Array, key: jax.Array, noise: float) -> jax.Array:
    """Gaussian noise on the arm."""
    del obs
    arm = action[:6] + noise * jax.random.normal(key, (6,))
    return jnp.clip(jnp.append(arm, action[6]), -1.0, 1.0)
