"""A scripted demonstrator for PushChair: drive around the chair, lower the arms, push.

It sees the same observation as a policy. Two phases: go round the chair at a distance, to where it
stands between robot and target, while the arms fold and, out of its reach, sink to the height of
its seat; then push with both hands, the slower the nearer. A chair that slips aside sends it back.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdjax_envs.maniskill import mobile_panda
from pdjax_envs.task import Expert

CIRCLE, PUSH = range(2)
ROUND = 1.15  # m, distance from the chair on the way around it
CLEAR = 1.06  # m, distance at which lowered hands do not reach it
HAND_HEIGHT = 0.42 - 0.035  # m, hands above the lift, less the cushion's middle above its frame
# Both hands 0.7 m ahead and 0.3 m apart.
FOLDED_ARM = np.array([0, 0.33, 0, -2.4, 0, 3.6, 0.78])  # rad
GRIPPER = 0.2  # the action that keeps the fingers as they start
CONTACT = 0.98  # m, distance from the chair at which the hands may touch it
PUSH_SPEED = 0.4  # m/s
STEER = 1.5  # rad/s about the chair, and rad of what is missing
STOP = 0.08  # m from the target
LINED_UP, SLIPPED = 0.1, 0.9  # rad, target and chair as the robot sees them
LOWERED, FOLDED = 0.03, 0.1  # m and rad, what is left to go
BASE_NOISE = 3.0  # of the base, relative to the arms'


class Carry(NamedTuple):
    """`phase` () int32."""

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
    # How far the robot is around the chair from where it should push.
    angle = jnp.arctan2(to_target @ -aside, to_target @ ahead)
    pushing = carry.phase == PUSH

    speed = jnp.where(
        pushing,
        jnp.clip(1.2 * (left - STOP), 0.0, PUSH_SPEED),
        jnp.clip(2.0 * (distance - ROUND), -0.4, 0.4),
    )
    # Hands and seat stick together, so the chair goes where the base goes, and both turn about it;
    # until at the target its direction means nothing any more.
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
    """Direction and length of a vector."""
    length = jnp.linalg.norm(vector)
    return vector / jnp.maximum(length, 1e-6), length


def _disturb(action: jax.Array, obs: jax.Array, key: jax.Array, noise: float) -> jax.Array:
    """Gaussian noise on all velocities, more on the base's."""
    del obs
    scale = jnp.where(jnp.arange(action.shape[0]) < 4, BASE_NOISE, 1.0)
    scale = scale.at[jnp.array([11, 19])].set(0.0)  # the grippers
    return jnp.clip(action + noise * scale * jax.random.normal(key, action.shape), -1.0, 1.0)
