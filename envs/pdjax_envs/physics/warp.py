"""MuJoCo Warp, MJX's implementation for NVIDIA GPUs: what differs from MJX's own JAX code.

Separate from `mjx.py`, which runs both, because only Warp must allocate memory for contacts and
constraints in advance, for all environments together. Warp compiles kernels at their first use and
caches them (WARP_CACHE_PATH). Holds no state.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from mujoco import mjx
from mujoco.mjx.third_party.mujoco_warp import OverflowType

from pdjax_envs.physics.engine import Array, Scene
from pdjax_envs.physics.implementation import Implementation
from pdjax_envs.rotations import quat_multiply, rotate

# Warp also counts solvers that reach their iteration limit, but then nothing was left out.
_LEFT_OUT = int(OverflowType.ALL & ~(OverflowType.ITERATIONS | OverflowType.LS_ITERATIONS))

# The model fields that place geoms.
_PLACES = {"body_pos", "body_quat", "geom_pos", "geom_quat"}


def implementation(scene: Scene) -> Implementation:
    """Builds the Warp implementation for a scene.

    Raises:
      NotImplementedError: Warp does not know a feature of the model.
    """
    model = copy.copy(scene.model)
    # In float32 the solver cannot reach a smaller tolerance and would run to its iteration limit.
    # MuJoCo Warp has the same bound, but MJX passes it the model's own value.
    model.opt.tolerance = max(model.opt.tolerance, 1e-6)
    # Warp has no midphase and refuses the flag that disables it; the flag changes no result.
    model.opt.disableflags &= ~mujoco.mjtDisableBit.mjDSBL_MIDPHASE.value
    nominal = mjx.put_model(model, impl="warp")

    fixed = _PLACES.isdisjoint(scene.override_rows)

    def make_data(now: mjx.Model, count: int) -> mjx.Data:
        with jax.ensure_compile_time_eval():
            data = mjx.make_data(
                model,
                impl="warp",
                naconmax=count * scene.buffers.contacts,
                njmax=scene.buffers.constraints,
            )
        return data if fixed else _place_static_geoms(model, now, data)

    # The engine reports overflows, so Warp need not print them.
    quiet = cast(mjx.Model, nominal.tree_replace({"opt._impl.warn_overflow": 0}))
    return Implementation(quiet, make_data, mjx.forward, _overflow, _together)


def _place_static_geoms(scene_model: mujoco.MjModel, model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Returns `data` with the geoms of jointless bodies where this environment's `model` has them.

    Warp computes their places only once, in `make_data`, from the model that it gets there.
    """
    mocap = scene_model.body_mocapid[scene_model.body_rootid] >= 0
    static = (scene_model.body_weldid == 0) & ~mocap
    poses = [(jnp.zeros(3), jnp.array([1.0, 0.0, 0.0, 0.0]))] * scene_model.nbody
    for body in np.nonzero(static)[0][1:]:
        pos, quat = poses[scene_model.body_parentid[body]]
        pos = pos + rotate(quat, model.body_pos[body])
        poses[body] = (pos, quat_multiply(quat, model.body_quat[body]))
    geoms = np.nonzero(static[scene_model.geom_bodyid])[0]
    bodies = [poses[body] for body in scene_model.geom_bodyid[geoms]]
    pos, quat = (jnp.stack(part) for part in zip(*bodies, strict=True))  # (geoms, 3), (geoms, 4)
    pos = pos + jax.vmap(rotate)(quat, model.geom_pos[geoms])
    quat = jax.vmap(quat_multiply)(quat, model.geom_quat[geoms])
    columns = jax.vmap(jax.vmap(rotate, (None, 0)), (0, None))(quat, jnp.eye(3))
    return data.replace(
        geom_xpos=data.geom_xpos.at[geoms].set(pos),
        geom_xmat=data.geom_xmat.at[geoms].set(columns.swapaxes(1, 2)),
    )


def _overflow(data: mjx.Data) -> Array:
    """Returns () bool, whether the last step left out contacts or constraints."""
    return (data._impl.overflow & _LEFT_OUT) != 0


def _together(function: Callable[..., Any]) -> Callable[..., Any]:
    """Passes the number of environments to a function of one environment.

    Under `vmap`, even nested, all environments arrive in one batch, whose size is that number.
    """

    @jax.custom_batching.custom_vmap
    def many(*arguments):
        count = len(jax.tree.leaves(arguments)[0])
        return jax.vmap(partial(function, count))(*arguments)

    @many.def_vmap
    def _(size, batched, *arguments):
        def flat(x, is_batched):
            x = x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(size * x.shape[1], *x.shape[2:])

        results = many(*jax.tree.map(flat, arguments, tuple(batched)))
        nested = jax.tree.map(lambda x: x.reshape(size, len(x) // size, *x.shape[1:]), results)
        return nested, jax.tree.map(lambda _: True, nested)

    def single(*arguments):
        results = many(*jax.tree.map(lambda x: jnp.asarray(x)[None], arguments))
        return jax.tree.map(lambda x: x[0], results)

    return single
