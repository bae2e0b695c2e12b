"""Saves and restores any pytree with Orbax. Knows nothing of policies or algorithms."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: one line that says why and what to do."""


def save(path: Path, tree: Any) -> None:
    """Writes a pytree of arrays (typed keys included) to a new directory, atomically.

    Raises:
      CheckpointError: `path` exists already.
    """
    path = Path(path).absolute()
    if path.exists():
        raise CheckpointError(f"{path} exists already; choose another directory or remove it")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, jax.tree.map(_plain, tree))


def restore(path: Path, like: Any) -> Any:
    """Reads a pytree back.

    Args:
      path: directory written by `save`.
      like: pytree of arrays or `jax.ShapeDtypeStruct` with the expected shapes and dtypes.

    Raises:
      CheckpointError: nothing there, or other shapes.
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}")
    target = jax.tree.map(_abstract, like)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            _check_shapes(path, checkpointer, target)
            plain = checkpointer.restore(path, target)
    except CheckpointError:
        raise
    except Exception as error:  # Orbax raises nearly every kind for a damaged file
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({first}); copy or make it anew"
        ) from None
    return jax.tree.map(_wrap, plain, like)


def _check_shapes(path: Path, checkpointer: Any, target: Any) -> None:
    """Compares what is saved with what is expected: Orbax would pad, cut and cast silently."""
    saved = checkpointer.metadata(path).item_metadata
    if saved is None:
        raise CheckpointError(f"{path} is damaged or holds no checkpoint; copy or make it anew")
    found = _signature(saved.tree)
    wanted = _signature(target)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise CheckpointError(
                f"checkpoint {path} does not fit: {name} is {found.get(name, 'missing')},"
                f" expected {wanted.get(name, 'nothing')}; use the config it was made with"
            )


def _signature(tree: Any) -> dict[str, str]:
    """Path -> dtype and shape of each leaf."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{tuple(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    """Orbax stores numbers, so a typed key is stored as its words."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _wrap(leaf: Any, like: Any) -> Any:
    if not _is_key(like):
        return leaf
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(jnp.empty((), like.dtype)))
