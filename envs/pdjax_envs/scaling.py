"""How the model values of bodies change with their mass and size, as model overrides.

Separate from the perturbations that use it (`shifts`): this is physics, those are choices. MuJoCo
derives some of these values when it compiles a model; this module derives them in the same way.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.physics.engine import Array, Overrides, Scene, row_ids
from pdjax_envs.task import Start

# The powers of a body's mass and of its lengths with which a model value grows.
_POWERS = {
    "geom_size": (0, 1),
    "geom_rbound": (0, 1),
    "geom_pos": (0, 1),
    "body_pos": (0, 1),
    "body_ipos": (0, 1),
    "body_mass": (1, 0),
    "body_subtreemass": (1, 0),
    "body_inertia": (1, 2),
}
_DERIVED = ("dof_M0", "dof_invweight0", "body_invweight0")
HEAVY = (*(field for field, (mass, _) in _POWERS.items() if mass), *_DERIVED)
ALL = (*_POWERS, *_DERIVED)

Scale = Callable[[Start, Array, Array | float], Start]


def make_scaling(
    scene: Scene, bodies: Sequence[str], fields: Sequence[str]
) -> tuple[dict[str, tuple[str, ...]], Scale]:
    """Builds a function that makes bodies heavier or larger.

    Args:
      scene: the scene with the bodies.
      bodies: names of the bodies; to change their size, list whole objects.
      fields: `HEAVY` or `ALL`.

    Returns:
      The scene's override rows with the rows needed here, and a function (start, factor of the
      mass, factor of the lengths) -> start.

    Raises:
      ValueError: see `extend`.
    """
    model = scene.model
    rows, nominal, own = extend(scene, {field: _rows(scene, field, bodies) for field in fields})
    dofs = row_ids(model, "dof_M0", rows["dof_M0"])
    armature, turns = jnp.asarray(model.dof_armature[dofs]), _turns(model)[dofs]
    # For each row of `body_invweight0`: the degrees of freedom of the body's tree, by kind.
    trees = model.body_rootid[row_ids(model, "body_invweight0", rows["body_invweight0"])]
    same = trees[:, None] == model.body_rootid[model.dof_bodyid[dofs]]
    turning, sliding = (same & kind for kind in (turns, ~turns))
    slides = sliding.any(axis=1)

    def mean(values, which):
        return which @ values / np.maximum(which.sum(axis=1), 1)

    def scale(start: Start, mass: Array, length: Array | float) -> Start:
        before = {**nominal, **start.episode.overrides}
        after = {
            field: before[field] * mass**m * length**n
            for field, (m, n) in _POWERS.items()
            if field in own
        }
        # A joint's rotor does not grow with its load.
        inertia = armature + mass * jnp.where(turns, length**2, 1.0) * (before["dof_M0"] - armature)
        lighter = before["dof_M0"] / inertia
        after["dof_M0"] = inertia
        after["dof_invweight0"] = before["dof_invweight0"] * lighter
        # A body's inverse inertias set how soft its contacts are. The translation of a body that
        # only turns follows from its distance from the axis.
        turn = mean(lighter, turning)
        slide = jnp.where(slides, mean(lighter, sliding), turn * length**2)
        after["body_invweight0"] = before["body_invweight0"] * jnp.stack([slide, turn], axis=1)
        chosen = {
            field: jnp.where(own[field].reshape(-1, *[1] * (value.ndim - 1)), value, before[field])
            for field, value in after.items()
        }
        return start._replace(episode=start.episode._replace(overrides={**before, **chosen}))

    return rows, scale


def _turns(model: Any) -> np.ndarray:
    """Returns (nv,) bool, which degrees of freedom are rotations."""
    kind = model.jnt_type[model.dof_jntid]
    place = np.arange(model.nv) - model.jnt_dofadr[model.dof_jntid]
    is_free, is_slide = (
        kind == joint.value for joint in (mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_SLIDE)
    )
    return np.where(is_free, place >= 3, ~is_slide)


def _rows(scene: Scene, field: str, bodies: Sequence[str]) -> list[str]:
    """Returns the names of the bodies' rows in a field that are overridden or not zero."""
    model, taken = scene.model, scene.override_rows.get(field, ())
    ids = {model.body(name).id for name in bodies}
    kind = field.split("_")[0]
    if kind == "body":
        # The episode sets where the first body of an object is.
        names = [name for name in bodies if field != "body_pos" or model.body(name).parentid[0]]
        return [name for name in names if name in taken or model.body(name).mass[0]]
    if kind == "dof":
        return [model.joint(j).name for j in range(model.njnt) if model.jnt_bodyid[j] in ids]
    names = [model.geom(g).name for g in range(model.ngeom) if model.geom_bodyid[g] in ids]
    values = getattr(model, field)
    return [name for name in names if name in taken or np.any(values[model.geom(name).id])]


def extend(
    scene: Scene, wanted: Mapping[str, Sequence[str]]
) -> tuple[dict[str, tuple[str, ...]], Overrides, Overrides]:
    """Adds rows to the override rows of a scene.

    Returns:
      All override rows; the nominal values of fields that the scene does not override yet; and for
      each wanted field, which of its rows are the wanted ones.

    Raises:
      ValueError: the scene overrides a field already, but not in all the wanted rows.
    """
    rows, nominal, own = dict(scene.override_rows), {}, {}
    for field, names in wanted.items():
        if not names:
            continue
        if field not in rows:
            rows[field] = tuple(names)
            index = row_ids(scene.model, field, rows[field])
            nominal[field] = jnp.asarray(getattr(scene.model, field)[index], jnp.float32)
        if missing := set(names) - set(rows[field]):
            raise ValueError(f"the scene overrides {field}, but not for {', '.join(missing)}")
        own[field] = jnp.asarray(
            np.isin(
                row_ids(scene.model, field, rows[field]), row_ids(scene.model, field, tuple(names))
            )
        )
    return rows, nominal, own
