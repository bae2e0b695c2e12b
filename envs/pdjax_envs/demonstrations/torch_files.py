"""Reads tensors that torch saved, as NumPy arrays, without torch.

`torch.save` writes a zip archive: a pickle, and the bytes of each storage beside it. Before torch
1.6, and inside other pickles, it wrote several pickles and then the storages. Both pickles are read
as inert records, see `pickles`, so no code of a file ever runs.

Source of both layouts: torch `serialization.py`, `_save` and `_legacy_save`. Not pure: it reads
files.
"""

import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pdjax_envs.demonstrations import pickles
from pdjax_envs.demonstrations.pickles import Damaged, Record
from pdjax_envs.reading import MOST_TEXT, InputError, check_fits, short

_TYPES = {
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "<u2",  # the upper half of a float32
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "<i1",
    "torch.ByteStorage": "<u1",
    "torch.BoolStorage": "?",
}
TENSORS = frozenset(
    {
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.storage._load_from_bytes",
        *_TYPES,
    }
)
# What stands beside the tensors in a checkpoint, such as a setting of its optimiser.
_ALLOWED = (
    pickles.DATA
    | TENSORS
    | {"torch.Size", "torch.device", "builtins.set"}
    | {f"torch.{name}" for name in ("bfloat16", "float16", "float32", "float64", "int64", "bool")}
)
_PICKLES_BEFORE = 3  # in the older layout: magic number, protocol, sizes of types
_MAGIC = 0x1950A86A20F9469CFC6C


class Saved(NamedTuple):
    """What torch saved.

    Attributes:
      value: plain Python values and `Record`s; `array` turns those of tensors into arrays.
      storages: the numbers of the tensors, by the keys that the records name.
    """

    value: Any
    storages: Mapping[str, np.ndarray]


def load(path: Path) -> Saved:
    """Reads a file of `torch.save`.

    Raises:
      InputError: the file cannot be read or does not fit into memory.
      pickles.Forbidden: it names something that weights do not need; nothing was executed.
      Damaged: it is not such a file, or it is cut short.
    """
    if not zipfile.is_zipfile(path):
        with pickles.opened(path) as file:
            return _load_old(file, _ALLOWED)
    try:
        with zipfile.ZipFile(path) as archive:
            return _load_archive(archive, short(str(path)))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from None


def _load_archive(archive: zipfile.ZipFile, what: str) -> Saved:
    members = {member.filename: member for member in archive.infolist()}
    check_fits(sum(member.file_size for member in members.values()), what)
    found = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(found) != 1:
        raise Damaged("it has no data.pkl")
    if members[found[0]].file_size > MOST_TEXT:
        raise Damaged("its data.pkl is too large")
    root = found[0].partition("/")[0]
    if f"{root}/constants.pkl" in members:
        raise Damaged("it is a TorchScript program; use `pdjax wrap`")
    order = f"{root}/byteorder"
    if order in members and archive.read(order).strip() != b"little":
        raise Damaged("its numbers are not little-endian")
    types: dict[str, str] = {}
    value = pickles.load_next(
        io.BytesIO(archive.read(found[0])), _ALLOWED, lambda pid: _remember(pid, types)
    )
    storages = {
        key: _storage(archive.read(f"{root}/data/{key}"), types[key])
        for key in types
        if f"{root}/data/{key}" in members
    }
    return Saved(value, storages)


def _load_old(file: BinaryIO, allowed: frozenset[str]) -> Saved:
    types = dict[str, str]()
    for index in range(_PICKLES_BEFORE):
        said = pickles.load_next(file, frozenset())
        if index == 0 and said != _MAGIC:
            raise Damaged("it does not begin as torch begins its files")
    value = pickles.load_next(file, allowed, lambda pid: _remember(pid, types))
    keys = pickles.load_next(file, frozenset())
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(types):
        raise Damaged("its list of storages is not that of its tensors")
    storages = {}
    for key in map(str, keys):
        count = int.from_bytes(file.read(8), "little", signed=True)
        size = count * np.dtype(types[key]).itemsize
        left = pickles.size_of(file) - file.tell()
        if not 0 <= size <= left:
            raise Damaged(f"a storage claims {size} bytes where {left} are left")
        storages[key] = _storage(file.read(size), types[key])
    return Saved(value, storages)


def _remember(pid: Any, types: dict[str, str]) -> Any:
    """Notes the type of the storage that a persistent identifier names, and returns its key."""
    kind, storage_type, key, *_ = pid
    named = getattr(storage_type, "named", "")
    if kind != "storage" or named not in _TYPES or not isinstance(key, str):
        raise Damaged("found no storage of numbers")
    types[key] = _TYPES[named]
    return named, key


def _storage(content: bytes, dtype: str) -> np.ndarray:
    return np.frombuffer(content, dtype, len(content) // np.dtype(dtype).itemsize)


def array(value: Any, storages: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """Returns the numbers of a saved tensor or parameter, or of whatever `pickles.array` takes.

    Args:
      value: what stands for it in `Saved.value`, or in another pickle.
      storages: `Saved.storages`; None if the pickle holds the storages itself.

    Raises:
      InputError: it does not fit into memory.
      Damaged: the value is something else, or reaches beyond its storage.
    """
    named = value.named if isinstance(value, Record) else ""
    try:
        if named == "torch._utils._rebuild_parameter":
            return array(value.args[0], storages)
        if named == "torch._utils._rebuild_tensor_v2":
            return _tensor(*value.args[:4], storages=storages)
    except InputError:
        raise
    except (LookupError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise Damaged(f"{named}: {type(error).__name__} {error}") from None
    return pickles.array(value)


def _tensor(
    storage: Any, offset: int, size: Any, stride: Any, storages: Mapping[str, np.ndarray] | None
) -> np.ndarray:
    """Returns a tensor: numbers of a storage, `stride` apart along each axis."""
    if storages is None:  # the storage is a file of torch's own within the pickle
        content = io.BytesIO(pickles.content_of(storage.args[0]))
        inner = _load_old(content, frozenset(_TYPES))
        storage, storages = inner.value, inner.storages
    named, key = storage
    numbers, size, stride = storages[key], _lengths(size), _lengths(stride)
    (offset,) = _lengths((offset,))
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and last >= len(numbers):
        raise Damaged(f"a tensor of size {size} reaches beyond its {len(numbers)} numbers")
    if not math.prod(size):
        return np.zeros(size, np.float32)
    check_fits(8 * math.prod(size), f"a tensor of size {size}")
    steps = [step * numbers.itemsize for step in stride]
    found = np.lib.stride_tricks.as_strided(numbers[offset:], size, steps, writeable=False)
    if named == "torch.BFloat16Storage":
        return (found.astype(np.uint32) << 16).view(np.float32)
    return found.copy()


def _lengths(values: Any) -> tuple[int, ...]:
    if len(values) > 32 or any(type(n) is not int or not 0 <= n < 2**48 for n in values):
        raise Damaged("a tensor's size, stride or offset is not what torch writes")
    return tuple(values)
