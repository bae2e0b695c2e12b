"""Estimates the time and memory that a sweep will need on this machine, before it starts."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdjax.config import files as configs
from pdjax.config.schema import SWEEPABLE, Config, ConfigError
from pdjax.devices.rates import timed
from pdjax.output import tables, terminal
from pdjax.output.checkpoint import CheckpointError
from pdjax.sweep import spec as sweep_spec
from pdjax.training import build, compiled
from pdjax.training.members import Stack

TIMED = 512  # decisions to time at least, unless an epoch has fewer


def foresee(spec_path: Path) -> dict[str, Any]:
    """Prints the trials of a sweep with estimates of their time and memory; starts no trial.

    Builds every program that the trials need, and times a short epoch and an evaluation of it.

    Args:
      spec_path: the sweep's file, see `spec.read`.

    Returns:
      `trials`, each with its `values`, `members`, `decisions`, `hours`, `memory_bytes` and `note`
      (for a trial that could not be timed, both figures are None and the note says why); their
      `count`; `at_once`, the number of trials at a time; and `hours` of all trials that were timed.

    Raises:
      ConfigError: see `spec.read`.
    """
    spec = sweep_spec.read(spec_path)
    planned, settings = sweep_spec.trials(spec), spec.settings
    drawn = planned or [sweep_spec.example(spec) | {"config": name} for name in settings.config]
    timings: dict[str, dict[str, Any]] = {}
    rows = []
    with terminal.progress("timing", len(drawn), "trials") as bar:
        for count, values in enumerate(drawn, 1):
            members = sweep_spec.make_members(spec, values)
            key = _program_key(members)
            if key not in timings:
                timings[key] = _time(members)
            total = members[0].train.total_decisions
            rows.append(
                {"values": values, "members": len(members), "decisions": total} | timings[key]
            )
            bar.update(count)
    times = 1 if planned else settings.samples / len(drawn)
    at_once = settings.concurrent or max((os.cpu_count() or 1) // settings.cpus, 1)
    known = [row["hours"] for row in rows if row["hours"] is not None]
    found = {
        "trials": rows,
        "count": round(times * len(rows)),
        "at_once": at_once,
        "hours": times * sum(known),
    }
    tables.show_foreseen([dimension.key for dimension in spec.space], found)
    return found


def _program_key(members: Sequence[Config]) -> str:
    """Returns a key that is equal for two trials exactly if they need the same program."""
    flat = configs.flat(members[0])
    return json.dumps([len(members), {k: v for k, v in flat.items() if k not in SWEEPABLE}])


def _time(members: Sequence[Config]) -> dict[str, Any]:
    """Times a trial that learns from its first decision; returns hours and memory, or why not."""
    train = members[0].train
    rounds = min(
        -(-TIMED // train.decisions_per_round),
        train.decisions_per_epoch // train.decisions_per_round,
    )
    train = dataclasses.replace(
        train, learning_starts=0, decisions_per_epoch=rounds * train.decisions_per_round
    )
    first = dataclasses.replace(members[0], train=train)
    try:
        built = build.build(first)
        with terminal.into(Path(os.devnull)):
            steps, plans = compiled.prepare(built, members=[first, *members[1:]])
    except (ConfigError, CheckpointError) as error:
        return {"hours": None, "memory_bytes": None, "note": str(error)}
    stack = Stack({i: steps.init(i) for i in range(len(members))}, len(members))
    state = steps.train_epoch(stack.state)[0]
    seconds, (state, _) = timed(steps.train_epoch, state)
    evaluation, hyperparams = first.eval, state.hyperparams
    arguments = (0, evaluation.interim_episodes, state.sac.mean_actor, hyperparams.residual_scale)
    played = 0.0
    if evaluation.interim_episodes:
        steps.play_all(*arguments)
        played, _ = timed(steps.play_all, *arguments)
    epochs, evaluations = (
        train.total_decisions / every
        for every in (train.decisions_per_epoch, evaluation.interim_every)
    )
    return {
        "hours": (epochs * seconds + evaluations * played) / 3600,
        "memory_bytes": max(plan.total for plan in plans),
        "note": "",
    }
