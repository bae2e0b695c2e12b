"""Saves and restores any pytree with Orbax: once, or again and again while a run goes on.

Knows nothing about policies or algorithms. Nothing here ever deletes a checkpoint because it cannot
be read. With several processes, all of them make the same calls; each one writes and reads its own
part, in a folder that all of them share.
"""

import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from pdjax.devices import processes
from pdjax.output import checkpoint_handler, digests
from pdjax.output.paths import UNREADABLE, free_name
from pdjax_envs.reading import InputError

# What TensorStore's messages begin with where memory or the file system failed; "UNKNOWN" stands
# for any error of the operating system that has no name of its own. Damage has other names.
PASSING = ("RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN", "PERMISSION_DENIED", "DEADLINE_EXCEEDED")

# Ending of checkpoints that were set aside, like `UNREADABLE`; Orbax leaves such names alone.
NEWER = ".newer"


class CheckpointError(InputError):
    """A checkpoint cannot be used: one line that says why and what to do."""


class TryAgainError(CheckpointError):
    """A checkpoint cannot be read now, but perhaps later: memory or the file system failed."""


class Restored(NamedTuple):
    """The checkpoint that a run goes on from.

    Attributes:
      step: its number; -1 where there are no checkpoints.
      tree: its content; where there are no checkpoints, what was given as `like`.
      unreadable: the numbers of newer checkpoints that cannot be read -> why.
    """

    step: int
    tree: Any
    unreadable: Mapping[int, str]


class Checkpoints:
    """Numbered checkpoints in a directory: each one complete or absent, the newest ones kept.

    A run with a single process writes them in the background. Nothing on disk changes before the
    first `save` or `set_aside`.

    Args:
      directory: `save` makes it where it is missing.
      keep: number of checkpoints to keep. Those that were set aside are not counted.
    """

    def __init__(self, directory: Path, keep: int):
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None

    def save(self, step: int, tree: Any, wait: bool = False) -> str:
        """Starts to write a pytree, once the write before it is complete.

        Args:
          step: its number, larger than those of the checkpoints that exist.
          tree: arrays, typed keys included; may be donated as soon as this returns.
          wait: return only when the checkpoint is on disk.

        Returns:
          Why this checkpoint or the one before could not be written; "" if no failure is known.
          Complete checkpoints stay.
        """
        problem = ""
        try:
            self._manager = self._manager or self._open()
            saved = checkpoint_handler.Save(jax.tree.map(_plain, tree))
            self._manager.save(step, args=ocp.args.Composite(tree=saved))
            if wait:
                self._manager.wait_until_finished()
        except Exception as error:  # a full disk raises many kinds
            problem = _first_line(error)
        if processes.any_of(bool(problem)):
            self._manager = None  # the next one removes what is incomplete
            return problem or "another process failed to"
        return ""

    def restore(self, like: Any, at_most: int | None = None) -> Restored:
        """Reads the newest checkpoint that all processes can read; changes nothing on disk.

        Args:
          like: see `restore`.
          at_most: largest number to consider; None considers all.

        Raises:
          TryAgainError: memory or the file system failed.
          CheckpointError: there are checkpoints, but none of those considered can be read. With
            several processes, those that could read theirs raise ConfigError instead.
        """
        self._finish_writing()
        steps = processes.agree(self._steps)
        considered = [step for step in steps if at_most is None or step <= at_most]
        unreadable: dict[int, str] = {}
        # Each process proposes its newest number; all of them try the largest one.
        while (step := processes.any_of(max(considered, default=-1))) >= 0:
            tree, problem = processes.agree(partial(self._try_to_read, step, like))
            if not processes.any_of(bool(problem)):
                return Restored(step, tree, unreadable)
            unreadable[step] = problem or f"another process cannot read checkpoint {step}"
            considered = [other for other in considered if other < step]
        if not processes.any_of(bool(steps)):
            return Restored(-1, like, {})
        found = f"none of the checkpoints in {self._directory} can be read"
        why = next(iter(unreadable.values()), "")
        if at_most is not None:
            found = f"no checkpoint in {self._directory} of number {at_most} or below can be read"
            why = why or f"those that exist are {', '.join(map(str, sorted(steps)))}"
        raise CheckpointError(
            f"{found}, and nothing was changed; {why}; or move that folder away to begin without it"
        )

    def set_aside(self, after: int, unreadable: Mapping[int, str]) -> list[str]:
        """Renames the checkpoints above a number, so that nothing is lost and numbers are free.

        Args:
          after: the largest number that stays.
          unreadable: numbers of those that cannot be read -> why, as in `Restored`.

        Returns:
          One line for people about each checkpoint that was renamed.

        Raises:
          CheckpointError: the file system does not allow it.
        """
        self._finish_writing()
        lines: list[str] = []

        def rename() -> None:
            for step in sorted(self._steps(), reverse=True):
                if step > after:
                    path = self._directory / str(step)
                    why = unreadable.get(step)
                    aside = free_name(path, NEWER if why is None else UNREADABLE)
                    path.rename(aside)
                    lines.append(f"{why or f'checkpoint {path} is not used'}; kept as {aside.name}")

        try:
            processes.by_writer(rename)
        except OSError as error:
            raise CheckpointError(
                f"cannot rename a checkpoint in {self._directory} ({_first_line(error)});"
                " make that folder writable"
            ) from None
        if self._manager is not None:
            self._manager.reload()
        return lines

    def close(self) -> str:
        """Waits for the last write; returns why it failed, or nothing."""
        manager, self._manager = self._manager, None
        try:
            if manager is not None:
                manager.close()
        except Exception as error:  # a full disk raises many kinds
            return _first_line(error)
        return ""

    def has(self, step: int) -> bool:
        """Returns whether there is a complete checkpoint of this number."""
        return step in self._steps()

    def _open(self) -> ocp.CheckpointManager:
        # With several processes, background writers of two directories at once were seen to wait
        # for each other forever: Orbax numbers their agreements in one sequence.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=not processes.is_shared(),
        )
        return ocp.CheckpointManager(
            self._directory, options=options, item_handlers={"tree": checkpoint_handler.Handler()}
        )

    def _finish_writing(self) -> None:
        """Waits for the last write; one that failed has left nothing to read."""
        try:
            if self._manager is not None:
                self._manager.wait_until_finished()
        except Exception:  # a full disk raises many kinds
            self._manager = None

    def _steps(self) -> list[int]:
        """The numbers of all complete checkpoints: Orbax gives a folder its number at the end."""
        try:
            names = [path.name for path in self._directory.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            if not self._directory.is_dir():  # a file, or a link to nowhere
                raise CheckpointError(
                    f"{self._directory} is no directory ({_first_line(error)}), expected one of"
                    " checkpoints; move it away"
                ) from None
            raise _try_again(self._directory, error) from None
        return [int(name) for name in names if name.isdecimal()]

    def _try_to_read(self, step: int, like: Any) -> tuple[Any, str]:
        """The content and "", or nothing and why it cannot be read."""
        try:
            return restore(self._directory / str(step) / "tree", like), ""
        except TryAgainError:
            raise
        except CheckpointError as error:
            return None, str(error)


def remove(directory: Path) -> None:
    """Removes the checkpoints in a directory, but not those that were set aside."""
    for path in directory.glob("*"):
        if not any(ending in path.name for ending in (NEWER, UNREADABLE)):
            shutil.rmtree(path, ignore_errors=True)


def save(path: Path, tree: Any) -> None:
    """Writes a pytree of arrays (typed keys included) to a new directory, atomically.

    Raises:
      CheckpointError: `path` exists already.
    """
    path = Path(path).absolute()
    if path.exists():
        raise CheckpointError(f"{path} exists already; choose another directory or remove it")
    with ocp.Checkpointer(checkpoint_handler.Handler()) as checkpointer:
        checkpointer.save(path, args=checkpoint_handler.Save(jax.tree.map(_plain, tree)))


def is_intact(path: Path) -> bool:
    """Returns whether a directory written by `save` is there, and as it was written."""
    try:
        _check_digests(path)
    except (CheckpointError, OSError):
        return False
    return path.is_dir()


def _check_digests(path: Path) -> None:
    """Compares the files of a checkpoint with their digests.

    Raises:
      CheckpointError: a file is missing or has changed.
    """
    try:
        digests.check(path, path / digests.FILE)
    except InputError as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({error}); replace it by a good copy or make it"
            " again"
        ) from None


def restore(path: Path, like: Any) -> Any:
    """Reads a pytree back. Processes do not wait for each other.

    Args:
      path: directory written by `save`.
      like: pytree of arrays or `jax.ShapeDtypeStruct` with the expected shapes and dtypes. NumPy
        arrays are returned where `like` has NumPy arrays. Other arrays are placed by the `sharding`
        of their leaf, or on the first device where it has none.

    Raises:
      TryAgainError: memory or the file system failed.
      CheckpointError: there is no checkpoint, it is damaged, or it has other shapes or dtypes.
    """
    path = Path(path).absolute()
    try:
        if not path.is_dir():
            raise CheckpointError(f"no checkpoint at {path}")
        _check_digests(path)
        target = jax.tree.map(_abstract, like)
        handler, reader = _make_reader()
        with reader:
            _check_shapes(path, handler, target)
            plain = reader.restore(path, args=ocp.args.StandardRestore(target))
        return jax.tree.map(_wrap, plain, like)
    except CheckpointError:
        raise
    except Exception as raised:  # Orbax raises nearly every kind for a damaged file
        error = _origin(raised)
        if _may_pass(error):
            raise _try_again(path, error) from None
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({_first_line(error)});"
            " replace it by a good copy or make it again"
        ) from None


def _make_reader() -> tuple[ocp.StandardCheckpointHandler, ocp.Checkpointer]:
    """Makes a reader that waits for no other process: where one of them fails, none must hang."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return handler, ocp.Checkpointer(handler, multiprocessing_options=alone)


def _origin(error: BaseException) -> BaseException:
    """The error that was raised first: Orbax wraps those of TensorStore."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _may_pass(error: BaseException) -> bool:
    """Whether the same read may succeed later, as memory or the file system failed."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return False  # a part is missing
    return isinstance(error, MemoryError | OSError) or str(error).startswith(PASSING)


def _try_again(path: Path, error: BaseException) -> TryAgainError:
    return TryAgainError(
        f"cannot read {path} now ({_first_line(error)}); nothing was changed, so try again when"
        " there is memory and the file system works"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _check_shapes(path: Path, handler: Any, target: Any) -> None:
    """Compares saved shapes with expected ones: Orbax would pad, cut and cast silently."""
    try:
        saved = handler.metadata(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is damaged or holds no checkpoint; replace it by a good copy or make it again"
        ) from None
    found = _signature(saved.tree)
    wanted = _signature(target)
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise CheckpointError(
                f"checkpoint {path} does not fit: {name} is {found.get(name, 'missing')},"
                f" expected {wanted.get(name, 'nothing')}; use the config it was made with, and"
                " the same version of pdjax"
            )


def _signature(tree: Any) -> dict[str, str]:
    """Returns path -> dtype and shape, for every leaf."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{tuple(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    """What Orbax can store: arrays of numbers, so a typed key becomes its words."""
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
