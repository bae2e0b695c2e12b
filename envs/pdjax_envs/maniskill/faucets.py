"""A family of fourteen fixed faucets that replaces PartNet's, which are not available.

Separate from the task because the demonstrator knows the family too. Each faucet consists of seven
capsules: a base, a column, a spout with its tip, a post that carries the handle, and two for the
handle. There are three kinds:

- `lever`: the handle is on top of the column and turns about an axis that leans back by 0.08-0.35
  rad; its arm (9-12 cm) swings by 1.0-1.5 rad through the front.
- `cross`: the handle has four spokes (4.2-5.2 cm) on a post beside the column and turns by 1.2-1.7
  rad about an axis that leans to the front by 0-0.25 rad.
- `side_lever`: the handle is beside the column and turns about a horizontal axis; its arm (8.5-11
  cm) stands up and falls to the front or to the back by 0.9-1.3 rad.

The side and the direction of turning are random. These lengths, and all others below, are scaled so
that the faucet's longest side is 0.3 m, as mani-skill2 0.5.3 scales PartNet's. The front of a
faucet, its spout, points to -x; its base is at z = 0. Holds no state.
"""

from typing import NamedTuple

import mujoco
import numpy as np

SEED = 22
KINDS = ("lever", "cross", "side_lever")
COUNT = 14
TRAINING, HELD_OUT = tuple(range(10)), tuple(range(10, COUNT))  # as many faucets as in the paper
LONGEST_SIDE = 0.3  # m
HEIGHT = 0.01  # m, air below a faucet
TARGET = 0.9  # share of the joint's range to turn
GAP = 0.002  # m before scaling, between the arms of a handle and the part that carries them
# Rows of the shape arrays: those of the faucet and of the handle, each in its own frame.
FIXED = ("base", "column", "spout", "tip", "post")
MOVING = ("handle_a", "handle_b")


class Faucet(NamedTuple):
    """One faucet; lengths in m, angles in rad.

    Attributes:
      kind: one of `KINDS`.
      pivot: (3,) origin of the handle's frame in the faucet's frame.
      quat: (4,) orientation of the handle's frame: z is the joint's axis, about which the angle
        grows from 0, and x is the direction of one arm at the start.
      joint_range: angle by which the handle can turn.
      size: (7, 3) radius, half length and 0 of each capsule; rows `FIXED` and `MOVING`.
      place: (7, 3) middles of the capsules.
      turn: (7, 4) orientations of the capsules.
      handhold: (3,) the place to push, in the handle's frame.
      middle: (3,) the handle's centre of mass, in its frame.
    """

    kind: str
    pivot: np.ndarray
    quat: np.ndarray
    joint_range: float
    size: np.ndarray
    place: np.ndarray
    turn: np.ndarray
    handhold: np.ndarray
    middle: np.ndarray


class _Design(NamedTuple):
    """The random values of a faucet; capsules are (from (3), to (3), radius).

    `axis` and `arm` are unit vectors.
    """

    fixed: list
    moving: list
    pivot: np.ndarray
    axis: np.ndarray
    arm: np.ndarray
    joint_range: float
    handhold: np.ndarray


def make_family() -> tuple[Faucet, ...]:
    """Builds the fourteen faucets, always the same ones; the kinds alternate."""
    rng = np.random.default_rng(SEED)
    draw = {"lever": _lever, "cross": _cross, "side_lever": _side_lever}
    kinds = [KINDS[index % len(KINDS)] for index in range(COUNT)]
    return tuple(_finish(kind, draw[kind](rng)) for kind in kinds)


def _vector(*numbers) -> np.ndarray:
    return np.array(numbers, float)


def _about(axis: np.ndarray, angle: float, vector: np.ndarray) -> np.ndarray:
    """Returns a vector rotated about a unit axis."""
    along = np.dot(axis, vector) * axis
    across = vector - along
    return along + np.cos(angle) * across + np.sin(angle) * np.cross(axis, across)


def _spout(rng: np.random.Generator, start: float, rise: float) -> list:
    """Returns the spout, which begins at height `start` m on the column, and its tip."""
    radius, reach = rng.uniform(0.011, 0.014), rng.uniform(0.13, 0.16)
    end = _vector(-reach, 0, start + rise)
    return [(_vector(0, 0, start), end, radius), (end, end - _vector(0, 0, 0.035), radius)]


def _hub_and_arm(half: float, hub: float, length: float, radius: float) -> list:
    """Returns a hub along the axis and an arm that leaves it, in the handle's frame."""
    z = _vector(0, 0, half)
    return [(-z, z, hub), (_vector(0, 0, 0), _vector(length, 0, 0), radius)]


def _lever(rng: np.random.Generator) -> _Design:
    radius, height, tilt = rng.uniform((0.017, 0.15, 0.08), (0.022, 0.19, 0.35))
    length, arm_radius = rng.uniform((0.09, 0.007), (0.12, 0.0095))
    middle, joint_range = rng.uniform((-0.4, 1.0), (0.4, 1.5))
    way = rng.choice((-1, 1))
    up = _vector(np.sin(tilt), 0, np.cos(tilt))
    front = _vector(-np.cos(tilt), 0, np.sin(tilt))
    top = _vector(0, 0, height - radius)
    hub, hub_half = 0.016, 0.006
    neck = top + (radius + 0.008) * up
    pivot = neck + (0.015 + GAP + arm_radius) * up  # the hub turns about the neck
    base = (_vector(0, -0.015, 0.028), _vector(0, 0.015, 0.028), 0.028)
    spout = _spout(rng, rng.uniform(0.5, 0.65) * height, rng.uniform(-0.01, 0.03))
    fixed = [base, (_vector(0, 0, 0.03), top, radius), *spout, (top, neck, 0.015)]
    moving = _hub_and_arm(hub_half, hub, length, arm_radius)
    arm = _about(up, middle - way * joint_range / 2, front)
    return _Design(fixed, moving, pivot, way * up, arm, joint_range, _vector(0.72 * length, 0, 0))


def _cross(rng: np.random.Generator) -> _Design:
    radius, height, tilt = rng.uniform((0.014, 0.11, 0.0), (0.018, 0.14, 0.25))
    length, spoke, joint_range = rng.uniform((0.042, 0.006, 1.2), (0.052, 0.0075, 1.7))
    aside, post_height = rng.uniform((0.1, 0.065), (0.12, 0.09))
    side, way = rng.choice((-1, 1), size=2)
    up = _vector(-np.sin(tilt), 0, np.cos(tilt))
    right = _vector(np.cos(tilt), 0, np.sin(tilt))
    foot, post = _vector(0, side * aside, 0.018), 0.013
    neck = foot + _vector(0, 0, post_height - 0.018)
    pivot = neck + (post + GAP + spoke) * up
    base = (_vector(0, -side * 0.05, 0.018), foot, 0.018)
    spout = _spout(rng, height, rng.uniform(0.03, 0.06))
    column = (_vector(0, 0, 0.02), _vector(0, 0, height), radius)
    fixed = [base, column, *spout, (foot, neck, post)]
    x, y = length * _vector(1, 0, 0), length * _vector(0, 1, 0)
    moving = [(-x, x, spoke), (-y, y, spoke)]
    # The spoke to push is the one that points to the front halfway through the turn.
    arm = _about(up, np.pi - way * joint_range / 2, right)
    return _Design(fixed, moving, pivot, way * up, arm, joint_range, 0.75 * x)


def _side_lever(rng: np.random.Generator) -> _Design:
    radius, height, lean = rng.uniform((0.017, 0.13, -0.3), (0.022, 0.16, 0.0))
    length, arm_radius, joint_range = rng.uniform((0.085, 0.007, 0.9), (0.11, 0.0095, 1.3))
    side, way = rng.choice((-1, 1), size=2)
    hub, hub_half = 0.014, 0.005
    out = _vector(0, side, 0)
    middle = _vector(0, 0, height - radius)
    neck = middle + rng.uniform(0.022, 0.03) * out
    pivot = neck + (0.013 + GAP + arm_radius) * out
    base = (_vector(0, -0.015, 0.028), _vector(0, 0.015, 0.028), 0.028)
    spout = _spout(rng, rng.uniform(0.5, 0.65) * height, rng.uniform(0.0, 0.02))
    fixed = [base, (_vector(0, 0, 0.03), middle, radius), *spout, (middle, neck, 0.013)]
    moving = _hub_and_arm(hub_half, hub, length, arm_radius)
    arm = _vector(way * np.sin(lean), 0, np.cos(lean))
    axis = _vector(0, way, 0)  # +y turns an upright arm to the back, +x
    return _Design(fixed, moving, pivot, axis, arm, joint_range, _vector(0.72 * length, 0, 0))


def _finish(kind: str, design: _Design) -> Faucet:
    """Scales a design to its longest side and returns its capsules' sizes and poses."""
    frame = np.stack([design.arm, np.cross(design.axis, design.arm), design.axis], axis=1)
    ends = [*design.fixed]
    ends += [(design.pivot + frame @ a, design.pivot + frame @ b, r) for a, b, r in design.moving]
    low = np.min([np.minimum(a, b) - radius for a, b, radius in ends], axis=0)
    high = np.max([np.maximum(a, b) + radius for a, b, radius in ends], axis=0)
    scale = LONGEST_SIDE / np.max(high - low)
    capsules = design.fixed + design.moving
    volumes = [np.pi * r**2 * (np.linalg.norm(b - a) + 4 / 3 * r) for a, b, r in design.moving]
    middles = [(a + b) / 2 for a, b, _ in design.moving]
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, frame.ravel())
    return Faucet(
        kind=kind,
        pivot=scale * design.pivot,
        quat=quat,
        joint_range=design.joint_range,
        size=scale * np.array([(r, np.linalg.norm(b - a) / 2, 0) for a, b, r in capsules]),
        place=scale * np.array([(a + b) / 2 for a, b, _ in capsules]),
        turn=np.array([_along(b - a) for a, b, _ in capsules]),
        handhold=scale * design.handhold,
        middle=scale * np.average(middles, axis=0, weights=volumes),
    )


def _along(vector: np.ndarray) -> np.ndarray:
    """Returns a quaternion that turns z to the direction of a vector."""
    quat = np.zeros(4)
    mujoco.mju_quatZ2Vec(quat, vector / np.linalg.norm(vector))
    return quat
