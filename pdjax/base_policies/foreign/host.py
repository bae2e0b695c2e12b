"""Calls policies that compute outside JAX (NumPy, torch) from inside jitted programs.

One call to the host serves all environments. The host side must not run JAX: on a CPU, it would
wait for the program, which waits for it. This file holds no state: a policy's memory is its carry,
which passes through the program and is reset together with its environment.
"""

import math
import re
from collections.abc import Callable, Sized
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.buffer_callback import buffer_callback

from pdjax.base_policies.foreign import user_code
from pdjax.base_policies.foreign.user_code import guard
from pdjax.config.options import ConfigError
from pdjax.types import Array, BasePolicy, Key
from pdjax_envs.reading import check_fits, short

# Numbers of environments; an axis of steps in the first place fits one of them only.
PROBED = (2, 3)
SAME = 1e-4  # largest difference between two answers to the same question
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
            chunk = module(torch.from_numpy(obs_history).to(device))
        if not isinstance(chunk, torch.Tensor):
            size = f" of {len(chunk)}" if isinstance(chunk, Sized) else ""
            raise TypeError(
                f"returned a {type(chunk).__name__}{size}, expected one tensor, actions"
            )
        return chunk.float().cpu().numpy()

    return without_memory(function)


def probe(policy: HostPolicy, obs_shape: tuple[int, int]) -> tuple[int, ...]:
    """Calls a policy outside any program: two numbers of environments, each twice, on zeros.

    Args:
      policy: the policy to try.
      obs_shape: (obs_horizon, obs_dim).

    Returns:
      The shape of one environment's chunk, (act_horizon, act_dim) or (act_dim,).

    Raises:
      ConfigError: the policy fails, answers the same inputs and seeds differently, or does not
        return a finite chunk for each environment and a carry of the shapes that it was given.
    """
    start = _first_carry(policy)
    answers = [_answer(policy, start, obs_shape, count) for count in PROBED for _ in range(2)]
    for chunk, again in (answers[:2], answers[2:]):
        if not np.allclose(chunk, again, atol=SAME, rtol=SAME):
            raise ConfigError(
                "the policy answers the same observations and seeds differently: it has memory"
                " outside its carry or draws its own random numbers; write an object whose act"
                " keeps memory in the carry and draws from seed alone"
            )
    return answers[0].shape[1:]


def check_memory(carry: Any, what: str) -> None:
    """Checks that a policy's memory fits into ours, for the environments that try it.

    Args:
      carry: the memory of one environment, a pytree of arrays or of their shapes.
      what: what made it, to begin the error message.

    Raises:
      InputError: it does not fit.
    """
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(carry))
    copies = 2 * max(PROBED)  # before and after a call
    check_fits(copies * size, f"the policy's memory from {what}, for {max(PROBED)} environments,")


def _first_carry(policy: HostPolicy) -> Any:
    """Returns the policy's memory at the start of an episode, as JAX can hold it."""
    own = guard(lambda: jax.tree.map(np.asarray, policy.init_carry()), "init_carry()")
    check_memory(own, "init_carry()")
    start = guard(lambda: jax.tree.map(_representable, own), "init_carry()")
    for leaf in jax.tree.leaves(start):
        if leaf.dtype.kind not in "biufc":
            raise ConfigError(
                f"init_carry() returned {short(leaf)} of dtype {leaf.dtype}, expected a pytree of"
                " arrays of numbers"
            )
    return start


def _answer(policy: HostPolicy, start: Any, obs_shape: tuple[int, int], count: int) -> np.ndarray:
    """Returns the checked chunks (count, ...) that a policy returns on observations of zeros."""
    carry = jax.tree.map(lambda x: np.stack([x] * count), start)
    obs_history = np.zeros((count, *obs_shape), np.float32)
    shown = f"on {count} observation histories {obs_history.shape}"

    def ask():
        answer = policy.act(carry, obs_history, np.zeros(count, np.uint32))
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise TypeError(f"act returned a {type(answer).__name__}, expected (chunk, carry)")
        chunk, after = answer
        return isinstance(chunk, jax.Array), _numbers(chunk), jax.tree.map(np.asarray, after)

    try:
        is_jax, chunk, after = guard(ask, f"the policy, {shown},")
    except ConfigError as error:
        raise ConfigError(
            f"{error}; fix it, or set obs_horizon (--obs-horizon) to the observations that it reads"
        ) from None
    if is_jax:
        raise ConfigError(
            "the policy is called through the host but computes with JAX, which can wait forever"
            " for the program that calls it; write it so that JAX can trace it (init_carry and"
            " apply), or use NumPy only"
        )
    if chunk.ndim not in (2, 3) or len(chunk) != count or 0 in chunk.shape:
        raise ConfigError(
            f"the policy returned an array of shape {chunk.shape} {shown}, expected"
            f" ({count}, act_horizon, act_dim) or ({count}, act_dim)"
        )
    if not np.isfinite(chunk).all():
        raise ConfigError(f"the policy returned NaN or infinite actions {shown}; fix the policy")
    if _shapes(after) != _shapes(carry):
        raise ConfigError(
            f"the policy returned a carry of shapes {_shapes(after)}, expected {_shapes(carry)},"
            " the shapes that it was given"
        )
    return chunk


def _numbers(chunk: Any) -> np.ndarray:
    """Converts what a policy returned to float32.

    Raises:
      TypeError: it is no array of real numbers.
    """
    if isinstance(chunk, (tuple, dict)):
        raise TypeError(
            f"returned a {type(chunk).__name__} of {len(chunk)}, expected one array, the actions"
        )
    chunk = np.asarray(chunk)
    if chunk.dtype.kind not in "biuf":
        raise TypeError(f"returned an array of dtype {chunk.dtype}, expected numbers")
    return chunk.astype(np.float32)


def _shapes(carry: Any) -> str:
    return short(jax.tree.map(np.shape, carry))


def make_functions(policy: HostPolicy, chunk_shape: tuple[int, ...]):
    """Builds `init_carry` and `apply` of `types.BasePolicy` for a policy without parameters.

    Args:
      policy: a policy that is called through the host.
      chunk_shape: the shape that `probe` returned.
    """
    start = _first_carry(policy)
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

    def fill(outputs, *inputs):
        lead = inputs[1].shape
        count = math.prod(lead)
        # Copies, because XLA's memory is valid only during this call, and a policy may keep inputs.
        flat = [np.asarray(x).copy().reshape(count, *x.shape[len(lead) :]) for x in inputs]
        found = function(*flat)
        for out, value, result in zip(outputs, found, results, strict=True):
            if value.shape != (count, *result.shape):
                raise ValueError(
                    f"returned an array of shape {value.shape}, expected {(count, *result.shape)}"
                )
            out = np.asarray(out)
            out[...] = value.reshape(out.shape)

    def in_place(_, outputs, *inputs):
        user_code.in_program(fill, outputs, *inputs)

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
