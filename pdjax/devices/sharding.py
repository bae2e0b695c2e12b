"""Data parallelism: what is split over the devices of a mesh, and what each of them holds whole.

Environments, their part of the replay and each batch are split; parameters, optimisers, counters
and keys are on every device. The mathematics is that of one device: batch sizes are global, and
XLA adds what the devices must tell each other (GSPMD). What concerns one environment alone - its
physics, its base policy, its new episodes - runs where the environment lives (`by_env`). Devices
may belong to several processes, see `distributed`.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdjax.config.fields import Config, ConfigError

AXIS = "envs"


def make_mesh(config: Config) -> Mesh:
    """A mesh of one axis over the first `devices` of JAX's devices.

    Raises:
      ConfigError: there are not as many, or environments cannot be dealt out evenly.
    """
    found, wanted = jax.devices(), config.train.devices
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
    """A mesh to play a finished run on: as many devices as in training, or all that there are.

    Unlike `make_mesh` it refuses nothing: a run that was trained on several devices plays on one.
    """
    found = jax.devices()
    return Mesh(np.asarray(found[: config.train.devices or None]), (AXIS,))


def copy_to_all(mesh: Mesh, tree: Any) -> Any:
    """A tree of arrays as every device of a mesh holds it whole; the same tree on one device.

    With several processes each must bring the same arrays.
    """
    if mesh.size == 1:
        return tree
    return place(jax.device_get(tree), NamedSharding(mesh, PartitionSpec()))


def place(tree: Any, there: Any) -> Any:
    """Arrays where shardings say; those that are elsewhere are given away.

    Args:
      tree: of arrays.
      there: a sharding of all, or a tree of shardings, each of what is below it.
    """
    if all(sharding.is_fully_addressable for sharding in jax.tree.leaves(there)):
        return jax.device_put(tree, there)
    # `device_put` takes no keys to other processes' devices
    return jax.jit(_same, out_shardings=there, donate_argnums=0)(tree)


def _same(tree: Any) -> Any:
    return tree


def split(mesh: Mesh | None, tree: Any) -> Any:
    """Asks for leaves (n, ...) to be split along their first axis, inside a jitted function.

    Does nothing without a mesh, or where n is no multiple of its devices.
    """
    if mesh is None or len(jax.tree.leaves(tree)[0]) % mesh.size:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def by_env(mesh: Mesh | None, function: Callable[..., Any], results: Any = None):
    """A function of environments that each device runs for its own, telling others nothing.

    Without it XLA would have to divide calls of the host (native physics, wrapped policies), which
    it cannot, and resets, which it would send around.

    Args:
      mesh: of the devices; None or one device = the function as it is.
      function: (whole, *split) -> results; leaves of `split` are (num_envs, ...), and no
        environment depends on another. Each device sees all of `whole` and its part of the rest;
        where num_envs is no multiple of the devices, each does everything.
      results: specs of the results; None = all (num_envs, ...).
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
