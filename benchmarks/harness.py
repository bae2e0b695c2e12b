"""What all benchmarks share: timing, the description of the machine, committed rows.

A row is one JSON object of one run in `benchmarks/results/NAME.jsonl`. Different rows come from
different machines or moments, so compare only ratios within a row.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pdjax.output import provenance

RESULTS = Path(__file__).parent / "results"


def alternate(loops: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Measures loops in turns, so that a drift of the machine's speed favours none of them.

    Args:
      loops: name -> () -> rate of one repeat.
      repeats: turns of each loop; the order changes from turn to turn.
    """
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for repeat in range(repeats):
        names = list(loops)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            rates[name].append(loops[name]())
    return rates


def ratio(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Returns first / second: median and range of the turns' ratios, and that of the best turns."""
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    return {
        "median": round(statistics.median(ratios), 3),
        "range": [round(min(ratios), 3), round(max(ratios), 3)],
        "of_best": round(max(first) / max(second), 3),
    }


def median(rates: Sequence[float]) -> float:
    """Returns the median rate, rounded to four digits."""
    return float(f"{statistics.median(rates):.4g}")


def describe_machine() -> dict[str, Any]:
    """Describes what the figures depend on: device, versions, commit."""
    found = provenance.describe()
    kept = {name: found[name] for name in ("time", "device", "cpu", "cores", "python")}
    versions = {name: found["versions"][name] for name in ("jax", "mujoco")}
    return kept | versions | {"commit": found["pdjax_commit"]}


def append_row(name: str, row: Mapping[str, Any]) -> None:
    """Appends a row, with the machine's description, to `benchmarks/results/NAME.jsonl`."""
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({**describe_machine(), **row}) + "\n")
