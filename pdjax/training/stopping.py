"""Stopping a run on request without losing any of it."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pdjax.devices import processes
from pdjax.output import terminal


class Stopped(Exception):  # noqa: N818, it is no error
    """The run was asked to stop; its state is saved."""


@contextmanager
def stop_asked() -> Iterator[Callable[[], str]]:
    """Within: SIGINT and SIGTERM are noted instead of obeyed; a second one is obeyed at once.

    Yields:
      () -> the name of the signal that came, or ""; of several processes, to any: all must ask.
    """
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        del frame
        if came:
            raise KeyboardInterrupt
        came.append(number)
        name = signal.Signals(number).name
        terminal.say(f"{name}: stopping after this epoch; once more to stop at once")

    def asked() -> str:
        number = processes.any_of(came[0] if came else 0)
        return signal.Signals(number).name if number else ""

    if threading.current_thread() is not threading.main_thread():
        yield lambda: ""  # signals come to the main thread only
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
