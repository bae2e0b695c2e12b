"""MuJoCo's own C engine, stepped on all cores from inside jitted programs.

`mujoco.batch.Batch` runs many simulations on a thread pool. Here a host callback hands it the state
of all environments and takes the next one back. Everything that MuJoCo carries from step to step
(time, qpos, qvel, act, history, solver warm start) crosses exactly: JAX has no float64 by default,
so each number travels as two uint32. Trajectories are therefore bit-identical with a plain C loop.

The only memory here is a cache of batches by size. Every call writes all inputs, so results depend
on the arguments alone.
"""

import threading

import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np

from pdjax_envs.physics.engine import Array, Engine, Overrides, PhysicsState, Scene, row_ids

# Carried from step to step; a prefix of MuJoCo's integration state.
_CARRIED = (
    mujoco.mjtState.mjSTATE_TIME.value
    | mujoco.mjtState.mjSTATE_QPOS.value
    | mujoco.mjtState.mjSTATE_QVEL.value
    | mujoco.mjtState.mjSTATE_ACT.value
    | mujoco.mjtState.mjSTATE_HISTORY.value
    | mujoco.mjtState.mjSTATE_WARMSTART.value
)


def make_engine(scene: Scene, num_threads: int = 0) -> Engine:
    """Binds MuJoCo C to a scene.

    Args:
      scene: model, substeps, overrides and derived fields.
      num_threads: physics threads; 0 = one per core.

    Raises:
      ValueError: the model has mocap bodies or plugin state, which do not cross.
    """
    model = scene.model
    if model.nmocap or model.npluginstate:
        raise ValueError(
            f"the native engine carries no mocap bodies ({model.nmocap}) or plugin state"
            f" ({model.npluginstate}); use a free or a static body with overrides"
        )
    host = _Host(scene, num_threads)
    results = host.result_shapes()

    def call(mode, overrides, raw, ctrl):
        values = tuple(overrides[field] for field in scene.override_rows)
        raw, qpos, qvel, *fields = jax.pure_callback(
            getattr(host, mode), results, raw, ctrl, *values, vmap_method="broadcast_all"
        )
        return PhysicsState(qpos, qvel, dict(zip(scene.fields, fields, strict=True)), raw)

    def reset(_, overrides: Overrides, qpos: Array, qvel: Array) -> PhysicsState:
        del _
        qpos, qvel = qpos.astype(jnp.float32), qvel.astype(jnp.float32)
        rest = host.carried - 1 - model.nq - model.nv
        row = jnp.concatenate([jnp.zeros(1), qpos, qvel, jnp.zeros(rest)])
        raw = float64_bits(row).reshape(-1)
        if not scene.fields:
            return PhysicsState(qpos, qvel, {}, raw)
        return call("forward", overrides, raw, jnp.zeros(model.nu))

    def step(_, overrides: Overrides, state: PhysicsState, ctrl: Array) -> PhysicsState:
        del _
        return call("step", overrides, state.raw, ctrl)

    return Engine("native", (), reset, step)


def float64_bits(x: Array) -> Array:
    """The exact float64 of each float32, as two uint32, low word first.

    Args:
      x: (...,) float32. Subnormals become zero.

    Returns:
      (..., 2) uint32.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign, exponent = bits >> 31, (bits >> 23) & 0xFF
    mantissa = jnp.where(exponent == 0, 0, bits & 0x7FFFFF)
    # The exponent's bias grows from 127 to 1023; zero, infinity and NaN keep their marks.
    wide = jnp.where(exponent == 0, 0, jnp.where(exponent == 255, 2047, exponent + 896))
    high = (sign << 31) | (wide << 20) | (mantissa >> 3)
    return jnp.stack([mantissa << 29, high], axis=-1)


class _Host:
    """The host side: NumPy in, NumPy out, never JAX."""

    def __init__(self, scene: Scene, num_threads: int):
        self._scene = scene
        self._threads = num_threads
        self._rows = {f: row_ids(scene.model, f, names) for f, names in scene.override_rows.items()}
        self._data = mujoco.MjData(scene.model)
        self._batches: dict[int, mujoco.batch.Batch] = {}
        self._lock = threading.Lock()
        self.carried = mujoco.mj_stateSize(scene.model, _CARRIED)

    def result_shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of (raw, qpos, qvel, *fields) for one environment."""
        model = self._scene.model
        derived = [np.asarray(getattr(self._data, field)).shape for field in self._scene.fields]
        shapes = [(model.nq,), (model.nv,), *derived]
        return (
            jax.ShapeDtypeStruct((2 * self.carried,), jnp.uint32),
            *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes),
        )

    def step(self, raw, ctrl, *overrides):
        """Advances all environments by the scene's substeps."""
        return self._run(raw, ctrl, overrides, self._scene.n_substeps)

    def forward(self, raw, ctrl, *overrides):
        """Computes the derived fields at the given states."""
        return self._run(raw, ctrl, overrides, 0)

    def _run(self, raw, ctrl, overrides, n_substeps):
        raw = np.asarray(raw)
        lead = raw.shape[:-1]
        count = int(np.prod(lead, dtype=int))
        with self._lock:
            batch = self._batch(count)
            batch.state[:, : self.carried] = raw.reshape(count, -1).view(np.float64)
            batch.ctrl[:] = np.asarray(ctrl).reshape(count, -1)
            for (field, rows), values in zip(self._rows.items(), overrides, strict=True):
                values = np.asarray(values)
                target = batch.expand(field)
                target[:, rows] = values.reshape(count, len(rows), *target.shape[2:])
            if n_substeps:
                # Derived fields lag one substep behind unless their stage is computed anew.
                stage = mujoco.mjtStage.mjSTAGE_VEL if self._scene.fields else 0
                batch.step(nstep=n_substeps, stage=int(stage))
            else:
                batch.forward(stage=mujoco.mjtStage.mjSTAGE_VEL.value)
            after = np.ascontiguousarray(batch.state[:, : self.carried]).view(np.uint32)
            outputs = [batch.qpos, batch.qvel, *(batch.bind(f) for f in self._scene.fields)]
            outputs = [out.astype(np.float32).reshape(*lead, *out.shape[1:]) for out in outputs]
        return after.reshape(*lead, -1), *outputs

    def _batch(self, count: int) -> mujoco.batch.Batch:
        if count not in self._batches:
            batch = mujoco.batch.Batch(self._scene.model, count, self._threads)
            for field in self._scene.fields:
                batch.bind(field)  # bound before the first call, or that call leaves it at zero
            self._batches[count] = batch
        return self._batches[count]
