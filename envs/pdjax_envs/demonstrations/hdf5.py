"""Reads arrays of HDF5 files from outside; each one is checked before it is loaded.

An HDF5 file can point at other files, claim sizes that it does not hold, and store pieces that
decompress to any size. Here an array is numbers that lie in the file itself, are all there and fit
into memory. Everything else is a `DataError`. Not pure: it reads files.
"""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pdjax_envs.demonstrations.trajectory import DataError
from pdjax_envs.reading import check_fits, short

_COMPRESSIONS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_LZF,
    h5py.h5z.FILTER_NBIT,
    h5py.h5z.FILTER_SCALEOFFSET,
    h5py.h5z.FILTER_SZIP,
}
_FILTERS = _COMPRESSIONS | {h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_SHUFFLE}
_GROWTH = 1032  # how much deflate can grow its input at most
_HARMLESS = 1 << 30  # bytes that one piece may grow to without a look at it
_REPACK = "write the numbers into the file itself, for example with h5repack"


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading.

    Raises:
      DataError: another program has the file open for writing.
      OSError: it is damaged or cannot be read.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        if "unable to lock file" not in str(error):
            raise
        raise DataError(
            f"{short(str(path))} is locked: another program has it open for writing; close that"
            " program, or copy the file"
        ) from None
    with file:
        yield file


def member(group: Any, name: str) -> Any:
    """Returns a group or dataset of a group, or None if there is none.

    Raises:
      DataError: it is a link to another place or another file.
    """
    key = name.encode(errors="surrogateescape")
    if not isinstance(group, h5py.Group) or not group.id.links.exists(key):
        return None
    if group.id.links.get_info(key).type != h5py.h5l.TYPE_HARD:
        raise DataError(f"{place(group, name)} is a link, expected an array; {_REPACK}")
    return group[name]


def array(group: Any, name: str, kind: Any = np.float32) -> np.ndarray | None:
    """Returns an array of a group, or None if the group has no dataset of that name.

    Args:
      group: the group; anything else has no arrays.
      name: the dataset's name.
      kind: type of the result. NaN and infinity are kept, unless `kind` is bool.

    Raises:
      DataError: see the head of this file.
      InputError: the array does not fit into memory.
    """
    found = member(group, name)
    if not isinstance(found, h5py.Dataset):
        return None
    where = place(group, name)
    _check_type(where, found.shape, found.dtype)
    if found.is_virtual or found.external:
        raise DataError(f"{where} keeps its numbers elsewhere, in other files; {_REPACK}")
    itemsize = found.dtype.itemsize
    check_fits(math.prod(found.shape) * (itemsize + np.dtype(kind).itemsize), where)
    if found.chunks:
        _check_pieces(where, found, found.chunks)
    elif found.size and not found.id.get_storage_size():
        raise DataError(f"{where} was never written; record or download the file again")
    return _converted(where, found[()], kind)


def attribute(group: h5py.Group, name: str) -> np.ndarray:
    """Returns an attribute of a group as float32.

    Raises:
      DataError: it does not hold numbers.
    """
    where = place(group, name)
    found = group.attrs.get_id(name)
    _check_type(where, found.shape, found.dtype)
    return _converted(where, group.attrs[name], np.float32)


def place(group: h5py.Group, name: str) -> str:
    """Returns FILE:GROUP/NAME for an error message."""
    inner = f"{group.name or ''}/{name}".strip("/")
    return f"{short(group.file.filename)}:{short(inner)}"


def _check_type(where: str, shape: Any, dtype: np.dtype) -> None:
    if shape is None or dtype.kind not in "biuf":
        raise DataError(f"{where} holds {short(str(dtype))}, expected numbers")


def _converted(where: str, values: Any, kind: Any) -> np.ndarray:
    if kind is bool and not np.isfinite(values).all():
        raise DataError(f"{where} holds NaN or infinity, expected yes or no")
    with np.errstate(over="ignore"):  # infinity is found by `trajectory.check`
        return np.asarray(values, kind)


def _check_pieces(where: str, dataset: h5py.Dataset, shape: tuple[int, ...]) -> None:
    """Checks an array that is stored in pieces: all are there, and none holds more than it says."""
    settings = dataset.id.get_create_plist()
    filters = [settings.get_filter(index)[0] for index in range(settings.get_nfilters())]
    if not _FILTERS.issuperset(filters) or len(_COMPRESSIONS.intersection(filters)) > 1:
        raise DataError(
            f"{where} is compressed by filters {short(str(filters))}, of which pdjax reads one of"
            " HDF5's own at a time; repack the file with `h5repack -f GZIP=4`"
        )
    if len(set(filters)) < len(filters):
        raise DataError(f"{where} is compressed several times; repack it with `h5repack -f GZIP=4`")
    size = math.prod(shape) * dataset.dtype.itemsize
    check_fits(size, where)
    expected = math.prod(-(-n // piece) for n, piece in zip(dataset.shape, shape))
    if dataset.id.get_num_chunks() != expected:
        raise DataError(
            f"{where} has {dataset.id.get_num_chunks()} of {expected} pieces: the rest was never"
            " written; record or download the file again"
        )
    deflated = h5py.h5z.FILTER_DEFLATE in filters
    masked = 1 << filters.index(h5py.h5z.FILTER_DEFLATE) if deflated else 0

    def is_bomb(piece: Any) -> bool:
        if piece.size > size + size // 64 + 4096:
            return True
        if not deflated or piece.filter_mask & masked or piece.size * _GROWTH <= _HARMLESS:
            return False
        _, content = dataset.id.read_direct_chunk(piece.chunk_offset)
        return len(zlib.decompressobj().decompress(content, size + 4097)) > size + 4096

    pieces: list[Any] = []
    dataset.id.chunk_iter(pieces.append)
    if any(map(is_bomb, pieces)):
        raise DataError(f"{where} has a piece that holds more than it says; download it again")
