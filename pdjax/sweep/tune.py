"""Runs sweeps with Ray Tune, on this machine or a cluster. Not pure.

A trial is a training like any other, with or without members, in its own directory of the sweep:
`trials/ID/`, with `trial.json` (what it sets), `starts.jsonl` (when and where it started, once more
after each loss) and `run/`. Ray only decides what runs where and when; a lost trial continues from
its run's own checkpoints. `report` reads the directories.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pdjax.config.options import ConfigError
from pdjax.output import lock, records, terminal, trackers
from pdjax.output.paths import check_directory, new_directory
from pdjax.rollout.intervals import score_of
from pdjax.sweep import report
from pdjax.sweep import spec as sweep_spec
from pdjax.sweep.spec import Settings, Spec
from pdjax.training import run
from pdjax.training.loop import Epoch
from pdjax.training.stopping import Stopped
from pdjax_envs import reading, writing

METRIC = "success_once"  # or the return; mean over the members' latest interim evaluations
RAY = "ray"  # folder of Ray's own records in a sweep's directory
CONNECT_S = 10.0  # s to reach a cluster


def sweep(spec_path: Path, out: Path, address: str = "", resume: bool = False) -> dict[str, Any]:
    """Runs a sweep to its end and reports it.

    Args:
      spec_path: the sweep's file, see `spec.read`.
      out: directory of the sweep; new or empty, unless its sweep is resumed. All machines of a
        cluster must share this folder and everything that the file names.
      address: of a Ray cluster; "" = a cluster of this machine alone, as long as the sweep lasts.
      resume: continue the sweep in `out`; start it if there is none.

    Returns:
      See `report.write`.

    Raises:
      ConfigError: the file is not valid, Ray is missing, the address cannot be reached, or a trial
        asks for more than the cluster has. Nothing has been started or written then.
      Stopped: the sweep was interrupted, and can be resumed.
    """
    spec = sweep_spec.read(spec_path)
    sweep_spec.check_bases(spec)
    trackers.use(spec.settings.track)
    tune = _import_tune(spec.settings)
    begun = resume and (out / "sweep.yaml").is_file()
    text = reading.read_text(spec_path, "sweep")
    if begun and reading.read_text(out / "sweep.yaml", "sweep") != text:
        raise ConfigError(
            f"cannot resume {out}: its sweep.yaml differs from {spec_path}; use the same"
            " file, or choose another --out"
        )
    if not begun:
        check_directory(out)
    with _cluster(address, spec.settings) as where:
        if not begun:
            new_directory(out)
            writing.write_text(out / "sweep.yaml", text)
        with lock.held(out):
            terminal.say(f"sweeping on {where}; each trial's log: {out}/trials/ID/log.txt")
            # Ray misses the loggers that are switched off.
            logging.getLogger("ray.tune").setLevel(logging.ERROR)
            tuner = _make_tuner(tune, spec, out.resolve())
            tuner.fit()
    found = report.write(out)
    unfinished = sum(row["status"] == "unfinished" for row in found["trials"])
    if unfinished:
        raise Stopped(f"stopped with {unfinished} trials unfinished")
    return found


def _import_tune(settings: Settings) -> Any:
    # Ray reads these when it is imported. Its own loggers would write every curve once more.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        from ray import tune

        if settings.search == "optuna":
            import optuna  # noqa: F401, since Ray would report its absence with a traceback
    except ImportError as error:
        raise ConfigError(
            f"sweeps need {error.name}, which is not installed; pip install 'pdjax[sweep]'"
        ) from None
    return tune


@contextmanager
def _cluster(address: str, settings: Settings):
    """Connects to Ray, or starts it, for as long as a sweep lasts; yields where it runs.

    Raises:
      ConfigError: Ray cannot be reached, or no machine has what one trial needs.
    """
    import ray

    if address:
        _probe(address)
        _authenticate()
    wanted: dict[str, Any] = {"address": address} if address else {"include_dashboard": False}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **wanted)
    except Exception as error:
        first = str(error).strip().splitlines()[0][:200]
        raise ConfigError(
            f"cannot reach a Ray cluster at {address!r}: {first}; `ray status` there prints its"
            " address, and since Ray 2.60 its token is needed here too, see docs/sweeps.md"
        ) from None
    try:
        there = ray.nodes()
        asked = _resources(settings)
        largest = {name: max(node["Resources"].get(name, 0) for node in there) for name in asked}
        for name, count in asked.items():
            if count > largest[name]:
                raise ConfigError(
                    f"a trial asks for {count:g} {name}s, but no machine of the cluster has more"
                    f" than {largest[name]:g}; lower `{name.lower()}s` in the sweep's file"
                )
        yield address or "this machine"
    finally:
        ray.shutdown()


def _authenticate() -> None:
    """Makes Ray use the token that it would find; to join a cluster, it must be told to."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if "RAY_AUTH_TOKEN" in os.environ or token.is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _resources(settings: Settings) -> dict[str, float]:
    """Returns what a trial needs, by Ray's names."""
    return {"CPU": settings.cpus, "GPU": settings.gpus, "TPU": settings.tpus}


def _probe(address: str) -> None:
    """Raises ConfigError if nothing answers; Ray itself would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise ConfigError(f"--address got {address!r}, expected HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except OSError as error:
        raise ConfigError(
            f"cannot reach a Ray cluster at {address}: {error.strerror or error}; start one there"
            " with `ray start --head`, or leave out --address"
        ) from None


def _make_tuner(tune: Any, spec: Spec, out: Path) -> Any:
    settings = spec.settings
    job = {"out": str(out), "cwd": str(Path.cwd())}
    needed = {name: count for name, count in _resources(settings).items() if count}
    trainable = tune.with_resources(
        tune.with_parameters(_trial, job=job), tune.PlacementGroupFactory([needed])
    )
    if tune.Tuner.can_restore(str(out / RAY)):
        return tune.Tuner.restore(
            str(out / RAY), trainable, resume_unfinished=True, resume_errored=True
        )
    planned = sweep_spec.trials(spec)
    scheduler = None
    if settings.asha_grace:
        # ASHA ends trials at max_t, which must lie beyond the last report, the final evaluation.
        budget = sweep_spec.make_members(spec, sweep_spec.example(spec))[0].train.total_decisions
        scheduler = tune.schedulers.ASHAScheduler(
            time_attr="decisions",
            grace_period=settings.asha_grace,
            max_t=10 * budget,
            reduction_factor=settings.asha_reduction,
        )
    return tune.Tuner(
        trainable,
        param_space=_param_space(tune, spec),
        tune_config=tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=1 if planned else settings.samples,
            search_alg=_search(tune, spec),
            scheduler=scheduler,
            max_concurrent_trials=settings.concurrent or None,
        ),
        run_config=tune.RunConfig(
            name=RAY,
            storage_path=str(out),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=settings.restarts),
            callbacks=[_make_progress(tune, len(planned) if planned else settings.samples)],
        ),
    )


def _param_space(tune: Any, spec: Spec) -> dict[str, Any]:
    make = {"grid": tune.grid_search, "choice": tune.choice}
    space = {
        d.key: make[d.kind](d.values) if d.kind in make else getattr(tune, d.kind)(*d.values)
        for d in spec.space
    }
    names = list(spec.settings.config)
    every = tune.grid_search if spec.settings.search == "grid" else tune.choice
    return {"config": every(names)} | space


def _search(tune: Any, spec: Spec) -> Any:
    if spec.settings.search != "optuna":
        from ray.tune.search.basic_variant import BasicVariantGenerator

        return BasicVariantGenerator(random_state=spec.settings.seed)
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(seed=spec.settings.seed)


def _trial(values: Mapping[str, Any], job: Mapping[str, str]) -> None:
    """Runs one trial, in a process of its own; continues it if it is started again."""
    from ray import tune

    from pdjax.devices import process_settings

    os.chdir(job["cwd"])
    out = Path(job["out"])
    spec = sweep_spec.read(out / "sweep.yaml")
    if 0 < spec.settings.gpus < 1:  # JAX would take most of a GPU for one trial
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    process_settings.prepare()
    trackers.use(spec.settings.track)
    directory = out / "trials" / tune.get_context().get_trial_id()
    directory.mkdir(parents=True, exist_ok=True)
    writing.write_json(directory / report.TRIAL, dict(values))
    start = {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
    records.drop_records(directory / report.STARTS)
    records.add_record(directory / report.STARTS, start)

    def watch(epochs: Sequence[Epoch]) -> None:
        scores = [e.evaluation.score for e in epochs if e.evaluation is not None]
        if scores:
            decisions = epochs[0].decision_steps
            tune.report({METRIC: float(sum(scores)) / len(scores), "decisions": decisions})

    with terminal.into(directory / "log.txt"):
        members = sweep_spec.make_members(spec, values)
        results = run.run_members(members, directory / "run", resume=True, on_epoch=watch)
    found = [result.summary for result in results]
    tune.report(
        {
            METRIC: sum(score_of(one, "refined") for one in found) / len(found),
            "decisions": max(one["decision_steps"] for one in found),
        }
    )


def _make_progress(tune: Any, total: int) -> Any:
    """Makes a progress line over trials, which also notes how trials without a result end."""

    class Line(tune.Callback):
        def __init__(self):
            self._bar = terminal.ProgressBar("sweeping", total, "trials")
            self._done, self._best = 0, 0.0

        def on_trial_result(self, iteration, trials, trial, result, **info):
            self._best = max(self._best, result[METRIC])
            self._show()

        def on_trial_complete(self, iteration, trials, trial, **info):
            self._end(trial, "ended early")

        def on_trial_recover(self, iteration, trials, trial, **info):
            terminal.say(f"trial {trial.trial_id} was lost and continues from its checkpoint")

        def on_trial_error(self, iteration, trials, trial, **info):
            self._end(trial, "failed")
            terminal.say(f"trial {trial.trial_id} failed; see its log.txt and {RAY}/")

        def on_experiment_end(self, trials, **info):
            self._bar.close()

        def _end(self, trial, status):
            # Not the place at its start: Ray keeps this object, and a sweep may be moved.
            out = Path(trial.storage.storage_fs_path)
            path = out / "trials" / trial.trial_id / report.STATUS
            writing.write_text(path, status + "\n")
            self._done += 1
            self._show()

        def _show(self):
            self._bar.update(self._done, f"best so far {self._best:.0%}")

        def __getstate__(self):  # Ray keeps callbacks with its own records
            return {}

        def __setstate__(self, state):
            self.__init__()

    return Line()
