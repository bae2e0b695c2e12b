"""Drives one run, or the members of one program, from epoch to epoch without losing any work.

Between two jitted epochs the loop reads the metrics once, plays interim evaluations, lets each run
judge its own results (`run_in_progress`), and stops on request. Separate from `epoch`, which is
pure: the loop has effects, and knows the training state only as a whole.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import jax
import numpy as np

from pdjax.config.schema import EvalConfig
from pdjax.config.seeds import shift_seed
from pdjax.output import provenance, records, tables, terminal
from pdjax.output.checkpoint import CheckpointError
from pdjax.rollout.evaluate import Evaluation
from pdjax.rollout.playing import no_residual
from pdjax.training.members import Stack, lost
from pdjax.training.run_in_progress import Member, Progress, Refinement, Steps
from pdjax.training.schedule import whole_epochs
from pdjax.training.stopping import Cut, Stopped, stop_asked
from pdjax_envs.workers import WorkerError


class Epoch(NamedTuple):
    """What a run did in one epoch; `on_epoch` receives it.

    Attributes:
      member: number of the run in its program; 0 for a single run.
      decision_steps: decisions of the run so far, over all environments.
      metrics: name -> value, as the group `train` of `metrics.jsonl` records them.
      evaluation: the interim evaluation after the epoch, with arrays (episodes,); None if none was
        due.
    """

    member: int
    decision_steps: int
    metrics: dict[str, float]
    evaluation: Evaluation | None


OnEpoch = Callable[[Sequence[Epoch]], None]
INTERIM_SEED_OFFSET = 1_000_000  # interim and final evaluations never share episodes


def refine(
    members: Sequence[Member], steps: Steps, on_epoch: OnEpoch | None = None
) -> list[Progress]:
    """Trains runs to their end, from the newest checkpoints in their directories if there are any.

    A run that was stopped in any way and then resumed ends with the same numbers as one that was
    never stopped: everything after the checkpoint is trained again, and its records are dropped.

    Args:
      members: a single run, or several that one program advances together (`members.check`).
      steps: the functions to call.
      on_epoch: called after each epoch with an `Epoch` for every run that has trained in it.

    Returns:
      The last progress of each member; without interim evaluations the last actor is the best. A
      member that ended before others has no replay and no environments any more.

    Raises:
      workers.WorkerError: the environments failed for good; the state before that is saved.
      Stopped: SIGINT or SIGTERM came; the state after the epoch is saved.
      checkpoint.CheckpointError: a member has checkpoints, but none that it can go on from; nothing
        on disk was changed. Or the guard rolls back, and the best state cannot be read.
    """
    config = members[0].config
    total, every = whole_epochs(config), config.checkpoint.every
    several = len(members) > 1
    runs = [
        Refinement(member, steps, index, f"member {index}: " if several else "")
        for index, member in enumerate(members)
    ]
    done = _resume(runs)
    with (
        ExitStack() as files,
        stop_asked() as asked,
        terminal.progress("refining", total, "decisions", done) as bar,
    ):
        bar.update(done, "compiling")
        made_by = provenance.describe()
        for run in runs:
            files.callback(run.close)
            run.begin(files.enter_context(records.MetricsLog(run.directory, run.done)), made_by)
        base = _play_base(runs, steps)
        for run in runs:
            run.meet(base)
        training = [run for run in runs if done < total and not run.progress.stopped]
        stack = Stack({run.index: run.give_state() for run in training}, len(runs))
        while training:
            stack.keep([run.index for run in training])
            try:
                stack.state, metrics = steps.train_epoch(stack.state)
            except Cut as cut:
                stack.state = cut.state
                for run in training:
                    run.save_early(stack.take(run.index))
                raise WorkerError(
                    f"{cut}; saved after {training[0].done:,} of {total:,} decisions, --resume"
                    " goes on from there"
                ) from None
            values = stack.rows(jax.device_get(metrics))
            for run in training:
                run.add_epoch(values[run.index])
            done, stop = training[0].done, asked()
            results = _play_all(training, stack, steps)
            out = lost(config.train.halve_at, done, len(runs), results)
            for run in training:
                state = stack.take(run.index)
                run.judge(state, values[run.index], results.get(run.index), run.index in out)
                if run.progress.state is not state:
                    stack.put(run.index, run.progress.state)
                if stop or run.is_over or run.progress.since_save >= every:
                    run.save(wait=bool(stop) or run.is_over)
                if not run.is_over:
                    run.give_state()
                elif several:
                    run.forget_data()
            bar.update(done, _note(training, values, len(runs)))
            if on_epoch:
                on_epoch([_describe(run, values[run.index], results) for run in training])
            training = [run for run in training if not run.is_over]
            if stop and training:
                raise Stopped(f"stopped by {stop} after {done:,} of {total:,} decisions")
    return [run.end() for run in runs]


def _describe(
    run: Refinement, values: Mapping[str, Any], results: Mapping[int, Evaluation]
) -> Epoch:
    metrics = {name: float(value) for name, value in values.items()}
    return Epoch(run.index, run.done, metrics, results.get(run.index))


def _resume(runs: Sequence[Refinement]) -> int:
    """Brings all runs to the newest point that each of them can go on from.

    Runs that had stopped before stay where they ended. Nothing on disk changes until every run has
    been read.

    Returns:
      The decisions at that point.

    Raises:
      checkpoint.CheckpointError: a run has checkpoints, but none that it can go on from.
    """
    for run in runs:
        run.resume()
    training = [run for run in runs if not run.progress.stopped] or runs
    while len({run.done for run in training}) > 1:
        common = min(run.done for run in training)
        for run in training:
            if run.done > common:
                _go_back(run, common)
    for run in runs:
        run.settle()
    done = max(run.done for run in training)
    if done:
        terminal.say(f"resumed after {done:,} decisions")
    return done


def _go_back(run: Refinement, common: int) -> None:
    """Brings a run back to the decisions that another member goes on from."""
    if not common:  # the other member was killed before its first checkpoint
        run.start_anew()
        return
    try:
        run.resume(common)
    except CheckpointError as error:
        raise CheckpointError(
            f"another member goes on from {common:,} decisions: {error}"
        ) from None


def _play_base(runs: Sequence[Refinement], steps: Steps) -> Evaluation | None:
    """Plays the base policy on the interim episodes, which all members share; None without any."""
    evaluation = runs[0].config.eval
    if not evaluation.interim_episodes:
        return None
    actor = no_residual(steps.like.sac.actor)
    return steps.play(_interim_seed(evaluation), evaluation.interim_episodes, actor)


def _play_all(training: Sequence[Refinement], stack: Stack, steps: Steps) -> dict[int, Evaluation]:
    """Plays an interim evaluation of each member if one is due; returns an empty dict if not."""
    if not training[0].is_evaluation_due:
        return {}
    evaluation, state = training[0].config.eval, stack.state
    actors, scales = state.sac.mean_actor, state.hyperparams.residual_scale
    found = stack.rows(
        steps.play_all(_interim_seed(evaluation), evaluation.interim_episodes, actors, scales)
    )
    return {run.index: found[run.index] for run in training}


def _interim_seed(evaluation: EvalConfig) -> int:
    return shift_seed(evaluation.seed, INTERIM_SEED_OFFSET)


def _note(training: Sequence[Refinement], metrics: Mapping[int, Any], count: int) -> str:
    """Describes an epoch for the progress line, over all members that train."""
    found = [metrics[run.index] for run in training]
    is_rate = training[0].measure == "success_once"
    overflows, bad, cut = (
        sum(one[name] for one in found) for name in ("overflows", "bad_actions", "cut_episodes")
    )
    words = [] if count == 1 else [f"{len(training)} of {count} members"]
    score = float(np.mean([run.score for run in training]))
    words += [] if np.isnan(score) else [f"evaluated {tables.score(score, is_rate, 0)}"]
    if is_rate:
        words += [f"exploring {np.mean([one['train_success'] for one in found]):.0%}"]
    else:
        reward = float(np.mean([one["reward"] for one in found]))
        words += [f"exploring {tables.score(reward, False)} per decision"]
    # These must not go unnoticed.
    words += [f"{overflows:,.0f} control steps overflowed the engine's buffers!"] * bool(overflows)
    words += [f"{bad:,.0f} control steps had a bad base action!"] * bool(bad)
    words += [f"{cut:,.0f} episodes cut short by numbers that are not finite!"] * bool(cut)
    return ", ".join(words)
