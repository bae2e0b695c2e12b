"""One worker process, seen from the process that asks: its start, its messages, its end.

Separate from `pool`, which knows episodes and decides what a failure means. Not pure: an object
here owns a process, two pipes and a log.
"""

import contextlib
import fcntl
import json
import math
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdjax_envs.reading import InputError, reason, short

SCRIPT = Path(__file__).with_name("worker.py")
MOST_LOG = 1 << 20  # bytes of a log; longer ones begin anew
LONGEST = 1e6  # s; what `poll` can wait for
CLOSING = 2.0  # s that workers have to close their environments
NO_SCREEN = {} if "DISPLAY" in os.environ else {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"}
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


PLAY_ALL: Mapping[str, Any] = {"do": "play"}  # the one request that has to be fast


def _message(request: Mapping[str, Any]) -> bytes:
    text = json.dumps(request).encode()
    return struct.pack("<I", len(text)) + text


PLAY, DONE = _message(PLAY_ALL), _message({})


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
    """A worker process and its log.

    It has a session of its own, so that Ctrl-C in a terminal reaches only the process that asks,
    and ends with that one, however it ends.

    Attributes:
      is_waited_for: a request was sent whose answer has not been read.
    """

    def __init__(self, python: str, memory: int, draws: bool = False):
        """Starts the process.

        Args:
          python: the interpreter, a path or a name; "" = this one.
          memory: the descriptor of the file that is shared with it.
          draws: whether it needs OpenGL, which has to be told where there is no screen.

        Raises:
          WorkerError: there is no such interpreter.
        """
        self.is_waited_for = False
        self._received = b""
        self._owner, self._is_stopped = os.getpid(), False
        command = os.path.expanduser(python) or sys.executable
        # PR_SET_PDEATHSIG watches the thread that starts the worker, not the process.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        fcntl.fcntl(self._log, fcntl.F_SETFL, fcntl.fcntl(self._log, fcntl.F_GETFL) | os.O_APPEND)
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        given = (requests, answers, memory)
        self._poll = select.poll()
        self._poll.register(self._answers, select.POLLIN)
        try:
            self._process = subprocess.Popen(
                [command, "-u", str(SCRIPT), *map(str, given), str(parent)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=given,
                start_new_session=True,
                env={
                    **dict.fromkeys(ONE_THREAD, "1"),
                    **(NO_SCREEN if draws else {}),
                    **os.environ,
                },
            )
        except (OSError, ValueError) as error:
            os.close(self._requests)
            os.close(self._answers)
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
        message = PLAY if request is PLAY_ALL else _message(request)
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
        if self._is_stopped:
            raise Failed("died", "was stopped")
        need = 4
        while len(self._received) < need:
            left = min(max(0.0, deadline - time.monotonic()), LONGEST)
            if not self._poll.poll(math.ceil(1e3 * left)):
                raise Failed("hung", f"did not answer in time{self._where_it_hangs()}")
            more = os.read(self._answers, 1 << 16)
            if not more:
                raise Failed("died", f"{self._how_it_ended()}{self.log_end()}")
            if more == DONE and not self._received:
                self.is_waited_for = False
                return {}
            self._received += more
            if len(self._received) >= 4:
                need = 4 + struct.unpack("<I", self._received[:4])[0]
        text, self._received = self._received[4:need], self._received[need:]
        self.is_waited_for = False
        found = json.loads(text)
        if "error" in found:
            raise Failed(found["kind"], found["error"])
        return found

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
        os.close(self._requests)
        os.close(self._answers)
        self._log.close()

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


def sentence(failure: Failed) -> str:
    """Returns what a worker did, to follow its name."""
    return ("met an error: " if failure.kind in ("raised", "numbers") else "") + str(failure)
