"""Writes and reads base policies as `jax.export` artefacts: programs in files, without Python code.

JAX cannot vmap an artefact, so an artefact takes a whole batch, whose first axis has no fixed size;
`load` passes it the batch that `jax.vmap` collects. A directory holds `policy.jaxexport`, `params/`
(an Orbax checkpoint) and, if the policy has a carry, `init_carry.jaxexport`. This file is not pure:
it reads and writes files.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export
from jax.custom_batching import custom_vmap

from pdjax.base_policies.foreign import artefact, description, host
from pdjax.base_policies.foreign.description import Description
from pdjax.base_policies.foreign.user_code import guard, words
from pdjax.config.options import ConfigError
from pdjax.output import checkpoint
from pdjax.output.paths import whole_directory
from pdjax.types import BasePolicy, Params
from pdjax_envs.reading import short

POLICY, INIT_CARRY, PARAMS = "policy.jaxexport", artefact.INIT_CARRY, "params"
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
    base: BasePolicy,
    directory: Path,
    task: str,
    platforms: tuple[str, ...] = PLATFORMS,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes a JAX policy to a directory that `base_policy.path` accepts.

    One artefact serves any number of environments. `load.load_base` reads the directory back as a
    policy with the same actions, sizes and statistics.

    Args:
      base: the policy.
      directory: the directory to write, new or empty.
      task: name of the policy's task.
      platforms: the JAX platforms that the artefact must run on.
      texts: more files for the directory, by name.

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
        raise ConfigError(
            f"the policy cannot be exported: {words(error)}; put its Python code into a file and"
            " use `pdjax wrap`"
        ) from None
    about = Description(
        kind="export",
        task=task,
        obs_dim=base.obs_dim,
        act_dim=base.act_dim,
        obs_horizon=base.obs_horizon,
        act_horizon=base.act_horizon,
        obs_mean=tuple(map(float, base.obs_mean)),
        obs_std=tuple(map(float, base.obs_std)),
    )
    with whole_directory(directory) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        for name, text in texts.items():
            (folder / name).write_text(text)
        if params:
            checkpoint.save(folder / PARAMS, tuple(params))
        description.write(folder, about)


def load(path: Path) -> Loaded:
    """Reads an artefact.

    Args:
      path: the file, see `artefact.read_policy`; `params/` and `init_carry.jaxexport` of
        `export_policy` lie beside it.

    Raises:
      ConfigError: the file is not an artefact that pdjax runs, or its memory does not fit.
      checkpoint.CheckpointError: the parameters are missing or do not fit.
    """
    policy = artefact.read_policy(path)
    backend = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if backend not in policy.platforms:
        raise ConfigError(
            f"{path} was exported for {short(', '.join(policy.platforms))}, but this process runs"
            f" on {backend}; export it with platforms=({backend!r},)"
        )
    params = checkpoint.restore(path.parent / PARAMS, policy.params) if policy.params else ()
    call = _batched(policy.call)

    def apply(params, carry, obs_history, key):
        chunk, carry = call(params, carry, obs_history, jax.random.key_data(key))
        return chunk.astype(jnp.float32), carry

    start = lambda key: ()  # noqa: E731
    if policy.carry:
        first = artefact.read(path.parent / INIT_CARRY)
        begin = _batched(lambda params, seed: first.call(seed))
        start = lambda key: begin((), jax.random.key_data(key))  # noqa: E731
        _check_start(path.parent / INIT_CARRY, start, policy.carry)
    return Loaded(start, apply, params, policy.obs_shape, policy.chunk_shape)


def _check_start(path: Path, start: Callable[..., Any], carry: tuple[Any, ...]) -> None:
    """Checks that a program returns the memory that the policy takes."""
    key = jax.eval_shape(jax.random.key, 0)
    found = guard(lambda: jax.eval_shape(start, key), f"tracing {path}")
    if [(x.shape, x.dtype) for x in jax.tree.leaves(found)] != [(x.shape, x.dtype) for x in carry]:
        raise ConfigError(f"{path} returns another memory than the policy takes; export it again")


def _batched(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turns a function of (params, *batches) into one of (params, *rows) that `vmap` can batch.

    Under `vmap`, even nested, all rows arrive in one batch.
    """

    @custom_vmap
    def many(params, *batches):
        return function(params, *batches)

    @many.def_vmap
    def _rule(size, in_batched, params, *batches):
        if any(jax.tree.leaves(in_batched[0])):
            raise NotImplementedError(
                "an artefact takes one set of parameters; do not vmap over the parameters"
            )

        spread = lambda x, is_batch: x if is_batch else jnp.broadcast_to(x, (size, *x.shape))  # noqa: E731
        batches = jax.tree.map(spread, batches, tuple(in_batched[1:]))
        lead = jax.tree.leaves(batches)[0].shape[:2]  # sizes may be symbols
        flat = jax.tree.map(lambda x: x.reshape(lead[0] * lead[1], *x.shape[2:]), batches)
        result = many(params, *flat)
        nested = jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), result)
        return nested, jax.tree.map(lambda _: True, nested)

    def call(params, *rows):
        result = many(params, *jax.tree.map(lambda x: x[None], rows))
        return jax.tree.map(lambda x: x[0], result)

    return call
