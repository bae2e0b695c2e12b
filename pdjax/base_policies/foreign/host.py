"""Policies that compute outside JAX (NumPy, torch), called from inside jitted programs.

One call of the host serves all environments. The host side never runs a JAX computation: on a CPU
that would wait for the program that waits for it. Holds no state: what a policy remembers is its
carry, which travels through the program and is reset with its environment.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from pdjax.config.schema import ConfigError
from pdjax.types import Array, BasePolicy, Key

CALLBACK = re.compile(r"\b(pure|io|buffer|debug)_callback\[")  # as programs print these operations


class HostPolicy(NamedTuple):
    """A policy with memory as two NumPy functions.

    Attributes:
      init_carry: () -> pytree of arrays, what one environment's policy remembers at the start of
        an episode.
      act: (carry, obs_history, seed) -> (chunk, carry), for all environments at once.
        carry: as from `init_carry`, each array with a leading num_envs axis.
        obs_history: (num_envs, obs_horizon, obs_dim) float32, oldest first.
        seed: (num_envs,) uint32, fresh in each decision; the only source of randomness, or else
          paired evaluation is not paired.
        chunk: (num_envs, act_horizon, act_dim), or (num_envs, act_dim) for a chunk of one.
    """

    init_carry: Callable[[], Any]
    act: Callable[[Any, np.ndarray, np.ndarray], tuple[np.ndarray, Any]]


def without_memory(function: Callable[[np.ndarray], Any]) -> HostPolicy:
    """A policy from obs_history (num_envs, obs_horizon, obs_dim) -> chunk."""
    return HostPolicy(tuple, lambda carry, obs_history, seed: (function(obs_history), carry))


def from_torch(module: Any, device: str) -> HostPolicy:
    """A torch.nn.Module or TorchScript module as a policy without memory.

    Args:
      module: float32 obs_history (num_envs, obs_horizon, obs_dim) -> chunk.
      device: where it computes, `cpu` or `cuda`.

    Raises:
      ConfigError: torch cannot use the device.
    """
    import torch  # pyright: ignore[reportMissingImports]

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch finds no GPU here; set device to cpu")
    module = module.to(device).eval()

    def function(obs_history: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(obs_history).to(device)).cpu().numpy()

    return without_memory(function)


def probe(policy: HostPolicy, obs_shape: tuple[int, int]) -> tuple[int, ...]:
    """Calls a policy once outside any program; returns the shape of one environment's chunk.

    Args:
      policy: to be tried on two environments that observe zeros.
      obs_shape: (obs_horizon, obs_dim).

    Raises:
      ConfigError: it fails, or its result is no finite chunk and carry for two environments.
    """
    start = jax.tree.map(np.asarray, policy.init_carry())
    carry = jax.tree.map(lambda x: np.stack([x, x]), start)
    obs_history = np.zeros((2, *obs_shape), np.float32)
    shown = f"on 2 observation histories {obs_history.shape}"
    try:
        chunk, after = policy.act(carry, obs_history, np.zeros(2, np.uint32))
        is_jax = isinstance(chunk, jax.Array)
        chunk = np.asarray(chunk, np.float32)
        after = jax.tree.map(np.asarray, after)
    except Exception as error:  # whatever the user's code raises
        raise ConfigError(
            f"the policy failed {shown}: {type(error).__name__}: {error}; mend it, or give the"
            " --obs-horizon that it reads"
        ) from None
    if is_jax:
        raise ConfigError(
            "the policy computes with JAX while it is called through the host, where it would wait"
            " for the program that waits for it; write it so that JAX can trace it (init_carry and"
            " apply), or compute with NumPy alone"
        )
    if chunk.ndim not in (2, 3) or len(chunk) != 2:
        raise ConfigError(
            f"the policy gave an array of shape {chunk.shape} {shown}, expected"
            " (2, act_horizon, act_dim) or (2, act_dim)"
        )
    if not np.isfinite(chunk).all():
        raise ConfigError(f"the policy gave NaN or infinite actions {shown}; mend it")
    if _shapes(after) != _shapes(carry):
        raise ConfigError(
            f"the policy gave a carry of {_shapes(after)}, expected {_shapes(carry)} as it got"
        )
    return chunk.shape[1:]


def _shapes(carry: Any) -> str:
    return str(jax.tree.map(np.shape, carry))


def make_functions(policy: HostPolicy, chunk_shape: tuple[int, ...]):
    """(init_carry, apply) of `types.BasePolicy`, with no parameters.

    Args:
      policy: the host's.
      chunk_shape: as `probe` found it.
    """
    start = jax.tree.map(_representable, policy.init_carry())
    leaves, tree = jax.tree.flatten(start)
    results = [jax.ShapeDtypeStruct(chunk_shape, jnp.float32)]
    results += [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]

    def act(obs_history: np.ndarray, seed: np.ndarray, *carry: np.ndarray) -> list[np.ndarray]:
        chunk, after = policy.act(tree.unflatten(carry), obs_history, seed)
        return [np.asarray(chunk), *map(np.asarray, tree.flatten_up_to(after))]

    call = _as_jax(act, results)

    def init_carry(key: Key):
        del key
        return jax.tree.map(jnp.asarray, start)

    def apply(params: Any, carry: Any, obs_history: Array, key: Key):
        del params
        seed = jax.random.bits(key, (), jnp.uint32)
        chunk, *after = call(obs_history, seed, *tree.flatten_up_to(carry))
        return chunk, tree.unflatten(after)

    return init_carry, apply


def through_host(base: BasePolicy) -> bool:
    """Whether a policy computes outside the jitted program."""
    key = jax.random.key(0)
    carry = base.init_carry(jax.random.clone(key))
    history = jnp.zeros((base.obs_horizon, base.obs_dim))
    program = jax.make_jaxpr(base.apply)(base.params, carry, history, key)
    return CALLBACK.search(str(program)) is not None


def _representable(leaf: Any) -> np.ndarray:
    """With 32 bits where JAX has no 64."""
    leaf = np.asarray(leaf)
    return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype))


def _as_jax(function: Callable[..., list[np.ndarray]], results: list[jax.ShapeDtypeStruct]):
    """A host function over a batch as a JAX function of one environment that `vmap` batches.

    The second input is a scalar of each environment: its shape is that of the batch.
    """

    def in_place(_, outputs, *inputs):
        lead = inputs[1].shape
        count = math.prod(lead)
        # Copies: XLA's own memory is valid during this call only, and a policy may keep its input.
        flat = [np.asarray(x).copy().reshape(count, *x.shape[len(lead) :]) for x in inputs]
        for out, value in zip(outputs, function(*flat), strict=True):
            out = np.asarray(out)
            out[...] = value.reshape(out.shape)  # a wrong size is an error here

    def by_value(*inputs):
        inputs = [np.asarray(x) for x in inputs]
        lead = inputs[1].shape
        outputs = [np.empty(lead + result.shape, result.dtype) for result in results]
        in_place(None, outputs, *inputs)
        return outputs

    # As in `pdjax_envs.physics.native`: on a CPU the host reads and writes XLA's buffers itself.
    if jax.default_backend() == "cpu":
        return buffer_callback(in_place, results, vmap_method="broadcast_all")
    return lambda *inputs: jax.pure_callback(
        by_value, results, *inputs, vmap_method="broadcast_all"
    )
