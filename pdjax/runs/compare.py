"""This file is not pure: it reads runs, groups those that differ by their seeds only, shows them.

Only evaluation speaks: interim ones for curves, the final paired one for success and smoothness;
never what was counted while exploring. `curves` has the numbers' definitions.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdjax.base_policies import load
from pdjax.config import files as configs
from pdjax.config.presets import PRESETS
from pdjax.config.schema import Config, ConfigError
from pdjax.output import plots, records, tables, terminal
from pdjax.output.paths import check_file
from pdjax.runs import curves

SEEDLIKE = {"seed", "eval.seed", "base_policy.path", "train.demos"}  # do not make another group
SPELLED_OUT = 3  # settings that a name lists; where groups differ in more, from a preset on


class Read(NamedTuple):
    """A run as its directory tells it.

    Attributes:
      directory: of the run.
      settings: its config key by key without `SEEDLIKE`, and the kind of its base policy.
      curve: of its interim evaluations.
      result: `result.json`; empty while the run is not finished.
    """

    directory: Path
    settings: dict[str, Any]
    curve: list[curves.Point]
    result: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs of one task, side by side.

    Attributes:
      task: its name.
      threshold: success_once that `figures` measures the time to.
      groups: for each group of runs that differ by their seeds only, a dict with its `name`, its
        `settings` where groups differ, and its `figures`.
      curves: for each group, a dict with its `name` and its `bands`.
    """

    task: str
    threshold: float
    groups: list[dict[str, Any]]
    curves: list[dict[str, Any]]


def compare(directories: Sequence[Path], threshold: float) -> Comparison:
    """Reads runs and groups those that differ by their seeds only.

    Args:
      directories: of the runs, finished or not.
      threshold: success_once; each group's figures say how long it took to reach it.

    Raises:
      ConfigError: a directory is no run, is named twice or has not been evaluated yet, or the runs
        are of more than one task.
    """
    _refuse_twins(directories)
    runs = [read(directory) for directory in directories]
    task, first = runs[0].settings["task.name"], runs[0].directory
    for run in runs:
        if (other := run.settings["task.name"]) != task:
            raise ConfigError(
                f"{first} is a run of {task}, {run.directory} one of {other};"
                " compare runs of one task"
            )
    groups = group(runs)
    every = [members[0].settings for members in groups]
    apart, names = set_apart(every), name_groups(every)
    found = [
        {"name": name, "settings": one} | figures(members, threshold)
        for name, one, members in zip(names, apart, groups, strict=True)
    ]
    drawn = [
        {"name": name} | bands([run.curve for run in members])
        for name, members in zip(names, groups, strict=True)
    ]
    return Comparison(task, threshold, found, drawn)


def show_comparison(directories: Sequence[Path], out: Path, threshold: float) -> dict[str, Any]:
    """Compares runs, prints a table and draws the curves.

    Args:
      directories: see `compare`.
      out: PNG to write.
      threshold: see `compare`.

    Returns:
      What was printed, for JSON.

    Raises:
      ConfigError: see `compare`; or the picture cannot be written.
    """
    check_file(out, (".png",))
    found = compare(directories, threshold)
    tables.show_groups(found.task, found.groups, threshold)
    plots.plot_comparison(out, found.task, found.curves)
    terminal.say(f"written {out}")
    return {
        "task": found.task,
        "threshold": threshold,
        "picture": str(out),
        "groups": found.groups,
    }


def _refuse_twins(directories: Sequence[Path]) -> None:
    """A run that counts twice would narrow its group's interval."""
    seen = set()
    for directory in directories:
        if (place := directory.resolve()) in seen:
            raise ConfigError(f"{directory} is named twice; name each run once")
        seen.add(place)


def read(directory: Path) -> Read:
    """Reads a run.

    Raises:
      ConfigError: no run, or one without an interim evaluation.
    """
    config = configs.load_of_run(directory)
    curve = curves.points(records.read_metrics(directory, "eval"))
    if not curve:
        raise ConfigError(
            f"{directory} has no interim evaluation; wait for its first, or train with"
            " eval.interim_episodes above 0"
        )
    kind, act_horizon = load.kind_of(directory / "base_policy")
    found = {"base_policy": kind} | settings(config)
    # A decision of another length is another setting, whoever chose it.
    found["base_policy.act_horizon"] = config.base_policy.act_horizon or act_horizon
    path = directory / "result.json"
    result = json.loads(path.read_text()) if path.is_file() else {}
    return Read(directory, found, curve, result)


def settings(config: Config) -> dict[str, Any]:
    """A config key by key, without what runs of one group may differ in."""
    return {name: value for name, value in configs.flat(config).items() if name not in SEEDLIKE}


def group(runs: Sequence[Read]) -> list[list[Read]]:
    """Runs of equal settings together, in the order of the first of each."""
    groups: dict[tuple, list[Read]] = {}
    for run in runs:
        groups.setdefault(tuple(run.settings.items()), []).append(run)
    return list(groups.values())


def set_apart(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each group's settings those in which not all groups agree."""
    keys = [key for key in groups[0] if any(one[key] != groups[0][key] for one in groups)]
    return [{key: one[key] for key in keys} for one in groups]


def name_groups(groups: Sequence[dict[str, Any]]) -> list[str]:
    """What sets each group apart from the others, as short as can be; no two names are equal.

    A few differing settings are spelled out. Of many the nearest preset is named, unless it is that
    of all groups; what else was set is spelled out where that leaves a doubt, and counted where it
    does not.

    Args:
      groups: all settings of each.
    """
    apart = set_apart(groups)
    if not apart[0]:
        return ["all runs"]
    if len(apart[0]) <= SPELLED_OUT:
        return [_spell(one, SPELLED_OUT) for one in apart]
    presets, names = [_nearest_preset(one) for one in groups], []
    shared = len(set(presets)) == 1
    for preset, one in zip(presets, apart, strict=True):
        own = settings(configs.preset(preset))
        changes = {key: value for key, value in one.items() if value != own.get(key)}
        in_doubt = presets.count(preset) > 1 or len(changes) == 1
        spelled = _spell(changes, SPELLED_OUT if in_doubt else 0)
        name = spelled if shared and spelled else f"preset={preset} {spelled}".strip()
        twins = sum(other.split(" #")[0] == name for other in names)
        names.append(f"{name} #{twins + 1}" if twins else name)
    return names


def _nearest_preset(group: dict[str, Any]) -> str:
    """The preset that agrees in most of all settings."""

    def changes(name: str) -> int:
        own = settings(configs.preset(name))
        return sum(value != own.get(key) for key, value in group.items())

    return min(PRESETS, key=changes)


def _spell(values: dict[str, Any], most: int) -> str:
    words = [f"{key}={_plain(value)}" for key, value in values.items()]
    rest = len(words) - most
    return " ".join(words[:most] + ([f"+{rest} more"] if rest > 0 else []))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def figures(runs: Sequence[Read], threshold: float) -> dict[str, Any]:
    """A group's row: what is told of unfinished runs is their curve only.

    Returns:
      Success and smoothness of base and refined, interquartile means over the finished runs (None
      without any), and `refined_ci`, None of fewer than two; medians over all runs of decisions and
      minutes to the threshold, None where a run has not reached it; `largest_fall` of any run.
    """
    finished = [run.result for run in runs if run.result]
    found: dict[str, Any] = {
        "runs": [str(run.directory) for run in runs],
        "finished": len(finished),
    }
    for name in ("base_success", "refined_success", "base_smoothness", "refined_smoothness"):
        values = [result[name] for result in finished]
        found[name] = float(curves.iqm(values)) if values else None
    ends = curves.interval([result["refined_success"] for result in finished])
    found["refined_ci"] = None if ends is None else [float(end) for end in ends]
    reached = curves.median_reach([run.curve for run in runs], threshold)
    decisions, seconds = (None, None) if reached is None else reached
    found["decisions_to_threshold"] = decisions
    found["minutes_to_threshold"] = None if seconds is None else seconds / 60
    falls = [curves.largest_fall([score for _, _, score in run.curve]) for run in runs]
    return found | {"largest_fall": max(falls)}


def bands(found: Sequence[Sequence[curves.Point]]) -> dict[str, Any]:
    """A group's curves as they are drawn.

    Args:
      found: curve of each run.

    Returns:
      base: interquartile mean of the base policies' success_once on the interim episodes;
      decisions, minutes: each the grid (points,), the interquartile mean of success_once on it,
      and the two ends of its interval, None of one run.
    """
    steps, seconds, scores = zip(*(np.array(curve, float).T for curve in found), strict=True)
    minutes = [s / 60 for s in seconds]

    def band(x: Sequence[np.ndarray]) -> tuple:
        grid, values = curves.on_shared_grid(list(zip(x, scores, strict=True)))
        return grid, curves.iqm(values), curves.interval(values) if grid.size else None

    return {
        "base": float(curves.iqm([y[0] for y in scores])),
        "runs": len(found),
        "decisions": band(steps),
        "minutes": band(minutes),
    }
