"""A scripted demonstrator for PushChair: drive around the chair, lower the arms, push.

It sees the same observation as a policy. It has two phases. First it drives around the chair at a
distance, until the chair is between robot and target. Meanwhile the arms fold and, away from the
chair, sink to the height of its seat. Then it pushes with both hands, more slowly near the target.
If the chair slips aside, it starts again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdjax_envs.maniskill import mobile_panda
from pdjax_envs.task import Expert

CIRCLE, PUSH = range(2)
ROUND = 1.15  # m, distance from the chair on the way around it
CLEAR = 1.06  # m, distance from the chair at which lowered hands do not reach it
HAND_HEIGHT = 0.42 - 0.035  # m, hands above the lift minus cushion above the chair's frame
# This pose puts both hands 0.7 m ahead and 0.3 m apart.
FOLDED_ARM = np.array([0, 0.33, 0, -2.4, 0, 3.6, 0.78])  # rad
GRIPPER = 0.2  # the action that keeps the fingers as they are at the start
CONTACT = 0.98  # m, distance from the chair at which the hands may touch it
PUSH_SPEED = 0.4  # m/s
STEER = 1.5  # rad/s about the chair per rad of error
STOP = 0.08  # m, distance from the target at which it stops
LINED_UP, SLIPPED = 0.1, 0.9  # rad, angle between target and chair as seen by the robot
LOWERED, FOLDED = 0.03, 0.1  # m and rad, errors at which the arms count as lowered and folded
BASE_NOISE = 3.0  # noise of the base relative to that of the arms


class Carry(NamedTuple):
    """The `phase` () int32."""

    phase: jax.Array


class _View(NamedTuple):
    """The observation by name; see `push_chair.OBSERVATION`."""

    lift: jax.Array
    right_arm: jax.Array
    left_arm: jax.Array
    base: jax.Array
    turn: jax.Array
    chair: jax.Array


def _view(obs: jax.Array) -> _View:
    return _View(obs[0], obs[1:8], obs[10:17], obs[38:40], obs[40], obs[44:47])


def make_expert() -> Expert:
    """Builds the demonstrator; pure functions for one environment."""
    return Expert(_init, _act, _disturb)


def _init(key: jax.Array) -> Carry:
    del key
    return Carry(jnp.zeros((), jnp.int32))


def _act(carry: Carry, obs: jax.Array, key: jax.Array) -> tuple[jax.Array, Carry]:
    del key  # the script itself is deterministic
    view = _view(obs)
    ahead, distance = _unit(view.chair[:2] - view.base)
    to_target, left = _unit(-view.chair[:2])
    aside = jnp.stack([-ahead[1], ahead[0]])
    # The robot's angle around the chair from the place where it should push.
    angle = jnp.arctan2(to_target @ -aside, to_target @ ahead)
    pushing = carry.phase == PUSH

    speed = jnp.where(
        pushing,
        jnp.clip(1.2 * (left - STOP), 0.0, PUSH_SPEED),
        jnp.clip(2.0 * (distance - ROUND), -0.4, 0.4),
    )
    # Hands and seat stick together, so the chair follows the base, and both turn about it. Near the
    # target its direction loses its meaning.
    stuck = pushing & (distance < CONTACT)
    around = jnp.clip(-STEER * angle * distance, -0.5, 0.5)  # m/s, counterclockwise
    around = around * jnp.where(stuck, jnp.clip(left / 0.3, 0.0, 1.0), 1.0)
    velocity = speed * jnp.where(stuck, to_target, ahead) - around * aside
    facing = jnp.stack([jnp.cos(view.turn), jnp.sin(view.turn)])
    error = jnp.arctan2(facing[0] * ahead[1] - facing[1] * ahead[0], facing @ ahead)
    turn_speed = jnp.where(stuck, 0.0, 3.0 * error) + around / distance
    low = view.chair[2] - HAND_HEIGHT
    lower = pushing | (distance > CLEAR)
    lift_speed = 2.0 * (jnp.where(lower, low, mobile_panda.START_LIFT) - view.lift)
    base = jnp.stack(
        [
            velocity @ facing,
            facing[0] * velocity[1] - facing[1] * velocity[0],
            jnp.clip(turn_speed, -1.5, 1.5),
            lift_speed,
        ]
    )
    arms = [3.0 * (FOLDED_ARM - arm) for arm in (view.left_arm, view.right_arm)]
    grip = jnp.array([GRIPPER])
    moves = [jnp.clip(arm / mobile_panda.ARM_SPEED, -0.4, 0.4) for arm in arms]
    action = jnp.concatenate([base / mobile_panda.BASE_SPEED, moves[0], grip, moves[1], grip])

    off = jnp.abs(angle)
    folded = jnp.max(jnp.abs(jnp.concatenate(arms))) / 3.0 < FOLDED
    ready = (off < LINED_UP) & folded & (jnp.abs(view.lift - low) < LOWERED)
    slipped = (off > SLIPPED) & (left > 0.2)
    phase = jnp.where(pushing, jnp.where(slipped, CIRCLE, PUSH), jnp.where(ready, PUSH, CIRCLE))
    return jnp.clip(action, -1.0, 1.0), Carry(phase.astype(jnp.int32))


def _unit(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the direction and the length of a vector."""
    length = jnp.linalg.norm(vector)
    return vector / jnp.maximum(length, 1e-6), length


def _disturb(action: jax.Array, obs: jax.Array, key: jax.Array, noise: float) -> jax.Array:
    """Adds Gaussian noise to all velocities, with more noise on the base."""
    del obs
    scale = jnp.where(jnp.arange(action.shape[0]) < 4, BASE_NOISE, 1.0)
    scale = scale.at[jnp.array([11, 19])].set(0.0)  # the grippers
    return jnp.clip(action + noise * scale * jax.random.normal(key, action.shape), -1.0, 1.0)
