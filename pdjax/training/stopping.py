"""Stops a run on SIGINT or SIGTERM without losing any of its work.

Separate from `loop`, because signal handlers are state of the whole process.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pdjax.devices import processes
from pdjax.output import terminal


class Stopped(Exception):  # noqa: N818, this is no error
    """A run was asked to stop; its state is saved, and resuming it loses nothing."""


@contextmanager
def stop_asked() -> Iterator[Callable[[], str]]:
    """Notes SIGINT and SIGTERM within the block; a second signal stops the program at once.

    Outside the main thread, where Python delivers no signals, it notes nothing.

    Yields:
      A function () -> name of the signal that arrived, or "". Several processes must call it
      together; all of them receive a signal that arrived in any of them.
    """
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        del frame
        if came:
            raise KeyboardInterrupt
        came.append(number)
        name = signal.Signals(number).name
        terminal.say(f"{name}: stopping after this epoch; send it again to stop at once")

    def asked() -> str:
        number = processes.any_of(came[0] if came else 0)
        return signal.Signals(number).name if number else ""

    if threading.current_thread() is not threading.main_thread():
        yield lambda: ""
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
