"""Pictures beside a run's learning curve, which `report` draws. Knows only names and numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def plot_screening(path: Path, summary: Mapping[str, Any], steps: np.ndarray,
                   success: np.ndarray) -> None:  # fmt: skip
    """Draws success against residual_scale, and when the base alone succeeds.

    Args:
      path: PNG to write.
      summary: see `screen.screen`.
      steps: (episodes,) control steps to success, or the time limit.
      success: (episodes,) bool.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
    scales = summary["scales"]
    x = [0.0, *(scale["residual_scale"] for scale in scales)]
    y = np.array([summary["base_success"], *(scale["success"] for scale in scales)])
    low, high = np.array([summary["base_ci"], *(scale["ci"] for scale in scales)]).T
    left.errorbar(x, y, yerr=np.maximum([y - low, high - y], 0), marker="o", capsize=3)
    left.axhline(y[0] / 2, color="0.6", linestyle=":", label="half of the base's success")
    left.axvline(summary["residual_scale"], color="C2", linestyle="--",
                 label=f"recommended: {summary['residual_scale']:g}")  # fmt: skip
    left.set(xlabel="scale of a random residual", ylabel="success_once", ylim=(-0.02, 1.02))
    left.legend(fontsize=8)
    bins = np.linspace(0, summary["time_limit"], 26)
    right.hist(steps[success], bins=bins, color="C0",
               label=f"success ({int(success.sum())} episodes)")  # fmt: skip
    right.axvline(summary["time_limit"], color="C3",
                  label=f"time limit ({summary['failures']} failures)")  # fmt: skip
    right.set(xlabel="control steps to success, base alone", ylabel="episodes")
    right.legend(fontsize=8, loc="upper left")
    for axis in (left, right):
        axis.grid(alpha=0.25)
    figure.suptitle(f"{summary['task']}: {summary['verdict']}", fontsize=11)
    figure.savefig(path, dpi=150)
    plt.close(figure)
