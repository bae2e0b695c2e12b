"""The worker processes of a pool: started together, made ready, replaced when they fail.

Separate from `pool`, which knows what the environments play, and from `process`, one worker. Not
pure: an object here owns processes and memory that they share.
"""

import itertools
import time
import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pdjax_envs.reading import InputError, check_fits, short
from pdjax_envs.workers.memory import Memory, shapes
from pdjax_envs.workers.process import Failed, Process, WorkerError, close_all, sentence, stop_all
from pdjax_envs.workers.spaces import Description, read_description
from pdjax_envs.workers.spec import SUCCESS_KEYS, check_spec


class Crew:
    """Worker processes, each with an equal share of the environments.

    Arguments and errors are those of `WorkerPool`.

    Attributes:
      spec: what they make, complete.
      description: what the environments are made of.
      processes: the workers.
      rows: the environments of each worker.
      memory: what they share.
      restarts, failures, reasons: see `WorkerPool`.
    """

    description: Description

    def __init__(
        self,
        spec: Mapping[str, Any],
        num_envs: int,
        workers: int,
        chunk: int,
        python: str,
        start_timeout: float,
        restarts: int,
    ):
        self.spec = check_spec(spec)
        self.restarts, self.failures, self.reasons = 0, Counter[str](), list[str]()
        self._num_envs, self._chunk = num_envs, chunk
        self._python, self._most_restarts = python, restarts
        self._start_timeout = start_timeout
        bounds = [num_envs * i // workers for i in range(workers + 1)]
        self.rows = [slice(a, b) for a, b in itertools.pairwise(bounds)]
        self.processes: list[Process] = []
        self.memory = Memory()
        self.stop = weakref.finalize(self, _stop, self.processes, self.memory)
        self._made: dict[str, Any] = {}
        try:
            for rows in self.rows:  # all at once
                self.processes.append(self._start(rows))
            for index in range(workers):
                self._prepare(index)
        except (Failed, InputError) as error:
            self.stop()
            if isinstance(error, WorkerError):
                raise
            hint = "; it needs Python 3.8 or newer" if _has_not_begun(error, self._made) else ""
            if isinstance(error, Failed) and error.kind == "raised" and not python:
                hint = "; if it needs other versions of its libraries, name their interpreter"
                hint += " (task.python)"
            text = f"{self.spec['env']} cannot be used"
            text += f" in {short(python)}" if python else ""
            raise WorkerError(f"{text}: {error}{hint}") from None
        except BaseException:
            self.stop()
            raise

    def restart(self, index: int, failure: Failed, newest: np.ndarray) -> None:
        """Replaces a worker, and again if that fails.

        Args:
          index: the worker.
          failure: what it did.
          newest: (its environments, obs_dim) the last good observations; they become its answer.

        Raises:
          WorkerError: this was once too often; all are stopped.
        """
        rows = self.rows[index]
        envs = f"environment {rows.start}"
        if rows.stop > rows.start + 1:
            envs = f"environments {rows.start}-{rows.stop - 1}"
        while True:
            self.processes[index].stop()
            self.memory.write_standstill(rows, newest)
            self.failures[failure.kind] += 1
            reason = f"worker {index} ({envs}) {sentence(failure)}"
            self.reasons.append(reason)
            if self.restarts >= self._most_restarts:
                self.stop()
                raise WorkerError(
                    f"{self.spec['env']}: {reason}; that is more than restarts="
                    f"{self._most_restarts}; repair the environment or allow more restarts"
                )
            self.restarts += 1
            try:
                self.processes[index] = self._start(rows)
                self._prepare(index)
                return
            except Failed as another:
                failure = another
            except InputError:
                self.stop()
                raise
            except BaseException:  # interrupted; if `receive` is repeated, it begins anew
                self.processes[index].stop()
                raise

    def close(self) -> None:
        """Ends all workers after they have closed their environments."""
        if self.stop.alive:
            try:
                close_all(self.processes)
            finally:
                self.stop()

    def _start(self, rows: slice) -> Process:
        """Starts a worker, which goes on making its environments."""
        process = Process(self._python, self.memory.file, draws=self.spec["render"])
        process.ask({"do": "make", "spec": self.spec, "count": rows.stop - rows.start})
        return process

    def _prepare(self, index: int) -> None:
        """Waits until a worker has made its environments, and shares memory with it.

        Raises:
          Failed: it does not become ready.
          InputError: its environments are refused, or other than the first worker's.
        """
        process, rows = self.processes[index], self.rows[index]
        deadline = time.monotonic() + self._start_timeout
        made = process.answer(deadline)
        is_first = not self._made
        if is_first:
            self._made = made
            self.description = read_description(made, self.spec["success"])
            sizes = self.description.obs_dim, self.description.act_dim
            check_fits(8 * self._num_envs * self._chunk * sum(sizes), f"num_envs={self._num_envs}")
            arrays = shapes(self._num_envs, self._chunk, *sizes, made["actions"]["dtype"])
            self.memory.share(arrays)
        elif any(made[key] != self._made[key] for key in ("observations", "low", "high")):
            raise InputError("its spaces differ from one instance to another")
        request = {"do": "attach", "parts": self.description.parts, "probe": is_first}
        place = {"layout": self.memory.layout, "size": self.memory.size, "first": rows.start}
        process.ask({**request, **place})
        answer = process.answer(deadline)
        if is_first:
            info = tuple(answer["info"])
            rule = next((key for key in SUCCESS_KEYS if key in info), "")
            rule = rule if self.description.success == "auto" else self.description.success
            self.description = replace(self.description, info=info, success=rule)


def _stop(processes: list[Process], memory: Memory) -> None:
    stop_all(processes)
    memory.close()


def _has_not_begun(error: Exception, made: dict[str, Any]) -> bool:
    return not made and isinstance(error, Failed) and error.kind == "died"
