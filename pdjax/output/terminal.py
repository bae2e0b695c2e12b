"""What a run shows and keeps as it goes on: progress line, JSONL, TensorBoard, lines, plain tables.

Knows no algorithm, only names and numbers. Besides its own files, a run may be told to one of
`trackers`.
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

from pdjax.output.paths import plain

PLAIN_EVERY = 15.0  # s between progress lines where the output is no terminal

console = Console(stderr=True, highlight=False)


def mute() -> None:
    """From here on this process shows and records nothing: of several, another one does."""
    console.quiet = True


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
            left = f", {(self._total - done) / rate:.0f} s left" if rate else ""
            console.print(
                f"{self._label}: {done:,}/{self._total:,} {self._unit}, {shown}{left}  {note}",
                soft_wrap=True,
            )

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


def say(text: str, style: str = "") -> None:
    """Prints a line for people, on stderr."""
    console.print(text, style=style, soft_wrap=True, markup=False)


@contextmanager
def into(path: Path) -> Iterator[None]:
    """Within: what is for people goes to the end of a file instead of the screen."""
    before = console.file
    with path.open("a", buffering=1) as file:
        console.file = file
        try:
            yield
        finally:
            console.file = before


def emit_json(values: Mapping[str, Any]) -> None:
    """Prints one JSON object as the last line of stdout."""
    if console.quiet:
        return
    sys.stdout.write(json.dumps(plain(values)) + "\n")
    sys.stdout.flush()


def say_unsaved(problem: str) -> None:
    """Prints why a checkpoint could not be written, unless the problem is ""."""
    if problem:
        say(
            f"a checkpoint could not be written ({problem}); training goes on, the one before is"
            " kept"
        )


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
        table.add_column(name, justify="left" if first else "right", no_wrap=first, overflow="fold")
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
