"""Runs commands in processes of their own whose files fail, or which are killed, at a given point.

`python -m tests.training.faulty` reads one JSON object a line from stdin (see `Order`), carries it
out in a forked process that has imported everything but started nothing, and answers with a line.
A point is any call by which Python code changes something below a folder: opening a file to write,
writing, fsync, renaming, making and removing. TensorStore writes outside Python; kills at random
moments meet those.
"""

import errno
import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
import typing

ENDS = {"open": 0, "os.rename": 1, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0}
LIMIT_S = 240  # after which a process counts as hanging


class Order(typing.NamedTuple):
    """What one process does.

    Attributes:
      argv: the command's arguments.
      folder: working folder; only what happens below it counts.
      log: file for stdout and stderr.
      fault: "kill" (SIGKILL), "ENOSPC" (from then on), "EIO" (once), "later" (SIGKILL after `at`
        seconds) or "".
      at: number of the point, from 1; or seconds.
    """

    argv: list[str]
    folder: str
    log: str
    fault: str = ""
    at: float = 0


class Faults:
    """Counts points, and fails at one of them."""

    def __init__(self, order: Order):
        self._order, self._lock, self.count = order, threading.Lock(), 0
        self._inside = os.path.realpath(order.folder) + os.sep
        write, fsync = os.write, os.fsync

        def checked_write(handle, data):
            self.meet(_name(handle))
            return write(handle, data)

        def checked_fsync(handle):
            self.meet(_name(handle))
            return fsync(handle)

        os.write, os.fsync = checked_write, checked_fsync
        sys.addaudithook(self._audit)

    def _audit(self, event, arguments):
        if event not in ENDS or (event == "open" and not _writes(arguments[2])):
            return
        path = arguments[ENDS[event]]
        if isinstance(path, str | os.PathLike):
            self.meet(os.path.abspath(path))

    def meet(self, path: str):
        if not path.startswith(self._inside):
            return
        with self._lock:
            self.count += 1
            count = self.count
        fault, at = self._order.fault, self._order.at
        if fault == "kill" and count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if (fault == "EIO" and count == at) or (fault == "ENOSPC" and count >= at):
            number = getattr(errno, fault)
            raise OSError(number, os.strerror(number))


def _name(handle) -> str:
    number = handle if isinstance(handle, int) else handle.fileno()
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""


def _writes(flags) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


def _obey(order: Order) -> typing.NoReturn:
    """The forked process: runs the command, and never returns."""
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    faulthandler.enable()
    os.chdir(order.folder)
    from pdjax.commands import cli
    from tests.probe import make_point_task, registered

    if order.fault == "later":
        timer = threading.Timer(order.at, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    sys.unraisablehook = cli._unraisable  # as `cli.program` does
    faults = Faults(order)
    with registered(make_point_task()):
        code = cli.main(order.argv)
    with open(f"{order.log}.points", "w") as file:
        file.write(str(faults.count))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(child: int) -> int:
    """Returns how a process ended; one that hangs is killed, which counts as 99."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 99


def main() -> None:
    """Imports what a training needs, then forks a process for each line of stdin."""
    import matplotlib.figure  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import tensorboardX  # noqa: F401

    import pdjax.output.tables
    import pdjax.training.run  # noqa: F401

    for line in sys.stdin:
        order = Order(**json.loads(line))
        child = os.fork()
        if not child:
            random.seed(order.at)
            _obey(order)
        print(json.dumps(_wait(child)), flush=True)


if __name__ == "__main__":
    main()
