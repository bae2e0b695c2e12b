"""Reads files that come from outside: text, JSON, JSON lines and arrays.

This is the border for what other people and other programs wrote. Size, encoding, nesting and
memory are checked here before anything is used, and every failure is an `InputError`. No function
here runs code from a file. Formats that need more than that have readers of their own, which raise
the same error: `demonstrations.layouts` (HDF5), `demonstrations.pickles`, and in pdjax
`config.plain_yaml`, `torch_checkpoints.weights` and `foreign.exported`.
"""

import json
import math
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pdjax_envs.free_memory import free_memory

if TYPE_CHECKING:
    import numpy as np

MOST_TEXT = 256 << 20  # bytes of a text file; records of very long runs stay below
MOST_DEPTH = 50  # levels of nesting
MOST_NUMBER = 1e100  # size of a number from a file; sums and squares of such numbers stay finite
MOST_SHOWN = 80  # characters of a wrong value in an error message


class InputError(ValueError):
    """Says in one line what was wrong with an input, what was expected and what to do."""


def short(value: Any, most: int = MOST_SHOWN) -> str:
    """Returns a value for an error message: one line, shortened in the middle."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def reason(error: BaseException) -> str:
    """Returns what went wrong, for an error message: one short line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return short(text or type(error).__name__, 160)


def check_fits(size: int, what: str, advice: str = "use a smaller one") -> None:
    """Checks before something is loaded that it fits into half of the free memory.

    Args:
      size: bytes needed.
      what: what needs them, to begin the error message.
      advice: what to do about it.

    Raises:
      InputError: it does not fit.
    """
    free = free_memory()
    if free is not None and size > free // 2:
        raise InputError(
            f"{what} needs {size / 2**30:,.1f} GiB of memory, but only {free / 2**30:,.1f} GiB are"
            f" free; {advice}, or take a machine with more memory"
        )


def is_number(value: Any) -> bool:
    """Returns whether a value read from a file is a number to compute with.

    NaN, infinity, numbers beyond `MOST_NUMBER`, True and False are none.
    """
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and -MOST_NUMBER <= value <= MOST_NUMBER


def is_non_negative(value: Any) -> bool:
    """Returns whether a value read from a file is a number from 0 on that 64 bits can hold."""
    return is_number(value) and 0 <= value < 2**63


def is_rate(value: Any) -> bool:
    """Returns whether a value read from a file is a number in [0, 1]."""
    return is_number(value) and 0 <= value <= 1


def is_file(path: Path) -> bool:
    """Returns whether a file exists; False also for a name that no file can have."""
    try:
        return os.path.isfile(path)
    except (OSError, ValueError):
        return False


def read_bytes(path: Path, what: str, most: int = MOST_TEXT) -> bytes:
    """Reads a whole file.

    Args:
      path: the file.
      what: what the file is, for error messages, such as "config".
      most: largest size in bytes that is read.

    Raises:
      InputError: the file is missing, cannot be read or is too large.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise InputError(f"cannot read {what} {short(str(path))}: it is no regular file")
        with path.open("rb") as file:
            # The size first: `read` with a number reserves that much memory.
            size = os.fstat(file.fileno()).st_size
            found = file.read() if size <= most else b""
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {what} {short(str(path))}: {reason(error)}") from None
    if max(size, len(found)) > most:
        raise InputError(
            f"cannot read {what} {short(str(path))}: it has more than {most:,} bytes; is it the"
            " right file?"
        )
    return found


def read_text(path: Path, what: str, most: int = MOST_TEXT) -> str:
    """Reads a text file in UTF-8.

    Raises:
      InputError: see `read_bytes`; or the file is not text in UTF-8.
    """
    try:
        return read_bytes(path, what, most).decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"cannot read {what} {short(str(path))}: byte {error.start} is not UTF-8; is it a text"
            " file?"
        ) from None


def read_json(path: Path, what: str) -> Any:
    """Reads a JSON file.

    Raises:
      InputError: see `read_text`; or the file is not JSON or is nested too deeply.
    """
    return parse_json(read_text(path, what), f"cannot read {what} {short(str(path))}")


def read_json_object(path: Path, what: str) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      InputError: see `read_json`; or the file holds something else.
    """
    found = read_json(path, what)
    if not isinstance(found, dict):
        raise InputError(
            f"cannot read {what} {short(str(path))}: it holds {short(found)}, expected an object"
        )
    return cast("dict[str, Any]", found)


def parse_json(text: str, problem: str) -> Any:
    """Parses JSON.

    Args:
      text: the JSON.
      problem: beginning of the error message.

    Raises:
      InputError: it is not JSON, or is nested more deeply than `MOST_DEPTH`.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise InputError(f"{problem}: nested more than {MOST_DEPTH} levels deep") from None
    except ValueError as error:
        raise InputError(f"{problem}: {reason(error)}") from None
    if text.count("{") + text.count("[") > MOST_DEPTH:  # most texts cannot be deep
        check_depth(found, problem)
    return found


def check_depth(tree: Any, problem: str) -> None:
    """Checks that nested lists and dicts are at most `MOST_DEPTH` levels deep.

    Raises:
      InputError: they are deeper; the message begins with `problem`.
    """
    level: list[Any] = [tree]
    for _ in range(MOST_DEPTH + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += cast("dict[Any, Any]", item).values()
            elif isinstance(item, list):
                below += cast("list[Any]", item)
        level = [item for item in below if isinstance(item, dict | list)]
        if not level:
            return
    raise InputError(f"{problem}: nested more than {MOST_DEPTH} levels deep")


def read_npz(path: Path, what: str) -> "dict[str, np.ndarray]":
    """Reads the arrays of an .npz file, after checking their headers against the free memory.

    Raises:
      InputError: the file is missing, damaged, encrypted or too large, or holds Python objects.
    """
    import numpy as np  # here, because `pdjax --help` needs none of it

    problem = f"cannot read {what} {short(str(path))}"
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(_array_size(archive, member, problem) for member in archive.infolist())
        check_fits(size, f"{what} {short(str(path))}")
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds for a damaged file
        raise InputError(f"{problem}: {reason(error)}; expected an .npz of arrays") from None


def _array_size(archive: zipfile.ZipFile, member: zipfile.ZipInfo, problem: str) -> int:
    """Returns the bytes of an array that a member of an .npz claims to hold."""
    import numpy as np

    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read(file)
        size = math.prod(shape) * dtype.itemsize
        if size > member.file_size:
            raise InputError(f"{problem}: {member.filename} claims more numbers than it holds")
    return size
