"""MuJoCo in JAX: the engines for accelerators, `mjx` and `warp`.

They simulate the same physics as `native.py`, but with `mujoco.mjx`: either with its own JAX
implementation, which is compiled into the program, or with MuJoCo Warp's kernels, which the program
calls (`warp.py`). Both compute in float32, so trajectories match MuJoCo C's only up to rounding and
diverge where contacts amplify it. Holds no state.
"""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs.physics import mjx_flags
from pdjax_envs.physics.engine import Array, Engine, Overrides, PhysicsState, Scene, row_ids
from pdjax_envs.physics.implementation import Implementation, mjx

# MJX's line search always runs to its iteration limit, and in float32 the solver seldom reaches
# MuJoCo's tolerance of 1e-8 earlier. These limits suffice for grasping and insertion, see
# test_mjx.py.
SOLVER_ITERATIONS, LINE_SEARCH_ITERATIONS = 20, 20
IMPRATIO = 30  # in float32 MJX's solver fails to converge with stiffer friction
# Name of the custom number with which a model limits MJX's contact points per contact dimension.
CONTACT_LIMIT = "max_contact_points"


class Carried(NamedTuple):
    """MJX's state from step to step, besides qpos and qvel.

    Attributes:
      time: () s.
      act: (na,) actuator activations.
      qacc_warmstart: (nv,) the solver's starting point.
    """

    time: Array
    act: Array
    qacc_warmstart: Array


def make_engine(scene: Scene, impl: Literal["jax", "warp"] = "jax") -> Engine:
    """Binds MJX to a scene.

    The functions close over the model instead of taking it as an argument. The compiler can then
    fold the model's fields as constants, which halves compilation time and makes steps 1.4 to 3
    times as fast (measured on CPUs).

    Raises:
      InputError: JAX's CPU backend started without options that MJX needs.
      ValueError: MJX cannot vary an override per environment or lacks a derived field.
      NotImplementedError: MJX does not know a feature of the model.
    """
    mjx_flags.prepare()
    if impl == "warp":
        from pdjax_envs.physics import warp  # needs an optional package

        implementation = warp.implementation(scene)
    else:
        implementation = _jax_implementation(scene)
    nominal, make_data, derive, overflow, together = implementation
    rows = {f: row_ids(scene.model, f, names) for f, names in scene.override_rows.items()}
    shapes = _check(scene, nominal)

    def read(data: mjx.Data) -> PhysicsState:
        fields = {name: getattr(data, name).reshape(shape) for name, shape in shapes.items()}
        carried = Carried(data.time, data.act, data.qacc_warmstart)
        return PhysicsState(data.qpos, data.qvel, fields, overflow(data), carried)

    def data_at(model: mjx.Model, count: int, state: PhysicsState) -> mjx.Data:
        data = make_data(model, count)
        return data.replace(qpos=state.qpos, qvel=state.qvel, **state.raw._asdict())

    def refreshed(model: mjx.Model, count: int, state: PhysicsState) -> PhysicsState:
        return state._replace(fields=read(derive(model, data_at(model, count, state))).fields)

    @together
    def reset(count: int, overrides: Overrides, qpos: Array, qvel: Array) -> PhysicsState:
        model = _override(nominal, rows, overrides)
        data = make_data(model, count).replace(qpos=qpos, qvel=qvel)
        if shapes and not scene.fresh_fields:
            return read(mjx.forward(model, data))
        return refreshed(model, count, read(data)) if shapes else read(data)

    @together
    def step(count: int, overrides: Overrides, state: PhysicsState, ctrl: Array) -> PhysicsState:
        model = _override(nominal, rows, overrides)
        ctrl = scene.scale_ctrl(ctrl)

        def substep(_, state):
            data = data_at(model, count, state).replace(ctrl=ctrl)
            after = read(mjx.step(model, data))
            return after._replace(overflow=after.overflow | state.overflow)

        # The loop carries only these few arrays; it would copy all of `mjx.Data` at each step.
        state = state._replace(overflow=jnp.zeros((), bool))
        state = jax.lax.fori_loop(0, scene.n_substeps, substep, state)
        return refreshed(model, count, state) if shapes and scene.fresh_fields else state

    return Engine(
        "warp" if impl == "warp" else "mjx",
        (),
        lambda _, *arguments: reset(*arguments),
        lambda _, *arguments: step(*arguments),
    )


def _jax_implementation(scene: Scene) -> Implementation:
    """Builds MJX's own implementation, which computes all contacts unless the model limits them."""
    limited = copy.copy(scene.model)
    limited.opt.iterations = min(limited.opt.iterations, SOLVER_ITERATIONS)
    limited.opt.impratio = min(limited.opt.impratio, IMPRATIO)
    limited.opt.ls_iterations = min(limited.opt.ls_iterations, LINE_SEARCH_ITERATIONS)
    # MJX keeps disable flags that it does not know, such as midphase, and ignores them.
    nominal = mjx.put_model(limited, impl="jax")
    found = mujoco.mj_name2id(scene.model, mujoco.mjtObj.mjOBJ_NUMERIC, CONTACT_LIMIT)
    limit = int(scene.model.numeric_data[scene.model.numeric_adr[found]]) if found >= 0 else -1

    def derive(model: mjx.Model, data: mjx.Data) -> mjx.Data:
        data = mjx.sensor_pos(model, mjx.fwd_position(model, data))
        return mjx.sensor_vel(model, mjx.fwd_velocity(model, data))

    return Implementation(
        nominal,
        lambda model, count: mjx.make_data(model),
        derive,
        partial(_full, limit),
        lambda function: partial(function, 1),
    )


def _full(limit: int, data: mjx.Data) -> Array:
    """Returns () bool, whether all `limit` contact points kept for some contact dimension touch.

    MJX keeps the deepest points of each dimension, so it may have left others out in that case.
    """
    contact = data._impl.contact
    touching = contact.dist < contact.includemargin
    kinds, sizes = np.unique(contact.dim, return_counts=True)
    full = [
        touching[contact.dim == kind].all() for kind, size in zip(kinds, sizes) if size == limit
    ]
    return jnp.any(jnp.array(full)) if full else jnp.zeros((), bool)


def _check(scene: Scene, model: mjx.Model) -> dict[str, tuple[int, ...]]:
    """Returns MuJoCo's shapes of the derived fields: (9,) for a matrix, which is (3, 3) in MJX."""
    for field in scene.override_rows:
        if not isinstance(getattr(model, field, None), jax.Array):
            raise ValueError(f"MJX cannot vary {field} per environment; use the native engine")
    data = mujoco.MjData(scene.model)
    known = {field.name for field in mjx.Data.fields()} - {"_impl"}
    if unknown := set(scene.fields) - known:
        raise ValueError(f"MJX has no derived field {', '.join(unknown)}; use the native engine")
    return {name: np.shape(getattr(data, name)) for name in scene.fields}


def _override(model: mjx.Model, rows: Mapping[str, np.ndarray], overrides: Overrides) -> mjx.Model:
    """Returns the model of one environment.

    It applies all overrides, even those that MJX stores but never reads (dof_M0; body_subtreemass
    unless a sensor asks for a subtree's momentum), because XLA drops unused values.
    """
    replaced = {}
    for field, index in rows.items():
        target = getattr(model, field)
        values = jnp.asarray(overrides[field], target.dtype)
        replaced[field] = target.at[index].set(values.reshape(len(index), *target.shape[1:]))
    return model.replace(**replaced)
