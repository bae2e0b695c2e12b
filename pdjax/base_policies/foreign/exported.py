"""Writes and reads base policies as `jax.export` artefacts: programs in files, without Python code.

JAX cannot vmap an artefact, so an artefact takes a whole batch, whose first axis has no fixed size;
`load` passes it the batch that `jax.vmap` collects. A directory holds `policy.jaxexport`, `params/`
(an Orbax checkpoint) and, if the policy has a carry, `init_carry.jaxexport`. This file is not pure:
it reads and writes files.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export
from jax.custom_batching import custom_vmap

from pdjax.base_policies.foreign import description, host
from pdjax.base_policies.foreign.description import Description
from pdjax.config.options import ConfigError
from pdjax.output import checkpoint
from pdjax.output.paths import new_directory
from pdjax.types import BasePolicy, Params

POLICY, INIT_CARRY, PARAMS = "policy.jaxexport", "init_carry.jaxexport", "params"
PLATFORMS = ("cpu", "cuda", "tpu")


class Loaded(NamedTuple):
    """An artefact in the form that `types.BasePolicy` needs.

    Attributes:
      init_carry: see `BasePolicy`.
      apply: see `BasePolicy`; its actions are not clipped yet.
      params: the parameters; () if the artefact contains them.
      obs_shape: (obs_horizon, obs_dim).
      chunk_shape: shape of one environment's chunk.
    """

    init_carry: Callable[..., Any]
    apply: Callable[..., tuple[Any, Any]]
    params: Params
    obs_shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]


def export_policy(
    base: BasePolicy, directory: Path, task: str, platforms: tuple[str, ...] = PLATFORMS
) -> None:
    """Writes a JAX policy to a directory that `base_policy.path` accepts.

    One artefact serves any number of environments. `load.load_base` reads the directory back as a
    policy with the same actions, sizes and statistics.

    Args:
      base: the policy.
      directory: the directory to write, new or empty.
      task: name of the policy's task.
      platforms: the JAX platforms that the artefact must run on.

    Raises:
      ConfigError: the directory is not empty, or the policy cannot be exported because it is called
        through the host or uses an operation that a platform lacks.
    """
    if host.through_host(base):
        raise ConfigError(
            "the policy is called through the host (NumPy, torch), so no file of a program can hold"
            " it; write it in JAX, or put its Python code into a file and use `pdjax wrap`"
        )
    num_envs = export.symbolic_shape("num_envs")[0]
    params = [jnp.asarray(leaf) for leaf in jax.tree.leaves(base.params)]
    carry, tree = jax.tree.flatten(jax.eval_shape(base.init_carry, jax.random.key(0)))
    params_tree = jax.tree.structure(base.params)

    def apply(params, carry, obs_history, seed):
        def one(carry, obs_history, seed):
            key = jax.random.wrap_key_data(seed)
            chunk, after = base.apply(
                params_tree.unflatten(params), tree.unflatten(carry), obs_history, key
            )
            return chunk, tuple(tree.flatten_up_to(after))

        return jax.vmap(one)(carry, obs_history, seed)

    def init_carry(seed):
        start = lambda seed: base.init_carry(jax.random.wrap_key_data(seed))  # noqa: E731
        return tuple(jax.tree.leaves(jax.vmap(start)(seed)))

    batch = lambda shape, dtype: jax.ShapeDtypeStruct((num_envs, *shape), dtype)  # noqa: E731
    seed = batch((2,), jnp.uint32)
    inputs = (
        tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in params),
        tuple(batch(leaf.shape, leaf.dtype) for leaf in carry),
        batch((base.obs_horizon, base.obs_dim), jnp.float32),
        seed,
    )
    try:
        files = {POLICY: export.export(jax.jit(apply), platforms=platforms)(*inputs).serialize()}
        if carry:
            start = export.export(jax.jit(init_carry), platforms=platforms)(seed)
            files[INIT_CARRY] = start.serialize()
    except Exception as error:  # JAX raises many types of errors for what it cannot export
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ConfigError(
            f"the policy cannot be exported: {first}; put its Python code into a file and use"
            " `pdjax wrap`"
        ) from None
    new_directory(directory)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    if params:
        checkpoint.save(directory / PARAMS, tuple(params))
    description.write(
        directory,
        Description(
            kind="export",
            task=task,
            obs_dim=base.obs_dim,
            act_dim=base.act_dim,
            obs_horizon=base.obs_horizon,
            act_horizon=base.act_horizon,
            obs_mean=tuple(map(float, base.obs_mean)),
            obs_std=tuple(map(float, base.obs_std)),
        ),
    )


def load(path: Path) -> Loaded:
    """Reads an artefact.

    Args:
      path: the file. Its program maps obs_history (n, obs_horizon, obs_dim) to a chunk for any n,
        or is one that `export_policy` wrote, with `params/` and `init_carry.jaxexport` beside it.

    Raises:
      ConfigError: the file is not an artefact, or its program has another signature, a fixed batch
        size, or was exported for other platforms.
      checkpoint.CheckpointError: the parameters are missing or do not fit.
    """
    program = _read(path)
    arguments, named = jax.tree.unflatten(program.in_tree, program.in_avals)
    if named or len(arguments) not in (1, 4) or not hasattr(arguments[-1], "shape"):
        raise ConfigError(
            f"{path} takes {len(arguments) + len(named)} inputs, expected one, obs_history"
            " (n, obs_horizon, obs_dim), or the four that pdjax.export_policy writes"
        )
    obs = arguments[0] if len(arguments) == 1 else arguments[2]
    shape, dtype = getattr(obs, "shape", ()), getattr(obs, "dtype", None)
    if len(shape) != 3 or dtype != jnp.float32:
        raise ConfigError(
            f"{path} takes obs_history of shape {shape} and dtype {dtype}, expected"
            " (n, obs_horizon, obs_dim) and float32"
        )
    if not export.is_symbolic_dim(shape[0]):
        raise ConfigError(
            f"{path} only takes a batch of {shape[0]}; export it with a symbolic first dimension"
            ' (jax.export.symbolic_shape("n"))'
        )
    chunk_shape = tuple(program.out_avals[0].shape[1:])
    if len(arguments) == 1:
        call = _batched(lambda params, obs_history: program.call(obs_history))
        apply = lambda params, carry, obs_history, key: (call((), obs_history), carry)  # noqa: E731
        return Loaded(lambda key: (), apply, (), shape[1:], chunk_shape)
    params = checkpoint.restore(path.parent / PARAMS, arguments[0]) if arguments[0] else ()
    call = _batched(program.call)

    def apply_all(params, carry, obs_history, key):
        return call(params, carry, obs_history, jax.random.key_data(key))

    start = lambda key: ()  # noqa: E731
    if arguments[1]:
        first = _read(path.parent / INIT_CARRY)
        begin = _batched(lambda params, seed: first.call(seed))
        start = lambda key: begin((), jax.random.key_data(key))  # noqa: E731
    return Loaded(start, apply_all, params, shape[1:], chunk_shape)


def _read(path: Path) -> export.Exported:
    try:
        program = export.deserialize(bytearray(path.read_bytes()))
    except OSError as error:
        raise ConfigError(f"no artefact at {path}: {error.strerror}") from None
    except Exception:  # a damaged file raises many types of errors
        raise ConfigError(
            f"{path} is not a jax.export artefact; write one with pdjax.export_policy"
        ) from None
    backend = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if backend not in program.platforms:
        raise ConfigError(
            f"{path} was exported for {', '.join(program.platforms)}, but this process runs on"
            f" {backend}; export it with platforms=({backend!r},)"
        )
    return program


def _batched(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turns a function of (params, *batches) into one of (params, *rows) that `vmap` can batch."""

    @custom_vmap
    def call(params, *rows):
        result = function(params, *jax.tree.map(lambda x: x[None], rows))
        return jax.tree.map(lambda x: x[0], result)

    @call.def_vmap
    def _rule(size, in_batched, params, *rows):
        if any(jax.tree.leaves(in_batched[0])):
            raise NotImplementedError(
                "an artefact takes one set of parameters; do not vmap over the parameters"
            )
        spread = lambda x, is_batch: x if is_batch else jnp.broadcast_to(x, (size, *x.shape))  # noqa: E731
        result = function(params, *jax.tree.map(spread, rows, tuple(in_batched[1:])))
        return result, jax.tree.map(lambda _: True, result)

    return call
