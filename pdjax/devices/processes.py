"""Runs one training on several processes, on one machine or many, with jax.distributed.

Every process runs the same program on its own devices. Process 0 is the writer: only it prints and
records, while Orbax writes the checkpoints of all. Anything that can fail or happen in one process
alone goes through `agree` or `any_of`, so that no process waits for one that is gone. In a single
process, nothing here has any effect. Not pure: it remembers which process this is, and talks to the
others.
"""

import hashlib
import itertools
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed

from pdjax.config.options import ConfigError
from pdjax_envs.reading import short

T = TypeVar("T")

PATIENCE = 300  # s in which all processes must have been started
SILENCE = 100  # s without a sign of life after which a process counts as gone
BEAT = 2.0  # s between two signs of life
MESSAGE = 1_000  # bytes of an error message that other processes receive

_index, _count = 0, 1


def join(coordinator: str, process: str = "") -> None:
    """Joins the processes of a run; must be called before JAX is used.

    Args:
      coordinator: HOST:PORT of process 0; `auto` = what Slurm, Open MPI, Kubernetes or the TPU pod
        says; "" = the environment's JAX_COORDINATOR_ADDRESS, or a single process without it.
      process: INDEX/COUNT of this process; "" = the environment's JAX_PROCESS_ID and
        JAX_NUM_PROCESSES, or what the cluster says.

    Raises:
      ConfigError: the address or the number is missing, or the processes do not find each other.
    """
    global _index, _count
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    if not coordinator and not process:
        return
    index, count = check(coordinator, process)
    if coordinator != "auto" and index:
        _wait_for(coordinator)
    # The loop stops a run itself when it is told to, in all processes after the same epoch.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        address = None if coordinator == "auto" else coordinator
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=PATIENCE,
            heartbeat_timeout_seconds=10 * SILENCE,  # `_watch` comes first
        )
    except ValueError:  # JAX's message says what is missing in its own terms
        raise ConfigError(
            f"--coordinator {coordinator}: nothing says which process this is; give --process"
            " INDEX/COUNT, or start it with Slurm, Open MPI, Kubernetes or on a TPU pod"
        ) from None
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"cannot join the run at {coordinator}: {reason}; fix that, or choose another port"
        ) from None
    _index, _count = jax.process_index(), jax.process_count()
    client = distributed.global_state.client
    threading.Thread(target=_watch, args=(client, _index, _count), daemon=True).start()


def check(coordinator: str, process: str) -> tuple[int | None, int | None]:
    """Checks what says where process 0 is, and which process this is.

    Returns:
      Index and count; None if the cluster must say.

    Raises:
      ConfigError: the address or the number is not in the form that `join` takes.
    """
    port = re.fullmatch(r".+:([0-9]{1,5})", coordinator)
    if coordinator != "auto" and not (port and 0 < int(port[1]) < 2**16):
        raise ConfigError(
            f"--coordinator got {short(repr(coordinator))}, expected HOST:PORT with a port from 1"
            f" to {2**16 - 1}, or auto"
        )
    return _numbers(process)


def _numbers(process: str) -> tuple[int | None, int | None]:
    """Returns index and count; None if the cluster must say."""
    if not process:
        named = (os.environ.get(name) for name in ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"))
        process = "/".join(text for text in named if text)
    if not process:
        return None, None
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", process)
    if not match or not int(match[1]) < int(match[2]):
        raise ConfigError(f"--process got {short(repr(process))}, expected INDEX/COUNT such as 0/2")
    return int(match[1]), int(match[2])


def _wait_for(coordinator: str) -> None:
    """Waits until process 0 answers; JAX itself would end without a helpful message."""
    host, port = coordinator.rsplit(":", 1)
    deadline, reason = time.monotonic() + PATIENCE, ""
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            reason = str(error)
            time.sleep(0.5)
    raise ConfigError(
        f"no process 0 answered at {coordinator} within {PATIENCE} s ({reason}); start it there, or"
        " correct --coordinator"
    )


def _watch(client: Any, index: int, count: int) -> None:
    """Gives signs of life, and ends this process if another one gives none.

    Runs in a thread of its own, because the main thread may wait for a process that is gone. JAX
    would abort this process in that case, without a helpful message.
    """
    others = [other for other in range(count) if other != index]
    signs: dict[int, str] = {}
    heard = dict.fromkeys(others, time.monotonic())
    for sign in itertools.count():
        with suppress(jax.errors.JaxRuntimeError):  # this process is ending
            client.key_value_set(f"pdjax/alive/{index}", str(sign), allow_overwrite=True)
        for other in others:
            with suppress(jax.errors.JaxRuntimeError):  # the other has not begun, or as above
                found = client.key_value_try_get(f"pdjax/alive/{other}")
                if found != signs.get(other):
                    signs[other], heard[other] = found, time.monotonic()
        silent = [other for other in others if time.monotonic() - heard[other] > SILENCE]
        if silent:
            words = _lost(f"process {silent[0]} was silent for {SILENCE} s")
            os.write(2, f"pdjax: {words}\n".encode())
            os._exit(1)
        time.sleep(BEAT)


class ProcessLostError(RuntimeError):
    """Says that another process of the run is gone."""


def _lost(reason: str) -> str:
    return (
        f"another process of this run is gone or cannot be reached ({reason}); start all of them"
        " again with --resume"
    )


@contextmanager
def together() -> Iterator[None]:
    """Turns JAX's error about a broken connection into a `ProcessLostError`.

    Raises:
      ProcessLostError: instead of JAX's error, if several processes train.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # What Gloo says about a closed connection arrives as a plain ValueError at times.
        is_connection = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
        if _count == 1 or not is_connection:
            raise
        reason = str(error).splitlines()[0][:200]
        raise ProcessLostError(_lost(reason)) from error


def is_writer() -> bool:
    """Returns whether this process is the one that prints and records."""
    return _index == 0


def is_shared() -> bool:
    """Returns whether several processes train this run."""
    return _count > 1


def by_writer(action: Callable[[], Any]) -> None:
    """Calls `action` in the writing process, while all others wait for it.

    Raises:
      ConfigError: in all processes, if `action` raises one in the writer.
    """
    agree(action if is_writer() else lambda: None)


def agree(action: Callable[[], T]) -> T:
    """Calls `action` in every process; if it fails in one, it fails in all.

    Returns:
      What `action` returns in this process.

    Raises:
      Exception: whatever `action` raises in this process.
      ConfigError: the message of what `action` raised in another process.
    """
    if _count == 1:
        return action()
    mine: Exception | None = None
    result: Any = None
    try:
        result = action()
    except Exception as error:  # the other processes must know, whatever it is
        mine = error
    words = "" if mine is None else f"{mine or type(mine).__name__}"
    found = _gather(words)
    if mine is not None:
        raise mine
    for index, text in enumerate(found):
        if text:
            raise ConfigError(f"process {index} of {_count}: {text}")
    return result


def check_same(what: str, tree: Any) -> None:
    """Checks that all processes have the same arrays and values.

    Args:
      what: a name for them, for the error.
      tree: of arrays, numbers and strings.

    Raises:
      ConfigError: in all processes, with the numbers of those that differ from process 0.
    """
    if _count == 1:
        return
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(leaf.encode() if isinstance(leaf, str) else np.asarray(leaf).tobytes())
    found = _gather(digest.hexdigest())
    others = [str(index) for index, text in enumerate(found) if text != found[0]]
    if others:
        raise ConfigError(
            f"process {', '.join(others)} has another {what} than process 0; start all processes"
            " with the same command"
        )


def any_of(number: int) -> int:
    """Returns the largest of the processes' numbers, in all of them."""
    if _count == 1:
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def _gather(text: str) -> list[str]:
    """Returns the texts of all processes, in all of them."""
    from jax.experimental import multihost_utils

    padded = np.zeros(MESSAGE, np.uint8)
    words = np.frombuffer(text.encode()[:MESSAGE], np.uint8)
    padded[: len(words)] = words
    found = np.asarray(multihost_utils.process_allgather(padded))
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in found]
