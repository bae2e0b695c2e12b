"""A scripted demonstrator for TurnFaucet: pushes the handle round with closed fingers.

It sees the same observation as a policy and knows the family of faucets. It recognises the faucet
by the handle's height, its axis and the angle to turn, and looks up where to push. The observation
shows the faucet's orientation only if the axis leans. It has three phases: move above the place
behind the handle, descend, push. If the tool slips off the handle or gets stuck, it rises and
starts again.
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
HOVER = 0.38  # m, height at which the tool is above all faucets
STANDOFF = 0.02  # m, gap between fingers and handle before the push
LEAD = 0.35  # rad, how far ahead of the handle the pushing tool aims
OVERSHOOT = 0.1  # rad, how far beyond the target it pushes
FINGERS = (0.00875, 0.0152, 0.0093)  # m, half size of the closed fingers about the tool's centre
NEAR = (0.02, 0.008, -1.0)  # m, distance at which a phase meets its goal
STAY = (1, 2, 1)  # control steps at the goal before the next phase
MOVE_LIMIT = (0.35, 0.3, 0.3)  # largest actions by phase; haste tilts the tool
TURN_LIMIT = 1.0
STRAIGHT = 0.3  # rad, largest error of the tool's orientation for the descent to begin
ASIDE = 1.2  # rad by which the wide hand is turned away from a column beside the handle
PATIENCE = 60  # control steps after which a phase counts as stuck
SLIPPED = 0.05  # m, error of the pushing tool at which it counts as slipped
SHUT = -1.0
LEANS = 0.02  # horizontal part of an axis that is enough to show the faucet's orientation


class Carry(NamedTuple):
    """The `phase` () int32; control steps () int32 in it, and (`timer`) since it met its goal."""

    phase: jax.Array
    steps: jax.Array
    timer: jax.Array


class _Known(NamedTuple):
    """The family in the faucets' frames, m and rad; the first axis is the faucet.

    Attributes:
      seen: (3,) what distinguishes faucets: the handle's height, z of its axis, the angle to turn.
      axis: (3,) axis of the joint.
      hold: (3,) vector from the pivot to the place to push, at the start.
      offset: (3,) vector from the handle's centre of mass to its pivot, at the start.
      radius: () radius of the arm at the place to push.
      aside: () bool, whether the handle is beside the column, so that the hand turns by `ASIDE`.
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
    # The tool's z points down; the hand is wide along y, or nearly along x.
    down = jnp.array([0.0, 1.0, 0.0, 0.0])
    goal_quat = quat_multiply(quat_about_z(jnp.where(faucet.aside, ASIDE, 0.0)), down)

    def behind(angle, gap):
        """Returns the tool's place behind the arm, with a gap, at an angle of the handle."""
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
    rise = far & (tool_pos[2] < HOVER - 2 * NEAR[OVER])  # straight up, away from everything
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
    """Moves on once the goal has been met for a while; restarts if the tool slipped."""
    there = (distance < jnp.array(NEAR)[carry.phase]) & (angle < STRAIGHT)
    timer = jnp.where(there, carry.timer + 1, 0)
    lost = (carry.phase == PUSH) & (slip > SLIPPED)
    lost |= (carry.phase > OVER) & (carry.steps > PATIENCE)
    phase = jnp.where(lost, OVER, carry.phase + (timer >= jnp.array(STAY)[carry.phase]))
    same = phase == carry.phase
    return Carry(phase, jnp.where(same, carry.steps + 1, 0), jnp.where(same, timer, 0))


def _disturb(action: jax.Array, obs: jax.Array, key: jax.Array, noise: float) -> jax.Array:
    """Adds Gaussian noise to the arm."""
    del obs
    arm = action[:6] + noise * jax.random.normal(key, (6,))
    return jnp.clip(jnp.append(arm, action[6]), -1.0, 1.0)
