"""Writes files and directories that are complete or absent, whatever happens on the way.

Everything is written aside, under a name that nobody else uses, brought to the disk (fsync) and
then renamed. A reader, or a process that starts after a crash, finds the old content or the new.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ASIDE = ".pdjax-"  # after a dot and the final name; a process that was killed leaves such names


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yields a name to write a file at; the file becomes `path` once the block has ended.

    If the block fails, nothing remains and `path` is as before.

    Args:
      path: the final name; a file there is replaced.
    """
    with _folder_aside(path) as folder:
        written = folder / path.name
        yield written
        _to_disk(written)
        written.replace(path)
    _to_disk(path.parent)


@contextmanager
def directory_aside(path: Path) -> Iterator[Path]:
    """Yields a new directory to fill; it becomes `path` once the block has ended.

    If the block fails, nothing remains.

    Args:
      path: the final name; must be free, or an empty directory.
    """
    with _folder_aside(path) as folder:
        written = folder / path.name
        written.mkdir()
        yield written
        for root, _, files in os.walk(written):
            for name in files:
                _to_disk(Path(root) / name)
            _to_disk(Path(root))
        written.replace(path)
    _to_disk(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, complete or not at all; replaces a file at `path`."""
    with aside(path) as written:
        written.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Writes a JSON file, complete or not at all; replaces a file at `path`."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


@contextmanager
def _folder_aside(path: Path) -> Iterator[Path]:
    """Yields a new directory beside `path`, on the same file system, and removes it afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name[:60]}{ASIDE}", dir=path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _to_disk(path: Path) -> None:
    """Asks the system to write a file or a directory to the disk, where it can."""
    with suppress(PermissionError, NotImplementedError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
