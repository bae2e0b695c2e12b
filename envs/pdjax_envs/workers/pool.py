"""Plays many Gymnasium environments in worker processes, a decision at a time.

Separate from `crew`, the workers, because episodes outlive workers: one that fails is replaced, and
what its environments were playing ends as truncated. NumPy only. Not pure: an object here owns
processes.
"""

import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from pdjax_envs.reading import InputError, short
from pdjax_envs.workers.crew import Crew
from pdjax_envs.workers.memory import Played
from pdjax_envs.workers.process import PLAY_ALL, Failed, WorkerError, sentence
from pdjax_envs.workers.spaces import Description

MOST_SEED = 2**32
_open: "weakref.WeakSet[WorkerPool]" = weakref.WeakSet()  # of this process


class WorkerPool:
    """Environments in worker processes.

    The same seeds and actions give the same numbers, whatever the number of workers, if the
    environments are deterministic. A pool is closed by `close`, by `with`, when it is collected,
    and when this process ends, however that happens.

    Attributes:
      num_envs, chunk: sizes of actions and answers.
      workers: number of processes.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        num_envs: int,
        workers: int = 1,
        *,
        chunk: int = 1,
        python: str = "",
        step_timeout: float = 60.0,
        start_timeout: float = 300.0,
        restarts: int = 10,
    ):
        """Starts the workers and makes the environments.

        Args:
          spec: the environment, see `spec.check_spec`.
          num_envs: environments; each worker has an equal share.
          workers: processes.
          chunk: control steps of a decision.
          python: the interpreter that has the environments, a path or a name; "" = this one.
          step_timeout: s that a worker may take for a decision of all its environments.
          start_timeout: s that a worker may take to make them.
          restarts: how many workers may be replaced before that is an error.

        Raises:
          WorkerError: the workers cannot start, or the environment cannot be used.
          InputError: an argument is not what is described here.
        """
        for name, value in (("num_envs", num_envs), ("workers", workers), ("chunk", chunk)):
            if value < 1:
                raise InputError(f"{name}={value}, expected an integer of at least 1")
        if workers > num_envs:
            raise InputError(f"workers={workers} are more than num_envs={num_envs}; use fewer")
        if not (step_timeout > 0 and start_timeout > 0):
            raise InputError(
                f"step_timeout={step_timeout} and start_timeout={start_timeout}, expected seconds"
            )
        self._crew = Crew(spec, num_envs, workers, chunk, python, start_timeout, restarts)
        _open.add(self)
        self.num_envs, self.chunk, self.workers = num_envs, chunk, workers
        self._memory, self._processes = self._crew.memory, self._crew.processes
        self._offered: set[str] = set()
        self._step_timeout = step_timeout
        self._starts: dict[int, int] = {}  # environment that begins an episode -> seed
        low, high = np.array(self.description.low), np.array(self.description.high)
        self._low, self._high = low, high
        self._half, self._middle = (high - low) / 2, (high + low) / 2
        self._deadline, self._decisions, self._is_sent = 0.0, 0, False
        self._is_taken = [False] * workers
        self._ended: np.ndarray = np.ones(num_envs, bool)  # or never begun
        self._any_ended, self._lost = True, set[int]()
        self._newest = np.zeros((num_envs, self.description.obs_dim), np.float32)

    def send(self, actions: Any, begin: Any, seeds: Any) -> None:
        """Asks for one decision; compute what you like before `receive`.

        Args:
          actions: (num_envs, chunk, act_dim) float32 in [-1, 1]; what lies beyond is clipped.
          begin: (num_envs,) bool; these ignore their actions and begin a new episode. The others
            must be within one.
          seeds: (num_envs,) uint32, for those that begin.

        Raises:
          ValueError: a shape is wrong, an action is not finite, or an episode has ended.
          RuntimeError: the decision before was not received.
          WorkerError: the pool is closed.
        """
        self._check_idle("send")
        shape = (self.num_envs, self.chunk, self.description.act_dim)
        actions = np.asarray(actions, np.float32)
        begin, seeds = np.array(begin, bool), np.asarray(seeds)
        if actions.shape != shape or not begin.shape == seeds.shape == shape[:1]:
            raise ValueError(
                f"actions {actions.shape}, begin {begin.shape}, seeds {seeds.shape}; expected"
                f" {shape} and twice {shape[:1]}"
            )
        if not np.isfinite(actions).all() and not np.isfinite(actions[np.logical_not(begin)]).all():
            raise ValueError("an action is not finite")
        if self._any_ended and (self._ended > begin).any():
            index = int(np.argmax(self._ended > begin))
            raise ValueError(f"the episode of environment {index} has ended; begin another")
        if begin.any() and not (
            seeds.dtype.kind in "iu" and 0 <= seeds.min() <= seeds.max() < MOST_SEED
        ):
            raise ValueError(f"seeds {short(seeds)}, expected uint32")
        scaled = actions * self._half
        scaled += self._middle
        np.maximum(scaled, self._low, out=scaled)
        np.minimum(scaled, self._high, out=self._memory.arrays["actions"], casting="same_kind")
        self._starts = {int(index): int(seeds[index]) for index in np.flatnonzero(begin)}
        self._deadline = self._deadline_from_now()
        self._is_sent = True
        self._is_taken[:] = [False] * len(self._is_taken)
        for index in range(len(self._processes)):
            self._ask(index)

    def receive(self) -> Played:
        """Waits for the decision that `send` asked for. An interrupted call may be repeated.

        Raises:
          RuntimeError: nothing was sent.
          WorkerError: workers failed more often than `restarts`; the pool is closed.
        """
        if not self._is_sent:
            raise RuntimeError("call send before receive")
        for index, is_taken in enumerate(self._is_taken):
            if not is_taken:
                self._take(index)
                self._is_taken[index] = True
        arrays = self._memory.arrays
        flags = arrays["flags"].copy()
        played = Played(
            arrays["obs"].copy(), arrays["reward"].copy(), *(flags[..., k] for k in range(4))
        )
        if self._lost:
            played.truncated[[i for i in self._lost if i not in self._starts], 0] = True
            self._lost = set()
        self._is_sent = False
        self._ended = flags[..., :2].any((1, 2))
        self._any_ended = self._ended.any()
        self._newest = played.obs[:, -1].copy()
        self._decisions += 1
        if self._decisions % 1000 == 0:
            for process in self._processes:
                process.trim_log()
        return played

    def render(self, index: int) -> np.ndarray:
        """Returns a picture of an environment, (H, W, 3) uint8; needs `render` in the spec.

        Raises:
          IndexError: there is no such environment.
          RuntimeError: a decision was not received.
          WorkerError: the environment draws none.
        """
        self._check_idle("render")
        if not 0 <= index < self.num_envs:
            raise IndexError(f"environment {index}, expected 0 to {self.num_envs - 1}")
        worker = next(i for i, rows in enumerate(self._crew.rows) if rows.stop > index)
        request = {"do": "render", "index": index - self._crew.rows[worker].start}
        try:
            return self._memory.read_picture(self._consult(worker, request)["shape"])
        except Failed as failure:
            hint = "" if self._crew.spec["render"] else "; put render: true into its spec"
            raise WorkerError(f"{self._crew.spec['env']} was not drawn: {failure}{hint}") from None

    def advise(self) -> np.ndarray:
        """Asks the spec's expert what it would do now in all environments whose episode goes on.

        Returns:
          Actions (num_envs, act_dim) float32 in [-1, 1]; those of other environments mean nothing.

        Raises:
          RuntimeError: a decision was not received.
          WorkerError: the spec has no expert, or the expert fails.
        """
        self._check_idle("advise")
        if not self._crew.spec["expert"]:
            raise WorkerError("the spec has no expert; put FILE.py:FUNCTION into it")
        for worker in range(len(self._processes)):
            playing = [i for i in self._range(worker) if not self._ended[i]]
            only = [i - self._crew.rows[worker].start for i in playing if i not in self._lost]
            try:
                self._consult(worker, {"do": "advise", "only": only})
            except Failed as failure:
                if failure.kind not in ("died", "hung"):
                    text = f"the expert {short(self._crew.spec['expert'])} {sentence(failure)}"
                    raise WorkerError(text) from None
        wanted = self._memory.arrays["actions"][:, 0] - self._middle
        wanted = np.divide(wanted, self._half, out=np.zeros_like(wanted), where=self._half > 0)
        return np.clip(wanted, -1, 1).astype(np.float32)

    def _consult(self, worker: int, request: Mapping[str, Any]) -> dict[str, Any]:
        """Asks a worker between two decisions; one that dies or hangs is replaced.

        Raises:
          Failed: it does not answer as it should.
        """
        process = self._processes[worker]
        process.ask(request)
        try:
            return process.answer(self._deadline_from_now())
        except Failed as failure:
            if failure.kind in ("died", "hung"):
                self._lost |= {i for i in self._range(worker) if not self._ended[i]}
                self._restart(worker, failure)
            raise

    @property
    def description(self) -> Description:
        """What the environments are made of."""
        return self._crew.description

    @property
    def restarts(self) -> int:
        """Workers that were replaced so far."""
        return self._crew.restarts

    @property
    def failures(self) -> Mapping[str, int]:
        """Kind -> how often: `died`, `hung`, `raised` (an error in the environment) or `numbers`
        (NaN, infinite, or of another shape)."""
        return self._crew.failures

    @property
    def reasons(self) -> list[str]:
        """A line for each of them."""
        return self._crew.reasons

    @property
    def ended(self) -> np.ndarray:
        """(num_envs,) bool, the episode has ended or none has begun: these must begin another."""
        return self._ended.copy()

    def abandon(self) -> None:
        """Ends all episodes here and now; each environment has to begin another."""
        self._check_idle("abandon")
        self._ended, self._any_ended = np.ones(self.num_envs, bool), True

    def new_reasons(self) -> list[str]:
        """Returns the lines of `reasons` that it has not returned before, each once."""
        new = [line for line in dict.fromkeys(self.reasons) if line not in self._offered]
        self._offered.update(new)
        return new

    def close(self) -> None:
        """Ends all workers; does nothing the second time."""
        self._crew.close()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_idle(self, what: str) -> None:
        if not self._crew.stop.alive:
            raise WorkerError(f"{what} was called after the pool was closed")
        if self._is_sent:
            raise RuntimeError(f"call receive before {what}")

    def _deadline_from_now(self) -> float:
        return time.monotonic() + self._step_timeout

    def _restart(self, index: int, failure: Failed) -> None:
        """Replaces a worker; its episodes are lost."""
        self._crew.restart(index, failure, self._newest[self._crew.rows[index]])

    def _range(self, index: int) -> range:
        return range(self._crew.rows[index].start, self._crew.rows[index].stop)

    def _ask(self, index: int) -> None:
        """Asks a worker for the decision that was sent, except of episodes that it lost."""
        process = self._processes[index]
        if not self._starts and not self._lost:
            process.ask(PLAY_ALL)
            return
        first, envs = self._crew.rows[index].start, self._range(index)
        begin = [(i - first, self._starts[i]) for i in envs if i in self._starts]
        only = [i - first for i in envs if i in self._starts or i not in self._lost]
        process.ask({**PLAY_ALL, "begin": begin, "only": only})

    def _take(self, index: int) -> None:
        """Takes a worker's answer; one that fails is replaced and begins its new episodes again."""
        deadline = self._deadline
        while True:
            try:
                self._processes[index].answer(deadline)
                return
            except Failed as failure:
                self._lost |= set(self._range(index))
                self._restart(index, failure)
                deadline = self._deadline_from_now()
                self._ask(index)


@contextmanager
def closing_pools() -> Iterator[None]:
    """Closes the pools that were opened in the block, also of a run that has failed in it."""
    before = set(_open)
    try:
        yield
    finally:
        for pool in set(_open) - before:
            pool.close()
