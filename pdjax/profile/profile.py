"""Measures where an epoch's time goes: each phase of training by itself, against the whole epoch.

A phase is a program of its own at the run's sizes, from the state of a run that has trained for
some epochs, see `phases`. Separate programs miss how XLA fuses the phases in an epoch and what they
leave in its caches; `explained` says which share of the epoch they add up to.
"""

import itertools
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pdjax.config.schema import Config, ConfigError
from pdjax.devices import rates
from pdjax.devices.rates import timed
from pdjax.output import plots, records, terminal
from pdjax.output.checkpoint import Checkpoints
from pdjax.output.paths import check_directory, check_file
from pdjax.profile.advice import changed, suggest
from pdjax.profile.phases import Timing, make_phases, time_phase
from pdjax.training.build import Run, build
from pdjax.training.compiled import prepare
from pdjax.training.epoch import TrainState
from pdjax.training.loop import Steps


def profile_run(
    config: Config, repeats: int, out: Path | None, trace: Path | None, advise: bool
) -> dict[str, Any]:
    """Profiles a run, prints the result and draws it.

    Args:
      config: the run.
      repeats: see `profile`.
      out: PNG to write, or None.
      trace: new or empty directory, see `profile`; or None.
      advise: see `profile`.

    Returns:
      See `profile`.

    Raises:
      ConfigError, checkpoint.CheckpointError, registry.UnknownName: see `build.build`; or the file
        or directory exists already.
    """
    if out is not None:
        check_file(out, (".png",))
    if trace is not None:
        check_directory(trace)
    summary = profile(config, repeats, trace, advise)
    _show(summary)
    if out is not None:
        plots.plot_phases(out, summary)
        terminal.say(f"written to {out}")
    return summary


def profile(
    config: Config, repeats: int, trace: Path | None = None, advise: bool = True
) -> dict[str, Any]:
    """Measures a run's phases.

    Args:
      config: the run; it is measured as if it learned from its first decision.
      repeats: of each measurement; the median counts.
      trace: directory for a trace of one epoch, for TensorBoard, XProf or Perfetto; or None.
      advise: whether to try other numbers of environments and another batch size.

    Returns:
      What `pdjax profile --json` prints: see `_summarize`.

    Raises:
      ConfigError, checkpoint.CheckpointError, registry.UnknownName: see `build.build`.
    """
    config = changed(config, "train", learning_starts=0, prefill="policy")
    run = build(config)
    if run.trainer.on_host:
        raise ConfigError(
            f"{config.task.name} lives in worker processes; `pdjax profile` splits programs of"
            " JAX only; compare `decisions_per_s` of runs with other task.workers"
        )
    machine = rates.measure()
    compile_s, (steps, plans) = timed(prepare, run)
    with terminal.progress("profiling", 12, "parts") as bar:
        state, before = _epochs(steps, repeats)
        bar.update(1, f"an epoch takes {before:.2f} s")
        if trace is not None:
            with jax.profiler.trace(str(trace)):
                state, _ = jax.block_until_ready(steps.train_epoch(state))
        between = _between_epochs(run, steps, state, repeats)
        timings = {}
        for phase in make_phases(run, state):  # the last one takes the replay
            timings[phase.name] = time_phase(phase, repeats)
            bar.update(2 + len(timings), f"{phase.name} {timings[phase.name].seconds:.2f} s")
        timings = _split_steps(timings)
        del state, phase  # their arrays
        # A machine's speed drifts: the epoch is timed on both sides of its parts.
        epoch_s = (before + _epochs(steps, repeats)[1]) / 2
        bar.update(11, "other settings" if advise else "")
        advice = suggest(config, timings, between, epoch_s) if advise else []
        bar.update(12)
    summary = _summarize(run, machine, timings, between, epoch_s)
    planned = plans[0].held_bytes  # of the device's memory, or the machine's
    return summary | {"compile_s": compile_s, "planned_memory_bytes": planned, "advice": advice}


def _split_steps(timings: dict[str, Timing]) -> dict[str, Timing]:
    """Splits `control steps` into physics and the task's own code, if the physics was timed."""
    if "physics" not in timings:
        return timings
    pairs = zip(timings["control steps"], timings["physics"], strict=True)
    code = Timing(*(max(whole - physics, 0.0) for whole, physics in pairs))
    rest = {name: timing for name, timing in timings.items() if name != "control steps"}
    return rest | {"task code": code}


def _epochs(steps: Steps, repeats: int) -> tuple[TrainState, float]:
    """Trains from the start; returns the state and an epoch's median seconds after a warm-up."""
    state, seconds = steps.train_epoch(steps.init(0))[0], []
    for _ in range(repeats):
        took, (state, _) = timed(steps.train_epoch, state)
        seconds.append(took)
    return state, statistics.median(seconds)


def _between_epochs(run: Run, steps: Steps, state: TrainState, repeats: int) -> dict[str, float]:
    """Returns seconds per epoch of the work between epochs: evaluation, checkpoint, records."""
    config, actor = run.config, state.sac.mean_actor
    per_epoch = config.train.decisions_per_epoch
    metrics = jax.eval_shape(run.trainer.train_epoch, run.frozen, state)[1]
    metrics = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics)

    def median(function: Callable[[], Any]) -> float:
        return statistics.median(timed(function)[0] for _ in range(repeats))

    def evaluate() -> Any:
        scale, evaluation = state.hyperparams.residual_scale, config.eval
        return steps.play(evaluation.seed, evaluation.interim_episodes, actor, scale)

    between = {}
    if config.eval.interim_episodes:
        timed(evaluate)  # compiles
        between["evaluation"] = median(evaluate) * per_epoch / config.eval.interim_every
    with tempfile.TemporaryDirectory() as folder:
        with closing(Checkpoints(Path(folder) / "checkpoints", keep=1)) as checkpoints:
            often = per_epoch / config.checkpoint.every
            counter = itertools.count()
            between["checkpoint"] = often * median(
                lambda: checkpoints.save(next(counter), state, wait=True)
            )
        with records.MetricsLog(Path(folder)) as log:
            between["records"] = median(
                lambda: log.write("train", 0, {k: float(v) for k, v in metrics.items()})
            )
    return between


def _summarize(
    run: Run,
    machine: rates.Machine,
    timings: dict[str, Timing],
    between: dict[str, float],
    epoch_s: float,
) -> dict[str, Any]:
    """Returns the measurements, ready for JSON; shares are of an epoch and the work after it."""
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


def _describe(name: str, timing: Timing, whole: float, machine: rates.Machine) -> dict[str, Any]:
    """Describes a phase for JSON. Bytes are those of its operations, which caches may serve."""
    rate = 1 / timing.seconds if timing.seconds else 0.0
    return {
        "phase": name,
        "seconds": timing.seconds,
        "share": timing.seconds / whole,
        "flops": timing.flops,
        "flops_share": timing.flops * rate / machine.flops,
        "bytes": timing.bytes,
        "bytes_share": timing.bytes * rate / machine.bytes,
    }


def _show(summary: dict[str, Any]) -> None:
    """Prints the phases, the longest first, and suggestions."""

    def share(phase: dict[str, Any], of: str) -> str:
        return f"{phase[f'{of}_share']:.0%}" if phase[f"{of}_share"] else "-"

    phases = sorted(summary["phases"], key=lambda phase: -phase["seconds"])
    rows = [
        [
            p["phase"],
            f"{1e3 * p['seconds']:,.1f}",
            f"{p['share']:.1%}",
            share(p, "flops"),
            share(p, "bytes"),
        ]
        for p in phases
    ]
    title = (
        f"{summary['task']} on {summary['device']}, {summary['physics']} physics,"
        f" {summary['num_envs']} environments"
    )
    header = ["phase", "ms per epoch", "share", "of peak FLOP/s", "of peak bytes/s"]
    terminal.show_table(title, header, rows)
    machine = summary["machine"]
    terminal.say(
        f"{summary['decisions_per_s']:,.0f} decisions/s, {summary['control_steps_per_s']:,.0f}"
        f" control steps/s, {summary['gradient_steps_per_s']:,.1f} gradient steps/s; an epoch takes"
        f" {summary['epoch_s']:.2f} s, of which phases explain {summary['explained']:.0%}; compiled"
        f" in {summary['compile_s']:.0f} s; peak memory"
        f" {summary['peak_memory_bytes'] / 2**30:.1f} GiB;"
        f" machine: {machine['flops'] / 1e9:,.0f} GFLOP/s, {machine['bytes'] / 1e9:,.0f} GB/s"
    )
    for line in summary["advice"]:
        terminal.say(f"try {line}")


def _peak_memory() -> int:
    """Returns the peak bytes in use: of the device if it reports them, else of this process."""
    stats = jax.devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return (
        stats.get("peak_bytes_in_use") or unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
