"""A run's records on disk: JSON lines, TensorBoard's scalars, and the tracker if there is one.

Knows no algorithm, only names and numbers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from pdjax.output import trackers
from pdjax.output.paths import plain
from pdjax.output.terminal import console, say


class MetricsLog:
    """Writes one JSON object a line to `metrics.jsonl` and scalars for TensorBoard to `tb/`; tells
    the tracker, if there is one.

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
        self._writer = SummaryWriter(
            str(directory / "tb"), purge_step=begin + 1, write_to_disk=not console.quiet
        )
        self._tracker = None if console.quiet else trackers.follow(directory, say)

    def write(self, group: str, step: int, values: Mapping[str, Any]) -> None:
        """Records values of a group (`train`, `eval`) at a number of decision steps."""
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
        """Flushes TensorBoard's and the tracker's, however the block ends."""
        self._writer.close()
        if self._tracker is not None:
            self._tracker.close(failed=error[0] is not None)


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
    if console.quiet:
        return
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
    if path.exists() and not console.quiet:
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        partial.replace(path)


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of such a file; a last line that was not written to its end is left out."""
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]
