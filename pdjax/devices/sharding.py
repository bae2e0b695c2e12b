"""Data parallelism: what is split over the devices of a mesh, and what every device holds whole.

Environments, their part of the replay and each batch are split; parameters, optimisers, counters
and keys are on every device. The mathematics is that of one device: batch sizes are global, and
XLA adds the communication between devices (GSPMD). Whatever concerns a single environment - its
physics, its base policy, its new episodes - runs on that environment's device (`by_env`). Devices
may belong to several processes, see `processes`.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdjax.config.schema import Config, ConfigError
from pdjax_envs import registry

AXIS = "envs"


def make_mesh(config: Config) -> Mesh:
    """Makes a mesh of one axis over the first `train.devices` of JAX's devices.

    Raises:
      ConfigError: there are fewer devices, or they cannot share environments and batches equally.
    """
    found, wanted = _devices(config), config.train.devices
    if wanted not in (0, len(found)) and jax.process_count() > 1:
        raise ConfigError(
            f"train.devices={wanted}, but the processes of this run have {len(found)}; set it to 0"
        )
    if wanted > len(found):
        raise ConfigError(
            f"train.devices={wanted}, but JAX finds {len(found)} ({found[0].platform}); lower it"
        )
    count = wanted or len(found)
    for section, name in (("train", "num_envs"), ("sac", "batch_size")):
        value = getattr(getattr(config, section), name)
        if value % count:
            raise ConfigError(
                f"{section}.{name}={value} must be a multiple of the {count} devices; change it or"
                " train.devices"
            )
    return Mesh(np.asarray(found[:count]), (AXIS,))


def make_playing_mesh(config: Config) -> Mesh:
    """Makes a mesh to play a finished run on: as many devices as in training, or all there are.

    Unlike `make_mesh`, it refuses nothing: a run that was trained on several devices plays on one.
    """
    found = _devices(config)
    return Mesh(np.asarray(found[: config.train.devices or None]), (AXIS,))


def _devices(config: Config) -> list[Any]:
    """Returns JAX's devices; JAX starts here, if it has not yet."""
    registry.prepare(config.task.name, config.task.physics)
    return jax.devices()


def copy_to_all(mesh: Mesh, tree: Any) -> Any:
    """Copies a tree of arrays to every device of a mesh; on one device, returns it as it is.

    With several processes, each must pass the same arrays.
    """
    if mesh.size == 1:
        return tree
    return place(jax.device_get(tree), NamedSharding(mesh, PartitionSpec()))


def place(tree: Any, there: Any) -> Any:
    """Moves arrays to where shardings say; arrays that move are donated.

    Args:
      tree: of arrays.
      there: one sharding for all, or a tree of shardings, each for everything below it.
    """
    if all(sharding.is_fully_addressable for sharding in jax.tree.leaves(there)):
        return jax.device_put(tree, there)
    # `device_put` cannot move keys to other processes' devices
    return jax.jit(_same, out_shardings=there, donate_argnums=0)(tree)


def _same(tree: Any) -> Any:
    return tree


def split(mesh: Mesh | None, tree: Any) -> Any:
    """Asks for leaves (n, ...) to be split along their first axis, inside a jitted function.

    Does nothing without a mesh, or if n is not a multiple of its devices.
    """
    if mesh is None or len(jax.tree.leaves(tree)[0]) % mesh.size:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def by_env(mesh: Mesh | None, function: Callable[..., Any], results: Any = None):
    """Makes each device run a function for its own environments, without communication.

    Without this, XLA would have to split callbacks to the host (native physics, wrapped policies),
    which it cannot do, and would send resets between devices.

    Args:
      mesh: of the devices; with None or one device, the function stays as it is.
      function: (whole, *split) -> results. Leaves of `split` are (num_envs, ...), and no
        environment depends on another. Each device sees all of `whole` and its part of the rest;
        if num_envs is not a multiple of the devices, each device does everything.
      results: specs of the results; None = all are (num_envs, ...).
    """
    if mesh is None or mesh.size == 1:
        return function

    def run(whole: Any, *per_env: Any) -> Any:
        everything, part = PartitionSpec(), PartitionSpec(AXIS)
        out = part if results is None else results
        if len(jax.tree.leaves(per_env)[0]) % mesh.size:
            part, out = everything, everything
        specs = (everything, *[part] * len(per_env))
        local = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
        return local(whole, *per_env)

    return run
