"""Ends the program on request while a policy's call on the host does not return.

While XLA waits for such a call, Python's main thread waits for XLA, so no handler of a signal runs.
The system still tells a thread of our own. Used by the `pdjax` program only: in a notebook, nobody
but the user may end the process. The module's only state is which calls are in progress.
"""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

SAY_AFTER_S, END_AFTER_S = 1.0, 20.0  # since the signal, if the call still does not return

_calls: list[float] = []  # when the calls in progress began, s


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Calls a policy on the host, so that `watch` knows of it."""
    _calls.append(time.monotonic())
    try:
        return function(*args)
    finally:
        _calls.pop()


def watch() -> None:
    """Watches for SIGINT and SIGTERM from now on; the main thread must call it.

    If a policy's call that was in progress when a signal came does not return, it says so after
    `SAY_AFTER_S`, and ends the process (exit code 1) after `END_AFTER_S` or at a second signal.
    """
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    if signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False) != -1:
        raise RuntimeError("another part of the program is told of signals already")
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
    threading.Thread(target=_listen, args=(receiver, sender), daemon=True).start()


def _listen(receiver: socket.socket, sender: socket.socket) -> None:
    while sender.fileno() >= 0:  # held here, so that it stays open
        if name := _next_signal(receiver):
            _attend(receiver, name)


def _next_signal(receiver: socket.socket) -> str:
    """Waits for a signal; returns its name if it asks to stop, else ""."""
    number = receiver.recv(1)[0]
    return signal.Signals(number).name if number in (signal.SIGINT, signal.SIGTERM) else ""


def _attend(receiver: socket.socket, name: str) -> None:
    """Waits until the call in progress returns; ends the process if it does not."""
    call, came, said = _calls[:1], time.monotonic(), False
    while call and call == _calls[:1]:
        waited = time.monotonic() - came
        if waited > END_AFTER_S:
            _end(name, call[0])
        if waited > SAY_AFTER_S and not said:
            said = True
            _say(f"{name}: waiting for the base policy's call; send it again to stop at once")
        if select.select([receiver], [], [], 0.1)[0] and _next_signal(receiver):
            _end(name, call[0])


def _end(name: str, begun: float) -> None:
    lasted = time.monotonic() - begun
    _say(f"pdjax: {name}: the base policy's call has not returned for {lasted:.0f} s; ended")
    os._exit(1)  # nothing else ends a thread that does not return


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())
