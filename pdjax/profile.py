"""Where an epoch's time goes: each phase of training by itself, against the whole epoch.

A phase is a program of its own at the run's sizes: a scan over what an epoch does of it (over a
part, scaled up, where that is long), from the state of a run that has trained for some epochs.
Parts cannot see how XLA fuses them in the whole, nor what they leave in its caches: `explained`
says to how much of an epoch they add up.
"""

import dataclasses
import itertools
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdjax import report, roofline
from pdjax.checkpoint import Checkpoints
from pdjax.config import Config
from pdjax.loop import Steps
from pdjax.phases import Phase, learner_phases, make_phases, rollout_phases
from pdjax.runner import Run, build, prepare
from pdjax.train import TrainState


MORE_ENVS = (0.5, 2, 4)  # times num_envs, tried for advice
WORTH = 1.1  # gain that is worth advice
DEAR = 0.15  # share of time from which on a part is worth advice


class Timing(NamedTuple):
    """What a phase comes to in one epoch: seconds, operations, and bytes by XLA, at least."""

    seconds: float
    flops: float = 0.0
    bytes: float = 0.0


def profile(
    config: Config, repeats: int, trace: Path | None = None, advise: bool = True
) -> dict[str, Any]:
    """Measures a run's phases.

    Args:
      config: the run; here it learns from its first decision.
      repeats: of each measurement; medians are kept.
      trace: directory for a trace of one epoch, for TensorBoard, XProf or Perfetto.
      advise: whether to try other numbers of environments and another batch size.

    Returns:
      What `pdjax profile --json` prints: see `_summarize`.

    Raises:
      ConfigError, checkpoint.CheckpointError, registry.UnknownName: see `runner.build`.
    """
    config = _changed(config, "train", learning_starts=0, prefill="policy")
    run, machine = build(config), roofline.measure()
    compile_s, (steps, _) = _clock(lambda: prepare(run))
    with report.progress("profiling", 12, "parts") as bar:
        state, _ = steps.train_epoch(steps.init())  # warms up
        state, epoch_s = _epochs(steps, state, repeats)
        bar.update(1, f"an epoch takes {epoch_s:.2f} s")
        if trace is not None:
            with jax.profiler.trace(str(trace)):
                state, _ = jax.block_until_ready(steps.train_epoch(state))
        between = _between_epochs(run, steps, state, repeats)
        timings = {}
        for phase in make_phases(run, state):  # the last one takes the replay
            timings[phase.name] = _time(phase, repeats)
            bar.update(2 + len(timings), f"{phase.name} {timings[phase.name].seconds:.2f} s")
        bar.update(11, "other settings" if advise else "")
        advice = _advise(config, _split_steps(timings), between, epoch_s) if advise else []
        bar.update(12)
    summary = _summarize(run, machine, _split_steps(timings), between, epoch_s)
    return summary | {"compile_s": compile_s, "advice": advice}


def _changed(config: Config, section: str, **values: Any) -> Config:
    """The config with other values in a section."""
    part = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: part})


def _split_steps(timings: dict[str, Timing]) -> dict[str, Timing]:
    """Timings with the task's own code apart from the physics, where that was timed."""
    if "physics" not in timings:
        return timings
    whole, physics = timings["control steps"], timings["physics"]
    code = whole._replace(seconds=max(whole.seconds - physics.seconds, 0.0))
    rest = {name: timing for name, timing in timings.items() if name != "control steps"}
    return rest | {"task code": code}


def _clock(function: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - began, result


def _epochs(steps: Steps, state: TrainState, repeats: int) -> tuple[TrainState, float]:
    """Trains on; the median seconds of an epoch."""
    seconds = []
    for _ in range(repeats):
        took, (state, _) = _clock(lambda state=state: steps.train_epoch(state))
        seconds.append(took)
    return state, statistics.median(seconds)


def _time(phase: Phase, repeats: int) -> Timing:
    function = jax.jit(phase.function, donate_argnums=0 if phase.threads else ())
    first, *rest = phase.arguments
    compiled = function.lower(first, *rest).compile()
    seconds = []
    for _ in range(repeats + 1):  # the first one warms up
        took, result = _clock(lambda first=first: compiled(first, *rest))
        first = result if phase.threads else first
        seconds.append(took)
    cost = compiled.cost_analysis() or {}
    flops = roofline.count_flops(phase.function, first, *rest)
    # a scan's body is counted once
    moved = phase.steps * (phase.moved or cost.get("bytes accessed", 0.0))
    return Timing(*(phase.per_epoch * x for x in (statistics.median(seconds[1:]), flops, moved)))


def _between_epochs(run: Run, steps: Steps, state: TrainState, repeats: int) -> dict[str, float]:
    """Seconds for each epoch of what is done between two: evaluations, checkpoints, records."""
    config, actor = run.config, state.sac.mean_actor
    per_epoch = config.train.decisions_per_epoch
    metrics = jax.eval_shape(run.trainer.train_epoch, run.frozen, state)[1]
    metrics = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics)

    def median(function: Callable[[], Any]) -> float:
        return statistics.median(_clock(function)[0] for _ in range(repeats))

    def evaluate() -> Any:
        scale, evaluation = config.decorator.residual_scale, config.eval
        return steps.assess(actor, scale, evaluation.seed, evaluation.interim_episodes)

    between = {}
    if config.eval.interim_episodes:
        _clock(evaluate)  # compiles
        between["evaluation"] = median(evaluate) * per_epoch / config.eval.interim_every
    with tempfile.TemporaryDirectory() as folder:
        with closing(Checkpoints(Path(folder) / "checkpoints", keep=1)) as checkpoints:
            often = per_epoch / config.checkpoint.every
            counter = itertools.count()
            between["checkpoint"] = often * median(
                lambda: checkpoints.save(next(counter), state, wait=True)
            )
        with report.MetricsLog(Path(folder)) as log:
            between["records"] = median(
                lambda: log.write("train", 0, {k: float(v) for k, v in metrics.items()})
            )
    return between


def _advise(
    config: Config, timings: dict[str, Timing], between: dict[str, float], epoch_s: float
) -> list[str]:
    """What other settings would bring, each with the figures it rests on."""
    whole = epoch_s + sum(between.values())
    advice = []
    playing = {1.0: _decision_s(config, 1.0)}
    learning = timings["updates"].seconds / config.train.decisions_per_epoch
    for factor in MORE_ENVS if config.task.physics in ("auto", "native") else ():
        if factor * config.train.num_envs >= 1 and not (factor * config.train.num_envs) % 1:
            playing[factor] = _decision_s(config, factor)
    best = min(playing, key=lambda factor: playing[factor])
    gain = (playing[1.0] + learning) / (playing[best] + learning)
    if gain > WORTH:
        advice.append(
            f"train.num_envs={config.train.num_envs * best:.0f}: a decision is played in"
            f" {1e3 * playing[best]:.2f} ms instead of {1e3 * playing[1.0]:.2f}, about {gain:.2f}x"
            " as many decisions a second"
        )
    updates = timings["updates"].seconds / whole
    if updates > DEAR:
        fewer = config.train.updates_per_decision / 2
        advice.append(
            f"train.updates_per_decision={fewer:g}: updates take {updates:.0%} of the time, so about"
            f" {1 / (1 - updates / 2):.2f}x as many decisions a second, with half as much learned"
            " from each"
        )
        doubled = _update_s(config, 2 * config.sac.batch_size)
        dearer = doubled / _update_s(config, config.sac.batch_size)
        if dearer < 2 / WORTH:
            advice.append(
                f"sac.batch_size={2 * config.sac.batch_size}: a gradient step on twice the batch"
                f" takes {dearer:.2f}x as long"
            )
    for name, key in (("evaluation", "eval.interim_every"), ("checkpoint", "checkpoint.every")):
        share = between.get(name, 0.0) / whole
        if share > DEAR:
            section, field = key.split(".")
            rarer = 2 * getattr(getattr(config, section), field)
            advice.append(f"{key}={rarer}: halves the {share:.0%} of the time that {name} takes")
    return advice


def _decision_s(config: Config, factor: float) -> float:
    """Seconds to play one decision with that many times the environments."""
    num_envs = round(factor * config.train.num_envs)
    size = max(num_envs, config.train.decisions_per_round)
    run = build(_changed(config, "train", num_envs=num_envs, decisions_per_round=size,
                         decisions_per_epoch=size, updates_per_decision=1 / size))  # fmt: skip
    state = prepare(run)[0].init()
    phases = [phase for phase in rollout_phases(run, state) if phase.name != "physics"]
    return sum(_time(phase, repeats=2).seconds for phase in phases) / size


def _update_s(config: Config, batch_size: int) -> float:
    """Seconds of the gradient steps of an epoch on batches of that size."""
    run = build(_changed(config, "sac", batch_size=batch_size))
    state = prepare(run)[0].init()
    return _time(learner_phases(run, state)[0], repeats=2).seconds


def _summarize(
    run: Run, machine: roofline.Machine, timings: dict[str, Timing], between: dict[str, float],
    epoch_s: float,
) -> dict[str, Any]:  # fmt: skip
    """What was measured, as JSON; shares are of an epoch with what belongs to it between two."""
    train = run.config.train
    whole = epoch_s + sum(between.values())
    shown = {**timings, **{name: Timing(seconds) for name, seconds in between.items()}}
    explained = sum(timing.seconds for timing in timings.values()) / epoch_s
    updates = run.trainer.schedule.updates * run.trainer.schedule.rounds
    return {
        "task": run.env.task.name,
        "physics": run.env.engine,
        "device": jax.devices()[0].device_kind,
        "num_envs": train.num_envs,
        "batch_size": run.config.sac.batch_size,
        "updates_per_decision": train.updates_per_decision,
        "epoch_s": epoch_s,
        "explained": explained,
        "decisions_per_s": train.decisions_per_epoch / whole,
        "control_steps_per_s": train.decisions_per_epoch * run.base.act_horizon / whole,
        "gradient_steps_per_s": updates / whole,
        "machine": machine._asdict(),
        "peak_memory_bytes": _peak_memory(),
        "phases": [_describe(name, timing, whole, machine) for name, timing in shown.items()],
    }


def _describe(name: str, timing: Timing, whole: float, machine: roofline.Machine) -> dict[str, Any]:
    """A phase as JSON; shares of the machine's rates only where something was counted."""
    seconds = max(timing.seconds, 1e-12)
    return {
        "phase": name,
        "seconds": timing.seconds,
        "share": timing.seconds / whole,
        "flops": timing.flops,
        "flops_share": timing.flops / seconds / machine.flops,
        "bytes": timing.bytes,
        "bytes_share": timing.bytes / seconds / machine.bytes,
    }


def _peak_memory() -> int:
    """Bytes at most in use: of the device where it says so, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return (
        stats.get("peak_bytes_in_use") or unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
