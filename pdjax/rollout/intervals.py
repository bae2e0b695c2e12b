"""Statistics of a paired evaluation: base and refined policy on the same episodes, 95 % intervals.

Pure functions on the host, kept apart from the jitted rollout that produces the episodes.
"""

# SciPy has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

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


def paired_gain(base: ArrayLike, refined: ArrayLike) -> tuple[float, tuple[float, float]]:
    """Returns the difference of two success rates on the same episodes, with a 95 % interval.

    The interval is Newcombe's square-and-add interval for paired proportions, method 10 (Statistics
    in Medicine 1998, 17: 2635). It combines the Wilson intervals of both rates and corrects for
    their correlation.

    Args:
      base: (episodes,) bool.
      refined: (episodes,) bool, the same episodes in the same order.

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
    phi = cross / np.sqrt(margins) if margins else 0.0
    down = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    up = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    gain = float(p1 - p2)
    return gain, (gain - float(np.sqrt(max(down, 0))), gain + float(np.sqrt(max(up, 0))))


def base_summary(successes: int, episodes: int) -> dict[str, Any]:
    """Returns a base policy's success_once with its 95 % interval, ready for JSON."""
    return {
        "base_success": successes / episodes,
        "base_ci": list(wilson(successes, episodes)),
        "eval_episodes": episodes,
    }


def figures(result: Evaluation) -> dict[str, float]:
    """Returns the means over an interim evaluation's episodes, in the form of `metrics.jsonl`."""
    return {
        "success_once": float(result.success_once.mean()),
        "success_at_end": float(result.success_at_end.mean()),
        "steps_to_success": float(result.steps_to_success.mean()),
        "smoothness": float(result.smoothness.mean()),
        "saturation": float(result.saturation.mean()),
    }


def summarize(base: Evaluation, refined: Evaluation) -> dict[str, Any]:
    """Returns the comparison of two evaluations as plain numbers, ready for JSON.

    Rates and their intervals are shares in [0, 1]. `gain` is the refined rate of success_once minus
    the base rate. `smoothness` is the mean squared second difference of the executed actions (lower
    is smoother). `steps_to_success` is the mean count of control steps over the successful
    episodes, or None if no episode succeeded.

    Args:
      base: the base policy's episodes.
      refined: the refined policy's, the same episodes in the same order.
    """
    episodes = len(base.success_once)
    gain, gain_ci = paired_gain(base.success_once, refined.success_once)
    summary: dict[str, Any] = {"episodes": episodes}
    for name, result in (("base", base), ("refined", refined)):
        once = np.asarray(result.success_once)
        summary[f"{name}_success"] = float(once.mean())
        summary[f"{name}_ci"] = list(wilson(once.sum(), episodes))
        summary[f"{name}_success_at_end"] = float(np.mean(result.success_at_end))
        summary[f"{name}_at_end_ci"] = list(wilson(np.sum(result.success_at_end), episodes))
        summary[f"{name}_smoothness"] = float(np.mean(result.smoothness))
        steps = np.asarray(result.steps_to_success)[once]
        summary[f"{name}_steps_to_success"] = float(steps.mean()) if len(steps) else None
    summary["refined_saturation"] = float(np.mean(refined.saturation))
    return summary | {"gain": gain, "gain_ci": list(gain_ci)}
