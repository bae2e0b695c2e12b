"""Statistics of a paired evaluation: base and refined policy on the same episodes, 95 % intervals.

Pure functions on the host, kept apart from the jitted rollout that produces the episodes.
"""

# SciPy has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pdjax.rollout.evaluate import Evaluation


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a success rate (Wilson 1927, computed by SciPy).

    Args:
      successes: number of successful episodes.
      episodes: number of all episodes, at least 1.

    Returns:
      Lower and upper bound, shares in [0, 1].
    """
    from scipy import stats  # takes over a second to import, and training does not need it

    test = stats.binomtest(int(successes), int(episodes))
    interval: Any = test.proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def rate_gain(
    base: ArrayLike, refined: ArrayLike, is_paired: bool = True
) -> tuple[float, tuple[float, float]]:
    """Returns the difference of two success rates, with a 95 % interval.

    The interval is Newcombe's square-and-add interval for paired proportions, method 10 (Statistics
    in Medicine 1998, 17: 2635). It combines the Wilson intervals of both rates and corrects for
    their correlation. Without that it is his interval for unpaired ones, method 10 (17: 873).

    Args:
      base: (episodes,) bool.
      refined: (episodes,) bool, the same episodes in the same order.
      is_paired: whether they are the same.

    Returns:
      The refined rate minus the base rate, in [-1, 1], and its interval.
    """
    base, refined = np.asarray(base, bool), np.asarray(refined, bool)
    count = len(base)
    p1, p2 = refined.mean(), base.mean()
    (l1, u1), (l2, u2) = wilson(refined.sum(), count), wilson(base.sum(), count)
    both = int((refined & base).sum())
    neither = int((~refined & ~base).sum())
    only_refined, only_base = int((refined & ~base).sum()), int((base & ~refined).sum())
    # phi, the correlation of the two outcomes, with the continuity correction of the source
    margins = (both + only_refined) * (only_base + neither) * (both + only_base)
    margins *= only_refined + neither
    cross = both * neither - only_refined * only_base
    cross = max(cross - count / 2, 0) if cross > 0 else cross
    phi = cross / np.sqrt(margins) if margins and is_paired else 0.0
    down = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    up = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    gain = float(p1 - p2)
    return gain, (gain - float(np.sqrt(max(down, 0))), gain + float(np.sqrt(max(up, 0))))


def mean_gain(
    base: ArrayLike, refined: ArrayLike, is_paired: bool = True
) -> tuple[float, tuple[float, float]]:
    """Returns the difference of two means, with the 95 % interval of a paired t-test, or Welch's.

    Args:
      base: (episodes,) returns.
      refined: (episodes,) returns, the same episodes in the same order.
      is_paired: whether they are the same.

    Returns:
      The mean of refined - base, and its interval; NaN for a single episode.
    """
    base, refined = np.asarray(base, float), np.asarray(refined, float)
    difference = refined - base
    if is_paired or len(base) < 2:
        return float(difference.mean()), _mean_ci(difference)
    from scipy import stats

    found: Any = stats.ttest_ind(refined, base, equal_var=False).confidence_interval(0.95)
    return float(difference.mean()), (float(found.low), float(found.high))


def _mean_ci(values: np.ndarray) -> tuple[float, float]:
    """Returns the 95 % interval of a mean, by Student's t; NaN for a single value."""
    from scipy import stats

    count = len(values)
    if count < 2:
        return math.nan, math.nan
    half = float(stats.t.ppf(0.975, count - 1) * values.std(ddof=1) / np.sqrt(count))
    return float(values.mean()) - half, float(values.mean()) + half


def gain(base: Evaluation, refined: Evaluation) -> tuple[float, tuple[float, float]]:
    """Returns what `refined` gains in success_once, or in return where the task has no success.

    Args:
      base: the base policy's episodes.
      refined: the same episodes in the same order.

    Returns:
      The gain and its 95 % interval, see `rate_gain` and `mean_gain`.
    """
    found = rate_gain if base.success_once is not None else mean_gain
    return found(base.scores, refined.scores, not base.starts_differ)


def base_summary(result: Evaluation) -> dict[str, Any]:
    """Returns a base policy's success_once and return with 95 % intervals, ready for JSON.

    A task without success has None for the former.
    """
    return {**_rates("base", result), "eval_episodes": len(result.steps_to_success)}


def _rates(side: str, result: Evaluation) -> dict[str, Any]:
    """Returns success_once and return of a policy, with their 95 % intervals."""
    once, returns = result.success_once, np.asarray(result.returns, float)
    return {
        f"{side}_success": None if once is None else float(np.asarray(once, bool).mean()),
        f"{side}_ci": None if once is None else _rate_ci(once),
        f"{side}_return": float(returns.mean()),
        f"{side}_return_ci": list(_mean_ci(returns)),
    }


def _rate_ci(solved: ArrayLike) -> list[float]:
    """Returns Wilson's interval of outcomes (episodes,) bool."""
    solved = np.asarray(solved, bool)
    return list(wilson(int(np.count_nonzero(solved)), len(solved)))


def figures(result: Evaluation) -> dict[str, float | None]:
    """Returns the means over an interim evaluation's episodes, in the form of `metrics.jsonl`."""
    once, at_end = result.success_once, result.success_at_end
    return {
        "success_once": None if once is None else float(once.mean()),
        "success_at_end": None if at_end is None else float(at_end.mean()),
        "return": float(result.returns.mean()),
        "steps_to_success": float(result.steps_to_success.mean()),
        "smoothness": float(result.smoothness.mean()),
        "saturation": float(result.saturation.mean()),
    }


def score_of(values: Mapping[str, Any], side: str = "") -> Any:
    """Returns what a policy is judged by: its success rate, or its return without success.

    Args:
      values: what `figures` returned; or what `summarize` returned, with a side.
      side: `base` or `refined` in a summary.
    """
    success, returned = (
        (f"{side}_success", f"{side}_return") if side else ("success_once", "return")
    )
    return values[success] if values[success] is not None else values.get(returned)


def summarize(base: Evaluation, refined: Evaluation) -> dict[str, Any]:
    """Returns the comparison of two evaluations as plain numbers, ready for JSON.

    Rates and their intervals are shares in [0, 1]; they are None if the task has no success. `gain`
    is the refined rate of success_once minus the base rate, or the difference of the mean returns
    if the task has no success. `smoothness` is the mean squared second difference of the executed
    actions (lower is smoother). `steps_to_success` is the mean count of control steps over the
    successful episodes, or None if no episode succeeded. `paired` says whether base and refined
    policy played the same episodes.

    Args:
      base: the base policy's episodes.
      refined: the refined policy's, the same episodes in the same order.
    """
    episodes = len(base.steps_to_success)
    difference, gain_ci = gain(base, refined)
    summary: dict[str, Any] = {"episodes": episodes}
    for name, result in (("base", base), ("refined", refined)):
        summary |= _rates(name, result)
        once, at_end = result.success_once, result.success_at_end
        summary[f"{name}_success_at_end"] = (
            None if at_end is None else float(np.asarray(at_end, bool).mean())
        )
        summary[f"{name}_at_end_ci"] = None if at_end is None else _rate_ci(at_end)
        summary[f"{name}_smoothness"] = float(np.mean(result.smoothness))
        steps = np.asarray(result.steps_to_success)
        steps = steps[:0] if once is None else steps[np.asarray(once)]
        summary[f"{name}_steps_to_success"] = float(steps.mean()) if len(steps) else None
    summary["refined_saturation"] = float(np.mean(refined.saturation))
    summary |= {"paired": not base.starts_differ}
    return summary | {"gain": difference, "gain_ci": list(gain_ci)}
