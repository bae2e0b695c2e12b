"""Reads artefacts of `jax.export` from untrusted files, and judges them before anything compiles.

An artefact is a program. It holds no Python, but it may call functions that are compiled into JAX
(custom calls), some of which take an index or an address: a crafted one could call anything. So
only the calls that JAX guarantees for artefacts are let through, less those that carry machine
code, and no operation that talks to the host. Not pure: reads files. What an artefact costs is
found out in a process of its own, see `trial`.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export
from jax.interpreters import mlir
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import stablehlo

from pdjax.base_policies.foreign.user_code import words
from pdjax.config.options import ConfigError
from pdjax_envs.reading import check_fits, read_bytes, short

MOST_BYTES = 16 << 30
INIT_CARRY = "init_carry.jaxexport"  # beside a policy with memory
DIALECTS = ("builtin", "func", "stablehlo", "chlo", "sdy")
TALKING = ("stablehlo.infeed", "stablehlo.outfeed", "stablehlo.send", "stablehlo.recv")
# What jax.export itself guarantees (a test compares), less tpu_custom_call, mosaic_gpu_v2 and
# tf.call_tf_function, which bring their own machine code.
CALLS = re.compile(
    r"lapack_[sdcz](potrf|geqrf|orgqr|ungqr|syevd|heevd|geev|gesdd|getrf|sytrd|hetrd|gehrd|gees"
    r"|trsm|gtsv)_ffi"
    r"|(cu|hip)solver_(getrf|geqrf|orgqr|potrf|syevd|gesvd|gesvdj|gesdd|sytrd)_ffi"
    r"|(cu|hip)sparse_gtsv2_ffi|(cu|hip)_(threefry2x32_ffi|lu_pivots_to_permutation)"
    r"|Eigh|Qr|ProductOfElementaryHouseholderReflectors|LuDecomposition|ApproxTopK|AllocateBuffer"
    r"|Sharding|SPMDFullToShardShape|SPMDShardToFullShape|annotate_device_placement"
    r"|stablehlo\.dynamic_(approx_top_k|reduce_window|rng_bit_generator|top_k)|shape_assertion"
)


class Artefact(NamedTuple):
    """A policy's program and what it takes and returns, for n environments.

    Attributes:
      call: (params, carry, obs_history, seed) -> (chunk, carry), each array with n rows.
      params: pytree of the parameters' shapes and dtypes; empty if the program contains them.
      carry: shape and dtype of each array of one environment's memory.
      obs_shape: (obs_horizon, obs_dim).
      chunk_shape: shape of one environment's chunk, (act_horizon, act_dim) or (act_dim,).
      platforms: the JAX platforms that the program was made for, such as "cpu".
    """

    call: Callable[..., tuple[jax.Array, Any]]
    params: Any
    carry: tuple[jax.ShapeDtypeStruct, ...]
    obs_shape: tuple[int, int]
    chunk_shape: tuple[int, ...]
    platforms: tuple[str, ...]


def read_policy(path: Path) -> Artefact:
    """Reads a policy's program and checks what it takes and returns; compiles nothing.

    Args:
      path: the file. Its program maps obs_history (n, obs_horizon, obs_dim) to a chunk, alone or
        first in a tuple, for any n; or it is one that `exported.export_policy` wrote.

    Raises:
      ConfigError: see `read`; or the program has another signature, or takes only some numbers n.
    """
    program = read(path)
    arguments, named = jax.tree.unflatten(program.in_tree, program.in_avals)
    if named or len(arguments) not in (1, 4):
        raise ConfigError(
            f"{path} takes {len(arguments) + len(named)} inputs, expected one, obs_history"
            " (n, obs_horizon, obs_dim), or the four that pdjax.export_policy writes"
        )
    obs = arguments[0] if len(arguments) == 1 else arguments[2]
    shape, dtype = getattr(obs, "shape", ()), getattr(obs, "dtype", None)
    if len(shape) != 3 or dtype != jnp.float32 or not all(map(_is_size, shape[1:])):
        raise ConfigError(
            f"{path} takes obs_history of shape {short(shape)} and dtype {dtype}, expected"
            " (n, obs_horizon, obs_dim) and float32"
        )
    if not str(shape[0]).isidentifier():
        raise ConfigError(
            f"{path} only takes a batch of {short(shape[0])}; export it with a symbolic first"
            ' dimension (jax.export.symbolic_shape("n"))'
        )
    output = jax.tree.unflatten(program.out_tree, program.out_avals)
    chunk = _row(path, _first(output), shape[0], "a chunk")
    if len(chunk.shape) not in (1, 2) or not jnp.issubdtype(chunk.dtype, jnp.floating):
        raise ConfigError(
            f"{path} returns chunks of shape {chunk.shape} and dtype {chunk.dtype}, expected"
            " (act_horizon, act_dim) or (act_dim,), floating"
        )
    params, carry = (), ()
    call: Callable[..., Any] = partial(_call_alone, program)
    if len(arguments) == 4:
        params, call = arguments[0], program.call
        carry = _memory(path, arguments, output, shape[0])
        if not all(_is_size(size) for leaf in jax.tree.leaves(params) for size in leaf.shape):
            raise ConfigError(f"{path} takes parameters of no fixed shape; export it again")
    check_fits(sum(map(_size, [*jax.tree.leaves(params), chunk, *carry])), f"{path}: its arrays")
    sizes = (shape[1], shape[2]), chunk.shape
    return Artefact(call, params, carry, *sizes, tuple(program.platforms))


def read(path: Path) -> export.Exported:
    """Reads an artefact; compiles nothing.

    Raises:
      ConfigError: the file is no artefact, was made for several devices, or may call what it must
        not.
    """
    content = read_bytes(path, "the artefact", MOST_BYTES)
    try:
        program = export.deserialize(bytearray(content))
        context: Any = mlir.make_ir_context()
        with context, context.attach_diagnostic_handler(lambda _: True):  # else MLIR prints
            module = stablehlo.deserialize_portable_artifact(
                context, program.mlir_module_serialized
            )
            refused = _refused(module.operation)
    except Exception as error:  # a damaged file raises many types of errors
        raise ConfigError(
            f"{path} is not a jax.export artefact that this JAX can read: {words(error)}"
        ) from None
    if refused:
        raise ConfigError(
            f"{path} may not be run: it contains {short(', '.join(refused))}, which can reach"
            " beyond the program; export a policy of plain JAX operations"
        )
    if program.nr_devices != 1 or program.ordered_effects or program.unordered_effects:
        raise ConfigError(
            f"{path} needs {program.nr_devices} device(s) and has effects"
            f" {short(program.ordered_effects + program.unordered_effects)}; export a pure function"
            " for one device"
        )
    return program


def _refused(module: ir.Operation) -> list[str]:
    """Returns the operations and targets of custom calls in a module that pdjax does not run."""
    found = set()

    def look(operation: ir.Operation) -> ir.WalkResult:
        name = operation.name
        if name == "stablehlo.custom_call":
            target = ir.StringAttr(operation.attributes["call_target_name"]).value
            if not CALLS.fullmatch(target):
                found.add(f"a call of {target}")
        elif name.partition(".")[0] not in DIALECTS or name in TALKING:
            found.add(name)
        return ir.WalkResult.ADVANCE

    module.walk(look)
    return sorted(found)


def _call_alone(program: export.Exported, params: Any, carry: Any, obs: Any, seed: Any) -> Any:
    """Calls a program of the observations alone in the form that `Artefact.call` has."""
    del params, seed
    return _first(program.call(obs)), carry


def _first(output: Any) -> Any:
    """Returns the chunk among a program's outputs: first of a tuple, or alone in a dict."""
    while isinstance(output, list | tuple) and output:
        output = output[0]
    if isinstance(output, dict) and len(output) == 1:
        (output,) = output.values()
    return output


def _row(path: Path, found: Any, n: Any, what: str) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of one environment's row of an array with n rows."""
    shape = getattr(found, "shape", None)
    if shape is None:
        raise ConfigError(
            f"{path} returns {short(found)} for {what}, expected one array with n rows; return the"
            " chunk of actions alone or first in a tuple"
        )
    if not shape or shape[0] != n or not all(map(_is_size, shape[1:])):
        raise ConfigError(
            f"{path} has {what} of shape {short(shape)} for all environments, expected"
            f" ({n}, ...) with fixed sizes; keep the first axis of obs_history"
        )
    return jax.ShapeDtypeStruct(shape[1:], found.dtype)


def _memory(path: Path, arguments: Any, output: Any, n: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Checks the memory and the seed of a program with four inputs; returns the memory's rows."""
    is_pair = isinstance(output, tuple) and len(output) == 2
    before, after = arguments[1], output[1] if is_pair else None
    facts = lambda tree: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]  # noqa: E731
    seed = arguments[3]
    if jax.tree.structure(before) != jax.tree.structure(after) or facts(before) != facts(after):
        raise ConfigError(f"{path} does not return the memory that it takes; export it again")
    if facts(seed) != [((n, 2), jnp.uint32)]:
        raise ConfigError(f"{path} takes a seed {short(facts(seed))}, expected (n, 2) uint32")
    return tuple(_row(path, leaf, n, "memory") for leaf in jax.tree.leaves(before))


def _is_size(size: Any) -> bool:
    return isinstance(size, int) and size > 0


def _size(leaf: Any) -> int:
    return math.prod(leaf.shape) * leaf.dtype.itemsize
