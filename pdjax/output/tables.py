"""Prints tables of results at the end of a command.

Knows the names in `result.json` and in the commands' results, and computes nothing.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pdjax.output.terminal import say, show_table

HEADER = 45  # characters for the names of all columns in a table 80 characters wide


def show_comparison(summary: Mapping[str, Any]) -> None:
    """Prints the base policy against the refined one, see `intervals.summarize`."""

    def row(label: str, form: str, name: str) -> list[str]:
        return [label, *(text(form, summary[f"{side}_{name}"]) for side in ("base", "refined"))]

    rows = [[_measure(summary), *(_scored(summary, side) for side in ("base", "refined"))]]
    if _is_rate(summary):
        rows += [
            row("success_at_end", "{:.1%}", "success_at_end"),
            row("control steps to success", "{:.0f}", "steps_to_success"),
        ]
    rows.append(row("smoothness (lower is smoother)", "{:.4f}", "smoothness"))
    kind = "paired" if summary.get("paired", True) else "unpaired"
    title = f"{summary['task']}: {summary['episodes']} {kind} episodes, 95 % intervals"
    show_table(title, ["", "base policy", "refined"], rows)
    say(f"gain: {_gain(summary)}")
    _warn_untrained([summary])


def show_failures(summary: Mapping[str, Any]) -> None:
    """Prints where failed episodes end, see `failures.group`."""
    counts = {
        side: {one["end"]: one["episodes"] for one in groups}
        for side, groups in summary["failures"].items()
    }
    ends = dict.fromkeys([*counts["refined"], *counts["base"]])
    rows = [[end, *(str(counts[side].get(end, 0)) for side in ("base", "refined"))] for end in ends]
    if not rows:
        say("no episode failed")
        return
    title = f"where failed episodes end, of {summary['episodes']}"
    show_table(title, ["", "base policy", "refined"], rows)


def _warn_untrained(summaries: Sequence[Mapping[str, Any]]) -> None:
    """Says so if a run took no gradient step."""
    if any(summary.get("gradient_steps") == 0 for summary in summaries):
        say(
            "no gradient step was taken, so nothing was learned: the guard stopped the run before"
            " (audit.jsonl says why), or train.learning_starts is beyond train.total_decisions"
        )


def show_base(summary: Mapping[str, Any], before: str = "") -> None:
    """Prints success_once of a base policy alone, or its return; see `intervals.base_summary`."""
    say(
        f"{before}{_measure(summary)} {_scored(summary, 'base', 1)} over"
        f" {summary['eval_episodes']} episodes"
    )


def show_shifts(summaries: Sequence[Mapping[str, Any]]) -> None:
    """Prints the base policy against the refined one under each shift, see `evaluate_shifts`."""
    first = summaries[0]
    title = (
        f"{first['task']}: {first['episodes']} paired episodes under each shift, {_measure(first)}"
    )
    rows = [
        [s["shift"] or "none", _scored(s, "base"), _scored(s, "refined"), _gain(s)]
        for s in summaries
    ]
    show_table(title, ["shift", "base policy", "refined", "gain"], rows)


def show_screening(summary: Mapping[str, Any]) -> None:
    """Prints how a base policy fares with random residuals, see `screen.screen`."""

    is_rate = _is_rate(summary)
    rows = [["0 (base alone)", _scored(summary, "base")]]
    rows += [
        [f"{s['residual_scale']:g}", score(s["success"], is_rate) + _ends(s["ci"], is_rate)]
        for s in summary["scales"]
    ]
    title = f"{summary['task']}: {summary['episodes']} episodes per row, 95 % intervals"
    show_table(title, ["random residual_scale", _measure(summary)], rows)


def show_groups(task: str, groups: Sequence[Mapping[str, Any]], threshold: float) -> None:
    """Prints groups of runs side by side, see `compare.figures`."""

    def row(label: str, form: str, *names: str) -> list[str]:
        return [label, *(text(form, *(group[name] for name in names)) for group in groups)]

    counts = [f"{group['finished']} of {len(group['runs'])}" for group in groups]
    is_rate = all(group["is_rate"] for group in groups)
    measure, form = ("success_once", "{:.1%}") if is_rate else ("return", "{:,.4g}")
    ends = [text(f"{form} - {form}", *(group["refined_ci"] or (None, None))) for group in groups]
    falls = [100 * g["largest_fall"] if is_rate else g["largest_fall"] for g in groups]
    fall_form = "{:.1f} points" if is_rate else "{:,.4g}"
    smoothness = "base_smoothness", "refined_smoothness"
    rows = [
        ["finished runs", *counts],
        row(f"base {measure}", form, "base_success"),
        row(f"refined {measure}", form, "refined_success"),
        ["  95 % interval over runs", *ends],
        row(f"decisions to {threshold:.3g}", "{:,.0f}", "decisions_to_threshold"),
        row(f"minutes to {threshold:.3g}", "{:.1f}", "minutes_to_threshold"),
        ["largest fall of a run", *(text(fall_form, fall) for fall in falls)],
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
    base = [_scored(first, "base"), "", text("{:.4f}", first["base_smoothness"]), ""]
    rows = [["base policy", *[""] * len(values[0]), *base]]
    for index, (own, summary) in enumerate(zip(values, summaries, strict=True)):
        figures = [
            _scored(summary, "refined"),
            told_gain(summary),
            text("{:.4f}", summary["refined_smoothness"]),
        ]
        numbers = [f"{value:g}" for value in own.values()]
        rows.append([f"member_{index}", *numbers, *figures, f"{summary['decision_steps']:,}"])
    names = [name.split(".")[-1] for name in values[0]]
    kind = "paired" if first.get("paired", True) else "unpaired"
    title = f"{first['task']}: {first['episodes']} {kind} episodes each, 95 % intervals"
    show_table(title, ["", *names, _measure(first), "gain", "smoothness", "decisions"], rows)
    _warn_untrained(summaries)


def show_exported(found: Mapping[str, Any]) -> None:
    """Prints how an exported policy played, see `export.export_run`."""
    is_rate, ends = found["is_rate"], found["ci"]
    say(
        f"{found['policy']}: {'success_once' if is_rate else 'return'}"
        f" {score(found['success'], is_rate)} [{score(ends[0], is_rate)},"
        f" {score(ends[1], is_rate)}] over {found['episodes']} episodes,"
        f" {score(found['run_success'], is_rate)} before; fail-safe above"
        f" {found['drift_limit']:.1%} far numbers, tripped in {found['trips']:,} of"
        f" {found['decisions']:,} decisions"
    )


def text(form: str, *values: float | None) -> str:
    """Returns numbers as text; "-" if one of them is unknown or not finite."""
    if any(value is None or not math.isfinite(value) for value in values):
        return "-"
    return form.format(*values)


def score(value: float | None, is_rate: bool, digits: int = 1) -> str:
    """Returns a score as text: a success rate in per cent, or a return."""
    return text(f"{{:.{digits}%}}" if is_rate else "{:,.4g}", value)


def _is_rate(summary: Mapping[str, Any]) -> bool:
    """Returns whether policies are judged by success; otherwise the task has none."""
    return summary["base_success"] is not None


def _measure(summary: Mapping[str, Any]) -> str:
    return "success_once" if _is_rate(summary) else "return"


def _scored(summary: Mapping[str, Any], side: str, digits: int = 0) -> str:
    """Returns a policy's score with its interval."""
    is_rate = _is_rate(summary)
    names = ("success", "ci") if is_rate else ("return", "return_ci")
    found, ends = (summary[f"{side}_{name}"] for name in names)
    return score(found, is_rate) + _ends(ends, is_rate, digits)


def _gain(summary: Mapping[str, Any]) -> str:
    scale, form = (100, "{:+.0f}") if _is_rate(summary) else (1, "{:+,.4g}")
    ends = (None if end is None else scale * end for end in summary["gain_ci"])
    return f"{told_gain(summary)} [{', '.join(text(form, end) for end in ends)}]"


def told_gain(summary: Mapping[str, Any]) -> str:
    """Returns a summary's gain as text: in percentage points, or in return."""
    gain = summary["gain"]
    return points(gain) if _is_rate(summary) else text("{:+,.4g}", gain)


def points(difference: float | None) -> str:
    """Returns a difference of two rates in percentage points, such as "+45.0 points"."""
    return text("{:+.1f} points", None if difference is None else 100 * difference)


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
                score(row["base_success"], row["is_rate"]),
                score(row["success"], row["is_rate"])
                + _ends(row["success_ci"] or (), row["is_rate"]),
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


def _ends(ends: Sequence[float | None], is_rate: bool, digits: int = 0) -> str:
    """Returns an interval as text behind a score; "" without one."""
    return f" [{', '.join(score(end, is_rate, digits) for end in ends)}]" if ends else ""


def _arrow(before: float | None, after: float | None) -> str:
    return text("{:.3g} -> {:.3g}", before, after)


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
