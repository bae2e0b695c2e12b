"""A run's records on disk: JSON lines, TensorBoard scalars, and the tracker if there is one.

Knows no algorithm, only names and numbers. Of several processes only the writer records anything
(`processes.is_writer`); whether the terminal is quiet makes no difference here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from pdjax.devices import processes
from pdjax.output import trackers
from pdjax.output.paths import plain
from pdjax.output.terminal import say


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
        self._path = directory / "metrics.jsonl"
        drop_records(self._path, "decision_steps", begin)
        self.begin, self.wall_s = begin, wall_s(directory)
        self._writer = SummaryWriter(
            str(directory / "tb"), purge_step=begin + 1, write_to_disk=processes.is_writer()
        )
        self._tracker = trackers.follow(directory, say) if processes.is_writer() else None

    def write(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        """Records the values of a group, `train` or `eval`, at a number of decision steps."""
        numbers = plain(values)
        add_record(self._path, {"group": group, "decision_steps": step, **numbers})
        scalars = {
            f"{group}/{name}": value
            for name, value in numbers.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker.log(scalars, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *error: object) -> None:
        """Writes what TensorBoard and the tracker still hold, however the block ends."""
        self._writer.close()
        if self._tracker is not None:
            self._tracker.close(failed=error[0] is not None)


def read_metrics(directory: Path, group: str) -> list[dict[str, Any]]:
    """Returns the records of one group of a run's `metrics.jsonl`, in order."""
    records = read_records(directory / "metrics.jsonl")
    return [record for record in records if record["group"] == group]


def wall_s(directory: Path) -> float:
    """Returns how many seconds a run has trained, by its records; 0 without records."""
    records = read_records(directory / "metrics.jsonl")
    return max((record["wall_s"] for record in records), default=0.0)


def add_record(path: Path, record: Mapping[str, Any]) -> None:
    """Appends a record to a file with one JSON object per line."""
    if not processes.is_writer():
        return
    with path.open("a") as file:
        file.write(json.dumps(plain(record)) + "\n")


def drop_records(path: Path, counter: str, after: int) -> None:
    """Removes the records that were made after the point from which work goes on.

    Args:
      path: file with one JSON object per line; may be missing.
      counter: name of the number that says when a record was made.
      after: largest such number that stays; 0 means a new start, so no record stays.
    """
    kept = [record for record in read_records(path) if after and record[counter] <= after]
    if path.exists() and processes.is_writer():
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(path)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Returns all records of a file with one JSON object per line.

    A last line without its end, left by a process that was killed, is left out.
    """
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]
