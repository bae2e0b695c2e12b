"""Keeps a second process from writing to a directory that one writes to already.

The lock belongs to an open file, so the system gives it up when the process ends, however it ends:
what a dead process left is no obstacle. The file's text is only for messages. Not pure.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from pdjax.config.options import ConfigError
from pdjax.output import terminal
from pdjax.output.paths import LOCK
from pdjax_envs import reading
from pdjax_envs.reading import InputError


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Holds an existing directory within the block; the lock moves with a renamed directory.

    Where the file system knows no locks, it says so and goes on.

    Raises:
      ConfigError: somebody else holds the directory; says who.
    """
    path = directory / LOCK
    with ExitStack() as closing:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            closing.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            closing.callback(_write, handle, b"")  # empty: nobody holds the directory
            _write(handle, _about_this_process())
        except BlockingIOError:
            raise ConfigError(
                f"{directory} is in use by {_holder(path)}; wait for it to end, or stop it first"
            ) from None
        except OSError as error:
            terminal.say(
                f"cannot lock {directory} ({reading.reason(error)}); make sure that no other"
                " process writes to it"
            )
        yield


def _about_this_process() -> bytes:
    about = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return json.dumps(about).encode() + b"\n"


def _write(handle: int, text: bytes) -> None:
    """Replaces a lock's text. On a full disk the text is lost, but not the lock."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, text, 0)


def _holder(path: Path) -> str:
    try:
        said = reading.read_json_object(path, "lock")
    except InputError:
        return "another process"
    pid, host, since = (reading.short(str(said.get(name))) for name in ("pid", "host", "since"))
    return f"process {pid} on {host} since {since}"
