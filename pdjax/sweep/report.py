"""Reports a sweep from its trials' own files: while it runs, after a crash, and without Ray.

Not pure: it reads the sweep's directories and writes the report beside them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pdjax.config import files as configs
from pdjax.config.options import ConfigError
from pdjax.output import plots, records, tables, terminal
from pdjax.output.paths import write_json
from pdjax.output.run_directory import read_result_of_run
from pdjax.rollout.intervals import score_of
from pdjax.runs import compare, curves
from pdjax.sweep import spec as sweep_spec
from pdjax_envs import reading, writing
from pdjax_envs.reading import InputError

TRIAL, STARTS, STATUS = "trial.json", "starts.jsonl", "status.txt"  # files of a trial
STATUSES = ("unfinished", "ended early", "failed")  # of trials without a result
FEW = 4  # finished trials that importances need at least
DRAWN = 10  # settings of each task whose curves are drawn, the best ones

Write = Callable[[Path], object]  # writes one file of the report


def write(out: Path) -> dict[str, Any]:
    """Reports a sweep: prints a table of settings and writes files into its directory.

    Trials that differ only in their seeds are one setting. The files are `trials.json` and
    `trials.parquet` (all trials), `curves_TASK.png` (success of the best settings against decisions
    and minutes), `importance.png` (which keys set good trials apart) and `best.yaml`, or
    `best_TASK.yaml` with several tasks (the config of the best finished setting, for `pdjax
    train`).

    Args:
      out: directory of the sweep.

    Returns:
      `trials`, `settings`, `importance` and the names of the `files`, ready for JSON.

    Raises:
      ConfigError: the directory holds no sweep, or no trial has been evaluated yet.
    """
    if not (out / "sweep.yaml").is_file():
        raise ConfigError(f"{out} is no sweep; expected sweep.yaml as `pdjax sweep` writes it")
    spec = sweep_spec.read(out / "sweep.yaml")
    found = sorted((_trial(spec, directory) for directory in _directories(out)), key=_rank)
    if all(row["success"] is None for row in found):
        raise ConfigError(
            f"no trial of {out} has been evaluated yet; wait for the first evaluation, or read"
            " trials/ID/log.txt"
        )
    names = _names(spec)
    apart = [name for name in names if name != "seed"]
    settings = _settings(apart, found)
    importance = _importance(spec, found)
    files = (
        _tables(names, found)
        | _pictures(settings, importance)
        | _best_configs(spec, found, settings)
    )  # everything is read by now
    for name in files:
        if (out / name).is_dir():
            raise ConfigError(f"cannot write {out / name}: it is a directory; move it away")
    tables.show_settings(apart, settings)
    for name, write_to in files.items():
        write_to(out / name)
    terminal.say(f"written to {out}: {', '.join(files)}")
    return {
        "trials": found,
        "settings": settings,
        "files": list(files),
        "importance": importance,
    }


def _names(spec: sweep_spec.Spec) -> list[str]:
    """Returns the names of what sets trials apart; `config` among them if there are several."""
    names = [dimension.key for dimension in spec.space]
    return ["config", *names] if len(spec.settings.config) > 1 else names


def _rank(row: dict[str, Any]) -> tuple[str, bool, float]:
    """Orders by task, finished trials first, since interim evaluations have few episodes."""
    success = row["success"] if row["success"] is not None else -1.0
    return row["task"], row["status"] != "finished", -success


def _settings(names: Sequence[str], trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins trials that agree in these keys to one row, with means over their runs; best first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in trials:
        groups.setdefault(json.dumps([row["values"].get(name) for name in names]), []).append(row)
    found = []
    for rows in groups.values():
        done = sum(row["status"] == "finished" for row in rows)
        status = rows[0]["status"] if len(rows) == 1 else f"{done} of {len(rows)}"
        successes = [success for row in rows for success in row["successes"]]
        ends = curves.interval(successes)
        found.append(
            {
                "values": {name: rows[0]["values"].get(name) for name in names},
                "task": rows[0]["task"],
                "trials": [row["trial"] for row in rows],
                "status": "finished" if done == len(rows) else status,
                "restarts": sum(max(row["starts"] - 1, 0) for row in rows),
                "runs": [run for row in rows for run in row["runs"]],
                "is_rate": rows[0]["is_rate"],
                "success": _mean(successes),
                "success_ci": None if ends is None else [float(end) for end in ends],
                **{
                    name: _mean([row[name] for row in rows if row[name] is not None])
                    for name in ("base_success", "smoothness", "base_smoothness")
                },
                "decisions": max(row["decisions"] for row in rows),
                "minutes": max(row["minutes"] for row in rows),
            }
        )
    return sorted(found, key=_rank)


def _directories(out: Path) -> list[Path]:
    return sorted(path.parent for path in out.glob(f"trials/*/{TRIAL}"))


def _trial(spec: sweep_spec.Spec, directory: Path) -> dict[str, Any]:
    """Returns a row: what a trial set, how it ended, and means over its members."""
    places = [*directory.glob("run/config.yaml"), *directory.glob("run/member_*/config.yaml")]
    runs = [path.parent for path in sorted(places)]
    by_run = {str(run): records.read_metrics(run, "eval") for run in runs}
    known = [curve for curve in by_run.values() if curve]
    results = [result for run in runs if (result := read_result_of_run(run))]
    finished = bool(results) and len(results) == len(runs)
    ended = directory / STATUS
    status = reading.read_text(ended, "status").strip() if ended.is_file() else "unfinished"
    if status not in STATUSES:
        raise InputError(
            f"cannot read status {reading.short(str(ended))}: it says {reading.short(status)},"
            f" expected one of {', '.join(STATUSES)}; remove it"
        )
    values = _values(spec, directory)
    row = {
        "trial": directory.name,
        "task": sweep_spec.make_members(spec, values)[0].task.name,
        "values": values,
        "status": "finished" if finished else status,
        "starts": len(records.read_records(directory / STARTS)),
        "members": len(runs),
        "runs": [run for run, curve in by_run.items() if curve],
        "successes": [],
        "is_rate": True,
        "success": None,
        "base_success": None,
        "smoothness": None,
        "base_smoothness": None,
        "decisions": 0,
        "minutes": 0.0,
    }
    if not known:
        return row
    last = [curve[-1] for curve in known]
    row |= {
        "successes": [score_of(point) for point in last],
        "is_rate": last[0]["success_once"] is not None,
        "smoothness": _mean([point.get("smoothness") for point in last]),
        "base_success": _mean([score_of(curve[0]) for curve in known]),
        "base_smoothness": _mean([curve[0].get("smoothness") for curve in known]),
        "decisions": max(point["decision_steps"] for point in last),
        "minutes": max(point["wall_s"] for point in last) / 60,
    }
    if finished:
        row |= {
            "successes": [score_of(result, "refined") for result in results],
            "smoothness": _mean([result.get("refined_smoothness") for result in results]),
            "base_success": _mean([score_of(result, "base") for result in results]),
            "base_smoothness": _mean([result.get("base_smoothness") for result in results]),
            "decisions": max(result.get("decision_steps", 0) for result in results),
        }
    return row | {"success": _mean(row["successes"])}


def _values(spec: sweep_spec.Spec, directory: Path) -> dict[str, Any]:
    """Returns what a trial sets, from its `trial.json`.

    Raises:
      InputError: the file cannot be read, names no config, or sets other keys than the space.
    """
    path = directory / TRIAL
    values = reading.read_json_object(path, "trial")
    expected = {"config", *(dimension.key for dimension in spec.space)}
    if not isinstance(values.get("config"), str):
        problem = "it names no config"
    elif values.keys() != expected:
        strange = sorted(values.keys() ^ expected)[0]
        how = "lacks" if strange in expected else "sets"
        problem = f"it {how} {reading.short(strange)}, unlike the space of sweep.yaml"
    else:
        return values
    raise InputError(
        f"cannot read trial {reading.short(str(path))}: {problem}; move the trial's directory away"
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _tables(names: list[str], found: list[dict[str, Any]]) -> dict[str, Write]:
    flat = [
        {name: row["values"].get(name) for name in names}
        | {
            name: value
            for name, value in row.items()
            if name not in ("values", "runs", "successes")
        }
        for row in found
    ]
    files: dict[str, Write] = {"trials.json": lambda path: write_json(path, flat)}
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        terminal.say("no trials.parquet: pyarrow is not installed; it comes with pdjax[sweep]")
        return files
    # a column has one type
    typed = [row | {name: _plain(row[name]) for name in names} for row in flat]
    table = pyarrow.Table.from_pylist(typed)

    def write_parquet(path: Path) -> None:
        with writing.aside(path) as written:
            parquet.write_table(table, written)

    return files | {"trials.parquet": write_parquet}


def _best_configs(
    spec: sweep_spec.Spec, found: list[dict[str, Any]], settings: list[dict[str, Any]]
) -> dict[str, Write]:
    """Returns the configs of each task's best finished setting."""
    files: dict[str, Write] = {}
    tasks = dict.fromkeys(row["task"] for row in settings)
    for task in tasks:
        best = next(row for row in settings if row["task"] == task)
        if best["status"] == "finished":
            values = next(row["values"] for row in found if row["trial"] == best["trials"][0])
            config = sweep_spec.make_members(spec, values)[0]
            name = f"best_{_in_name(task)}.yaml" if len(tasks) > 1 else "best.yaml"
            files[name] = partial(configs.save, config)
    return files


def _in_name(task: str) -> str:
    return task.replace(":", "_")


def _pictures(settings: list[dict[str, Any]], importance: Mapping[str, float]) -> dict[str, Write]:
    drawn: dict[str, list[dict[str, Any]]] = {}
    for row in settings:
        runs = [compare.read(Path(run)) for run in row["runs"]]
        if runs and len(drawn.setdefault(row["task"], [])) < DRAWN:
            name = " ".join(f"{key.split('.')[-1]}={value}" for key, value in row["values"].items())
            band = compare.bands([run.curve for run in runs])
            drawn[row["task"]].append({"name": name or "all runs"} | band)
    files: dict[str, Write] = {}
    for task, bands in drawn.items():
        is_rate = all(row["is_rate"] for row in settings if row["task"] == task)
        files[f"curves_{_in_name(task)}.png"] = partial(
            plots.plot_comparison, task=task, groups=bands, is_rate=is_rate
        )
    if importance:
        title = "Which keys set good trials apart"
        files["importance.png"] = partial(plots.plot_importance, title=title, importance=importance)
    return files


def _importance(spec: sweep_spec.Spec, found: list[dict[str, Any]]) -> dict[str, float]:
    """Returns key -> share of what sets the better half of the finished trials apart.

    By PED-ANOVA (arXiv:2304.10255) as Optuna has it; empty if there are too few trials.
    """
    rows = [row for row in found if row["status"] == "finished"]
    keys = [dimension.key for dimension in spec.space if dimension.key != "seed"]
    varied = [key for key in keys if len({str(row["values"][key]) for row in rows}) > 1]
    if len(rows) < FEW or len(varied) < 2 or len({row["success"] for row in rows}) < 2:
        return {}
    try:
        import optuna
    except ImportError:
        terminal.say("no importance.png: optuna is not installed; it comes with pdjax[sweep]")
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize")
    ranges = {key: _distribution(optuna, [row["values"][key] for row in rows]) for key in varied}
    for row in rows:
        params = {key: _plain(row["values"][key]) for key in varied}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=ranges, value=row["success"])
        )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
    found_shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in found_shares.items()}


def _distribution(optuna: Any, values: list[Any]) -> Any:
    if all(map(reading.is_number, values)) and len(set(values)) > FEW:
        is_log = min(values) > 0 and max(values) / min(values) > 10
        return optuna.distributions.FloatDistribution(min(values), max(values), log=is_log)
    return optuna.distributions.CategoricalDistribution(
        sorted({_plain(v) for v in values}, key=str)
    )


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else json.dumps(value)
