"""Data parallelism: what is split over the devices of a mesh, and what each of them holds whole.

Environments, their part of the replay and each batch are split; parameters, optimisers, counters
and keys are on every device. The mathematics is that of one device: batch sizes are global, and
XLA adds what the devices must tell each other (GSPMD).
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdjax.config import Config, ConfigError

AXIS = "envs"


def make_mesh(config: Config) -> Mesh:
    """A mesh of one axis over the first `devices` of JAX's devices.

    Raises:
      ConfigError: there are not as many, or environments cannot be dealt out evenly.
    """
    found, wanted = jax.devices(), config.train.devices
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


def copy_to_all(mesh: Mesh, tree: Any) -> Any:
    """A tree of arrays as every device of a mesh holds it whole; the same tree on one device."""
    return tree if mesh.size == 1 else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def split(mesh: Mesh | None, tree: Any) -> Any:
    """Asks for leaves (n, ...) to be split along their first axis, inside a jitted function.

    Does nothing without a mesh, or where n is no multiple of its devices.
    """
    if mesh is None or len(jax.tree.leaves(tree)[0]) % mesh.size:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec(AXIS)))
