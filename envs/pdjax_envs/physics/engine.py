"""The one interface between tasks and simulators.

A task reads the `PhysicsState` of one environment; an engine steps it. `jax.vmap` batches both.
Nothing outside this package calls a simulator's stepping functions.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import mujoco
import numpy as np

Array = jax.Array
Overrides = dict[str, Array]
"""Model values of one environment: field -> (rows, ...) in the order of `Scene.override_rows`."""

# The kind of object that names the rows of a model field; a joint names its `dof_*` rows.
_ROW_KINDS = {
    "geom": mujoco.mjtObj.mjOBJ_GEOM,
    "body": mujoco.mjtObj.mjOBJ_BODY,
    "site": mujoco.mjtObj.mjOBJ_SITE,
    "jnt": mujoco.mjtObj.mjOBJ_JOINT,
    "dof": mujoco.mjtObj.mjOBJ_JOINT,
}


class PhysicsState(NamedTuple):
    """The physics of one environment as tasks see it.

    Attributes:
      qpos: (nq,) float32, m and rad.
      qvel: (nv,) float32, m/s and rad/s.
      fields: the derived quantities listed in `Scene.fields` (`site_xpos`, ...), see
        `Scene.fresh_fields`.
      overflow: () bool, the engine's buffers were too small for the contacts or constraints of the
        last control step, so some were left out.
      raw: the engine's own exact state; opaque to tasks.

    If JAX runs in 64 bits (JAX_ENABLE_X64), the native engine returns float64.
    """

    qpos: Array
    qvel: Array
    fields: dict[str, Array]
    overflow: Array
    raw: Any


class Buffers(NamedTuple):
    """Memory that an engine must allocate before it knows how much it needs, as Warp does.

    Attributes:
      contacts: room per environment for contact points, and also for pairs of geoms that are near
        enough for their contacts to be computed. Environments share it: one may have more as long
        as all n together have n times this number or fewer.
      constraints: the largest number of rows that contacts, limits and friction may take in the
        constraint solver of any one environment.
    """

    contacts: int = 64
    constraints: int = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """What an engine simulates.

    Attributes:
      model: the compiled MuJoCo model. Geoms whose size is overridden must be compiled at their
        largest, because bounding volumes are not overridden.
      n_substeps: physics steps per control step.
      override_rows: model field -> names of the objects whose rows differ between environments.
      fields: names of the derived `mujoco.MjData` fields that the task reads.
      fresh_fields: whether these fields are recomputed after each control step. MuJoCo's own step
        leaves them one substep old; that costs nothing and is what Gymnasium's tasks read.
      ctrl_scale: (center, half_range), each (nu,) float64, or None. With it the task's ctrl is in
        [-1, 1] and the simulator gets center + half_range * ctrl, which the native engine computes
        in float64.
      buffers: room for contacts and constraints. An engine leaves out what does not fit and reports
        it in `PhysicsState.overflow`.
    """

    model: mujoco.MjModel
    n_substeps: int
    override_rows: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    fields: tuple[str, ...] = ()
    fresh_fields: bool = True
    ctrl_scale: tuple[np.ndarray, np.ndarray] | None = None
    buffers: Buffers = dataclasses.field(default_factory=Buffers)

    def scale_ctrl(self, ctrl: Any) -> Any:
        """Returns the simulator's ctrl for a task's ctrl (..., nu)."""
        if self.ctrl_scale is None:
            return ctrl
        center, half_range = self.ctrl_scale
        return center + ctrl * half_range


class Engine(NamedTuple):
    """A simulator as pure functions for one environment.

    Attributes:
      name: `native`, `mjx`, `warp`, or the name of a task's own physics.
      model: the first argument of the functions below; never donated and never batched.
      reset: (model, overrides, qpos, qvel) -> PhysicsState at time 0.
      step: (model, overrides, state, ctrl) -> PhysicsState one control step later.
    """

    name: str
    model: Any
    reset: Callable[[Any, Overrides, Array, Array], PhysicsState]
    step: Callable[[Any, Overrides, PhysicsState, Array], PhysicsState]


def row_ids(model: mujoco.MjModel, field: str, names: tuple[str, ...]) -> np.ndarray:
    """Returns the rows of named objects in a model field such as `geom_size` or `dof_invweight0`.

    Raises:
      KeyError: the model has no object with one of these names.
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
    """Writes the overrides of one environment into a model in place, to render or inspect it.

    Args:
      model: `scene.model`, or a model with objects of the same names.
      scene: the scene whose `override_rows` name the rows.
      overrides: field -> (rows, ...) values of one environment.
    """
    for field, names in scene.override_rows.items():
        getattr(model, field)[row_ids(model, field, names)] = np.asarray(overrides[field])
