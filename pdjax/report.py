"""What a run shows and keeps: a progress line, JSONL, TensorBoard, tables.

The only file that imports trackers. Knows no algorithm, only names and numbers.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from tensorboardX import SummaryWriter

from pdjax.outputs import plain

PLAIN_EVERY = 15.0  # s between progress lines where the output is no terminal
HEADER = 45  # characters that a table of 80 leaves for the names of its columns

console = Console(stderr=True, highlight=False)


class ProgressBar:
    """A bar with count, rate, remaining time and the caller's note; plain lines without a terminal.

    Args:
      label: what is being done.
      total: units of work.
      unit: their name, in the plural.
      begin: units that were done before.
    """

    def __init__(self, label: str, total: int, unit: str, begin: int = 0):
        self._label, self._total, self._unit, self._begin = label, total, unit, begin
        self._start, self._spoken = time.monotonic(), time.monotonic()
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(label, total=total, rate="", note="")

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` units are finished."""
        elapsed = max(time.monotonic() - self._start, 1e-6)
        rate = (done - self._begin) / elapsed
        shown = f"{rate:,.0f} {self._unit}/s" if rate >= 10 else f"{rate:.1f} {self._unit}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=min(done, self._total), rate=shown, note=note)
        elif time.monotonic() - self._spoken >= PLAIN_EVERY or done >= self._total:
            self._spoken = time.monotonic()
            left = (self._total - done) / max(rate, 1e-6)
            console.print(f"{self._label}: {done:,}/{self._total:,} {self._unit}, {shown},"
                          f" {left:.0f} s left  {note}", soft_wrap=True)  # fmt: skip

    def close(self) -> None:
        """Leaves the last state on the screen."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def progress(label: str, total: int, unit: str, begin: int = 0) -> Iterator[ProgressBar]:
    """A `ProgressBar` that is closed however the block ends."""
    bar = ProgressBar(label, total, unit, begin)
    try:
        yield bar
    finally:
        bar.close()


class MetricsLog:
    """Writes one JSON object a line to `metrics.jsonl` and scalars for TensorBoard to `tb/`.

    Args:
      directory: of the run.
      begin: decision steps that the run goes on from; records of later ones are dropped.

    Attributes:
      begin: as given.
      wall_s: s, of the last record that stays; 0 in a new run.
    """

    def __init__(self, directory: Path, begin: int = 0):
        self._path = directory / "metrics.jsonl"
        drop_records(self._path, "decision_steps", begin)
        self.begin, self.wall_s = begin, wall_s(directory)
        self._writer = SummaryWriter(str(directory / "tb"), purge_step=begin + 1)

    def write(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        """Records values of a group (`train`, `eval`) at a number of decision steps."""
        numbers = plain(values)
        add_record(self._path, {"group": group, "decision_steps": step, **numbers})
        for name, value in numbers.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        """Flushes TensorBoard's, however the block ends."""
        self._writer.close()


def read_metrics(directory: Path, group: str) -> list[dict[str, Any]]:
    """The records of one group of a run's `metrics.jsonl`, in order."""
    records = read_records(directory / "metrics.jsonl")
    return [record for record in records if record["group"] == group]


def wall_s(directory: Path) -> float:
    """Seconds that a run has trained for, by its records; 0 without any."""
    records = read_records(directory / "metrics.jsonl")
    return max((record["wall_s"] for record in records), default=0.0)


def add_record(path: Path, record: Mapping[str, Any]) -> None:
    """Appends a record to a file of one JSON object a line."""
    with path.open("a") as file:
        file.write(json.dumps(plain(record)) + "\n")


def drop_records(path: Path, counter: str, after: int) -> None:
    """Removes from such a file what was recorded after a point that work goes on from.

    Args:
      path: of the file; may be missing.
      counter: the number in each record that says when it was.
      after: the last to stay; after 0, a new start, none does.
    """
    kept = [record for record in read_records(path) if after and record[counter] <= after]
    if path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(path)


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of such a file; a last line that was not written to its end is left out."""
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def say(text: str, style: str = "") -> None:
    """Prints a line for people, on stderr."""
    console.print(text, style=style, soft_wrap=True, markup=False)


def emit_json(values: Mapping[str, Any]) -> None:
    """Prints one JSON object as the last line of stdout."""
    sys.stdout.write(json.dumps(plain(values)) + "\n")
    sys.stdout.flush()


def say_unsaved(problem: str) -> None:
    """Prints why a checkpoint could not be written, unless the problem is ""."""
    if problem:
        say(f"a checkpoint could not be written ({problem}); training goes on, the one before is"
            " kept")  # fmt: skip


def show_table(title: str, header: list[str], rows: list[list[str]], text: str = "") -> None:
    """Prints a small table for people, on stderr: a name first, then numbers, and `text` last.

    Args:
      title: above it.
      header: names of the columns.
      rows: cells as text.
      text: name of a last column that is prose, broken where the terminal ends; "" for none.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in header:
        first = name == header[0]
        table.add_column(name, justify="left" if first else "right", no_wrap=first,
                         overflow="fold")  # fmt: skip
    if text:
        table.add_column(text, ratio=1)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def show_parts(title: str, parts: Sequence[tuple[str, int]], meanings: Mapping[str, str]) -> None:
    """Prints which numbers of a vector are what."""
    rows, begin = [], 0
    for name, size in parts:
        span = str(begin) if size == 1 else f"{begin} - {begin + size - 1}"
        rows.append([name, span, *([meanings[name]] if meanings else [])])
        begin += size
    show_table(title, ["part", "numbers"], rows, text="meaning" if meanings else "")


def show_comparison(summary: Mapping[str, Any]) -> None:
    """Prints base against refined, see `evaluation.summarize`."""

    def steps(name: str) -> str:
        value = summary[f"{name}_steps_to_success"]
        return "-" if value is None else f"{value:.0f}"

    rows = [
        ["success_once", *(_rate(summary, name) for name in ("base", "refined"))],
        ["success_at_end", *(f"{summary[f'{n}_success_at_end']:.1%}" for n in ("base", "refined"))],
        ["control steps to success", steps("base"), steps("refined")],
        ["smoothness (lower is smoother)",
         *(f"{summary[f'{n}_smoothness']:.4f}" for n in ("base", "refined"))],
    ]  # fmt: skip
    title = f"{summary['task']}: {summary['episodes']} paired episodes, 95 % intervals"
    show_table(title, ["", "base policy", "refined"], rows)
    say(f"gain: {_gain(summary)}")


def show_base(summary: Mapping[str, Any], before: str = "") -> None:
    """Prints success_once of a base policy alone, see `evaluation.base_summary`."""
    low, high = summary["base_ci"]
    say(f"{before}success_once {summary['base_success']:.1%} [{low:.1%}, {high:.1%}] over"
        f" {summary['eval_episodes']} episodes")  # fmt: skip


def show_shifts(summaries: Sequence[Mapping[str, Any]]) -> None:
    """Prints success_once under each shift, see `runner.evaluate_shifts`."""
    first = summaries[0]
    title = f"{first['task']}: {first['episodes']} paired episodes under each shift, success_once"
    rows = [
        [s["shift"] or "none", _rate(s, "base"), _rate(s, "refined"), _gain(s)] for s in summaries
    ]
    show_table(title, ["shift", "base policy", "refined", "gain"], rows)


def show_groups(task: str, groups: Sequence[Mapping[str, Any]], threshold: float) -> None:
    """Prints groups of runs side by side, see `comparison.figures`."""

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
        row("largest fall of a run", "{:.1%}", "largest_fall"),
        row("smoothness, base -> refined", "{:.4f} -> {:.4f}", *smoothness),
    ]  # fmt: skip
    title = f"{task}: interquartile means over finished runs, medians of times"
    names = [group["name"] for group in groups]
    if sum(map(len, names)) > HEADER:
        say("\n".join(f"{number}  {name}" for number, name in enumerate(names, 1)))
        names = [str(number) for number in range(1, len(names) + 1)]
    show_table(title, ["", *names], rows)


def show_exported(found: Mapping[str, Any]) -> None:
    """Prints what became of an exported policy, see `finished.export_run`."""
    low, high = found["ci"]
    say(f"{found['policy']}: success_once {found['success']:.1%} [{low:.1%}, {high:.1%}] over"
        f" {found['episodes']} episodes, {found['run_success']:.1%} in the run; fail-safe above"
        f" {found['drift_limit']:.1%} far numbers, tripped in {found['trips']:,} of"
        f" {found['decisions']:,} decisions")  # fmt: skip


def _rate(summary: Mapping[str, Any], name: str) -> str:
    low, high = summary[f"{name}_ci"]
    return f"{summary[f'{name}_success']:.1%} [{low:.0%}, {high:.0%}]"


def _gain(summary: Mapping[str, Any]) -> str:
    low, high = summary["gain_ci"]
    return f"{summary['gain']:+.1%} [{low:+.0%}, {high:+.0%}]"
