"""Prints tables of results at the end of a command.

Knows the names in `result.json` and in the commands' results, and computes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pdjax.output.terminal import say, show_table

HEADER = 45  # characters for the names of all columns in a table 80 characters wide


def show_comparison(summary: Mapping[str, Any]) -> None:
    """Prints the base policy against the refined one, see `intervals.summarize`."""

    def steps(name: str) -> str:
        value = summary[f"{name}_steps_to_success"]
        return "-" if value is None else f"{value:.0f}"

    rows = [
        ["success_once", *(_rate(summary, name) for name in ("base", "refined"))],
        ["success_at_end", *(f"{summary[f'{n}_success_at_end']:.1%}" for n in ("base", "refined"))],
        ["control steps to success", steps("base"), steps("refined")],
        [
            "smoothness (lower is smoother)",
            *(f"{summary[f'{n}_smoothness']:.4f}" for n in ("base", "refined")),
        ],
    ]
    title = f"{summary['task']}: {summary['episodes']} paired episodes, 95 % intervals"
    show_table(title, ["", "base policy", "refined"], rows)
    say(f"gain: {_gain(summary)}")


def show_base(summary: Mapping[str, Any], before: str = "") -> None:
    """Prints success_once of a base policy alone, see `intervals.base_summary`."""
    low, high = summary["base_ci"]
    say(
        f"{before}success_once {summary['base_success']:.1%} [{low:.1%}, {high:.1%}] over"
        f" {summary['eval_episodes']} episodes"
    )


def show_shifts(summaries: Sequence[Mapping[str, Any]]) -> None:
    """Prints success_once under each shift, see `evaluate.evaluate_shifts`."""
    first = summaries[0]
    title = f"{first['task']}: {first['episodes']} paired episodes under each shift, success_once"
    rows = [
        [s["shift"] or "none", _rate(s, "base"), _rate(s, "refined"), _gain(s)] for s in summaries
    ]
    show_table(title, ["shift", "base policy", "refined", "gain"], rows)


def show_groups(task: str, groups: Sequence[Mapping[str, Any]], threshold: float) -> None:
    """Prints groups of runs side by side, see `compare.figures`."""

    def row(label: str, form: str, *names: str) -> list[str]:
        def cell(group: Mapping[str, Any]) -> str:
            values = [group[name] for name in names]
            return "-" if None in values else form.format(*values)

        return [label, *map(cell, groups)]

    counts = [f"{group['finished']} of {len(group['runs'])}" for group in groups]
    ends = [" - ".join(f"{end:.1%}" for end in group["refined_ci"] or ()) for group in groups]
    smoothness = "base_smoothness", "refined_smoothness"
    rows = [
        ["finished runs", *counts],
        row("base success_once", "{:.1%}", "base_success"),
        row("refined success_once", "{:.1%}", "refined_success"),
        ["  95 % interval over runs", *(text or "-" for text in ends)],
        row(f"decisions to {threshold:.3g}", "{:,.0f}", "decisions_to_threshold"),
        row(f"minutes to {threshold:.3g}", "{:.1f}", "minutes_to_threshold"),
        ["largest fall of a run", *(f"{100 * g['largest_fall']:.1f} points" for g in groups)],
        row("smoothness, base -> refined", "{:.4f} -> {:.4f}", *smoothness),
    ]
    title = f"{task}: interquartile means over finished runs, medians of times"
    names = [group["name"] for group in groups]
    if sum(map(len, names)) > HEADER:
        say("\n".join(f"{number}  {name}" for number, name in enumerate(names, 1)))
        names = [str(number) for number in range(1, len(names) + 1)]
    show_table(title, ["", *names], rows)


def show_members(
    values: Sequence[Mapping[str, Any]], summaries: Sequence[Mapping[str, Any]]
) -> None:
    """Prints the members of one program: what each one sets, and how far it got."""
    first = summaries[0]
    base = [_rate(first, "base"), "", f"{first['base_smoothness']:.4f}", ""]
    rows = [["base policy", *[""] * len(values[0]), *base]]
    for index, (own, summary) in enumerate(zip(values, summaries, strict=True)):
        figures = [
            _rate(summary, "refined"),
            points(summary["gain"]),
            f"{summary['refined_smoothness']:.4f}",
        ]
        numbers = [f"{value:g}" for value in own.values()]
        rows.append([f"member_{index}", *numbers, *figures, f"{summary['decision_steps']:,}"])
    names = [name.split(".")[-1] for name in values[0]]
    title = f"{first['task']}: {first['episodes']} paired episodes each, 95 % intervals"
    show_table(title, ["", *names, "success_once", "gain", "smoothness", "decisions"], rows)


def show_exported(found: Mapping[str, Any]) -> None:
    """Prints how an exported policy played, see `export.export_run`."""
    low, high = found["ci"]
    say(
        f"{found['policy']}: success_once {found['success']:.1%} [{low:.1%}, {high:.1%}] over"
        f" {found['episodes']} episodes, {found['run_success']:.1%} before; fail-safe above"
        f" {found['drift_limit']:.1%} far numbers, tripped in {found['trips']:,} of"
        f" {found['decisions']:,} decisions"
    )


def _rate(summary: Mapping[str, Any], name: str) -> str:
    return _percent(summary[f"{name}_success"], summary[f"{name}_ci"])


def _gain(summary: Mapping[str, Any]) -> str:
    low, high = summary["gain_ci"]
    return f"{points(summary['gain'])} [{100 * low:+.0f}, {100 * high:+.0f}]"


def points(difference: float) -> str:
    """Returns a difference of two rates in percentage points, such as "+45.0 points"."""
    return f"{100 * difference:+.1f} points"


def show_settings(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the settings of a sweep, see `report.write`; leaves out what all agree in.

    Args:
      names: the keys in which settings differ.
      rows: the settings, in order.
    """
    plain = {"decisions": rows[0]["decisions"], "restarts": 0, "status": "finished"}
    extra = [name for name, value in plain.items() if any(row[name] != value for row in rows)]
    cells = []
    for row in rows:
        cells.append(
            [
                _tag(row["trials"]),
                *(_short(row["values"].get(name)) for name in names),
                _percent(row["base_success"]),
                _percent(row["success"], row["success_ci"]),
                _arrow(row["base_smoothness"], row["smoothness"]),
                *(_short(row[name]) for name in extra),
            ]
        )
    header = [
        "trial",
        *(name.split(".")[-1] for name in names),
        "base",
        "refined",
        "smoothness",
        *extra,
    ]
    show_table("Success_once, the best first", header, cells)


def _tag(trials: Sequence[str]) -> str:
    return trials[0].split("_")[-1] if len(trials) == 1 else f"{len(trials)} trials"


def _percent(value: float | None, ends: Sequence[float] | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" + (f" [{ends[0]:.0%}, {ends[1]:.0%}]" if ends else "")


def _arrow(before: float | None, after: float | None) -> str:
    return "-" if before is None or after is None else f"{before:.3g} -> {after:.3g}"


def show_foreseen(names: Sequence[str], found: Mapping[str, Any]) -> None:
    """Prints the estimates for a sweep, see `dry_run.foresee`; seeds share a row.

    Args:
      names: keys of the sweep's space.
      found: what `foresee` returns.
    """
    names = [name for name in ("config", *names) if name != "seed"]
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in found["trials"]:
        values = tuple(_short(row["values"][name]) for name in names)
        groups.setdefault(values, []).append(row)
    cells = []
    for values, rows in groups.items():
        first, timed = rows[0], rows[0]["hours"] is not None
        hours = f"{first['hours']:.2f}" if timed else "-"
        memory = f"{first['memory_bytes'] / 2**30:.2f}" if timed else "-"
        cells.append(
            [
                *values,
                str(len(rows)),
                str(first["members"]),
                f"{first['decisions']:,}",
                hours,
                memory,
            ]
        )
    header = [name.split(".")[-1] for name in names]
    title = f"{found['count']} trials; upper limits of decisions, hours and memory for one trial"
    show_table(title, [*header, "trials", "members", "decisions", "hours", "GiB"], cells)
    for note in dict.fromkeys(row["note"] for row in found["trials"] if row["note"]):
        say(f"not timed: {note}")
    if found["hours"]:
        at_once, part = found["at_once"], ""
        if any(row["hours"] is None for row in found["trials"]):
            part = " for those that were timed"
        say(
            f"{found['hours']:.1f} hours one after another{part}, each timed alone on this machine;"
            f" {at_once} trials at a time share it"
        )


def _short(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
