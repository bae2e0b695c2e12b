"""Calls policies that compute outside JAX (NumPy, torch) from inside jitted programs.

One call to the host serves all environments. The host side must not run JAX: on a CPU, it would
wait for the program, which waits for it. This file holds no state: a policy's memory is its carry,
which passes through the program and is reset together with its environment.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from pdjax.config.options import ConfigError
from pdjax.types import Array, BasePolicy, Key

CALLBACK = re.compile(r"\b(pure|io|buffer|debug)_callback\[")  # as printed jaxprs show them


class HostPolicy(NamedTuple):
    """A policy with memory, given as two NumPy functions.

    Attributes:
      init_carry: () -> pytree of arrays, the policy's memory for one environment at the start of
        an episode.
      act: (carry, obs_history, seed) -> (chunk, carry), for all environments at once.
        carry: the pytree of `init_carry`, each array with a leading num_envs axis.
        obs_history: (num_envs, obs_horizon, obs_dim) float32, oldest first.
        seed: (num_envs,) uint32, new in every decision. It must be the only source of randomness;
          otherwise the base policy and the refined policy do not play the same episodes.
        chunk: (num_envs, act_horizon, act_dim), or (num_envs, act_dim) for a chunk of one.
    """

    init_carry: Callable[[], Any]
    act: Callable[[Any, np.ndarray, np.ndarray], tuple[np.ndarray, Any]]


def without_memory(function: Callable[[np.ndarray], Any]) -> HostPolicy:
    """Makes a policy of a function obs_history (num_envs, obs_horizon, obs_dim) -> chunk."""
    return HostPolicy(tuple, lambda carry, obs_history, seed: (function(obs_history), carry))


def from_torch(module: Any, device: str) -> HostPolicy:
    """Makes a policy without memory of a torch.nn.Module or TorchScript module.

    Args:
      module: maps float32 obs_history (num_envs, obs_horizon, obs_dim) to chunks.
      device: where the module computes, `cpu` or `cuda`.

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
    """Calls a policy once, outside any program, for two environments whose observations are zeros.

    Args:
      policy: the policy to try.
      obs_shape: (obs_horizon, obs_dim).

    Returns:
      The shape of one environment's chunk, (act_horizon, act_dim) or (act_dim,).

    Raises:
      ConfigError: the policy fails, or does not return a finite chunk and a carry of the same
        shapes for two environments.
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
            f"the policy failed {shown}: {type(error).__name__}: {error}; fix the policy, or set"
            " obs_horizon (--obs-horizon) to the number of observations that it reads"
        ) from None
    if is_jax:
        raise ConfigError(
            "the policy is called through the host but computes with JAX, which can wait forever"
            " for the program that calls it; write it so that JAX can trace it (init_carry and"
            " apply), or use NumPy only"
        )
    if chunk.ndim not in (2, 3) or len(chunk) != 2:
        raise ConfigError(
            f"the policy returned an array of shape {chunk.shape} {shown}, expected"
            " (2, act_horizon, act_dim) or (2, act_dim)"
        )
    if not np.isfinite(chunk).all():
        raise ConfigError(f"the policy returned NaN or infinite actions {shown}; fix the policy")
    if _shapes(after) != _shapes(carry):
        raise ConfigError(
            f"the policy returned a carry of shapes {_shapes(after)}, expected {_shapes(carry)},"
            " the shapes that it was given"
        )
    return chunk.shape[1:]


def _shapes(carry: Any) -> str:
    return str(jax.tree.map(np.shape, carry))


def make_functions(policy: HostPolicy, chunk_shape: tuple[int, ...]):
    """Builds `init_carry` and `apply` of `types.BasePolicy` for a policy without parameters.

    Args:
      policy: a policy that is called through the host.
      chunk_shape: the shape that `probe` returned.
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
    """Returns whether a policy computes outside the jitted program."""
    key = jax.random.key(0)
    carry = base.init_carry(jax.random.clone(key))
    history = jnp.zeros((base.obs_horizon, base.obs_dim))
    program = jax.make_jaxpr(base.apply)(base.params, carry, history, key)
    return CALLBACK.search(str(program)) is not None


def _representable(leaf: Any) -> np.ndarray:
    """Converts 64-bit numbers to 32 bits, unless JAX is set to 64 bits."""
    leaf = np.asarray(leaf)
    return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype))


def _as_jax(function: Callable[..., list[np.ndarray]], results: list[jax.ShapeDtypeStruct]):
    """Turns a host function over a batch into a JAX function of one environment, for `vmap`.

    The second input is one scalar for each environment, so its shape is the shape of the batch.
    """

    def in_place(_, outputs, *inputs):
        lead = inputs[1].shape
        count = math.prod(lead)
        # Copies, because XLA's memory is valid only during this call, and a policy may keep inputs.
        flat = [np.asarray(x).copy().reshape(count, *x.shape[len(lead) :]) for x in inputs]
        for out, value in zip(outputs, function(*flat), strict=True):
            out = np.asarray(out)
            out[...] = value.reshape(out.shape)  # raises an error if the size is wrong

    def by_value(*inputs):
        inputs = [np.asarray(x) for x in inputs]
        lead = inputs[1].shape
        outputs = [np.empty(lead + result.shape, result.dtype) for result in results]
        in_place(None, outputs, *inputs)
        return outputs

    # On a CPU, the host reads and writes XLA's buffers directly, as in `pdjax_envs.physics.native`.
    if jax.default_backend() == "cpu":
        return buffer_callback(in_place, results, vmap_method="broadcast_all")
    return lambda *inputs: jax.pure_callback(
        by_value, results, *inputs, vmap_method="broadcast_all"
    )
