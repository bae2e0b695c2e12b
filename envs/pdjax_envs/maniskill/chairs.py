"""A family of office chairs: a seat that turns on a base of five legs with casters.

It replaces ManiSkill2's chairs, which are PartNet-Mobility models whose licence keeps them out of
packages. Separate from the task so that the family, its split and its physics are in one place.

All chairs have the same bodies and the same primitive shapes, so one compiled model serves all of
them: `overrides` returns the rows of the model that turn it into a particular chair. The rows,
including MuJoCo's derived constants, come from chairs that MuJoCo compiled one by one, so this
module does not repeat any of MuJoCo's computations.

Casters are spheres that slide with little friction. Viscous resistance to rolling and to turning on
the spot acts on the chair as a whole. Rolling wheels would take ten joints.

The only state is a cache of the compiled rows.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.maniskill import panda

LEGS = 5


class Chair(NamedTuple):
    """One chair, drawn uniformly from `RANGES` in this order; lengths in m, masses in kg.

    Attributes:
      height: height of the seat's underside, where the seat turns on the base.
      seat_half_depth: half the seat's extent in the direction that the chair faces.
      seat_half_width: half the seat's extent across that direction.
      seat_half_thickness: half the thickness of the cushion.
      back_height: distance from the lower to the upper edge of the back.
      back_half_width: half the width of the back.
      back_tilt: backward tilt of the back, rad.
      arm_height: height of the arm rests above the cushion; 0 = no arm rests.
      base_radius: distance of the casters from the middle.
      caster_radius: radius of the casters.
      caster_friction: sliding friction of the casters on the floor.
      caster_damping: viscous resistance, N s/m.
      base_mass: mass of legs, casters and column.
      seat_mass: mass of seat, back and arm rests.
    """

    height: float
    seat_half_depth: float
    seat_half_width: float
    seat_half_thickness: float
    back_height: float
    back_half_width: float
    back_tilt: float
    arm_height: float
    base_radius: float
    caster_radius: float
    caster_friction: float
    caster_damping: float
    base_mass: float
    seat_mass: float


RANGES = {
    "height": (0.38, 0.48),
    "seat_half_depth": (0.19, 0.24),
    "seat_half_width": (0.20, 0.25),
    "seat_half_thickness": (0.03, 0.045),
    "back_height": (0.3, 0.5),
    "back_half_width": (0.16, 0.22),
    "back_tilt": (0.05, 0.25),
    "arm_height": (0.16, 0.22),
    "base_radius": (0.26, 0.33),
    "caster_radius": (0.025, 0.035),
    "caster_friction": (0.02, 0.06),
    "caster_damping": (2.0, 8.0),
    "base_mass": (5.0, 8.0),
    "seat_mass": (5.0, 9.0),
}
ARM_RESTS = 0.6  # share of chairs with arm rests

# The split is a split of the seeds; each seed is one chair.
TRAINING, HELD_OUT = (0, 1, 2, 3, 4), (5, 6, 7)

_BASE_GEOMS = (
    "chair_column",
    *(f"chair_leg{index}" for index in range(LEGS)),
    *(f"chair_caster{index}" for index in range(LEGS)),
)
_SEAT_GEOMS = (
    "chair_seat",
    "chair_back",
    "chair_spine",
    "chair_pad_left",
    "chair_pad_right",
    "chair_post_left",
    "chair_post_right",
)
_GEOMS, _BODIES = (*_BASE_GEOMS, *_SEAT_GEOMS), ("chair", "chair_seat")
_JOINTS = ("chair_joint", "chair_seat_joint")
OVERRIDE_ROWS = {
    **{f"geom_{field}": _GEOMS for field in ("size", "rbound", "pos", "quat", "friction")},
    **{f"body_{field}": _BODIES for field in ("mass", "subtreemass", "inertia", "ipos", "iquat")},
    "body_invweight0": _BODIES,
    **{f"dof_{field}": _JOINTS for field in ("M0", "invweight0", "damping")},
}
TURNING_ROW, _HINGE_ROW = 5, 6  # of `dof_damping`: the base about z, the seat on the base

# Shares of the mass of a body.
_LEG, _CASTER, _COLUMN = 0.1, 0.05, 0.25
_SEAT, _BACK, _SPINE, _PAD, _POST = 0.45, 0.35, 0.1, 0.03, 0.02
# PhysX uses the mean friction of a pair: the gripper has 2 and the chair 0.1
# (mani_skill2 envs/ms1/push_chair.py). With priority this is the friction of every pair.
_SURFACE = {"friction": (1.05, 0, 0), "priority": 1, "contype": 0}
_TOUCHED = {**_SURFACE, "conaffinity": panda.ROBOT_BIT}
_FALLING = {**_SURFACE, "conaffinity": panda.ROBOT_BIT | panda.FLOOR_BIT}
_METAL, _PLASTIC = (0.55, 0.57, 0.6, 1), (0.13, 0.13, 0.15, 1)
_CLOTH = (0.16, 0.32, 0.45, 1)


def make_chair(seed: int) -> Chair:
    """Draws the chair of a seed."""
    rng = np.random.RandomState(seed)  # NumPy never changes this stream, unlike `default_rng`'s
    chair = Chair(*(rng.uniform(*span) for span in RANGES.values()))
    return chair if rng.uniform() < ARM_RESTS else chair._replace(arm_height=0.0)


def add_chair(spec: mujoco.MjSpec, chair: Chair) -> None:
    """Adds a chair that faces x, with the underside of its seat at `(0, 0, height)`.

    Args:
      spec: the model; gets the bodies `chair` (the base, free) and `chair_seat`.
      chair: the chair to add.
    """
    base = spec.worldbody.add_body(name="chair", pos=(0, 0, chair.height))
    base.add_joint(name="chair_joint", type=mujoco.mjtJoint.mjJNT_FREE)
    _add_base(base, chair)
    seat = base.add_body(name="chair_seat")
    seat.add_joint(name="chair_seat_joint", type=mujoco.mjtJoint.mjJNT_HINGE, axis=(0, 0, 1))
    _add_seat(seat, chair)


def _add_base(body: mujoco.MjsBody, chair: Chair) -> None:
    hub = -chair.height + 2 * chair.caster_radius + 0.04  # m, from the seat's underside
    _add_capsule(
        body,
        "chair_column",
        ((0, 0, -0.03), (0, 0, hub)),
        0.025,
        mass=_COLUMN * chair.base_mass,
        rgba=_METAL,
        **_TOUCHED,
    )
    for index in range(LEGS):
        angle = 2 * np.pi * index / LEGS
        x, y = chair.base_radius * np.cos(angle), chair.base_radius * np.sin(angle)
        _add_capsule(
            body,
            f"chair_leg{index}",
            ((0, 0, hub), (x, y, hub - 0.03)),
            0.018,
            mass=_LEG * chair.base_mass,
            rgba=_METAL,
            **_TOUCHED,
        )
        body.add_geom(
            name=f"chair_caster{index}",
            type=mujoco.mjtGeom.mjGEOM_SPHERE,
            pos=(x, y, chair.caster_radius - chair.height),
            size=(chair.caster_radius, 0, 0),
            mass=_CASTER * chair.base_mass,
            friction=(chair.caster_friction, 0, 0),
            priority=1,  # the casters' friction applies, not the floor's
            rgba=_PLASTIC,
            contype=0,
            conaffinity=panda.FLOOR_BIT,
        )


def _add_seat(body: mujoco.MjsBody, chair: Chair) -> None:
    depth, width, thick = chair[1:4]
    mass, box = chair.seat_mass, mujoco.mjtGeom.mjGEOM_BOX
    body.add_geom(
        name="chair_seat",
        type=box,
        pos=(0, 0, thick),
        size=(depth, width, thick),
        mass=_SEAT * mass,
        rgba=_CLOTH,
        **_FALLING,
    )
    # The back tilts about the rear edge of the cushion, 8 cm above it.
    lean = np.array([-np.sin(chair.back_tilt), 0, np.cos(chair.back_tilt)])
    foot = np.array([0.02 - depth, 0, 2 * thick])
    body.add_geom(
        name="chair_back",
        type=box,
        pos=foot + (0.08 + chair.back_height / 2) * lean,
        quat=(np.cos(chair.back_tilt / 2), 0, -np.sin(chair.back_tilt / 2), 0),
        size=(0.025, chair.back_half_width, chair.back_height / 2),
        mass=_BACK * mass,
        rgba=_CLOTH,
        **_FALLING,
    )
    behind = np.array([-0.03, 0, 0])
    ends = (foot + behind - [0, 0, thick], foot + behind + (0.08 + chair.back_height / 2) * lean)
    _add_capsule(body, "chair_spine", ends, 0.018, mass=_SPINE * mass, rgba=_METAL, **_TOUCHED)
    for side, sign in (("left", 1), ("right", -1)):
        top, across = 2 * thick + chair.arm_height, sign * (width + 0.025)
        pad = ((-0.5 * depth, across, top), (0.5 * depth, across, top))
        post = ((0, across, thick), (0, across, top))
        radii = (0.022, 0.014)
        if not chair.arm_height:  # hide them in the cushion: all chairs have the same shapes
            pad = post = ((-0.05, sign * 0.05, thick), (0.05, sign * 0.05, thick))
            radii = (0.01, 0.01)
        _add_capsule(
            body, f"chair_pad_{side}", pad, radii[0], mass=_PAD * mass, rgba=_PLASTIC, **_FALLING
        )
        _add_capsule(
            body, f"chair_post_{side}", post, radii[1], mass=_POST * mass, rgba=_METAL, **_TOUCHED
        )


def _add_capsule(body: mujoco.MjsBody, name: str, ends, radius: float, **kinds) -> None:
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_CAPSULE,
        fromto=np.concatenate(ends),
        size=(radius, 0, 0),
        **kinds,
    )


def prepare(model: mujoco.MjModel) -> None:
    """Prepares a compiled model for all chairs, in place.

    To save work, MuJoCo records which frames of a body coincide; in another chair they may not.
    """
    for name in _BODIES:
        model.body_sameframe[model.body(name).id] = 0
    for name in _GEOMS:
        model.geom_sameframe[model.geom(name).id] = 0


@cache
def heights() -> np.ndarray:
    """Returns `Chair.height` of all chairs by seed: (8,) float32, m."""
    return np.array([make_chair(seed).height for seed in TRAINING + HELD_OUT], np.float32)


def overrides(chair: jax.Array, seat_damping: jax.Array) -> dict[str, jax.Array]:
    """Returns the model values of one chair, with rows in the order of `OVERRIDE_ROWS`.

    Args:
      chair: () int32, the seed of the chair.
      seat_damping: () N m s/rad, damping of the seat's rotation on the base.
    """
    rows = {field: jnp.asarray(table)[chair] for field, table in _tables().items()}
    rows["dof_damping"] = rows["dof_damping"].at[_HINGE_ROW].set(seat_damping)
    return rows


@cache
def _tables() -> dict[str, np.ndarray]:
    """Returns field -> (8, rows, ...) float32, the rows of all chairs by seed."""
    found = [compiled_rows(make_chair(seed)) for seed in TRAINING + HELD_OUT]
    return {field: np.stack([rows[field] for rows in found]) for field in OVERRIDE_ROWS}


def compiled_rows(chair: Chair) -> dict[str, np.ndarray]:
    """Returns field -> (rows, ...) float32 as MuJoCo compiles the chair on its own."""
    spec = mujoco.MjSpec()
    add_chair(spec, chair)
    model = spec.compile()
    # Damping of rolling, and of turning on the spot with the casters at their radius.
    turning = chair.caster_damping * chair.base_radius**2
    model.dof_damping[:6] = [chair.caster_damping, chair.caster_damping, 0, 0, 0, turning]
    rows = {}
    for field, names in OVERRIDE_ROWS.items():
        values = getattr(model, field)
        # The model has no other bodies, joints and degrees of freedom than the chair's.
        index = (
            [model.geom(name).id for name in names]
            if field.startswith("geom")
            else slice(1 if field.startswith("body") else 0, None)
        )
        rows[field] = np.array(values[index], np.float32)
    return rows
