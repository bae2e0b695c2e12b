"""How model values of bodies follow their mass and their size, as model overrides.

Apart from the perturbations that need it (`shifts`), because it is physics and they are choices.
MuJoCo derives some of these values when it compiles a model; they are derived here the same way.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.physics.engine import Array, Overrides, Scene, row_ids
from pdjax_envs.task import Start

# By which power of its mass and of its lengths a model value of a body grows.
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
    """What makes bodies heavier or larger.

    Args:
      scene: in which they are.
      bodies: their names; whole objects, where they are to be larger.
      fields: `HEAVY` or `ALL`.

    Returns:
      The scene's override rows with those that are needed, and (start, times the mass, times the
      lengths) -> start.

    Raises:
      ValueError: see `extend`.
    """
    model = scene.model
    rows, nominal, own = extend(scene, {field: _rows(scene, field, bodies) for field in fields})
    dofs = row_ids(model, "dof_M0", rows["dof_M0"])
    armature, turns = jnp.asarray(model.dof_armature[dofs]), _turns(model)[dofs]
    # Rows of `body_invweight0` -> mean over the degrees of freedom of a body's tree, by kind.
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
        # A joint's own rotor does not grow with what it carries.
        inertia = armature + mass * jnp.where(turns, length**2, 1.0) * (before["dof_M0"] - armature)
        lighter = before["dof_M0"] / inertia
        after["dof_M0"] = inertia
        after["dof_invweight0"] = before["dof_invweight0"] * lighter
        # A body's inverse inertias set the softness of its contacts. One that only turns moves by
        # its distance from the axis.
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
    """(nv,) whether a degree of freedom is a rotation."""
    kind = model.jnt_type[model.dof_jntid]
    place = np.arange(model.nv) - model.jnt_dofadr[model.dof_jntid]
    is_free, is_slide = (
        kind == joint.value for joint in (mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_SLIDE)
    )
    return np.where(is_free, place >= 3, ~is_slide)


def _rows(scene: Scene, field: str, bodies: Sequence[str]) -> list[str]:
    """Names of the rows of a field that belong to bodies and are overridden, or matter."""
    model, taken = scene.model, scene.override_rows.get(field, ())
    ids = {model.body(name).id for name in bodies}
    kind = field.split("_")[0]
    if kind == "body":
        # Where an object's first body is, its episode says.
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
    """Override rows of a scene and those wanted; nominal values of new fields; whose rows are ours.

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
            raise ValueError(f"the scene overrides {field}, but not of {', '.join(missing)}")
        own[field] = jnp.asarray(
            np.isin(
                row_ids(scene.model, field, rows[field]), row_ids(scene.model, field, tuple(names))
            )
        )
    return rows, nominal, own
