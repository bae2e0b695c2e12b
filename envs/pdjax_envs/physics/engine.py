"""The one interface between tasks and simulators.

Tasks are written for one environment against `PhysicsState`; an engine steps it. `jax.vmap` makes
both handle many environments. Nothing outside this package calls a simulator's stepping functions.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import mujoco
import numpy as np

Array = jax.Array
Overrides = dict[str, Array]
"""Per-environment model values: field name -> (rows, ...) in the order of `Scene.override_rows`."""

# What names the rows of a model field; `dof_*` rows are those of the named joint.
_ROW_KINDS = {
    "geom": mujoco.mjtObj.mjOBJ_GEOM,
    "body": mujoco.mjtObj.mjOBJ_BODY,
    "site": mujoco.mjtObj.mjOBJ_SITE,
    "jnt": mujoco.mjtObj.mjOBJ_JOINT,
    "dof": mujoco.mjtObj.mjOBJ_JOINT,
}


class PhysicsState(NamedTuple):
    """One environment's physics as tasks see it.

    Attributes:
      qpos: (nq,) float32, m and rad.
      qvel: (nv,) float32, m/s and rad/s.
      fields: derived quantities that the scene asks for (`site_xpos`, ...), see
        `Scene.fresh_fields`.
      overflow: () bool, the engine's buffers were too small for the contacts or constraints of the
        last control step, so that some were left out.
      raw: the engine's own exact state; opaque to tasks.

    Where JAX runs in 64 bits (JAX_ENABLE_X64) the native engine gives all of them in float64.
    """

    qpos: Array
    qvel: Array
    fields: dict[str, Array]
    overflow: Array
    raw: Any


class Buffers(NamedTuple):
    """Room that an engine must allocate before it knows how much is needed; Warp does.

    Attributes:
      contacts: contact points of one environment, and also pairs of geoms that come so near that
        their contacts are computed. Environments share: of n, one may have more while all together
        have at most n times as many.
      constraints: rows that contacts, limits and friction take in the constraint solver, in one
        environment; no environment may have more.
    """

    contacts: int = 64
    constraints: int = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """What an engine simulates.

    Attributes:
      model: the compiled MuJoCo model. Geoms whose size is overridden must be compiled at their
        largest, since bounding volumes are not overridden.
      n_substeps: physics steps per control step.
      override_rows: model field -> names of the objects whose rows differ per environment.
      fields: names of the derived `mujoco.MjData` fields that the task reads.
      fresh_fields: whether these are computed anew after each control step. MuJoCo's own step
        leaves them one substep old, which costs nothing and is what Gymnasium's tasks read.
      ctrl_scale: (center, half_range), each (nu,) float64, where the task's ctrl is in [-1, 1] and
        the simulator gets center + half_range * ctrl: the native engine does this in float64.
      buffers: room for contacts and constraints; what does not fit is left out and reported in
        `PhysicsState.overflow`.
    """

    model: mujoco.MjModel
    n_substeps: int
    override_rows: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    fields: tuple[str, ...] = ()
    fresh_fields: bool = True
    ctrl_scale: tuple[np.ndarray, np.ndarray] | None = None
    buffers: Buffers = dataclasses.field(default_factory=Buffers)

    def scale_ctrl(self, ctrl: Any) -> Any:
        """What the simulator gets for a task's ctrl (..., nu)."""
        if self.ctrl_scale is None:
            return ctrl
        center, half_range = self.ctrl_scale
        return center + ctrl * half_range


class Engine(NamedTuple):
    """A simulator bound to a scene; pure functions for one environment.

    Attributes:
      name: `native`, `mjx` or `warp`.
      model: the argument of the functions below: never donated, may be batched by nobody.
      reset: (model, overrides, qpos, qvel) -> PhysicsState at time 0.
      step: (model, overrides, state, ctrl) -> PhysicsState, `n_substeps` later.
    """

    name: str
    model: Any
    reset: Callable[[Any, Overrides, Array, Array], PhysicsState]
    step: Callable[[Any, Overrides, PhysicsState, Array], PhysicsState]


def row_ids(model: mujoco.MjModel, field: str, names: tuple[str, ...]) -> np.ndarray:
    """Row indices of named objects in a model field such as `geom_size` or `dof_invweight0`.

    Raises:
      KeyError: an object of that name does not exist.
    """
    kind = field.split("_")[0]
    ids = []
    for name in names:
        index = mujoco.mj_name2id(model, _ROW_KINDS[kind], name)
        if index < 0:
            raise KeyError(f"model has no {kind} named {name!r} (override of {field})")
        if kind == "dof":
            joint_end = np.append(model.jnt_dofadr, model.nv)[index + 1]
            ids.extend(range(model.jnt_dofadr[index], joint_end))
        else:
            ids.append(index)
    return np.array(ids)


def apply_overrides(model: mujoco.MjModel, scene: Scene, overrides: Mapping[str, Any]) -> None:
    """Writes one environment's overrides into a model in place, to render or to inspect it.

    Args:
      model: `scene.model` or a model that has objects of the same names.
      scene: whose `override_rows` name the rows.
      overrides: field -> (rows, ...) values of one environment.
    """
    for field, names in scene.override_rows.items():
        getattr(model, field)[row_ids(model, field, names)] = np.asarray(overrides[field])
