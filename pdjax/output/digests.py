"""Notices files that changed since they were written: flipped bits, cut ends, swapped files.

A list of digests names every file of a directory with its SHA-256. Directories without a list, from
before there were any, are taken as they are. Not pure: it reads and writes files.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pdjax.output.paths import LOCK
from pdjax_envs import reading, writing
from pdjax_envs.reading import InputError

FILE = "digests.json"  # the list's name inside a checkpoint


def write(directory: Path, path: Path, leave_out: Sequence[str] = ()) -> None:
    """Writes the digests of all files below a directory, complete or not at all.

    Args:
      directory: the directory.
      path: the list to write; if it lies in the directory, it does not name itself.
      leave_out: names of files that may change.
    """
    names = [name for name in _files(directory) if name not in leave_out]
    found = {name: _digest(directory / name) for name in names if directory / name != path}
    writing.write_json(path, found)


def check(directory: Path, path: Path) -> None:
    """Checks that a directory holds what it held when its digests were written.

    Files that the list does not name are ignored.

    Args:
      directory: the directory.
      path: the list, as `write` wrote it; it may be missing.

    Raises:
      InputError: a file is missing or has changed, or the list cannot be read.
      OSError: the file system failed.
    """
    if not reading.is_file(path):
        return
    for name, digest in reading.read_json_object(path, "digests").items():
        file = directory / name
        if not file.is_file():
            raise InputError(f"{reading.short(name)} is missing")
        if _digest(file) != digest:
            raise InputError(f"{reading.short(name)} has changed since it was written")


def agree(directory: Path, path: Path) -> bool:
    """Returns whether a directory holds exactly the files of a list of digests.

    Args:
      directory: the directory.
      path: the list, as `write` wrote it of this directory or of another.

    Raises:
      InputError: the list cannot be read.
      OSError: the file system failed.
    """
    wanted = reading.read_json_object(path, "digests")
    return {name: _digest(directory / name) for name in _files(directory)} == wanted


def agree_on(file: Path, name: str, path: Path) -> bool:
    """Returns whether a file has the digest that a list gives for a name.

    Raises:
      InputError: the list cannot be read.
      OSError: the file system failed.
    """
    return reading.read_json_object(path, "digests").get(name) == _digest(file)


def _files(directory: Path) -> list[str]:
    """Names all files below a directory, but for Python's caches and the lock of pdjax."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in found
        if path.parts[0] != LOCK and "__pycache__" not in path.parts
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
