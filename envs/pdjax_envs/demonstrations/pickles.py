"""Reads untrusted pickles safely: it never imports the names in them and never calls anything.

A name on the caller's list becomes an inert `Record` of what the pickle would have built; any other
name is an error. Arrays and tensors are then rebuilt from the records' bytes, without torch.
Separate from the file formats because policies and demonstrations both come as pickles.
"""

import io
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

NUMPY = frozenset(
    f"numpy.{core}.{name}"
    for core in ("core", "_core")
    for name in ("multiarray._reconstruct", "multiarray.scalar", "numeric._frombuffer")
) | {"numpy.ndarray", "numpy.dtype"}
TORCH = frozenset(
    {
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.storage._load_from_bytes",
    }
)
_STORAGES = {"torch.FloatStorage": "<f4", "torch.DoubleStorage": "<f8"}
_TORCH_PICKLES = 3  # pickles before a storage's own: magic number, protocol, sizes of types


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


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, allowed: frozenset[str]):
        super().__init__(file)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self._allowed:
            raise Forbidden(full)
        return (
            dict if full == "collections.OrderedDict" else type("Named", (Record,), {"named": full})
        )

    def persistent_load(self, pid: Any) -> Any:
        return pid


def load(path: Path, allowed: frozenset[str]) -> Any:
    """Reads a pickle into plain Python values and `Record`s.

    Args:
      path: the file.
      allowed: the dotted names that may occur in it.

    Raises:
      OSError: the file cannot be read.
      Forbidden: the pickle contains another name; nothing was imported or called.
      Damaged: the pickle is cut short or malformed.
    """
    return _load(io.BytesIO(path.read_bytes()), allowed)


def _load(file: io.BytesIO, allowed: frozenset[str]) -> Any:
    try:
        return _Unpickler(file, allowed).load()
    except Forbidden:
        raise
    # A malformed pickle can make the unpickler raise almost any exception.
    except Exception as error:
        raise Damaged(f"{type(error).__name__}: {error}") from None


def array(value: Any) -> np.ndarray:
    """Returns the numbers of a pickled NumPy array, torch tensor or torch parameter.

    Raises:
      Damaged: the value is something else, or its bytes do not fit its shape.
    """
    named = value.named if isinstance(value, Record) else ""
    try:
        if named == "torch._utils._rebuild_parameter":
            return array(value.args[0])
        if named == "torch._utils._rebuild_tensor_v2":
            return _tensor(*value.args[:4])
        if named.endswith("multiarray._reconstruct"):
            _, shape, dtype, fortran, content = value.state
            return _numbers(content, _dtype(dtype), shape, "F" if fortran else "C")
        if named.endswith("numeric._frombuffer"):
            content, dtype, shape, order = value.args
            return _numbers(content, _dtype(dtype), shape, order)
    except Damaged:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{named}: {error}") from None
    raise Damaged(f"found {named or type(value).__name__}, expected an array of numbers")


def _numbers(content: Any, dtype: np.dtype, shape: Any, order: Any) -> np.ndarray:
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def _dtype(record: Any) -> np.dtype:
    """Returns the type recorded as `dtype('f8', False, True)` and the byte order in its state."""
    name = record.args[0]
    if not re.fullmatch(r"[fiu][1248]|b1", name):
        raise Damaged(f"found an array of {name!r}, expected one of numbers")
    order = record.state[1] if record.state else "="
    return np.dtype(name).newbyteorder(order)


def _tensor(storage: Record, offset: int, size: Any, stride: Any) -> np.ndarray:
    """Returns a tensor that occupies one contiguous piece of its storage."""
    count = int(np.prod(size, dtype=np.int64))
    in_one_piece = [int(np.prod(size[axis + 1 :], dtype=np.int64)) for axis in range(len(size))]
    if list(stride) != in_one_piece or min(offset, *size, 0) < 0:
        raise Damaged(f"found a tensor of size {size} and stride {stride}, expected one piece")
    return _storage(storage.args[0])[offset : offset + count].reshape(size)


def _storage(content: bytes) -> np.ndarray:
    """Returns the numbers of a torch storage: a few small pickles, a count and the raw numbers.

    Source of the layout: torch `serialization.py`, `_legacy_save`.
    """
    file = io.BytesIO(content)
    for _ in range(_TORCH_PICKLES):
        _load(file, frozenset())
    _, storage_type, *_ = _load(file, frozenset(_STORAGES))
    _load(file, frozenset())  # the list of storages, which holds only this one
    (count,) = np.frombuffer(file.read(8), "<i8")
    return np.frombuffer(file.read(), _STORAGES[storage_type.named], count)
