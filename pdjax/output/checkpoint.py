"""Saves and restores any pytree with Orbax: once, or again and again while a run goes on.

Knows nothing of policies or algorithms. With several processes all call, and each writes and reads
its part, in a folder that all share.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from pdjax.devices import processes


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: one line that says why and what to do."""


class Checkpoints:
    """Numbered checkpoints: complete or not there, the newest kept; written in the background
    where one process trains.

    Args:
      directory: made where it is missing.
      keep: how many.
    """

    def __init__(self, directory: Path, keep: int):
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        # Writers in the background of several processes, of two directories at once, were seen to
        # wait for each other forever: Orbax numbers what they agree on in one row.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=not processes.is_shared(),
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, tree: Any, wait: bool = False) -> str:
        """Begins to write a pytree; waits for the one before.

        Args:
          step: its number, above those that are there.
          tree: arrays, typed keys included; may be donated as soon as this returns.
          wait: until it is on disk.

        Returns:
          Why this one or the one before could not be written, in words; "" where nothing is known
          to have failed. What was complete stays.
        """
        problem = ""
        try:
            saved = ocp.args.StandardSave(jax.tree.map(_plain, tree))
            self._manager.save(step, args=ocp.args.Composite(tree=saved))
            if wait:
                self._manager.wait_until_finished()
        except Exception as error:  # a full disk comes in many kinds
            problem = _first_line(error)
        if processes.any_of(bool(problem)):
            self._manager = self._open()  # removes what is incomplete
            return problem or "another process failed to"
        return ""

    def restore(self, like: Any, at_most: int | None = None) -> tuple[int, Any, list[str]]:
        """The newest checkpoint that can be read; those after it are removed.

        Args:
          like: see `restore`.
          at_most: its largest number; None = any.

        Returns:
          Its number and the pytree, or -1 and `like` where there is none; and why newer ones could
          not be read.
        """
        self._manager.wait_until_finished()
        problems = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            if at_most is not None and step > at_most:
                self._manager.delete(step)
                continue
            try:
                return step, restore(self._directory / str(step) / "tree", like), problems
            except CheckpointError as error:
                problems.append(str(error))
                self._manager.delete(step)
        return -1, like, problems

    def close(self) -> None:
        """Waits for the last write."""
        self._manager.close()


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
      like: pytree of arrays or `jax.ShapeDtypeStruct` with the expected shapes and dtypes. Where
        NumPy's arrays stand, NumPy's are returned; others go where a `sharding` of theirs says, or
        to the first device.

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
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({_first_line(error)}); copy or make it anew"
        ) from None
    return jax.tree.map(_wrap, plain, like)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


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
    """Orbax stores arrays of numbers, so a typed key is stored as its words."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _abstract(leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray | np.generic):
        return np.asarray(leaf)
    sharding = leaf.sharding if isinstance(leaf, jax.ShapeDtypeStruct) else None
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _wrap(leaf: Any, like: Any) -> Any:
    if not _is_key(like):
        return leaf
    return jax.random.wrap_key_data(leaf, impl=jax.random.key_impl(jnp.empty((), like.dtype)))
