"""What people see: lines, plain tables and a progress bar, all on stderr.

Knows no algorithm, only names and numbers. Nothing here decides what is recorded: see `records`.
Text is shown letter by letter: nobody's `[name]` or `:ant:` is markup. A message that cannot be
written, because stderr is closed or its disk is full, is dropped: it is no reason to end a
training. The only memory is `console`: where lines go, and whether they are shown at all.
"""

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
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
from pdjax_envs.reading import InputError, reason

PLAIN_EVERY = 15.0  # s between progress lines where stderr is not a terminal


class Forgiving(io.TextIOBase):
    """A stream for messages: what another stream cannot take is dropped.

    Args:
      stream: () -> the other stream; None where the process has none.
    """

    def __init__(self, stream: Callable[[], Any]):
        self._stream = stream

    @property
    def encoding(self) -> str:
        """The other stream's encoding."""
        return getattr(self._stream(), "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Writes text; letters that the encoding lacks become question marks."""
        known = text.encode(self.encoding, "replace").decode(self.encoding)
        self._try("write", known)
        return len(text)

    def flush(self) -> None:
        """Flushes the other stream."""
        self._try("flush")

    def writable(self) -> bool:
        """Returns True."""
        return True

    def isatty(self) -> bool:
        """Returns whether the other stream is a terminal."""
        return bool(self._try("isatty"))

    def fileno(self) -> int:
        """Returns the other stream's number."""
        stream = self._stream()
        if stream is None:
            raise io.UnsupportedOperation("fileno")
        return stream.fileno()

    def _try(self, name: str, *arguments: Any) -> Any:
        stream = self._stream()
        try:
            return None if stream is None else getattr(stream, name)(*arguments)
        except (OSError, ValueError):  # ValueError: closed within this process
            return None


def forgive() -> None:
    """Makes messages of any origin on stderr forgiving: warnings, logging, prints, tracebacks."""
    stream = sys.stderr
    sys.stderr = Forgiving(lambda: stream)


def flush() -> None:
    """Writes out stdout before the process ends; drops what it cannot take.

    Otherwise Python would try again at exit, and end with another exit code.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        _discard(sys.stdout)


def _discard(stream: Any) -> None:
    """Lets a stream write to nowhere from now on."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _stderr() -> Any:
    """Returns stderr, or what is behind it while a live bar stands before it."""
    return getattr(sys.stderr, "rich_proxied_file", sys.stderr)


_messages: Any = Forgiving(_stderr)
console = Console(file=_messages, highlight=False, markup=False, emoji=False)


def mute() -> None:
    """Silences this process for good: of several processes, only the writer speaks to people."""
    console.quiet = True


@contextmanager
def quiet(is_quiet: bool = True) -> Iterator[None]:
    """Silences everything for people within the block; records are written all the same.

    Lines, tables and progress bars are dropped. Blocks may be nested. Afterwards this process
    speaks as it did before.

    Args:
      is_quiet: False changes nothing.
    """
    before = console.quiet
    console.quiet = before or is_quiet
    try:
        yield
    finally:
        console.quiet = before


class ProgressBar:
    """A bar with count, rate, remaining time and a note.

    Where stderr is not a terminal, plain lines take its place; within `quiet`, nothing is shown.

    Args:
      label: what is being done.
      total: number of units of work.
      unit: name of the units, in the plural.
      begin: number of units that were finished before this bar.
    """

    def __init__(self, label: str, total: int, unit: str, begin: int = 0):
        self._label, self._total, self._unit, self._begin = label, total, unit, begin
        self._start, self._spoken = time.monotonic(), time.monotonic()
        self._bar: Progress | None = None
        # A live bar would redirect sys.stdout and sys.stderr, even where nothing of it is shown.
        if console.is_terminal and not console.quiet:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=True),
                TextColumn("{task.fields[note]}", markup=False),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(label, total=total, rate="", note="")

    def update(self, done: int, note: str = "") -> None:
        """Shows the number of finished units, and a note."""
        elapsed = max(time.monotonic() - self._start, 1e-6)
        rate = (done - self._begin) / elapsed
        shown = f"{rate:,.0f} {self._unit}/s" if rate >= 10 else f"{rate:.1f} {self._unit}/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=min(done, self._total), rate=shown, note=note)
        elif time.monotonic() - self._spoken >= PLAIN_EVERY or done >= self._total:
            self._spoken = time.monotonic()
            left = f", {max(self._total - done, 0) / rate:.0f} s left" if rate > 0 else ""
            console.print(
                f"{self._label}: {done:,}/{self._total:,} {self._unit}, {shown}{left}  {note}",
                soft_wrap=True,
            )

    def close(self) -> None:
        """Ends the bar and leaves its last state on the screen."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def progress(label: str, total: int, unit: str, begin: int = 0) -> Iterator[ProgressBar]:
    """Yields a `ProgressBar` and closes it, however the block ends."""
    bar = ProgressBar(label, total, unit, begin)
    try:
        yield bar
    finally:
        bar.close()


def say(text: str, style: str = "") -> None:
    """Prints a line for people to stderr."""
    console.print(text, style=style, soft_wrap=True)


def say_code(path: Path) -> None:
    """Says that a file of Python code in somebody's directory will run, once in a process."""
    _say_code(path.absolute(), path)


@cache
def _say_code(_: Path, shown: Path) -> None:
    say(f"running Python code: {shown}")


@contextmanager
def into(path: Path) -> Iterator[None]:
    """Appends everything for people to a file within the block, instead of showing it."""
    before = console.file
    with path.open("a", buffering=1) as file:
        console.file = file
        try:
            yield
        finally:
            console.file = before


def emit_json(values: Mapping[str, Any]) -> None:
    """Prints one JSON object as a line of stdout. This is for programs: `quiet` does not apply.

    Prints nothing to a reader that has left.

    Raises:
      InputError: stdout cannot be written.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(json.dumps(plain(values)) + "\n")
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            text = f"cannot write the result to stdout: {reason(error)}; choose another place"
            raise InputError(text) from None


def say_unsaved(problem: str) -> None:
    """Prints why a checkpoint could not be written; prints nothing where `problem` is ""."""
    if problem:
        say(
            f"a checkpoint could not be written ({problem}); training continues, and the checkpoint"
            " before it is kept"
        )


def show_table(title: str, header: list[str], rows: list[list[str]], text: str = "") -> None:
    """Prints a small table for people to stderr: names first, then numbers, then prose if any.

    Args:
      title: line above the table.
      header: names of the columns.
      rows: cells as text.
      text: name of a last column of prose, which is wrapped to the terminal; "" = no such column.
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
    """Prints what the numbers of a vector mean.

    Args:
      title: line above the table.
      parts: name and size of each part of the vector, in order.
      meanings: name of a part -> what it means; of no part = no such column.
    """
    rows, begin = [], 0
    is_told = any(name in meanings for name, _ in parts)
    for name, size in parts:
        span = str(begin) if size == 1 else f"{begin} - {begin + size - 1}"
        rows.append([name, span, *([meanings.get(name, "")] if is_told else [])])
        begin += size
    show_table(title, ["part", "numbers"], rows, text="meaning" if is_told else "")
