"""This file is not pure: one run on several processes, on one machine or many, by jax.distributed.

Every process runs the same program on its own devices. The first one is the writer: it alone shows
and records things, while Orbax writes the checkpoints of all. Whatever may fail, or be asked for,
in one process only goes through `agree` or `any_of`, so that none waits for one that is gone. The
only memory here is which process this is; in one that is alone nothing here does anything.
"""

import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np

from pdjax.config.schema import ConfigError

T = TypeVar("T")

PATIENCE = 300  # s in which all processes must have been started
MESSAGE = 1_000  # bytes of what went wrong, as other processes hear of it

_index, _count = 0, 1


def join(coordinator: str, process: str = "") -> None:
    """Joins the processes of a run; before anything of JAX is used.

    Args:
      coordinator: HOST:PORT of process 0; `auto` = as Slurm, Open MPI, Kubernetes or a TPU pod
        tell; "" = the environment's JAX_COORDINATOR_ADDRESS, or alone where there is none.
      process: INDEX/COUNT of this one; "" = the environment's JAX_PROCESS_ID and JAX_NUM_PROCESSES,
        or as the cluster tells.

    Raises:
      ConfigError: not enough is known, or the processes do not find each other.
    """
    global _index, _count
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", "")
    if not coordinator and not process:
        return
    if coordinator != "auto" and not re.fullmatch(r".+:\d+", coordinator):
        raise ConfigError(f"--coordinator got {coordinator!r}, expected HOST:PORT or auto")
    index, count = _numbers(process)
    if coordinator != "auto" and index:
        _wait_for(coordinator)
    # The loop stops a run itself when it is told to, in all processes after the same epoch.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        address = None if coordinator == "auto" else coordinator
        jax.distributed.initialize(address, count, index, initialization_timeout=PATIENCE)
    except ValueError:  # what is missing is named in JAX's words
        raise ConfigError(
            f"--coordinator {coordinator}: nothing tells which process this is; give --process"
            " INDEX/COUNT, or start it by Slurm, Open MPI, Kubernetes or on a TPU pod"
        ) from None
    except RuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"cannot join the run at {coordinator}: {reason}; choose another port, or mend that"
        ) from None
    _index, _count = jax.process_index(), jax.process_count()


def _numbers(process: str) -> tuple[int | None, int | None]:
    """Index and count; None where the cluster has to tell."""
    if not process:
        named = (os.environ.get(name) for name in ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"))
        process = "/".join(text for text in named if text)
    if not process:
        return None, None
    match = re.fullmatch(r"(\d+)/(\d+)", process)
    if not match or not int(match[1]) < int(match[2]):
        raise ConfigError(f"--process got {process!r}, expected INDEX/COUNT such as 0/2")
    return int(match[1]), int(match[2])


def _wait_for(coordinator: str) -> None:
    """Waits until process 0 answers: JAX itself would end without a word that helps."""
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


class ProcessLostError(RuntimeError):
    """Another process of the run is gone."""


@contextmanager
def together() -> Iterator[None]:
    """Within: what JAX says of a connection that broke is said in the words of `ProcessLostError`.

    Raises:
      ProcessLostError: where several processes train, in the place of JAX's error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if _count == 1:
            raise
        reason = str(error).splitlines()[0][:200]
        raise ProcessLostError(
            f"another process of this run is gone, or cannot be reached ({reason}); start all of"
            " them again, with --resume"
        ) from error


def is_writer() -> bool:
    """Whether this process is the one that shows and records."""
    return _index == 0


def is_shared() -> bool:
    """Whether several processes train this run."""
    return _count > 1


def by_writer(action: Callable[[], Any]) -> None:
    """Does something in the writing process, while all others wait for it.

    Raises:
      ConfigError: in all processes where the writer meets one.
    """
    agree(action if is_writer() else lambda: None)


def agree(action: Callable[[], T]) -> T:
    """Does something in every process; where it fails in one, it fails in all.

    Raises:
      Exception: whatever `action` raises here.
      ConfigError: what it raised in another process, in words.
    """
    if _count == 1:
        return action()
    mine: Exception | None = None
    result: Any = None
    try:
        result = action()
    except Exception as error:  # whatever it is, the others must hear of it
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

    Raises:
      ConfigError: in all of them, naming those that differ from the first.
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
            f"process {', '.join(others)} has another {what} than process 0; give all the same"
        )


def any_of(number: int) -> int:
    """The largest of the numbers that the processes bring, in all of them."""
    if _count == 1:
        return number
    from jax.experimental import multihost_utils

    return int(np.max(multihost_utils.process_allgather(np.int32(number))))


def _gather(text: str) -> list[str]:
    """What each process says, in all of them."""
    from jax.experimental import multihost_utils

    padded = np.zeros(MESSAGE, np.uint8)
    words = np.frombuffer(text.encode()[:MESSAGE], np.uint8)
    padded[: len(words)] = words
    found = np.asarray(multihost_utils.process_allgather(padded))
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in found]
