"""Learning curves in numbers: means over runs with intervals, falls, times to a threshold.

Pure functions on the host. Separate from `compare`, which reads runs, because the recorded results
use the same functions. Means are interquartile means and intervals are bootstraps over runs, as
Agarwal et al. 2021 recommend ("Deep RL at the Edge of the Statistical Precipice",
arXiv:2108.13264). With one task there is one stratum, so the bootstrap draws from all runs alike.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pdjax.rollout.intervals import score_of

RESAMPLES = 9_999  # SciPy's default; the ends of the interval move by about 0.01 of its width
CUT = 0.25  # share of runs left out at either end; the number is rounded down, so 0 of 3 runs

Point = tuple[int, float, float]
"""An interim evaluation: decisions so far, seconds of training so far, and `score_of`."""


def points(records: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Returns a run's curve from its `eval` records; the first point is the base policy's."""
    return [
        (record["decision_steps"], round(record["wall_s"], 1), score_of(record))
        for record in records
    ]


def iqm(values: ArrayLike) -> Any:
    """Returns the interquartile mean over runs, which leaves out a quarter at either end.

    Args:
      values: (runs, ...). With fewer than four runs none is left out.

    Returns:
      (...), or a scalar.
    """
    return stats.trim_mean(np.asarray(values, float), CUT, axis=0)


def interval(values: ArrayLike) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the 95 % interval of `iqm` by a percentile bootstrap over runs, point by point.

    Args:
      values: (runs, ...).

    Returns:
      The low and the high end, each (...); None for fewer than two runs.
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
    """Returns the largest fall of a score below the best score so far."""
    return max((max(scores[: i + 1]) - score for i, score in enumerate(scores)), default=0.0)


def first_reach(curve: Sequence[Point], threshold: float) -> tuple[int, float] | None:
    """Returns decisions and seconds of the first evaluation at or above a threshold.

    It does not interpolate between evaluations.

    Returns:
      (decisions, seconds), or None if no evaluation reaches the threshold.
    """
    reached = ((decisions, seconds) for decisions, seconds, score in curve if score >= threshold)
    return next(reached, None)


def median_reach(curves: Sequence[Sequence[Point]], threshold: float) -> tuple[float, float] | None:
    """Returns the medians of `first_reach` over runs, separately for decisions and seconds.

    Returns:
      (decisions, seconds), or None if a run did not reach the threshold: a median over the others
      would be biased towards lucky runs.
    """
    reached = [first_reach(curve, threshold) for curve in curves]
    if not reached or None in reached:
        return None
    decisions, seconds = np.median(np.array(reached, float), axis=0)
    return float(decisions), float(seconds)


def on_shared_grid(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolates curves linearly on one grid.

    Args:
      curves: for each curve, x (n,) in ascending order and y (n,); n may differ between curves.

    Returns:
      The grid (points,), which is every x of any curve within the range that all curves cover; and
      y of the curves on it (curves, points). Both are empty if no range is common to all.
    """
    xs = [x for x, _ in curves]
    grid = np.unique(np.concatenate(xs))
    first, last = max(x[0] for x in xs), min(x[-1] for x in xs)
    grid = grid[(grid >= first) & (grid <= last)]
    return grid, np.array([np.interp(grid, x, y) for x, y in curves])
