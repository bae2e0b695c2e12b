"""Reads untrusted pickles safely: it never imports the names in them and never calls anything.

A name on the caller's list becomes an inert `Record` of what the pickle would have built; any other
name is an error. Arrays are then rebuilt from the records' bytes; `torch_files` does the same for
tensors. All protocols are read, also as Python 2 wrote them.
Separate from the file formats because policies, demonstrations and checkpoints come as pickles.
"""

import math
import os
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pdjax_envs.reading import check_fits, short

# What arrays and containers are made of, in all protocols.
DATA = frozenset(
    f"numpy.{core}.{name}"
    for core in ("core", "_core")
    for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
) | {
    "numpy.ndarray",
    "numpy.dtype",
    "collections.OrderedDict",
    "_codecs.encode",
    "builtins.bytes",
}
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # Python 2's names, up to protocol 2
_MOST_STEPS = 5_000_000  # instructions in one pickle; real ones have one for some bytes of text


class Forbidden(Exception):  # noqa: N818 (a refusal, not a failure)
    """A pickle contains a name that is not on the list; the message is that name."""


class Damaged(Exception):  # noqa: N818 (a finding, not a failure)
    """A pickle is cut short or holds something unexpected; the message says what is wrong."""


class Record:
    """An object that a pickle would have built: the subclass's `named`, its `args` and `state`."""

    named = ""

    def __new__(cls, *args: Any) -> "Record":
        """Keeps the arguments that a call of the name, or its `__new__`, would have received."""
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __init__(self, *args: Any):
        del args  # __new__, which a pickle may call alone, has kept them

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Items(dict[Any, Any]):
    """An OrderedDict without its attributes, such as torch's `_metadata`."""

    def __setstate__(self, state: Any) -> None:
        del state


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, allowed: frozenset[str], persistent: Callable[[Any], Any]):
        super().__init__(file, encoding="latin-1")
        self._allowed, self._persistent = allowed, persistent
        self._named: dict[str, type[Record]] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{_RENAMED.get(module, module)}.{name}"
        if full not in self._allowed:
            raise Forbidden(full)
        if full == "collections.OrderedDict":
            return _Items
        if full not in self._named:
            self._named[full] = type("Named", (Record,), {"named": full})
        return self._named[full]

    def persistent_load(self, pid: Any) -> Any:
        return self._persistent(pid)


def load(path: Path, allowed: frozenset[str]) -> Any:
    """Reads a pickle into plain Python values and `Record`s.

    Args:
      path: the file.
      allowed: the dotted names that may occur in it.

    Raises:
      InputError: the file cannot be read or does not fit into memory.
      Forbidden: the pickle contains another name; nothing was imported or called.
      Damaged: the pickle is cut short or malformed.
    """
    with opened(path) as file:
        return load_next(file, allowed)


def opened(path: Path) -> BinaryIO:
    """Opens a file whose content fits into memory; nothing is read yet.

    Raises:
      InputError: it cannot be read or does not fit.
    """
    check_fits(3 * os.path.getsize(path), short(str(path)))
    return path.open("rb")


def load_next(
    file: BinaryIO, allowed: frozenset[str], persistent: Callable[[Any], Any] = lambda pid: pid
) -> Any:
    """Reads the pickle at a file's position, and moves the position to its end; see `load`.

    Args:
      file: the file.
      allowed: the dotted names that may occur in it.
      persistent: returns the object for a persistent identifier.
    """
    try:
        _check_claims(file)
        return _Unpickler(file, allowed, persistent).load()
    except (Forbidden, Damaged):
        raise
    # A malformed pickle can make the unpickler raise almost any exception.
    except Exception as error:
        raise Damaged(f"{type(error).__name__}: {error}") from None


def size_of(file: BinaryIO) -> int:
    """Returns the number of bytes of an open file; its position stays."""
    at = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(at)
    return size


def _check_claims(file: BinaryIO) -> None:
    """Checks that the pickle makes the unpickler reserve no memory for what it does not hold.

    Lengths beyond the end of the file make `genops` raise ValueError.
    """
    start, size = file.tell(), size_of(file)
    for count, (step, argument, _) in enumerate(pickletools.genops(file)):
        if count > _MOST_STEPS:
            raise Damaged(f"it has more than {_MOST_STEPS:,} instructions")
        if "PUT" in step.name and isinstance(argument, int) and argument > size:
            raise Damaged(f"it claims to have remembered {argument:,} objects")
    file.seek(start)


def array(value: Any) -> np.ndarray:
    """Returns the numbers of a pickled NumPy array, NumPy scalar, number, or list of these.

    Raises:
      Damaged: the value is something else, or its bytes do not fit its shape.
    """
    named = value.named if isinstance(value, Record) else type(value).__name__
    try:
        if named.endswith("multiarray._reconstruct"):
            _, shape, dtype, fortran, content = value.state
            return _numbers(content, _dtype(dtype), shape, "F" if fortran else "C")
        if named.endswith("numeric._frombuffer"):
            content, dtype, shape, order = value.args
            return _numbers(content, _dtype(dtype), shape, order)
        if named.endswith("multiarray.scalar"):
            dtype, content = value.args
            return _numbers(content, _dtype(dtype), (), "C")
        if isinstance(value, bool | int | float):
            return np.asarray(value, np.float64)
        if isinstance(value, list):
            return _listed(value)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise Damaged(f"{named}: {error}") from None
    raise Damaged(f"found {named}, expected an array of numbers")


def _listed(values: list[Any]) -> np.ndarray:
    """Stacks a list; lists within it are refused, because a few can claim to be very many."""
    rows = []
    for value in values:
        if isinstance(value, list):
            raise Damaged("found a list of lists, expected arrays")
        rows.append(array(value))
        if rows[-1].shape != rows[0].shape:
            raise Damaged(f"found {rows[0].shape} and {rows[-1].shape} in one list")
        if len(rows) == 1:
            check_fits(2 * len(values) * rows[0].nbytes, "a list of arrays")
    return np.stack(rows) if rows else np.zeros(0)


def content_of(value: Any) -> bytes:
    """Returns pickled bytes, which protocols 0 to 2 write as a call that encodes a text.

    Raises:
      Damaged: the value is something else.
    """
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, Record) and value.named == "_codecs.encode":
        text, encoding = value.args
        if isinstance(text, str) and encoding == "latin1":
            return text.encode("latin-1")
    if isinstance(value, Record) and value.named == "builtins.bytes" and not value.args:
        return b""
    if isinstance(value, str):  # of Python 2
        return value.encode("latin-1")
    raise Damaged(f"found {type(value).__name__}, expected bytes")


def _numbers(content: Any, dtype: np.dtype, shape: Any, order: Any) -> np.ndarray:
    shape, content = tuple(shape), content_of(content)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(content):
        raise Damaged(f"found {len(content)} bytes for an array of shape {shape} and type {dtype}")
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _dtype(record: Any) -> np.dtype:
    """Returns the type recorded as `dtype('f8', False, True)` and the byte order in its state."""
    name = record.args[0]
    if not re.fullmatch(r"f[248]|[iu][1248]|b1", name):
        raise Damaged(f"found an array of {name!r}, expected one of numbers")
    order = record.state[1] if record.state else "="
    return np.dtype(name).newbyteorder(order)
