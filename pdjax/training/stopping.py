"""Stops a program on SIGINT or SIGTERM without losing any of its work.

Separate from `loop`, because signal handlers are state of the whole process. There are two parts:

- `stop_asked`: while a training loops, a signal lets it end its epoch and save.
- `listening`: at any other time of a command a signal ends it, and a second signal ends it at once.
  Python runs its handlers only between two steps of its own code, but compiled code may take long
  and somebody's policy may never return. So a thread watches, and ends the process with a word if
  nothing else does.

Ending the process at once is safe: every file is written aside and renamed.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOPPED = 3  # exit code: stopped, and --resume continues
CONTINUES = "the same command with --resume continues from there"
NUMBERS = (signal.SIGINT, signal.SIGTERM)
REACTION = 3.0  # s in which Python may end the program itself
PATIENCE = 30.0  # s that an epoch may at least take to end
EPOCHS = 3  # an epoch may also take that many times as long as the longest one before


class Stopped(Exception):  # noqa: N818, this is no error
    """A run was asked to stop; its state is saved, and resuming it loses nothing."""


class Cut(Exception):  # noqa: N818, the loop makes an error of it
    """An epoch ended early, because its environments failed for good; its work can be saved.

    Attributes:
      state: the training state after its last complete round.
      error: why.
    """

    def __init__(self, state: Any, error: Exception):
        super().__init__(str(error))
        self.state, self.error = state, error


class _Loop:
    """A loop that ends an epoch before it stops.

    Attributes:
      came: numbers of the signals that arrived.
      is_told: whether the user knows that the signal arrived.
      heard: set once the epoch has ended after a signal.
      longest: s, duration of the longest epoch.
    """

    def __init__(self):
        self.came: list[int] = []
        self.is_told = False
        self.heard = threading.Event()
        self.longest = 0.0

    def tell(self, number: int) -> None:
        """Says that the signal arrived, once."""
        from pdjax.output import terminal

        if not self.is_told and not terminal.console.quiet:
            self.is_told = True
            name = signal.Signals(number).name
            _write(f"{name}: stopping after this epoch; send it again to stop at once")


_loops: list[_Loop] = []  # the loop that runs, if any


@contextmanager
def stop_asked() -> Iterator[Callable[[], str]]:
    """Notes SIGINT and SIGTERM within the block; a second signal stops the program at once.

    Outside the main thread, where Python delivers no signals, it notes nothing.

    Yields:
      A function () -> name of the signal that arrived, or "", to call after each epoch. Several
      processes must call it together; all of them receive a signal that arrived in any of them.
    """
    from pdjax.devices import processes  # imports JAX, which the start of a command waits for

    loop, last = _Loop(), time.monotonic()

    def note(number: int, frame: Any) -> None:
        del frame
        if loop.came:
            raise KeyboardInterrupt
        loop.came.append(number)
        loop.tell(number)

    def asked() -> str:
        nonlocal last
        now = time.monotonic()
        loop.longest, last = max(loop.longest, now - last), now
        number = processes.any_of(loop.came[0] if loop.came else 0)
        if number:
            loop.heard.set()
        return signal.Signals(number).name if number else ""

    if threading.current_thread() is not threading.main_thread():
        yield lambda: ""
        return
    with _handling(note):
        _loops.append(loop)
        try:
            yield asked
        finally:
            _loops.remove(loop)
            loop.heard.set()


@contextmanager
def listening(is_resumable: bool) -> Iterator[None]:
    """Ends the program on SIGINT or SIGTERM within the block, whatever it is doing.

    Args:
      is_resumable: whether --resume continues what was stopped.

    Raises:
      Stopped: a signal came, and what it stopped is resumable.
      KeyboardInterrupt: a signal came, and it is not.
    """

    if threading.current_thread() is not threading.main_thread():
        yield
        return

    noticed: list[int] = []  # by Python's handler, or by the thread, whichever is first

    def interrupt(number: int, frame: Any) -> None:
        del frame
        noticed.append(number)
        raise KeyboardInterrupt

    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    over = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(ours, noticed, is_resumable, over), name="signals", daemon=True
    )
    with _handling(interrupt):
        before = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
        watcher.start()
        try:
            yield
        except BaseException as error:  # an interrupted computation raises errors of its own
            if not noticed or isinstance(error, Stopped):
                raise
            if is_resumable:
                raise Stopped(f"stopped by {signal.Signals(noticed[0]).name}") from None
            raise KeyboardInterrupt from None
        finally:
            over.set()
            signal.set_wakeup_fd(before)
            os.close(theirs)


def _watch(pipe: int, noticed: list[int], is_resumable: bool, over: threading.Event) -> None:
    """Ends the process where a signal does not; one thread of `listening`."""
    came: list[int] = []
    while numbers := os.read(pipe, 64):
        for number in numbers:
            if number not in NUMBERS or signal.getsignal(number) not in _handlers:
                continue  # somebody else handles it
            came.append(number)
            noticed.append(number)
            if len(came) > 1:
                _end(came[0], is_resumable)
            loop = _loops[-1] if _loops else None
            if loop is not None:
                loop.tell(number)
            threading.Thread(
                target=_end_late, args=(number, is_resumable, over, loop), daemon=True
            ).start()
    os.close(pipe)


def _end_late(number: int, is_resumable: bool, over: threading.Event, loop: _Loop | None) -> None:
    """Ends the process unless it has ended, or its epoch has, by then."""
    if loop is not None:
        over, seconds = loop.heard, max(PATIENCE, EPOCHS * loop.longest)
    else:
        seconds = REACTION
    if not over.wait(seconds):
        _end(number, is_resumable)


def _end(number: int, is_resumable: bool) -> None:
    """Ends the process at once, with a word."""
    name = signal.Signals(number).name
    _write(f"pdjax: stopped by {name}; {CONTINUES}" if is_resumable else "pdjax: interrupted")
    os._exit(STOPPED if is_resumable else 1)


def _write(text: str) -> None:
    """Writes a line to stderr, past all locks that an interrupted thread may hold."""
    is_shown = sys.stderr is not None and sys.stderr.isatty()
    cursor = "\x1b[?25h" if is_shown else ""  # a live progress bar hides it
    with contextlib.suppress(OSError):
        os.write(2, f"{cursor}{text}\n".encode())


_handlers: set[Any] = set()  # those that `_handling` has installed


@contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Handles `NUMBERS` within the block."""
    _handlers.add(handler)
    before = {number: signal.signal(number, handler) for number in NUMBERS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
        _handlers.discard(handler)
