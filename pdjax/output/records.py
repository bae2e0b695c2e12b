"""A run's numbers as they come: JSON lines, TensorBoard scalars, and the tracker if there is one.

Knows no algorithm, only names and numbers. A file of lines only grows: what a killed process left
unfinished at its end is dropped, and nothing else is ever lost. Of several processes only the
writer records anything (`processes.is_writer`); whether the terminal is quiet makes no difference
here.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pdjax.devices import processes
from pdjax.output import trackers
from pdjax.output.paths import UNREADABLE, free_name, plain
from pdjax.output.terminal import say
from pdjax_envs import reading, writing
from pdjax_envs.reading import InputError

METRICS = "metrics.jsonl"
NON_NEGATIVE = (reading.is_non_negative, "a number from 0 on")
RATE = (reading.is_rate, "a number in [0, 1]")
NUMBER = (reading.is_number, "a number")
NUMBERS = {  # of a record of metrics.jsonl that somebody computes with
    "decision_steps": NON_NEGATIVE,
    "wall_s": NON_NEGATIVE,
    "success_once": RATE,
    "return": NUMBER,
    "success_at_end": RATE,
    "steps_to_success": NON_NEGATIVE,
    "smoothness": NON_NEGATIVE,
    "saturation": RATE,
    "train_success": RATE,
}

Judge = Callable[[Mapping[str, Any]], str]
"""A record -> what is wrong with it, such as "wall_s is 'x', expected a number"; "" if nothing."""


class Lines:
    """Appends records to a file with one JSON object per line, and keeps those that it cannot.

    On a full disk, work goes on: each `add` and `flush` tries again to write what is left.

    Args:
      path: the file; made where it is missing.
    """

    def __init__(self, path: Path):
        self._path, self._left, self._problem = path, b"", ""

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a record."""
        if processes.is_writer():
            self._left += json.dumps(plain(record)).encode() + b"\n"
            had_problem, self._problem = bool(self._problem), self.flush()
            if self._problem and not had_problem:
                say(f"{self._path} cannot be written ({self._problem}); the work continues")

    def flush(self, to_disk: bool = False) -> str:
        """Writes what is left; returns why that is impossible, or "".

        Args:
          to_disk: also wait until the disk holds everything.
        """
        try:
            if self._left or (to_disk and self._path.exists()):
                _append(self._path, self._left, to_disk)
            self._left = b""
        except OSError as error:
            return reading.reason(error)
        return ""


def _append(path: Path, text: bytes, to_disk: bool) -> None:
    """Appends all of a text or nothing."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        try:
            while text:
                text = text[os.write(handle, text) :]
            if to_disk:
                os.fsync(handle)
        except OSError:
            os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def add_record(path: Path, record: Mapping[str, Any]) -> None:
    """Appends one record to a file with one JSON object per line.

    Raises:
      OSError: it cannot be written; the file is as before.
    """
    if processes.is_writer():
        _append(path, json.dumps(plain(record)).encode() + b"\n", to_disk=False)


def read_records(path: Path, judge: Judge = lambda record: "") -> list[dict[str, Any]]:
    """Returns all records of a file with one JSON object per line; none if there is no file.

    A last line without its end, left by a process that was killed, is left out.

    Args:
      path: the file.
      judge: what else a record must fulfil.

    Raises:
      InputError: the file cannot be read, or a line is no such record; names the line.
    """
    found: list[dict[str, Any]] = []
    for number, line in enumerate(_lines(path), 1):
        record = _parse(line, judge)
        if isinstance(record, str):
            raise InputError(
                f"cannot read {reading.short(str(path))}: line {number} {record}; repeat the"
                " command that wrote it with --resume, or remove the line"
            )
        found.append(record)
    return found


def drop_records(
    path: Path, counter: str = "", after: int = 0, judge: Judge = lambda record: ""
) -> None:
    """Makes a file ready for more records: removes those that will be made again, and damage.

    Unreadable lines at the end, left by a killed process or a failed disk, are dropped. If any
    other line is unreadable, the file is kept beside the new one, under another name.

    Args:
      path: file with one JSON object per line; may be missing.
      counter: name of the number that says when a record was made; "" = all records stay.
      after: largest such number that stays; 0 means a new start, so no record stays.
      judge: see `read_records`.

    Raises:
      InputError: the file cannot be read.
      OSError: the file cannot be replaced.
    """
    if not processes.is_writer() or not reading.is_file(path):
        return
    content = reading.read_bytes(path, "records")
    parsed = [_parse(line, judge) for line in content.split(b"\n")]
    whole = [at for at, record in enumerate(parsed) if isinstance(record, dict)]
    bad = [at + 1 for at in range(max(whole, default=0)) if at not in set(whole)]
    kept: list[Any] = [parsed[at] for at in whole]
    if counter:
        kept = [record for record in kept if after and _count(record, counter) <= after]
    if bad:
        aside = free_name(path, UNREADABLE)
        path.rename(aside)
        say(f"line {bad[0]} of {path} cannot be read; the file is kept as {aside.name}")
    text = b"".join(json.dumps(record).encode() + b"\n" for record in kept)
    if bad or text != content:
        writing.write_text(path, text.decode())


def _count(record: Mapping[str, Any], counter: str) -> float:
    """Returns when a record was made; one that does not say was made before all others."""
    value = record.get(counter)
    return value if isinstance(value, int | float) else 0


def _lines(path: Path) -> list[bytes]:
    """Returns the complete lines of a file; none if there is no file."""
    if not reading.is_file(path):
        return []
    return reading.read_bytes(path, "records").split(b"\n")[:-1]


def _parse(line: bytes, judge: Judge) -> dict[str, Any] | str:
    """Returns a line's record, or what is wrong with the line."""
    try:
        record = reading.parse_json(line.decode(), "is no JSON")
    except (UnicodeDecodeError, InputError):
        return "is no JSON"
    if not isinstance(record, dict):
        return f"holds {reading.short(record)}, expected an object"
    problem = judge(record)
    return f"has a wrong value: {problem}" if problem else record


class MetricsLog:
    """Writes a run's numbers to `metrics.jsonl`, to `tb/` for TensorBoard and to the tracker.

    Args:
      directory: the run's directory.
      begin: decision steps that the run goes on from; records of later ones are dropped.

    Attributes:
      begin: as given.
      wall_s: seconds of training up to the last record that stays; 0 in a new run.
    """

    def __init__(self, directory: Path, begin: int = 0):
        path = directory / METRICS
        drop_records(path, "decision_steps", begin, judge_metrics)
        self.begin, self.wall_s = begin, wall_s(directory)
        self._lines = Lines(path)
        self._followers: list[trackers.Tracker] = []
        if processes.is_writer():
            tracker = trackers.follow(directory, say)
            self._followers = [trackers.tensorboard(directory, begin, say)]
            self._followers += [tracker] if tracker is not None else []

    def write(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        """Records the values of a group, `train` or `eval`, at a number of decision steps."""
        numbers = plain(values)
        self._lines.add({"group": group, "decision_steps": step, **numbers})
        scalars = {
            f"{group}/{name}": value for name, value in numbers.items() if reading.is_number(value)
        }
        for follower in self._followers:
            follower.log(scalars, step)

    def flush(self) -> str:
        """Waits until the disk holds all records; returns why that is impossible, or ""."""
        return self._lines.flush(to_disk=True)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        """Writes what TensorBoard and the tracker still hold, however the block ends."""
        self.flush()
        for follower in self._followers:
            follower.close(failed=error[0] is not None)


def read_metrics(directory: Path, group: str) -> list[dict[str, Any]]:
    """Returns the records of one group of a run's `metrics.jsonl`, in order.

    Raises:
      InputError: see `read_records`; or a record lacks a number that it must have.
    """
    records = read_records(directory / METRICS, judge_metrics)
    return [record for record in records if record["group"] == group]


def wall_s(directory: Path) -> float:
    """Returns how many seconds a run has trained, by its records; 0 without records.

    Raises:
      InputError: see `read_metrics`.
    """
    records = read_records(directory / METRICS, judge_metrics)
    return max((record.get("wall_s") or 0.0 for record in records), default=0.0)


def check_reaches(directory: Path, decision_steps: int) -> None:
    """Checks that a run's `metrics.jsonl` goes up to a number of decisions.

    Raises:
      InputError: it does not; or see `read_metrics`.
    """
    found = [record["decision_steps"] for record in read_metrics(directory, "train")]
    if max(found, default=0) < decision_steps:
        raise InputError("its end is missing")


def judge_metrics(record: Mapping[str, Any]) -> str:
    """Returns what is wrong with a record of `metrics.jsonl`; "" if nothing."""
    if not isinstance(record.get("group"), str):
        return f"group is {reading.short(record.get('group'))}, expected a name"
    needed = {"decision_steps"}
    if record["group"] == "eval":  # a task without success is judged by its return
        needed |= {"wall_s", "success_once" if record.get("return") is None else "return"}
    for name, (is_right, expected) in NUMBERS.items():
        value = record.get(name)
        if not is_right(value) and (value is not None or name in needed):
            return f"{name} is {reading.short(value)}, expected {expected}"
    return ""
