"""One run while it trains: its progress, its decisions and its files.

Interim evaluations choose the actor to keep, the guard judges each epoch, and everything that the
next epoch depends on is saved. Separate from `loop`, which drives several such runs at once. It is
not pure.
"""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pdjax.config.schema import Config
from pdjax.devices import processes
from pdjax.modules import is_finite
from pdjax.output import records, terminal
from pdjax.output.checkpoint import Checkpoints
from pdjax.output.paths import NotSavedError, plain
from pdjax.rollout import intervals
from pdjax.rollout.evaluate import Evaluation
from pdjax.rollout.playing import Play, no_residual
from pdjax.training import guard
from pdjax.training.epoch import TrainState
from pdjax.types import Metrics, Params

CHECKPOINTS = "checkpoints"  # name of the folder in a run's directory
STARTS = "starts.jsonl"


class Progress(NamedTuple):
    """A run after an epoch: everything that the next epoch depends on, so everything saved.

    Attributes:
      state: training state, on the devices; the rest is on the host.
      best_actor: parameters of the residual policy with the best interim evaluation so far. At
        first all zero, which is no residual at all: the base policy, bit for bit.
      best_score: () float32, its success_once on the interim episodes, or its return if the task
        has no success; at first the base policy's.
      first_drift: () float32, `drift` of the first epoch; -1 before that.
      train_successes: () float32, number of episodes that succeeded while exploring.
      since_eval: () int32, decisions since the last interim evaluation.
      since_save: () int32, decisions since the last checkpoint.
      rollbacks: () int32, how many times the guard has rolled back.
      stopped: () bool, whether the guard has ended the training.
    """

    state: TrainState
    best_actor: Params
    best_score: Any
    first_drift: Any
    train_successes: Any
    since_eval: Any
    since_save: Any
    rollbacks: Any
    stopped: Any


class Steps(NamedTuple):
    """The functions that the loop calls.

    Attributes:
      init: index of a member -> TrainState.
      like: shapes and dtypes of a TrainState and, where it matters, the placement of its arrays.
      train_epoch: TrainState -> (TrainState, Metrics); the argument is donated. With several
        members all leaves are (members, ...). It may raise `stopping.Cut`.
      play: plays whole episodes, see `playing.make_play`.
      play_all: the same for several members at once, on the same episodes; leaves (members, ...).
      has_success: see `Task.has_success`.
    """

    init: Callable[[int], TrainState]
    like: TrainState
    train_epoch: Callable[[TrainState], tuple[TrainState, Metrics]]
    play: Play
    play_all: Play
    has_success: bool = True


class Member(NamedTuple):
    """One run: its config and its directory.

    Training writes `starts.jsonl`, `metrics.jsonl`, `audit.jsonl` and `tb/`, `checkpoints/` to
    resume from, and `best/`, the training state with the best interim evaluation, to roll back to.
    """

    config: Config
    directory: Path


class Refinement:
    """One run while it trains: its progress and its files.

    Args:
      member: config and directory.
      steps: the functions to call.
      index: number of the member among those of one program.
      label: prefix of its lines on stderr; "" for a run that trains alone.

    Attributes:
      progress: what the next epoch depends on; its state is None while `Stack` holds the state.
      done: decisions so far.
      score: `Evaluation.score` of the latest interim evaluation; nan before the first.
    """

    progress: Progress
    done: int

    def __init__(self, member: Member, steps: Steps, index: int, label: str):
        self.config, self.directory = member
        self.index, self._label = index, label
        self._steps = steps
        self._base: Evaluation | None = None
        self._newest = Checkpoints(self.directory / CHECKPOINTS, self.config.checkpoint.keep)
        self._best = Checkpoints(self.directory / "best", keep=1)
        self._unreadable: dict[int, str] = {}  # numbers of newer checkpoints -> why
        self.score = math.nan

    def resume(self, at_most: int | None = None) -> None:
        """Reads the newest progress on disk, or starts anew if there is none.

        It changes nothing on disk, so that another member may still refuse to resume.

        Args:
          at_most: largest number of decisions to consider; None considers any.

        Raises:
          checkpoint.CheckpointError: see `Checkpoints.restore`.
        """
        found = self._newest.restore(_start(self._steps.like), at_most)
        self._unreadable |= found.unreadable
        if found.step < 0:
            self.start_anew()
        else:
            self.done, self.progress = found.step, found.tree

    def start_anew(self) -> None:
        """Starts with a new progress of 0 decisions."""
        self.done, self.progress = 0, _start(self._steps.init(self.index))

    def settle(self) -> None:
        """Sets aside the checkpoints that are newer than the progress.

        Their numbers must be free: this run will write checkpoints with these numbers again.
        """
        for line in self._newest.set_aside(self.done, self._unreadable):
            terminal.say(f"{self._label}{line}; going on from {self.done:,} decisions")

    def begin(self, log: records.MetricsLog, made_by: Mapping[str, Any]) -> None:
        """Opens the records; removes those of decisions that will be made again.

        Args:
          log: where metrics go.
          made_by: command, versions and machine of this start, see `provenance.describe`.
        """
        self._log, self._start = log, time.monotonic() - log.wall_s
        records.drop_records(self.directory / STARTS)
        records.Lines(self.directory / STARTS).add(made_by)
        self._has_starts = (self.directory / STARTS).is_file()
        audit = self.directory / "audit.jsonl"
        records.drop_records(audit, "decision_steps", log.begin)
        self._audit_log = records.Lines(audit)

    def check_there(self) -> None:
        """Checks that the run's directory still exists; all processes must call it together.

        Raises:
          NotSavedError: it does not, so nothing of the run can be kept.
        """
        is_gone = self._has_starts and not (self.directory / STARTS).is_file()
        if processes.any_of(is_gone):
            raise NotSavedError(
                f"{self.directory} was removed or moved while its run trained, so the training"
                f" ended after {self.done:,} decisions; resume it where it is now, or begin again"
            )

    def meet(self, base: Evaluation | None) -> None:
        """Takes the base policy's interim evaluation, before the first epoch.

        Args:
          base: the result to beat; None without interim evaluations.
        """
        self._base = base
        if base is None or self.done:
            return
        self._write("eval", intervals.figures(base))
        self.progress = self.progress._replace(best_score=np.float32(base.score))
        if base.success_once is not None:
            successes = int(base.success_once.sum()), len(base.success_once)
            self._obey(guard.check_base(self.config.guard, *successes))

    def give_state(self) -> TrainState:
        """Hands over the training state and forgets it."""
        state, self.progress = self.progress.state, self.progress._replace(state=None)
        return state

    def forget_data(self) -> None:
        """Frees what only training needs, because other members still train."""
        state = self.progress.state._replace(replay=None, rollout=None)
        self.progress = self.progress._replace(state=state)

    def end(self) -> Progress:
        """Returns the last progress; without interim evaluations the last actor is the best.

        If that actor has diverged, no residual is.
        """
        if self.config.eval.interim_episodes:
            return self.progress
        actor = _on_host(self.progress.state.sac.mean_actor)
        if not is_finite(actor):
            actor = no_residual(actor)
            terminal.say(
                f"{self._label}the residual policy diverged (its parameters are not finite); the"
                " run keeps the base policy alone; train again with smaller step sizes"
            )
        return self.progress._replace(best_actor=actor)

    @property
    def measure(self) -> str:
        """What policies are judged by: `success_once`, or `return` if the task has no success."""
        return "success_once" if self._steps.has_success else "return"

    @property
    def is_over(self) -> bool:
        """Whether the run has reached its end."""
        return self.done >= self.config.train.total_decisions or bool(self.progress.stopped)

    def add_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Records the metrics of an epoch and counts its decisions and successes."""
        self.check_there()
        values = {name: float(value) for name, value in metrics.items()}
        self.done = int(values.pop("decision_steps"))
        self._write("train", values)
        every, before = self.config.train.decisions_per_epoch, self.progress
        successes = values["train_success"] * values["episodes"]
        self.progress = before._replace(
            train_successes=np.float32(before.train_successes + successes),
            since_eval=before.since_eval + every,
            since_save=before.since_save + every,
        )

    @property
    def is_evaluation_due(self) -> bool:
        """Whether an interim evaluation follows this epoch."""
        is_last = self.done >= self.config.train.total_decisions
        due = is_last or self.progress.since_eval >= self.config.eval.interim_every
        return self._base is not None and bool(due)

    def judge(
        self,
        state: TrainState,
        metrics: Mapping[str, Any],
        result: Evaluation | None,
        is_lost: bool,
    ) -> None:
        """Lets the guard judge an epoch and the interim evaluation after it, if there is one.

        Args:
          state: training state after the epoch; `progress` takes it, or what the guard makes of it.
          metrics: metrics of the epoch.
          result: the interim evaluation; None if there is none.
          is_lost: whether the run ends here because other members do better.

        Raises:
          checkpoint.CheckpointError: the guard rolls back, and the best state cannot be read.
        """
        config, values = self.config, {name: float(value) for name, value in metrics.items()}
        self.progress = self.progress._replace(state=state)
        if self.progress.first_drift < 0:
            self.progress = self.progress._replace(first_drift=np.float32(values["drift"]))
        limit = np.inf
        if config.task.reward == "success":
            limit = guard.largest_return(config.sac.gamma, config.sac.reward_offset)
            if config.sac.entropy_backup:
                target = float(state.hyperparams.target_entropy)
                limit += guard.largest_bonus(values, target, config.sac.gamma)
        verdicts = guard.check_epoch(config.guard, values, limit, float(self.progress.first_drift))
        if self._base is not None and result is not None:
            if self._base.success_once is not None:
                successes = int(self._base.success_once.sum()), float(self.progress.train_successes)
                verdicts += guard.check_hope(config.guard, *successes, self.done)
            verdicts += guard.check_actor(state.sac.mean_actor)
            broken = guard.worst(verdicts) == "roll_back"
            verdicts += self._compare(self._base, result, may_be_best=not broken)
        self._obey(verdicts)
        if is_lost:
            self._audit(guard.Verdict("halving", "stop", {self.measure: self.score}), "stop")
            self.progress = self.progress._replace(stopped=np.True_)

    def _compare(
        self, base: Evaluation, result: Evaluation, may_be_best: bool
    ) -> list[guard.Verdict]:
        """Records an interim evaluation; keeps the actor if it is the best, the later of equals."""
        state = self.progress.state
        self._write("eval", intervals.figures(result))
        self.score = result.score
        self.progress = self.progress._replace(since_eval=np.int32(0))
        if may_be_best and self.score >= self.progress.best_score:
            self.progress = self.progress._replace(
                best_actor=_on_host(state.sac.mean_actor), best_score=np.float32(self.score)
            )
            terminal.say_unsaved(self._best.save(self.done, state))
        gain, interval = intervals.gain(base, result)
        saturation, unit = float(result.saturation.mean()), 1.0
        if base.success_once is None:
            unit = abs(base.score)
        return guard.check_evaluation(self.config.guard, gain, interval, saturation, unit)

    def _obey(self, verdicts: list[guard.Verdict]) -> None:
        """Writes verdicts to the audit, and carries out the most severe one."""
        config, progress = self.config.guard, self.progress
        action = guard.worst(verdicts) if config.enabled else "note"
        if action == "roll_back" and progress.rollbacks >= config.max_rollbacks:
            action = "stop"
        for verdict in verdicts:
            self._audit(verdict, action)
        if action == "shrink":
            self.progress = progress._replace(state=guard.shrink(progress.state))
        elif action == "roll_back":
            self._roll_back()
        else:
            stopped = np.bool_(progress.stopped or action == "stop")
            self.progress = progress._replace(stopped=stopped)

    def _audit(self, verdict: guard.Verdict, action: guard.Action) -> None:
        """Records what the guard found and what is done about it."""
        record = {
            "decision_steps": self.done,
            "wall_s": time.monotonic() - self._start,
            "done": action,
            **verdict._asdict(),
        }
        self._audit_log.add(record)
        found = plain(verdict.numbers)
        terminal.say(f"{self._label}guard: {verdict.rule} {found}: {action}")

    def _roll_back(self) -> None:
        """Goes back to the state with the best interim evaluation, and halves the step sizes.

        If no such state was saved, it goes back to a new state.
        """
        found = self._best.restore(self._steps.like)
        for line in self._best.set_aside(found.step, found.unreadable):
            terminal.say(f"{self._label}{line}; rolling back to {found.step:,} decisions")
        state = self._steps.init(self.index) if found.step < 0 else found.tree
        rollbacks = np.int32(self.progress.rollbacks + 1)
        state = guard.roll_back(self.progress.state, state, rollbacks)
        self.progress = self.progress._replace(state=state, rollbacks=rollbacks)

    def _write(self, group: str, values: dict[str, Any]) -> None:
        """Records the metrics of a group, with the seconds of training so far."""
        record = values | {"wall_s": time.monotonic() - self._start}
        self._log.write(group, self.done, record)

    def save(self, wait: bool) -> None:
        """Writes a checkpoint; training goes on if that fails.

        Args:
          wait: return only when the checkpoint is on disk.
        """
        self.progress = self.progress._replace(since_save=np.int32(0))
        self._log.flush()  # no checkpoint is ahead of the records
        terminal.say_unsaved(self._newest.save(self.done, self.progress, wait))

    def save_early(self, state: TrainState) -> None:
        """Writes a checkpoint within an epoch, of what it has done so far."""
        before = self.done
        self.done = int(state.decision_steps)
        since = np.int32(self.progress.since_eval + self.done - before)
        self.progress = self.progress._replace(state=state, since_eval=since)
        self.save(wait=True)

    def close(self) -> None:
        """Waits for the checkpoints that are being written."""
        for checkpoints in (self._newest, self._best):
            terminal.say_unsaved(checkpoints.close())


def _start(state: TrainState) -> Progress:
    """Returns the progress of a run that has not trained yet."""
    zero, no = np.float32(0), np.int32(0)
    return Progress(
        state=state,
        best_actor=no_residual(state.sac.actor),
        best_score=zero - 1,
        first_drift=zero - 1,
        train_successes=zero,
        since_eval=no,
        since_save=no,
        rollbacks=no,
        stopped=np.False_,
    )


def _on_host(actor: Params) -> Params:
    """Copies parameters to the host, because the state that they belong to will be donated."""
    return jax.tree.map(np.array, jax.device_get(actor))
