"""This file is not pure: it drives a run from epoch to epoch, so that nothing of it is ever lost.

Between two jitted epochs: metrics are read, once; interim evaluations choose the actor to keep; the
guard judges; everything that the next epoch depends on is saved; a wish to stop is obeyed. Knows
the training state as a whole only: what it trains is `train`'s matter.
"""

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdjax import guard, report
from pdjax.checkpoint import Checkpoints
from pdjax.config import Config
from pdjax.evaluation import paired_gain
from pdjax.outputs import plain
from pdjax.rollout import Evaluation
from pdjax.stopping import Stopped, stop_asked
from pdjax.train import TrainState
from pdjax.types import Array, Metrics, Params

INTERIM_SEED_OFFSET = 1_000_000  # interim and final evaluations never share episodes


class Progress(NamedTuple):
    """Where a run is after an epoch: all that the next one depends on, so all that is saved.

    Attributes:
      state: of the training.
      best_actor: parameters of the residual policy that evaluated best so far. At first all zero,
        which is no residual at all: the base policy, bit for bit.
      best_score: () float32, its success_once on the interim episodes; at first the base policy's.
      first_drift: () float32, `drift` of the first epoch; -1 before it.
      train_successes: () float32, episodes that succeeded while exploring.
      since_eval: () int32, decisions since the last evaluation.
      since_save: () int32, decisions since the last checkpoint.
      rollbacks: () int32, times that the guard rolled back.
      stopped: () bool, the guard ended the training.
    """

    state: TrainState
    best_actor: Params
    best_score: Array
    first_drift: Array
    train_successes: Array
    since_eval: Array
    since_save: Array
    rollbacks: Array
    stopped: Array


class Steps(NamedTuple):
    """What the loop calls.

    Attributes:
      init: () -> TrainState.
      train_epoch: TrainState -> (TrainState, Metrics); the argument is donated.
      assess: (actor, residual_scale, seed, episodes) -> Evaluation.
    """

    init: Callable[[], TrainState]
    train_epoch: Callable[[TrainState], tuple[TrainState, Metrics]]
    assess: Callable[[Params, float, int, int], Evaluation]


def refine(config: Config, steps: Steps, directory: Path) -> Progress:
    """Trains to the end, from the newest checkpoint in the directory if there is one.

    A run that is stopped and resumed, by whatever means, ends with the same numbers as one that is
    not: whatever was trained after the checkpoint is trained again, and its records are dropped.

    Args:
      config: the run.
      steps: what to call.
      directory: of the run; gets `metrics.jsonl`, `audit.jsonl`, `tb/`, and `checkpoints/` and
        `best/` to go on from.

    Returns:
      The last progress; without interim evaluations the last actor is the best.

    Raises:
      Stopped: SIGINT or SIGTERM came; the state after the epoch is saved.
    """
    run = _Run(config, steps, directory)
    total, every = config.train.total_decisions, config.train.decisions_per_epoch
    progress, done = run.resume()
    with (
        closing(run),
        stop_asked() as asked,
        report.MetricsLog(directory, done) as log,
        report.progress("refining", total, "decisions", done) as bar,
    ):
        bar.update(done, "compiling")
        run.begin(log)
        if not done:
            progress = run.start(progress)
        while done < total and not progress.stopped:
            state, metrics = steps.train_epoch(progress.state)
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            run.write("train", done := int(values.pop("decision_steps")), values)
            progress = progress._replace(
                state=state,
                train_successes=progress.train_successes
                + values["train_success"] * values["episodes"],
                since_eval=progress.since_eval + every,
                since_save=progress.since_save + every,
            )
            progress = run.judge(progress, done, values)
            last, stop = done >= total or bool(progress.stopped), asked()
            if stop or last or progress.since_save >= config.checkpoint.every:
                progress = progress._replace(since_save=jnp.zeros((), jnp.int32))
                run.save(done, progress, wait=bool(stop) or last)
            bar.update(done, f"{run.note}exploring {values['train_success']:.0%}{_alarm(values)}")
            if stop and not last:
                raise Stopped(f"stopped by {stop} after {done:,} of {total:,} decisions")
    if not config.eval.interim_episodes:
        progress = progress._replace(best_actor=progress.state.sac.mean_actor)
    return progress


class _Run:
    """The files of one run, and what is computed once for it."""

    def __init__(self, config: Config, steps: Steps, directory: Path):
        self._config, self._steps, self._directory = config, steps, directory
        self._base: Evaluation | None = None
        self._newest = Checkpoints(directory / "checkpoints", config.checkpoint.keep)
        self._best = Checkpoints(directory / "best", keep=1)
        self.note = ""

    def resume(self) -> tuple[Progress, int]:
        """The newest progress on disk, or that of a new run; and its decisions."""
        fresh = _start(jax.eval_shape(self._steps.init))
        step, progress, problems = self._newest.restore(fresh)
        for problem in problems:
            report.say(f"{problem} - going on from an earlier one")
        if step < 0:
            return _start(self._steps.init()), 0
        report.say(f"resumed after {step:,} decisions")
        return progress, step

    def begin(self, log: report.MetricsLog) -> None:
        """Opens the records, and plays the base policy on the interim episodes."""
        self._log, self._start = log, time.monotonic() - log.wall_s
        report.drop_records(self._directory / "audit.jsonl", "decision_steps", log.begin)
        if self._config.eval.interim_episodes:
            actor = _no_residual(jax.eval_shape(self._steps.init).sac.actor)
            self._base = self._assess(actor, 0.0)

    def start(self, progress: Progress) -> Progress:
        """Before the first epoch: the base policy is what has to be beaten."""
        if self._base is None:
            return progress
        self.write("eval", 0, _figures(self._base))
        successes = self._base.success_once
        progress = progress._replace(best_score=jnp.float32(successes.mean()))
        verdicts = guard.check_base(self._config.guard, int(successes.sum()), len(successes))
        return self._obey(progress, 0, verdicts)

    def judge(self, progress: Progress, done: int, values: dict[str, float]) -> Progress:
        """Evaluates where it is time, and lets the guard judge epoch and evaluation."""
        config = self._config
        if progress.first_drift < 0:
            progress = progress._replace(first_drift=jnp.float32(values["drift"]))
        limit = np.inf
        if config.task.reward == "success":
            limit = guard.largest_return(config.sac.gamma, config.sac.reward_offset)
            if config.sac.entropy_backup:
                target = float(progress.state.hyperparams.target_entropy)
                limit += guard.largest_bonus(values, target, config.sac.gamma)
        verdicts = guard.check_epoch(config.guard, values, limit, float(progress.first_drift))
        last = done >= config.train.total_decisions
        if self._base is not None and (last or progress.since_eval >= config.eval.interim_every):
            successes = int(self._base.success_once.sum()), float(progress.train_successes)
            verdicts += guard.check_hope(config.guard, *successes, done)
            broken = guard.worst(verdicts) == "roll_back"
            progress, found = self._evaluate(self._base, progress, done, may_be_best=not broken)
            verdicts += found
        return self._obey(progress, done, verdicts)

    def _evaluate(
        self, base: Evaluation, progress: Progress, done: int, may_be_best: bool
    ) -> tuple[Progress, list[guard.Verdict]]:
        """An interim evaluation: keeps the actor if it is the best so far, the later of equals."""
        actor = progress.state.sac.mean_actor
        result = self._assess(actor, self._config.decorator.residual_scale)
        self.write("eval", done, _figures(result))
        score = jnp.float32(result.success_once.mean())
        self.note = f"evaluated {score:.0%}, "
        progress = progress._replace(since_eval=jnp.zeros((), jnp.int32))
        if may_be_best and score >= progress.best_score:
            copy = jax.tree.map(jnp.copy, actor)  # the state is donated
            progress = progress._replace(best_actor=copy, best_score=score)
            report.say_unsaved(self._best.save(done, progress.state))
        gain, interval = paired_gain(base.success_once, result.success_once)
        saturation = float(result.saturation.mean())
        return progress, guard.check_evaluation(self._config.guard, gain, interval, saturation)

    def _assess(self, actor: Params, residual_scale: float) -> Evaluation:
        evaluation = self._config.eval
        seed = evaluation.seed + INTERIM_SEED_OFFSET
        return self._steps.assess(actor, residual_scale, seed, evaluation.interim_episodes)

    def _obey(self, progress: Progress, done: int, verdicts: list[guard.Verdict]) -> Progress:
        """Writes verdicts to the audit, and carries out the most severe."""
        config = self._config.guard
        action = guard.worst(verdicts) if config.enabled else "note"
        if action == "roll_back" and progress.rollbacks >= config.max_rollbacks:
            action = "stop"
        for verdict in verdicts:
            record = {"decision_steps": done, "wall_s": time.monotonic() - self._start,
                      "done": action, **verdict._asdict()}  # fmt: skip
            report.add_record(self._directory / "audit.jsonl", record)
            report.say(f"guard: {verdict.rule} {plain(verdict.numbers)}: {action}")
        if action == "shrink":
            before = progress.state.hyperparams
            after = before._replace(exploration_limit=0.5 * before.exploration_limit)
            return progress._replace(state=progress.state._replace(hyperparams=after))
        if action == "roll_back":
            return self._roll_back(progress)
        return progress._replace(stopped=progress.stopped | (action == "stop"))

    def _roll_back(self, progress: Progress) -> Progress:
        """The state that evaluated best, else a new one, with half the step sizes from here on."""
        now = progress.state
        step, state, _ = self._best.restore(jax.eval_shape(self._steps.init))
        state = self._steps.init() if step < 0 else state
        halved = {name: 0.5 * getattr(now.hyperparams, name)
                  for name in ("actor_lr", "critic_lr", "temperature_lr")}  # fmt: skip
        rollbacks = progress.rollbacks + 1
        state = state._replace(
            key=jax.random.fold_in(state.key, rollbacks),  # what went wrong must not come again
            hyperparams=now.hyperparams._replace(**halved),
            decision_steps=now.decision_steps,  # budgets count what was spent
            control_steps=now.control_steps,
        )
        return progress._replace(state=state, rollbacks=rollbacks)

    def write(self, group: str, done: int, values: dict[str, Any]) -> None:
        """Records metrics."""
        self._log.write(group, done, values | {"wall_s": time.monotonic() - self._start})

    def save(self, done: int, progress: Progress, wait: bool) -> None:
        """Writes a checkpoint; training goes on where that fails."""
        report.say_unsaved(self._newest.save(done, progress, wait))

    def close(self) -> None:
        """Waits for what is being written."""
        self._newest.close()
        self._best.close()


def _start(state: TrainState) -> Progress:
    zero, no = jnp.zeros(()), jnp.zeros((), jnp.int32)
    return Progress(
        state=state,
        best_actor=_no_residual(state.sac.actor),
        best_score=zero - 1,
        first_drift=zero - 1,
        train_successes=zero,
        since_eval=no,
        since_save=no,
        rollbacks=no,
        stopped=jnp.zeros((), bool),
    )


def _no_residual(actor: Params) -> Params:
    """Parameters, all zero, of which every residual is zero."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), actor)


def _figures(result: Evaluation) -> dict[str, Any]:
    return {
        "success_once": float(result.success_once.mean()),
        "success_at_end": float(result.success_at_end.mean()),
        "steps_to_success": float(result.steps_to_success.mean()),
        "smoothness": float(result.smoothness.mean()),
        "saturation": float(result.saturation.mean()),
    }


def _alarm(values: dict[str, float]) -> str:
    """What must not go unseen in an epoch's metrics."""
    alarms = {
        "overflows": "overflowed the engine's buffers",
        "bad_actions": "had a bad base action",
    }
    found = [f", {values[name]:,.0f} control steps {what}!" for name, what in alarms.items()
             if values[name]]  # fmt: skip
    return "".join(found)
