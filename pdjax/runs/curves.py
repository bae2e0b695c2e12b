"""Learning curves in numbers: means over runs with intervals, falls, times to a threshold.

Pure functions on the host. Kept apart from `comparison`, which reads runs, because recorded results
are made with the same ones. The mean is the interquartile mean, the interval a bootstrap over runs,
as recommended by Agarwal et al. 2021, "Deep RL at the Edge of the Statistical Precipice",
arXiv:2108.13264. Of one task there is one stratum, so runs are drawn from all of them alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

RESAMPLES = 9_999  # SciPy's default; the ends of the interval move by about 0.01 of its width
CUT = 0.25  # share of the runs that is left out at either end, rounded down: none of three

Point = tuple[int, float, float]
"""Of an interim evaluation: decisions, seconds of training, success_once."""


def points(records: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The curve of a run from its `eval` records; the base policy's point comes first."""
    return [
        (record["decision_steps"], round(record["wall_s"], 1), record["success_once"])
        for record in records
    ]


def iqm(values: ArrayLike) -> Any:
    """Interquartile mean over the first axis: the quarters at both ends are left out.

    Args:
      values: (runs, ...). Of fewer than four runs none is left out.

    Returns:
      (...), or a scalar.
    """
    return stats.trim_mean(np.asarray(values, float), CUT, axis=0)


def interval(values: ArrayLike) -> tuple[np.ndarray, np.ndarray] | None:
    """95 % interval of `iqm` over runs by the percentile bootstrap, at each point by itself.

    Args:
      values: (runs, ...).

    Returns:
      Its two ends, each (...); None for one run, which says nothing of how runs differ.
    """
    values = np.asarray(values, float)
    if len(values) < 2:
        return None
    found = stats.bootstrap(
        (values,),
        lambda drawn, axis: stats.trim_mean(drawn, CUT, axis=axis),
        axis=0,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=500,
        method="percentile",
        rng=0,
    )
    return found.confidence_interval.low, found.confidence_interval.high


def largest_fall(scores: Sequence[float]) -> float:
    """Largest fall below the best score so far."""
    return max((max(scores[: i + 1]) - score for i, score in enumerate(scores)), default=0.0)


def first_reach(curve: Sequence[Point], threshold: float) -> tuple[int, float] | None:
    """Decisions and seconds of the first evaluation at or above a threshold.

    Nothing is read in between two evaluations: a run counts from when it was seen to succeed.

    Returns:
      None where none is.
    """
    reached = ((decisions, seconds) for decisions, seconds, score in curve if score >= threshold)
    return next(reached, None)


def median_reach(curves: Sequence[Sequence[Point]], threshold: float) -> tuple[float, float] | None:
    """Medians over runs of `first_reach`, of decisions and of seconds, each by itself.

    Returns:
      None where a run did not reach it: a median over the others would praise luck.
    """
    reached = [first_reach(curve, threshold) for curve in curves]
    if not reached or None in reached:
        return None
    decisions, seconds = np.median(np.array(reached, float), axis=0)
    return float(decisions), float(seconds)


def on_shared_grid(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Curves on one grid, by linear interpolation; it ends where the shortest curve does.

    Args:
      curves: x (n,), ascending, and y (n,) of each, with an n of its own.

    Returns:
      The grid (points,), every x of any curve within the range that all of them cover; and y of
      each curve on it (curves, points). Empty where they cover no common range.
    """
    xs = [x for x, _ in curves]
    grid = np.unique(np.concatenate(xs))
    first, last = max(x[0] for x in xs), min(x[-1] for x in xs)
    grid = grid[(grid >= first) & (grid <= last)]
    return grid, np.array([np.interp(grid, x, y) for x, y in curves])
