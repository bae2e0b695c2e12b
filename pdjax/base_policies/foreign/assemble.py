"""Builds a frozen `BasePolicy` of a policy that pdjax did not train.

A directory holds one of three kinds of policies, and `kind` in `policy.json` names it: a
`jax.export` artefact, a TorchScript file, or Python code, which may use JAX or take NumPy arrays.
JAX policies become part of the jitted program; the others are called through the host, once a
decision for all environments. This file is not pure: it reads files.
"""

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.base_policies.foreign import description, exported, functions, host
from pdjax.base_policies.foreign.description import Description
from pdjax.base_policies.foreign.sources import find_inside, read_torchscript
from pdjax.base_policies.foreign.user_code import guard, words
from pdjax.config.options import ConfigError
from pdjax.types import BasePolicy, Params
from pdjax_envs.reading import short

FILES = {"export": exported.POLICY, "torchscript": "policy.pt"}


class Parts(NamedTuple):
    """A policy whose actions are not scaled to [-1, 1] yet.

    Attributes:
      init_carry: see `BasePolicy`.
      apply: see `BasePolicy`; a chunk of one step may lack its first axis.
      params: see `BasePolicy`.
      chunk_shape: the shape that `apply` returns, (act_horizon, act_dim) or (act_dim,).
    """

    init_carry: Callable[..., Any]
    apply: Callable[..., tuple[Any, Any]]
    params: Params
    chunk_shape: tuple[int, ...]

    @property
    def act_horizon(self) -> int:
        """Number of control steps in a chunk."""
        return self.chunk_shape[0] if len(self.chunk_shape) == 2 else 1


def load(directory: Path, act_horizon: int = 0) -> tuple[BasePolicy, str]:
    """Reads a directory that `pdjax wrap` or `exported.export_policy` wrote.

    Loading runs the Python code in the directory, so load only code that you trust. The other kinds
    of policies run no Python.

    Args:
      directory: the policy's directory.
      act_horizon: control steps to execute of each chunk; 0 = all.

    Returns:
      The policy and the name of its task.

    Raises:
      ConfigError: the directory, its description and the policy do not agree.
      checkpoint.CheckpointError: the parameters are missing or damaged.
    """
    about = description.read(directory)
    if about.kind == "python":
        policy = find_inside(directory, about.entry)
        parts = adapt(policy, (about.obs_horizon, about.obs_dim), about.device)
    else:
        description.check_files(directory)
        parts = read_file(directory / FILES[about.kind], about)
    return assemble(parts, about, act_horizon), about.task


def read_file(path: Path, about: Description) -> Parts:
    """Reads an artefact or a TorchScript file; `assemble` checks the size of the chunks."""
    obs_shape = (about.obs_horizon, about.obs_dim)
    if about.kind == "export":
        found = exported.load(path)
        if found.obs_shape != obs_shape:
            raise ConfigError(
                f"{path} reads observation histories {found.obs_shape}, expected {obs_shape}"
                " (obs_horizon, obs_dim); export it for the sizes of the task"
            )
        return Parts(found.init_carry, found.apply, found.params, found.chunk_shape)
    module = read_torchscript(path)
    return _through_host(host.from_torch(module, about.device), obs_shape)


def adapt(
    policy: Any,
    obs_shape: tuple[int, int],
    device: str = "cpu",
    chunk_shape: tuple[int, int] | None = None,
    in_program: bool | None = None,
) -> Parts:
    """Adapts a policy that is a Python object.

    Args:
      policy: one of: an object with `init_carry`, `apply` and optionally `params`, as in
        `types.BasePolicy` (pure JAX); an object with `init_carry` and `act`, as in
        `host.HostPolicy`; a torch.nn.Module; a function from observation histories to chunks.
      obs_shape: (obs_horizon, obs_dim).
      device: where a torch module computes.
      chunk_shape: (act_horizon, act_dim). If given, a function that JAX can trace becomes part of
        the program, see `functions.trace`. If None, every function is called through the host, on
        NumPy arrays of all environments.
      in_program: True = the policy must compute inside the program; False = the policy must be
        called through the host; None = inside the program if possible.

    Raises:
      ConfigError: the policy is none of these, fails on observations of that shape, or cannot
        compute where `in_program` demands.
    """
    has = [
        guard(hasattr, f"looking for the policy's {name}", policy, name)
        for name in ("init_carry", "apply", "act")
    ]
    if has[0] and has[1]:
        if in_program is False:
            raise ConfigError(
                "in_program=False, but the policy is a JAX object with init_carry and apply, which"
                " computes inside the program; leave in_program None"
            )
        return _in_program(policy, obs_shape)
    if has[0] and has[2]:
        if in_program:
            raise ConfigError(
                "in_program=True, but the policy is a NumPy object with init_carry and act, which"
                " is called through the host; write apply in JAX, or leave in_program None"
            )
        return _through_host(policy, obs_shape)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(policy, torch.nn.Module):
        return _of_torch(policy, obs_shape, device, in_program)
    if not callable(policy):
        raise ConfigError(
            f"the policy is a {type(policy).__name__}, expected a function, a torch.nn.Module or an"
            " object with init_carry and apply (JAX) or init_carry and act (NumPy)"
        )
    if chunk_shape is not None and in_program is not False:
        try:
            return _in_program(functions.trace(policy, obs_shape, chunk_shape), obs_shape)
        except functions.NotTraceableError:
            if in_program:
                raise
    return _through_host(host.without_memory(policy), obs_shape)


def _in_program(policy: Any, obs_shape: tuple[int, int]) -> Parts:
    params, key = getattr(policy, "params", ()), jax.random.key(0)
    params = guard(lambda: jax.tree.map(jnp.asarray, params), "reading the policy's params")
    carry = guard(lambda: jax.eval_shape(policy.init_carry, key), "init_carry(key)")
    host.check_memory(carry, "init_carry(key)")
    history = jax.ShapeDtypeStruct(obs_shape, jnp.float32)
    doing = f"apply(params, carry, obs_history {obs_shape}, key)"
    answer = guard(lambda: jax.eval_shape(policy.apply, params, carry, history, key), doing)
    if not (isinstance(answer, tuple) and len(answer) == 2):
        raise ConfigError(f"{doing} returns {short(answer)}, expected (chunk, carry)")
    chunk, after = answer
    if getattr(chunk, "ndim", 0) not in (1, 2) or chunk.dtype != jnp.float32 or not chunk.size:
        raise ConfigError(
            f"{doing} returns the chunk {short(chunk)}, expected float32 (act_horizon, act_dim)"
        )
    if jax.tree.map(_signature, after) != jax.tree.map(_signature, carry):
        raise ConfigError(
            f"{doing} returns the carry {short(after)}, expected {short(carry)}, which it was given"
        )
    return Parts(policy.init_carry, policy.apply, params, chunk.shape)


def _signature(leaf: Any) -> str:
    return f"{leaf.dtype}{leaf.shape}"


def _of_torch(
    module: Any, obs_shape: tuple[int, int], device: str, in_program: bool | None
) -> Parts:
    """Takes a module into the program if torchax can, and otherwise calls it through the host."""
    if in_program is False:
        return _through_host(host.from_torch(module, device), obs_shape)
    try:
        # torchax 0.0.13 can be imported together with torch 2.9, but not with torch 2.13
        torchax = importlib.import_module("torchax")
        params, function = torchax.extract_jax(module.eval())
        apply = lambda params, carry, obs_history, key: (  # noqa: E731
            function(params, (obs_history[None],))[0],
            carry,
        )
        policy = types.SimpleNamespace(init_carry=lambda key: (), apply=apply, params=params)
        return _in_program(policy, obs_shape)
    except Exception as error:  # torchax is absent, not for this torch, or lacks an operation
        if in_program:
            raise ConfigError(
                f"in_program=True, but torchax cannot take the torch module into the program:"
                f" {words(error)}; leave in_program None"
            ) from None
        return _through_host(host.from_torch(module, device), obs_shape)


def _through_host(policy: Any, obs_shape: tuple[int, int]) -> Parts:
    chunk_shape = host.probe(policy, obs_shape)
    return Parts(*host.make_functions(policy, chunk_shape), params=(), chunk_shape=chunk_shape)


def assemble(parts: Parts, about: Description, act_horizon: int = 0) -> BasePolicy:
    """Checks a policy's sizes and scales its actions to [-1, 1].

    Actions are scaled from [action_low, action_high] to [-1, 1], then clipped. NaN and infinity
    become NaN, which the environment counts as a bad action.

    Args:
      parts: the policy.
      about: its description.
      act_horizon: control steps to execute of each chunk; 0 = all.

    Raises:
      ConfigError: chunks have another size than described, or fewer steps than `act_horizon`.
    """
    shape = (parts.act_horizon, parts.chunk_shape[-1])
    if shape != (about.act_horizon, about.act_dim):
        advice = f"use a policy for {about.task}" if about.task else "set act_horizon and act_dim"
        raise ConfigError(
            f"the policy returns chunks {shape} (act_horizon, act_dim), expected"
            f" {(about.act_horizon, about.act_dim)}; {advice}"
        )
    steps = act_horizon or about.act_horizon
    if steps > about.act_horizon:
        raise ConfigError(
            f"base_policy.act_horizon={steps} must be <= {about.act_horizon}, the number of steps"
            " in one chunk of this policy"
        )
    low, high = (np.array(side, np.float32) for side in (about.action_low, about.action_high))

    def apply(params, carry, obs_history, key):
        chunk, carry = parts.apply(params, carry, obs_history, key)
        chunk = chunk.reshape(shape)[:steps]
        if (low != -1).any() or (high != 1).any():
            chunk = 2 * (chunk - low) / (high - low) - 1
        return jnp.where(jnp.isfinite(chunk), jnp.clip(chunk, -1.0, 1.0), jnp.nan), carry

    return BasePolicy(
        parts.init_carry,
        apply,
        parts.params,
        about.obs_dim,
        about.act_dim,
        about.obs_horizon,
        steps,
        jnp.asarray(about.obs_mean, jnp.float32),
        jnp.asarray(about.obs_std, jnp.float32),
    )
