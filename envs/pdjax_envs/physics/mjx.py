"""MuJoCo in JAX: the engine for accelerators.

The same physics as `native.py`, compiled into the program by `mujoco.mjx`. In float32 and with an
upper bound on solver iterations, so trajectories follow MuJoCo C's only to rounding, and diverge
from them where contacts amplify it. Holds no state.
"""

import contextlib
import copy
import io
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.physics import mjx_flags
from pdjax_envs.physics.engine import Array, Engine, Overrides, PhysicsState, Scene, row_ids

with contextlib.redirect_stdout(io.StringIO()):  # prints that the optional Warp is not installed
    from mujoco import mjx

# MJX's line search always runs to its limit, and the solver in float32 seldom reaches MuJoCo's
# tolerance of 1e-8 before its own. These suffice for grasping and insertion; see test_mjx.py.
SOLVER_ITERATIONS, LINE_SEARCH_ITERATIONS = 10, 10


class Carried(NamedTuple):
    """What MJX carries from step to step besides qpos and qvel.

    Attributes:
      time: () s.
      act: (na,) actuator activations.
      qacc_warmstart: (nv,) where the solver starts.
    """

    time: Array
    act: Array
    qacc_warmstart: Array


def make_engine(scene: Scene) -> Engine:
    """Binds MJX to a scene.

    The functions close over the model instead of taking it as their argument: as constants of the
    program its fields are folded, which halves compilation and makes steps 1.4 to 3 times as fast
    (measured on CPUs).

    Raises:
      RuntimeError: JAX's CPU backend started without options that MJX needs.
      ValueError: MJX cannot vary an override per environment or lacks a derived field.
      NotImplementedError: MJX does not know a feature of the model.
    """
    mjx_flags.prepare()
    limited = copy.copy(scene.model)
    limited.opt.iterations = min(limited.opt.iterations, SOLVER_ITERATIONS)
    limited.opt.ls_iterations = min(limited.opt.ls_iterations, LINE_SEARCH_ITERATIONS)
    # MJX keeps disable flags that it does not know, such as midphase, and has no use for them.
    nominal = mjx.put_model(limited, impl="jax")
    rows = {f: row_ids(scene.model, f, names) for f, names in scene.override_rows.items()}
    shapes = _check(scene, nominal)

    def read(data: mjx.Data) -> PhysicsState:
        fields = {name: getattr(data, name).reshape(shape) for name, shape in shapes.items()}
        carried = Carried(data.time, data.act, data.qacc_warmstart)
        return PhysicsState(data.qpos, data.qvel, fields, jnp.zeros((), bool), carried)

    def refreshed(model: mjx.Model, state: PhysicsState) -> PhysicsState:
        data = mjx.sensor_pos(model, mjx.fwd_position(model, _data(model, state)))
        data = mjx.sensor_vel(model, mjx.fwd_velocity(model, data))
        return state._replace(fields=read(data).fields)

    def reset(_, overrides: Overrides, qpos: Array, qvel: Array) -> PhysicsState:
        del _
        model = _override(nominal, rows, overrides)
        state = read(mjx.make_data(model).replace(qpos=qpos, qvel=qvel))
        if not shapes:
            return state
        return refreshed(model, state) if scene.fresh_fields else read(
            mjx.forward(model, _data(model, state))
        )  # fmt: skip

    def step(_, overrides: Overrides, state: PhysicsState, ctrl: Array) -> PhysicsState:
        del _
        model = _override(nominal, rows, overrides)
        ctrl = scene.scale_ctrl(ctrl)

        def substep(_, state):
            return read(mjx.step(model, _data(model, state).replace(ctrl=ctrl)))

        # The loop carries the few arrays that matter; all of `mjx.Data` would be copied each time.
        state = jax.lax.fori_loop(0, scene.n_substeps, substep, state)
        return refreshed(model, state) if shapes and scene.fresh_fields else state

    return Engine("mjx", (), reset, step)


def _data(model: mjx.Model, state: PhysicsState) -> mjx.Data:
    """MJX's own state of the model at what we carry of it."""
    data = mjx.make_data(model)
    return data.replace(qpos=state.qpos, qvel=state.qvel, **state.raw._asdict())


def _check(scene: Scene, model: mjx.Model) -> dict[str, tuple[int, ...]]:
    """MuJoCo's shapes of the derived fields; MJX gives matrices as (3, 3), MuJoCo as (9,)."""
    for field in scene.override_rows:
        if not isinstance(getattr(model, field, None), jax.Array):
            raise ValueError(f"MJX cannot vary {field} per environment; use the native engine")
    data = mujoco.MjData(scene.model)
    known = {field.name for field in mjx.Data.fields()} - {"_impl"}
    if unknown := set(scene.fields) - known:
        raise ValueError(f"MJX has no derived field {', '.join(unknown)}; use the native engine")
    return {name: np.shape(getattr(data, name)) for name in scene.fields}


def _override(model: mjx.Model, rows: Mapping[str, np.ndarray], overrides: Overrides) -> mjx.Model:
    """The model of one environment.

    All overrides are applied, also those that MJX stores but never reads (dof_M0; body_subtreemass
    unless a sensor asks for a subtree's momentum): XLA drops what nobody uses.
    """
    replaced = {}
    for field, index in rows.items():
        target = getattr(model, field)
        values = jnp.asarray(overrides[field], target.dtype)
        replaced[field] = target.at[index].set(values.reshape(len(index), *target.shape[1:]))
    return model.replace(**replaced)
