"""One worker process, seen from the process that asks: its start, its messages, its end.

Separate from `pool`, which knows episodes and decides what a failure means. Not pure: an object
here owns a process, two pipes, a file in memory and a log.
"""

import contextlib
import fcntl
import json
import math
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pdjax_envs.reading import InputError, reason, short

SCRIPT = Path(__file__).with_name("worker.py")
IN_MEMORY = Path("/dev/shm")
LEAST_FREE = 64 << 20  # bytes in memory's file system, below which a file on a disk is used
MOST_LOG = 1 << 20  # bytes of a log; longer ones begin anew
CLOSING = 2.0  # s that workers have to close their environments
ALIGNMENT = 64  # bytes
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Layout = dict[str, tuple[int, tuple[int, ...], str]]  # name -> offset in bytes, shape, dtype


class WorkerError(InputError):
    """Worker processes cannot start, or failed too often; the message says why."""


class Failed(Exception):  # noqa: N818 (the pool decides whether it is an error)
    """A worker did not answer as it should.

    Attributes:
      kind: `died`, `hung`, or what the worker says: `refused`, `numbers`, `raised`.
    """

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


class Process:
    """A worker process, its shared arrays and its log.

    It has a session of its own, so that Ctrl-C in a terminal reaches only the process that asks,
    and ends with that one, however it ends.

    Attributes:
      arrays: the shared arrays, after `attach`.
      is_waited_for: a request was sent whose answer has not been read.
    """

    def __init__(self, python: str):
        """Starts the process.

        Args:
          python: the interpreter, a path or a name; "" = this one.

        Raises:
          WorkerError: there is no such interpreter.
        """
        self.arrays: dict[str, np.ndarray] = {}
        self.is_waited_for = False
        self._received, self._size = b"", 0
        self._owner, self._is_stopped = os.getpid(), False
        command = os.path.expanduser(python) or sys.executable
        # PR_SET_PDEATHSIG watches the thread that starts the worker, not the process.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        self._memory, self._log = _file_in_memory(), tempfile.TemporaryFile()  # noqa: SIM115
        fcntl.fcntl(self._log, fcntl.F_SETFL, fcntl.fcntl(self._log, fcntl.F_GETFL) | os.O_APPEND)
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        given = (requests, answers, self._memory)
        try:
            self._process = subprocess.Popen(
                [command, "-u", str(SCRIPT), *map(str, given), str(parent)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=given,
                start_new_session=True,
                env={**dict.fromkeys(ONE_THREAD, "1"), **os.environ},
            )
        except (OSError, ValueError) as error:
            for pipe in (self._requests, self._answers, self._memory):
                os.close(pipe)
            self._log.close()
            advice = f"; give an interpreter such as {short(command)}/bin/python"
            raise WorkerError(
                f"cannot start the interpreter {short(command)}: {reason(error)}"
                + (advice if os.path.isdir(command) else "")
            ) from None
        finally:
            os.close(requests)
            os.close(answers)

    def ask(self, request: Mapping[str, Any]) -> None:
        """Sends a request; a process that is gone is noticed by `answer`."""
        self.is_waited_for = True
        text = json.dumps(request).encode()
        message = struct.pack("<I", len(text)) + text
        with contextlib.suppress(OSError):
            while message:
                message = message[os.write(self._requests, message) :]

    def answer(self, deadline: float) -> dict[str, Any]:
        """Waits for the answer to the last request. An interrupted call may be repeated.

        Args:
          deadline: in seconds of `time.monotonic`; an answer that is there is taken afterwards too.

        Raises:
          Failed: the worker died, did not answer in time, or answered with an error.
        """
        need = 4
        while len(self._received) < need:
            poll = select.poll()
            poll.register(self._answers, select.POLLIN)
            if not poll.poll(max(0, math.ceil(1e3 * (deadline - time.monotonic())))):
                raise Failed("hung", f"did not answer in time{self._where_it_hangs()}")
            more = os.read(self._answers, 1 << 16)
            if not more:
                raise Failed("died", f"{self._how_it_ended()}{self.log_end()}")
            self._received += more
            if len(self._received) >= 4:
                need = 4 + struct.unpack("<I", self._received[:4])[0]
        text, self._received = self._received[4:need], self._received[need:]
        self.is_waited_for = False
        found = json.loads(text)
        if "error" in found:
            raise Failed(found["kind"], found["error"])
        return found

    def attach(self, arrays: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, Any]:
        """Makes the shared arrays, all zero; returns the fields of an "attach" request.

        Args:
          arrays: name -> shape, dtype.

        Raises:
          WorkerError: there is no room for them.
        """
        layout, size = _lay_out(arrays)
        self._size = size
        try:
            if hasattr(os, "posix_fallocate"):  # else a full file system would kill both sides
                os.posix_fallocate(self._memory, 0, size)
            else:
                os.ftruncate(self._memory, size)
            shared = mmap.mmap(self._memory, size)
        except OSError as error:
            raise WorkerError(
                f"no room for {size:,} bytes shared with a worker: {reason(error)}; make room in"
                f" {IN_MEMORY} or in {tempfile.gettempdir()}"
            ) from None
        self.arrays = {
            name: np.ndarray(shape, dtype, shared, offset)
            for name, (offset, shape, dtype) in layout.items()
        }
        return {"layout": layout, "size": size}

    def read_picture(self, shape: Iterable[int]) -> np.ndarray:
        """Returns the picture (H, W, 3) uint8 that the worker wrote behind the arrays."""
        shape = tuple(shape)
        pixels = os.pread(self._memory, math.prod(shape), self._size)
        return np.frombuffer(pixels, np.uint8).reshape(shape).copy()

    def trim_log(self) -> None:
        """Empties a log that has become long."""
        if os.fstat(self._log.fileno()).st_size > MOST_LOG:
            os.ftruncate(self._log.fileno(), 0)

    def log_end(self) -> str:
        """Returns what the worker wrote last, as the end of a sentence; "" if it wrote nothing."""
        lines = self._log_lines()
        return f"; its log ends with: {short(lines[-1], 160)}" if lines else ""

    def _log_lines(self) -> list[str]:
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), 8192, max(0, size - 8192)).decode(errors="replace")
        lines = ("".join(c for c in line if c.isprintable()) for line in text.splitlines())
        return [line.strip() for line in lines if line.strip()]

    def _where_it_hangs(self) -> str:
        """Asks faulthandler for the place; "" if the process is stopped or answers nothing."""
        before = len(self._log_lines())
        with contextlib.suppress(OSError):
            os.kill(self._process.pid, signal.SIGUSR1)
            time.sleep(0.1)
        for line in self._log_lines()[before:]:
            if line.startswith("File "):  # the innermost call comes first
                return f"; it hangs in {short(line.removeprefix('File '), 160)}"
        return self.log_end()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return "closed its pipe"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def stop(self) -> None:
        """Kills the process and what it started, and frees all; does nothing the second time.

        A copy of this object in a forked process leaves the worker alone.
        """
        if self._is_stopped or os.getpid() != self._owner:
            return
        self._is_stopped = True
        with contextlib.suppress(OSError):  # the group is gone
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # in a system call that never ends
            self._process.wait(5)
        for pipe in (self._requests, self._answers, self._memory):
            os.close(pipe)
        self._log.close()
        self.arrays = {}

    def has_ended(self) -> bool:
        """Returns whether the process is gone."""
        return self._process.poll() is not None


def stop_all(processes: list[Process]) -> None:
    """Kills all workers at once."""
    for process in processes:
        process.stop()


def close_all(processes: list[Process]) -> None:
    """Lets idle workers close their environments for at most CLOSING seconds, then kills all."""
    idle = [process for process in processes if not process.is_waited_for]
    for process in idle:
        process.ask({"do": "close"})
    deadline = time.monotonic() + CLOSING
    while time.monotonic() < deadline and not all(process.has_ended() for process in idle):
        time.sleep(0.005)
    stop_all(processes)


def _file_in_memory() -> int:
    """Returns the descriptor of a new empty file that has no name any more."""
    folder = None
    with contextlib.suppress(OSError):
        free = os.statvfs(IN_MEMORY)
        if free.f_bavail * free.f_frsize >= LEAST_FREE and os.access(IN_MEMORY, os.W_OK):
            folder = IN_MEMORY
    handle, name = tempfile.mkstemp(prefix="pdjax-", dir=folder)
    os.unlink(name)
    return handle


def _lay_out(arrays: Mapping[str, tuple[tuple[int, ...], str]]) -> tuple[Layout, int]:
    """Returns where each array lies, and the bytes of all."""
    layout: Layout = {}
    size = 0
    for name, (shape, dtype) in arrays.items():
        layout[name] = (size, shape, dtype)
        size += -(-math.prod(shape) * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT
    return layout, size
