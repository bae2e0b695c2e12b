"""Loads base policies of any kind, from a directory or from memory: the one door to them.

Kept apart from the kinds of policies, so that no caller needs to know which kinds exist. This file
is not pure: it reads files.
"""

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from pdjax.base_policies import imitation
from pdjax.base_policies.foreign import assemble, description
from pdjax.base_policies.foreign.description import Description, Device
from pdjax.base_policies.foreign.host import through_host
from pdjax.config import options
from pdjax.config.schema import BasePolicyConfig, ConfigError
from pdjax.types import BasePolicy
from pdjax_envs import registry
from pdjax_envs.reading import short
from pdjax_envs.task import Task

MEASURED_S = 0.3  # seconds that measuring a call may take, once it is compiled


def load_base(base_policy: BasePolicyConfig, task: Task) -> BasePolicy:
    """Reads a base policy's directory of any kind and checks that the policy fits the task.

    Args:
      base_policy: the directory, and the number of control steps to execute of each chunk.
      task: the task that the policy will play.

    Returns:
      The policy. Python code in the directory is run, which a line on stderr says: load only code
      that you trust.

    Raises:
      ConfigError, checkpoint.CheckpointError: the directory holds no policy, or a policy of another
        task.
    """
    path = Path(base_policy.path)
    if not base_policy.path:
        raise ConfigError(
            "base_policy.path is empty; set it to a directory of `pdjax imitate` or `pdjax wrap`"
        )
    check_links(path)
    read = assemble.load if is_foreign(path) else imitation.load
    base, trained_for = read(path, base_policy.act_horizon)
    is_other = not registry.is_same(trained_for, task)
    if is_other or (base.obs_dim, base.act_dim) != (task.obs_dim, task.act_dim):
        raise ConfigError(
            f"base policy {path} was trained for {trained_for} (obs_dim {base.obs_dim}, act_dim"
            f" {base.act_dim}), but task.name is {task.name} (obs_dim {task.obs_dim}, act_dim"
            f" {task.act_dim}); change base_policy.path or task.name"
        )
    return base


def check_links(directory: Path, names: Sequence[str] = ("",)) -> None:
    """Checks that a policy's directory holds only files and folders, which can be copied.

    A link could bring any file of its reader into a copy. The directory itself may be a link.

    Args:
      directory: the policy's directory.
      names: the parts of it to check; "" = all of it.

    Raises:
      ConfigError: it holds a symbolic link or a special file.
    """
    for path in (directory / name for name in names):
        found = [path] if path != directory else []
        for root, folders, files in os.walk(path):
            found += [Path(root) / name for name in folders + files]
        for entry in found:
            if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                raise ConfigError(
                    f"base policy {short(str(directory))} holds {short(entry.name)}, a link or"
                    " special file; put the file itself there"
                )


def is_foreign(directory: Path) -> bool:
    """Returns whether a directory holds a policy that pdjax did not train."""
    kind = description.peek(directory).get("kind")
    return isinstance(kind, str) and kind in description.KINDS


def is_policy(directory: Path) -> bool:
    """Returns whether a directory holds a policy of any kind, which may still be damaged."""
    return (directory / description.FILE).is_file()


def task_of(directory: Path) -> str:
    """Returns the name of the task that a directory says its policy is for.

    Raises:
      ConfigError: the directory does not say.
    """
    task = description.peek(directory).get("task")
    if not isinstance(task, str):
        raise ConfigError(
            f"{directory / description.FILE} names no task; write the directory with `pdjax wrap`"
        )
    return task


def kind_of(directory: Path) -> tuple[str, int]:
    """Reads what a directory says about its policy, without loading the policy.

    Args:
      directory: the policy's directory.

    Returns:
      The kind of policy, and the number of control steps in a chunk as trained or wrapped;
      ("unknown", 0) if the directory does not say.
    """
    about = description.peek(directory)
    trained = about
    for name in ("imitation", "policy"):  # of a policy that pdjax trained
        inner = trained.get(name)
        trained = inner if isinstance(inner, dict) else trained
    kind, steps = about.get("kind"), trained.get("act_horizon")
    return kind if isinstance(kind, str) else "unknown", steps if isinstance(steps, int) else 0


def from_memory(
    policy: Any,
    *,
    obs_dim: int,
    act_dim: int,
    act_horizon: int = 1,
    obs_horizon: int = 0,
    obs_mean: ArrayLike | None = None,
    obs_std: ArrayLike | None = None,
    action_low: ArrayLike = -1.0,
    action_high: ArrayLike = 1.0,
    task: str = "",
    device: Device = "cpu",
    in_program: bool | None = None,
) -> BasePolicy:
    """Builds a frozen base policy from a function or object that exists only in memory.

    Args:
      policy: one of
        - a JAX function of one environment, obs_history (obs_horizon, obs_dim) -> chunk
          (act_horizon, act_dim), or of all environments, with a leading num_envs axis in both;
        - a NumPy function of all environments;
        - an object with `init_carry`, `apply` and optionally `params`, as in `BasePolicy` (JAX);
        - an object with `init_carry` and `act`, as in `foreign.host.HostPolicy` (NumPy);
        - a torch.nn.Module.
        Observations are raw float32, oldest first. A chunk of one step may lack its act_horizon
        axis.
      obs_dim: numbers in one observation.
      act_dim: numbers in one action.
      act_horizon: control steps in one chunk.
      obs_horizon: observations that the policy reads; 0 = `policy.obs_horizon` if it has one,
        else 1.
      obs_mean: (obs_dim,) mean of the observations, by which the residual policy normalises; the
        base policy reads raw observations. None = 0.
      obs_std: (obs_dim,) standard deviation of the observations, above 0. None = 1.
      action_low: lower end of the policy's actions, one number or (act_dim,). Actions are scaled
        from [action_low, action_high] to [-1, 1], then clipped.
      action_high: upper end of the policy's actions.
      task: name of the policy's task, for error messages.
      device: where a torch module computes.
      in_program: True = the policy must compute inside the jitted program; False = the policy must
        be called through the host, once a decision; None = inside the program if JAX can trace it.
        A traced function is frozen: later changes to the arrays that it uses have no effect.

    Returns:
      The policy, with actions in [-1, 1]. `foreign.exported.export_policy` can write a policy that
      computes inside the program to a directory.

    Raises:
      ConfigError: a size or number is invalid, or the policy does not fit the sizes.
    """
    sizes = {
        "obs_dim": obs_dim,
        "act_dim": act_dim,
        "obs_horizon": obs_horizon or getattr(policy, "obs_horizon", 1),
        "act_horizon": act_horizon,
    }
    said = {"kind": "python", "task": task, "device": device, "obs_mean": [0.0], "obs_std": [1.0]}
    about = options.build(Description, said | sizes)
    about = dataclasses.replace(
        about,
        obs_mean=_numbers("obs_mean", np.zeros(about.obs_dim) if obs_mean is None else obs_mean),
        obs_std=_numbers("obs_std", np.ones(about.obs_dim) if obs_std is None else obs_std),
        action_low=_numbers("action_low", action_low),
        action_high=_numbers("action_high", action_high),
    )
    about.validate()
    obs_shape, chunk_shape = (
        (about.obs_horizon, about.obs_dim),
        (about.act_horizon, about.act_dim),
    )
    parts = assemble.adapt(policy, obs_shape, about.device, chunk_shape, in_program)
    return assemble.assemble(parts, about)


def _numbers(name: str, values: ArrayLike) -> tuple[float, ...]:
    """Converts a vector or one number to the tuple that a description holds."""
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} got {values!r}, expected numbers") from None
    if array.ndim > 1:
        raise ConfigError(f"{name} has the shape {array.shape}, expected one number or a vector")
    return tuple(array.reshape(-1).tolist())


def cost(base: BasePolicy, num_envs: int) -> tuple[str, float]:
    """Measures what calling a policy costs.

    Args:
      base: the policy.
      num_envs: environments that one call serves.

    Returns:
      Where the policy computes, `in the program` or `through the host`, and the median time of a
      call in microseconds.
    """
    keys = jax.random.split(jax.random.key(0), num_envs)
    call = jax.vmap(base.apply, (None, 0, 0, 0))
    carry = jax.vmap(base.init_carry)(jax.random.split(jax.random.key(1), num_envs))
    history = jnp.zeros((num_envs, base.obs_horizon, base.obs_dim))
    inputs = (base.params, carry, history)
    way = "through the host" if through_host(base) else "in the program"
    compiled = jax.jit(call)
    jax.block_until_ready(compiled(*inputs, jax.random.clone(keys)))
    times, end = [], time.monotonic() + MEASURED_S
    while len(times) < 3 or time.monotonic() < end:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*inputs, jax.random.clone(keys)))
        times.append(time.perf_counter() - start)
    return way, 1e6 * float(np.median(times))
