"""Where results go: checks before any work that nothing will be overwritten.

Separate, so that every command treats its output the same way.
"""

import errno
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pdjax.config.options import ConfigError
from pdjax_envs import writing
from pdjax_envs.reading import reason, short

MOST_FILES = 1000  # that get a number
UNREADABLE = ".unreadable"  # ending of what was set aside because it cannot be read
LOCK = "lock"  # name of the file that keeps a second process out of a directory, see `lock`


class NotSavedError(Exception):
    """Says in one line what could not be written; everything else was done."""


def check_name(path: Path) -> None:
    """Checks that a file or a directory can have this name; it need not exist.

    Raises:
      ConfigError: the name is too long, or leads through links in a circle.
    """
    try:
        path.exists()
        path.resolve()
    except (OSError, RuntimeError) as error:  # Python 3.11 raises the latter for a circle
        raise ConfigError(
            f"cannot use {short(str(path))}: {reason(error)}; choose another name"
        ) from None


def check_directory(directory: Path) -> None:
    """Checks that a directory can be made and written to; makes nothing.

    Raises:
      ConfigError: the directory exists and is not empty, or it cannot be written.
    """
    try:
        if directory.is_dir() and any(path.name != LOCK for path in directory.iterdir()):
            raise ConfigError(f"{directory} is not empty; choose another --out or remove it")
        _probe(directory)
    except OSError as error:
        raise _unwritable(directory, error) from None


def new_directory(directory: Path) -> None:
    """Makes an empty directory, and its parents where they are missing.

    Raises:
      ConfigError: see `check_directory`.
    """
    check_directory(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(directory, error) from None


@contextmanager
def whole_directory(directory: Path) -> Iterator[Path]:
    """Yields a folder to fill; it becomes `directory` if the whole block succeeds.

    If the block fails, nothing remains. Parents are made where they are missing.

    Raises:
      ConfigError: the directory is not empty, cannot be written, or another process has made it
        meanwhile.
    """
    check_directory(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with writing.directory_aside(directory) as written:
            yield written
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ConfigError(
                f"{directory} was made by another process meanwhile; choose another --out"
            ) from None
        raise ConfigError(
            f"cannot write to {directory}: {reason(error)}; make room, or choose another --out"
        ) from None


def check_file(path: Path, endings: tuple[str, ...], choose: str = "choose another --out") -> None:
    """Checks that a file can be written; writes nothing.

    Args:
      path: the file.
      endings: the endings that its name may have, such as ".h5".
      choose: what to do about it.

    Raises:
      ConfigError: the file exists or has another ending, or its folder cannot be written.
    """
    if path.suffix not in endings:
        raise ConfigError(f"{path} must end in {' or '.join(endings)}; {choose}")
    try:
        if path.exists():
            raise ConfigError(f"{path} exists already; {choose} or remove it")
        _probe(path.parent)
    except OSError as error:
        raise _unwritable(path, error, choose) from None


def free_file(name: str) -> Path:
    """Returns a file that does not exist, of this name or with a number before its ending."""
    path = Path(name)
    names = (path, *(path.with_stem(f"{path.stem}{number}") for number in range(2, MOST_FILES)))
    return next((file for file in names if not file.exists()), path)


def _probe(directory: Path) -> None:
    """Writes and removes an empty file in `directory`, or in its nearest parent that exists."""
    nearest = next(
        folder for folder in (directory, *directory.absolute().parents) if folder.exists()
    )
    with tempfile.NamedTemporaryFile(prefix=writing.ASIDE, dir=nearest):
        pass


def _unwritable(path: Path, error: OSError, choose: str = "choose another --out") -> ConfigError:
    return ConfigError(f"cannot write to {path}: {reason(error)}; {choose}")


def free_name(path: Path, ending: str) -> Path:
    """Returns `path` with an ending, and a number where that name is taken."""
    wanted = path.with_name(path.name + ending)
    found, count = wanted, 1
    while os.path.lexists(found):
        count += 1
        found = wanted.with_name(f"{wanted.name}-{count}")
    return found


def write_json(path: Path, values: Any) -> None:
    """Writes a file of strict JSON, complete or not at all."""
    writing.write_json(path, plain(values))


def plain(value: Any) -> Any:
    """Converts a value to what strict JSON can hold: arrays become lists, NaN and infinity None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
