"""Checks a demonstration file, and replays and describes its episodes.

Kept apart from `imitate`, which uses demonstrations without checking where they came from. This
file is not pure: it reads files and prints.
"""

from pathlib import Path
from typing import Any

import numpy as np

from pdjax.output import terminal
from pdjax_envs import registry
from pdjax_envs.demonstrations import layouts, store, through_workers
from pdjax_envs.demonstrations.playback import Replay, can_start, replay
from pdjax_envs.demonstrations.recording import Recording
from pdjax_envs.demonstrations.trajectory import DataError, Trajectory, column_names
from pdjax_envs.reading import short
from pdjax_envs.task import Task

SAME = 1e-4  # observations that differ by less count as equal: float32 and rounding in the file


def check_demonstrations(
    path: Path, task: str | None, replays: int, physics: str = "auto"
) -> dict[str, Any]:
    """Checks a file, replays some of its episodes, prints tables and a verdict.

    Args:
      path: a file in any layout that `layouts` reads.
      task: name of the task; None = the task that the file names, or the only one of its sizes.
      replays: number of episodes to replay, evenly spread over the file; 0 = none. If the file does
        not record success, any other number replays all episodes.
      physics: physics engine of the replay.

    Returns:
      The findings, as `--json` prints them.

    Raises:
      demonstrations.DataError: the file cannot be used; the message says where and why.
      registry.UnknownName: there is no such task.
    """
    recording = layouts.load(path)
    env = registry.make(task or _guess_task(path, recording), physics, terminate_on_success=False)
    found = store.judge(path, recording, env.task)
    told = all(trajectory.success is not None for trajectory in found)
    spread = np.linspace(0, len(found) - 1, min(replays, len(found))).astype(int)
    chosen = [
        i
        for i in (spread if told or not replays else range(len(found)))
        if can_start(env, found[i])
    ]
    play = replay if env.open is None else through_workers.replay
    replayed = dict(zip(chosen, play(env, [found[i] for i in chosen]), strict=True))
    rows = [_compare(index, found[index], result, env.task) for index, result in replayed.items()]
    lengths = [len(trajectory.actions) for trajectory in found]
    summary = {
        "file": str(path),
        "layout": recording.layout,
        "task": env.task.name,
        "episodes": len(found),
        "steps": {"min": min(lengths), "mean": np.mean(lengths), "max": max(lengths)},
        "success_rate": _success_rate(found, rows),
        "success_from": "file" if told else "replay",
        "observation": _ranges(env.task.observation, [t.obs for t in found]),
        "action": _ranges(env.task.action, [t.actions for t in found]),
        "clipped_action_share": sum(t.clipped for t in found) / sum(t.actions.size for t in found),
        "replay": rows,
    }
    summary["verdict"] = _verdict(summary)
    _show(summary)
    return summary


def _guess_task(path: Path, recording: Recording) -> str:
    """Returns the task that the file names, or the only task of its sizes."""
    if len(recording.tasks) == 1:
        return next(iter(recording.tasks))
    first = recording.episodes[0][1]
    sizes = tuple(a.shape[-1] if a.ndim == 2 else 0 for a in (first.obs, first.actions))
    tasks = [registry.make_task(name) for name in registry.task_names()]
    fitting = [task.name for task in tasks if (task.obs_dim, task.act_dim) == sizes]
    if len(fitting) != 1:
        raise DataError(
            f"{short(str(path))} has observations of {sizes[0]} and actions of {sizes[1]} numbers,"
            f" which fit {' and '.join(fitting) or 'no task'}; pass --task"
        )
    return fitting[0]


def _success_rate(found: list[Trajectory], rows: list[dict[str, Any]]) -> float | None:
    """Returns the share of episodes that succeed at any step; None unless known for all of them.

    Where the file does not say, a replay tells, but only if it equals the recording.
    """
    replayed = {
        row["episode"]: row["replayed_success"]
        for row in rows
        if row["max_drift"] <= SAME and row["replayed_success"] is not None
    }
    known = []
    for index, trajectory in enumerate(found):
        if trajectory.success is None and index not in replayed:
            return None
        flags = trajectory.success
        known.append(replayed[index] if flags is None else flags.any())
    return float(np.mean(known))


def _ranges(parts: tuple[tuple[str, int], ...], episodes: list[np.ndarray]) -> list[dict[str, Any]]:
    """Returns the size, the range and the constant columns of each part."""
    low = np.min([rows.min(axis=0) for rows in episodes], axis=0)
    high = np.max([rows.max(axis=0) for rows in episodes], axis=0)
    names, rows, first = column_names(parts), [], 0
    for part, size in parts:
        columns = range(first, first + size)
        rows.append(
            {
                "part": part,
                "size": size,
                "min": low[columns].min(),
                "max": high[columns].max(),
                "constant": [names[i] for i in columns if low[i] == high[i]],
            }
        )
        first += size
    return rows


def _compare(index: int, trajectory: Trajectory, played: Replay, task: Task) -> dict[str, Any]:
    """Measures how far a replay drifts from its recording, in the units of the observation."""
    drift = np.abs(played.obs - trajectory.obs)  # (T + 1, obs_dim)
    step, column = np.unravel_index(drift.argmax(), drift.shape)
    flags = trajectory.success
    return {
        "episode": index,
        "steps": len(trajectory.actions),
        "recorded_success": None if flags is None else bool(flags.any()),
        "replayed_success": bool(played.success.any()) if task.has_success else None,
        "drift_at_start": drift[0].max(),
        "mean_drift": drift.mean(),
        "max_drift": drift[step, column],
        "max_drift_step": int(step),
        "max_drift_part": column_names(task.observation)[column],
    }


def _verdict(summary: dict[str, Any]) -> str:
    """Returns one line for humans: whether the file is usable, and what the replays show."""
    said = [f"usable: {summary['episodes']} episodes of {summary['task']}"]
    if summary["clipped_action_share"]:
        said.append(
            f"{summary['clipped_action_share']:.1%} of the action numbers were outside"
            " [-1, 1] and are clipped, as in the environment"
        )
    rows = summary["replay"]
    if not rows:
        return "; ".join([*said, "nothing was replayed"])
    worst, start = (max(row[name] for row in rows) for name in ("max_drift", "drift_at_start"))
    outcomes = [row["replayed_success"] for row in rows]
    silent = any(row["recorded_success"] is None for row in rows)
    if worst <= SAME:
        said.append("the replay equals the recording")
    elif start > SAME:
        said.append(
            f"replays start up to {start:.2g} away from the recording (other initial states"
            f" or another model) and drift by up to {worst:.2g}"
        )
    else:
        said.append(
            f"replays drift by up to {worst:.2g}: the physics differ, or the recorded actions"
            " are not the executed ones"
        )
    if None in outcomes:
        return "; ".join([*said, "the task has no success"])
    said.append(f"{sum(outcomes)} of {len(rows)} replays succeed")
    if silent and worst > SAME:
        said.append("they do not tell whether the recordings did, and the file does not say")
    return "; ".join(said)


def _show(summary: dict[str, Any]) -> None:
    rate, steps = summary["success_rate"], summary["steps"]
    told = "" if summary["success_from"] == "file" else " in replay"
    terminal.say(f"{summary['file']}: {summary['layout']} layout, task {summary['task']}")
    terminal.say(
        f"{summary['episodes']} episodes of {steps['min']} / {steps['mean']:.0f} /"
        f" {steps['max']} steps (min / mean / max), success"
        f" {'unknown' if rate is None else f'{rate:.1%}{told}'}"
    )
    header = ["part", "numbers", "min", "max", "constant"]
    for title in ("observation", "action"):
        rows = [
            [
                row["part"],
                str(row["size"]),
                f"{row['min']:.3g}",
                f"{row['max']:.3g}",
                f"{len(row['constant'])}" if row["constant"] else "",
            ]
            for row in summary[title]
        ]
        terminal.show_table(f"{title}: ranges", header, rows)
    if summary["replay"]:
        _show_replay(summary["replay"])
    terminal.say(summary["verdict"], "bold")


def _show_replay(rows: list[dict[str, Any]]) -> None:
    words = {None: "?", True: "yes", False: "no"}
    header = ["episode", "steps", "success", "replayed", "start", "mean", "max", "largest in"]
    cells = [
        [
            str(row["episode"]),
            str(row["steps"]),
            words[row["recorded_success"]],
            words[row["replayed_success"]],
            f"{row['drift_at_start']:.2g}",
            f"{row['mean_drift']:.2g}",
            f"{row['max_drift']:.2g}",
            row["max_drift_part"],
        ]
        for row in rows
    ]
    terminal.show_table("replay: |observation - recorded| at start, mean and max", header, cells)
