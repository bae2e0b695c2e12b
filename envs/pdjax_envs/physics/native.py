"""MuJoCo's own C engine, stepped on all cores from inside jitted programs.

`mujoco.batch.Batch` runs many simulations on a thread pool. A host callback passes it the state of
all environments and returns the next state. Everything that MuJoCo carries from step to step (time,
qpos, qvel, act, history, solver warm start) passes exactly: JAX has no float64 by default, so each
number travels as two uint32. Trajectories are therefore bit-identical to those of a plain C loop.

The module's only state is a cache of batches by size. Every call writes all inputs, so results
depend on the arguments alone.
"""

import ctypes
import hashlib
import math
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mujoco
import mujoco.batch
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from pdjax_envs.physics import host_call
from pdjax_envs.physics.engine import Array, Engine, Overrides, PhysicsState, Scene, row_ids

# The state carried from step to step; a prefix of MuJoCo's integration state.
_CARRIED = (
    mujoco.mjtState.mjSTATE_TIME.value
    | mujoco.mjtState.mjSTATE_QPOS.value
    | mujoco.mjtState.mjSTATE_QVEL.value
    | mujoco.mjtState.mjSTATE_ACT.value
    | mujoco.mjtState.mjSTATE_HISTORY.value
    | mujoco.mjtState.mjSTATE_WARMSTART.value
)
# MuJoCo's warnings that contacts or constraints did not fit into its memory.
_FULL = slice(
    mujoco.mjtWarning.mjWARN_CONTACTFULL.value, mujoco.mjtWarning.mjWARN_CNSTRFULL.value + 1
)


def make_engine(scene: Scene, num_threads: int = 0) -> Engine:
    """Binds MuJoCo C to a scene.

    Args:
      scene: model, substeps, overrides and derived fields.
      num_threads: physics threads; 0 = one per core.

    Mocap bodies stay where the model places them.

    Raises:
      ValueError: the model has plugin state, which this engine does not carry.
    """
    model = scene.model
    if model.npluginstate:
        raise ValueError(
            f"the native engine carries no plugin state ({model.npluginstate}); use the model"
            " without plugins"
        )
    host = _Host(scene, num_threads)
    run_step = _as_jax(host, scene.n_substeps)
    run_forward = _as_jax(host, 0)

    def call(run, overrides, raw, ctrl):
        # One array, because each array that passes to the host costs about 5 us.
        rows = [jnp.ravel(overrides[field]).astype(_real()) for field in scene.override_rows]
        packed = [jnp.concatenate(rows)] if rows else []
        raw, overflow, qpos, qvel, *fields = run(raw, ctrl, *packed)
        fields = dict(zip(scene.fields, fields, strict=True))
        return PhysicsState(qpos, qvel, fields, overflow, raw)

    def reset(_, overrides: Overrides, qpos: Array, qvel: Array) -> PhysicsState:
        del _
        qpos, qvel = qpos.astype(_real()), qvel.astype(_real())
        rest = host.carried - 1 - model.nq - model.nv
        row = jnp.concatenate([jnp.zeros(1), qpos, qvel, jnp.zeros(rest)])
        raw = float64_bits(row).reshape(-1)
        if not scene.fields:
            return PhysicsState(qpos, qvel, {}, jnp.zeros((), bool), raw)
        return call(run_forward, overrides, raw, jnp.zeros(model.nu))

    def step(_, overrides: Overrides, state: PhysicsState, ctrl: Array) -> PhysicsState:
        del _
        return call(run_step, overrides, state.raw, ctrl)

    return Engine("native", (), reset, step)


def _real() -> type:
    """Returns the type of the real numbers that the engine returns."""
    return jnp.float64 if jax.config.jax_enable_x64 else jnp.float32


def float64_bits(x: Array) -> Array:
    """Returns the exact float64 value of each number as two uint32, low word first.

    Args:
      x: (...,) float32 or, in JAX's 64-bit mode, float64. Subnormal float32 become zero.

    Returns:
      (..., 2) uint32.
    """
    if x.dtype == jnp.float64:
        return jax.lax.bitcast_convert_type(x, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign, exponent = bits >> 31, (bits >> 23) & 0xFF
    mantissa = jnp.where(exponent == 0, 0, bits & 0x7FFFFF)
    # The exponent's bias grows from 127 to 1023; zero, infinity and NaN keep their exponents.
    wide = jnp.where(exponent == 0, 0, jnp.where(exponent == 255, 2047, exponent + 896))
    high = (sign << 31) | (wide << 20) | (mantissa >> 3)
    return jnp.stack([mantissa << 29, high], axis=-1)


def _as_jax(host: "_Host", n_substeps: int) -> Callable[..., list[Array]]:
    """Returns `host.run` with this number of substeps as a JAX function that `vmap` can batch."""
    function, results = partial(host.run, n_substeps), host.result_shapes()

    def in_place(_, outputs, *inputs):
        function([np.asarray(x) for x in inputs], [np.asarray(x) for x in outputs])

    def by_value(*inputs):
        inputs = [np.asarray(x) for x in inputs]
        lead = inputs[0].shape[:-1]
        outputs = [np.empty(lead + result.shape, result.dtype) for result in results]
        function(inputs, outputs)
        return outputs

    # On a CPU the host reads and writes XLA's own buffers, and a call takes tens of microseconds.
    # The memory of other devices is out of its reach; `pure_callback` copies, in 300 us or more.
    if host_call.available():
        return host_call.call(function, host.key(n_substeps), results)
    if jax.default_backend() == "cpu":
        return buffer_callback(in_place, results, vmap_method="broadcast_all")
    return partial(jax.pure_callback, by_value, results, vmap_method="broadcast_all")


class _Views(NamedTuple):
    """Live arrays of a batch; the first axis is the environment.

    Attributes:
      carried: (n, carried) float64, the state that passes between JAX and MuJoCo.
      ctrl: (n, nu) float64.
      overrides: (target, rows) pairs in the order of `Scene.override_rows`.
      written: (n, numbers) the overrides written last, as JAX passed them; NaN before the first
        call.
      full: (n, 2) int32, how often contacts and constraints did not fit.
      outputs: float64 arrays that are returned as real numbers: qpos, qvel, derived fields.
    """

    batch: mujoco.batch.Batch
    carried: np.ndarray
    ctrl: np.ndarray
    overrides: list[tuple[np.ndarray, slice | np.ndarray]]
    written: np.ndarray
    full: np.ndarray
    outputs: list[np.ndarray]

    def override(self, packed: np.ndarray) -> None:
        """Writes overrides (n, numbers) if they changed, since MuJoCo copies what is written."""
        if np.array_equal(packed.view(np.uint32), self.written.view(np.uint32)):  # bitwise
            return
        self.written[:] = packed
        begin = 0
        for target, rows in self.overrides:
            shape = target[:, rows].shape
            end = begin + math.prod(shape[1:])
            target[:, rows] = packed[:, begin:end].reshape(shape)
            begin = end


class _Host:
    """The host side: takes and fills NumPy arrays and never calls JAX."""

    def __init__(self, scene: Scene, num_threads: int):
        self._scene = scene
        self._threads = num_threads
        self._data = mujoco.MjData(scene.model)
        self._views: dict[int, _Views] = {}
        self._lock = threading.Lock()
        self._float_mode = _FloatMode()
        self._stages = _stages(scene)
        self.carried = mujoco.mj_stateSize(scene.model, _CARRIED)

    def result_shapes(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns the shapes of (raw, overflow, qpos, qvel, *fields) for one environment."""
        model = self._scene.model
        derived = [np.asarray(getattr(self._data, field)).shape for field in self._scene.fields]
        shapes = [(model.nq,), (model.nv,), *derived]
        return (
            jax.ShapeDtypeStruct((2 * self.carried,), jnp.uint32),
            jax.ShapeDtypeStruct((), jnp.bool_),
            *(jax.ShapeDtypeStruct(shape, _real()) for shape in shapes),
        )

    def key(self, n_substeps: int) -> int:
        """Hashes what `run` depends on besides its inputs to 63 bits, the same in every process."""
        scene = self._scene
        model = np.empty(mujoco.mj_sizeModel(scene.model), np.uint8)
        mujoco.mj_saveModel(scene.model, None, model)
        rest = (
            n_substeps,
            dict(scene.override_rows),
            scene.fields,
            scene.fresh_fields,
            self._threads,
            _real().__name__,
            mujoco.__version__,
        )
        arrays = (model, *(scene.ctrl_scale or ()))
        parts = [repr(rest).encode(), *(array.tobytes() for array in arrays)]
        return int.from_bytes(hashlib.sha256(b"".join(parts)).digest()[:8], "little") >> 1

    def run(self, n_substeps: int, inputs: list[np.ndarray], outputs: list[np.ndarray]) -> None:
        """Advances all environments; with no substeps it only computes the derived fields.

        Args:
          n_substeps: physics steps.
          inputs: raw (..., 2 * carried), ctrl (..., nu) and, if there are any, the overrides in one
            array; all with the same leading axes.
          outputs: arrays to fill, in the order of `result_shapes`.
        """
        raw, ctrl, *overrides = inputs
        count = math.prod(raw.shape[:-1])
        with self._lock, self._float_mode.restored():
            views = self._batch(count)
            views.carried[:] = raw.reshape(count, -1).view(np.float64)
            views.ctrl[:] = self._scene.scale_ctrl(ctrl.reshape(count, -1))
            for packed in overrides:
                views.override(packed.reshape(count, -1))
            views.full[:] = 0
            if n_substeps:
                views.batch.step(nstep=n_substeps, stage=self._stages[0])
            else:
                views.batch.forward(stage=self._stages[1])
            outputs[0].reshape(count, -1).view(np.float64)[:] = views.carried
            overflow = views.full.any(axis=1)
            for out, value in zip(outputs[1:], [overflow, *views.outputs], strict=True):
                out[...] = value.reshape(out.shape)

    def _batch(self, count: int) -> _Views:
        if count not in self._views:
            scene = self._scene
            batch = mujoco.batch.Batch(scene.model, count, self._threads)
            overrides = []
            for field, names in scene.override_rows.items():
                rows = row_ids(scene.model, field, names)
                adjacent = np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
                # Writing a slice is several times as fast as writing a list of rows.
                where = slice(rows[0], rows[0] + len(rows)) if adjacent else rows
                overrides.append((batch.expand(field), where))
            # Fields must be bound before the first call, which otherwise leaves them at zero.
            outputs = [batch.bind(field) for field in ("qpos", "qvel", *scene.fields)]
            numbers = sum(target[0, rows].size for target, rows in overrides)
            self._views[count] = _Views(
                batch=batch,
                carried=batch.state[:, : self.carried],
                ctrl=batch.bind("ctrl"),
                overrides=overrides,
                written=np.full((count, numbers), np.nan, _real()),
                full=batch.warning[:, _FULL, 1],
                outputs=outputs,
            )
        return self._views[count]


def _stages(scene: Scene) -> tuple[int, int]:
    """Returns the stages up to which MuJoCo computes after a control step and at a reset."""
    none, velocity, acceleration = (
        getattr(mujoco.mjtStage, f"mjSTAGE_{name}").value for name in ("NONE", "VEL", "ACC")
    )
    if not scene.fresh_fields:
        return none, acceleration  # like mj_step and mj_forward
    return (velocity if scene.fields else none), velocity


class _FloatMode:
    """The floating-point mode of the thread that creates this object.

    XLA's threads flush subnormal numbers to zero. If MuJoCo ran in one of them, it would round
    differently from a plain C loop, and differently between environments, because only some of the
    batch's threads are XLA's.
    """

    def __init__(self):
        # Functions of the C library. PyDLL keeps the GIL; these calls take nanoseconds.
        self._libc = ctypes.PyDLL("ucrtbase" if sys.platform == "win32" else None)
        self._mode = self._current()

    @contextmanager
    def restored(self):
        """Applies the remembered mode inside a `with` block."""
        before = self._current()
        self._libc.fesetenv(self._mode)
        try:
            yield
        finally:
            self._libc.fesetenv(before)

    def _current(self):
        mode = ctypes.create_string_buffer(256)  # fenv_t: 32 bytes on x86-64
        self._libc.fegetenv(mode)
        return mode
