"""Compares runs: reads their directories, groups runs that differ by seed only, and shows them.

All numbers come from evaluations: curves from the interim ones, success and smoothness from the
final paired one; never from exploration. Separate from `curves`, which defines the numbers as pure
functions.
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
from pdjax.output.run_directory import read_result_of_run
from pdjax.rollout.intervals import score_of
from pdjax.runs import curves
from pdjax_envs import task_files

SEEDLIKE = {"seed", "eval.seed", "base_policy.path", "train.demos"}  # may differ within a group
SPELLED_OUT = 3  # settings that a group's name lists; if groups differ in more, it names a preset


class Read(NamedTuple):
    """What a comparison reads of a run.

    Attributes:
      directory: the run's directory.
      settings: dotted key -> value of its config without `SEEDLIKE`, and the kind of its base
        policy.
      curve: its interim evaluations.
      is_rate: whether they are success rates; otherwise the task has no success, and they are
        returns.
      result: the content of `result.json`; empty while the run is not finished.
    """

    directory: Path
    settings: dict[str, Any]
    curve: list[curves.Point]
    is_rate: bool
    result: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs of one task, side by side.

    Attributes:
      task: name of the task.
      threshold: success_once, in [0, 1], up to which times are measured.
      groups: one dict for each group of runs that differ by their seeds only:
        - `name`; `settings`, dotted key -> value of the settings in which groups differ;
        - `runs`, the directories; `finished`, the number of finished runs;
        - `is_rate`: whether policies are judged by success; otherwise the task has none, and all
          numbers called success here are returns;
        - `base_success`, `refined_success` (success_once, in [0, 1]), `base_smoothness`,
          `refined_smoothness` (see `Evaluation`): interquartile means over the finished runs, None
          if there are none;
        - `refined_ci`: [low, high], 95 % interval of `refined_success` over runs; None if fewer
          than two are finished;
        - `decisions_to_threshold`, `minutes_to_threshold`: medians over all runs; None if a run has
          not reached the threshold;
        - `largest_fall`: largest fall of success_once below its best so far, in any run.
      curves: one dict for each group, from the interim evaluations:
        - `name`; `runs`, the number of runs; `base`, the interquartile mean of the base policies'
          success_once;
        - `decisions` and `minutes`: each a tuple of x (points,), the interquartile mean of
          success_once (points,), and its 95 % interval, two arrays (points,); None with one run.
    """

    task: str
    threshold: float
    groups: list[dict[str, Any]]
    curves: list[dict[str, Any]]


def compare(directories: Sequence[Path], threshold: float) -> Comparison:
    """Reads runs and groups those that differ by their seeds only.

    Args:
      directories: the runs' directories; the runs may be unfinished.
      threshold: success_once; each group's figures include the time to reach it.

    Raises:
      ConfigError: no directory is given, a directory is no run, is named twice or has no interim
        evaluation yet, or the runs are of several tasks.
    """
    if not directories:
        raise ConfigError("no runs to compare; give at least one run directory")
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
      What it printed, for JSON.

    Raises:
      ConfigError: the picture exists or cannot be written; or see `compare`.
    """
    check_file(out, (".png",))
    found = compare(directories, threshold)
    tables.show_groups(found.task, found.groups, threshold)
    plots.plot_comparison(out, found.task, found.curves, found.groups[0]["is_rate"])
    terminal.say(f"wrote {out}")
    return {
        "task": found.task,
        "threshold": threshold,
        "picture": str(out),
        "groups": found.groups,
    }


def _refuse_twins(directories: Sequence[Path]) -> None:
    """Checks that no run is named twice, which would narrow its group's interval."""
    seen = set()
    for directory in directories:
        if (place := directory.resolve()) in seen:
            raise ConfigError(f"{directory} is named twice; name each run once")
        seen.add(place)


def read(directory: Path) -> Read:
    """Reads what a comparison needs of a run.

    Raises:
      ConfigError: the directory is no run, or the run has no interim evaluation.
      InputError: one of its files is damaged.
    """
    config = configs.load_of_run(directory)
    evaluations = records.read_metrics(directory, "eval")
    curve = curves.points(evaluations)
    if not curve:
        raise ConfigError(
            f"{directory} has no interim evaluation; wait for its first, or train with"
            " eval.interim_episodes above 0"
        )
    kind, act_horizon = load.kind_of(directory / "base_policy")
    found = {"base_policy": kind} | settings(config)
    # The length of a decision is a setting, whether the config or the policy's directory sets it.
    found["base_policy.act_horizon"] = config.base_policy.act_horizon or act_horizon
    is_rate = evaluations[0]["success_once"] is not None
    return Read(directory, found, curve, is_rate, read_result_of_run(directory))


def settings(config: Config) -> dict[str, Any]:
    """Returns a config by dotted key, without the keys in which runs of a group may differ."""
    found = {name: value for name, value in configs.flat(config).items() if name not in SEEDLIKE}
    return found | {"task.name": task_files.in_name(config.task.name)}


def group(runs: Sequence[Read]) -> list[list[Read]]:
    """Groups runs with equal settings; groups are in the order of their first runs."""
    groups: dict[tuple, list[Read]] = {}
    for run in runs:
        groups.setdefault(tuple(run.settings.items()), []).append(run)
    return list(groups.values())


def set_apart(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns for each group the settings in which not all groups agree."""
    keys = [key for key in groups[0] if any(one[key] != groups[0][key] for one in groups)]
    return [{key: one[key] for key in keys} for one in groups]


def name_groups(groups: Sequence[dict[str, Any]]) -> list[str]:
    """Names groups by what sets them apart, as briefly as possible; no two names are equal.

    If groups differ in few settings, a name lists them. If they differ in many, a name gives the
    nearest preset, unless all groups have the same one; it lists further settings if the preset
    alone would be ambiguous, and otherwise counts them.

    Args:
      groups: all settings of each group.
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
    """Returns the preset that agrees with a group in the most settings."""

    def changes(name: str) -> int:
        own = settings(configs.preset(name))
        return sum(value != own.get(key) for key, value in group.items())

    return min(PRESETS, key=changes)


def _spell(values: dict[str, Any], most: int) -> str:
    """Lists settings as text; counts those beyond `most`."""
    words = [f"{key}={_plain(value)}" for key, value in values.items()]
    rest = len(words) - most
    return " ".join(words[:most] + ([f"+{rest} more"] if rest > 0 else []))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def figures(runs: Sequence[Read], threshold: float) -> dict[str, Any]:
    """Returns a group's figures, as `Comparison.groups` lists them.

    Unfinished runs count only in the figures that come from curves.
    """
    finished = [run.result for run in runs if run.result]
    found: dict[str, Any] = {
        "runs": [str(run.directory) for run in runs],
        "finished": len(finished),
        "is_rate": runs[0].is_rate,
    }
    for side in ("base", "refined"):
        scores = [score_of(result, side) for result in finished]
        smoothness: list[Any] = [result.get(f"{side}_smoothness") for result in finished]
        for name, values in (("success", scores), ("smoothness", smoothness)):
            known = values and None not in values
            found[f"{side}_{name}"] = float(curves.iqm(values)) if known else None
    ends = curves.interval([score_of(result, "refined") for result in finished])
    found["refined_ci"] = None if ends is None else [float(end) for end in ends]
    reached = curves.median_reach([run.curve for run in runs], threshold)
    decisions, seconds = (None, None) if reached is None else reached
    found["decisions_to_threshold"] = decisions
    found["minutes_to_threshold"] = None if seconds is None else seconds / 60
    falls = [curves.largest_fall([score for _, _, score in run.curve]) for run in runs]
    return found | {"largest_fall": max(falls)}


def bands(found: Sequence[Sequence[curves.Point]]) -> dict[str, Any]:
    """Returns a group's curves, as `Comparison.curves` lists them.

    Args:
      found: the curve of each run.
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
