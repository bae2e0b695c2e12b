"""Pictures of the numbers in `records`. The only file that imports plotting."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pdjax.output.records import read_metrics, read_records
from pdjax.output.tables import told_gain
from pdjax_envs.writing import aside


def plot_screening(
    path: Path, summary: Mapping[str, Any], steps: np.ndarray, success: np.ndarray
) -> None:
    """Draws success against residual_scale, and when the base policy alone succeeds.

    Args:
      path: PNG to write.
      summary: see `screen.screen`.
      steps: (episodes,) control steps to success, or the time limit.
      success: (episodes,) bool.
    """
    figure, (left, right) = _subplots(1, 2, figsize=(9.6, 3.8))
    scales = summary["scales"]
    x = [0.0, *(scale["residual_scale"] for scale in scales)]
    is_rate = summary["base_success"] is not None
    score, ci = ("base_success", "base_ci") if is_rate else ("base_return", "base_return_ci")
    y = np.array([summary[score], *(scale["success"] for scale in scales)])
    low, high = np.array([summary[ci], *(scale["ci"] for scale in scales)]).T
    left.errorbar(x, y, yerr=np.maximum([y - low, high - y], 0), marker="o", capsize=3)
    left.axhline(
        summary["kept_success"],
        color="0.6",
        linestyle=":",
        label=f"{'success' if is_rate else 'return'} that the recommended scale must keep",
    )
    left.axvline(
        summary["residual_scale"],
        color="C2",
        linestyle="--",
        label=f"recommended: {summary['residual_scale']:g}",
    )
    left.set(xlabel="scale of a random residual", **_scale(is_rate))
    left.legend(fontsize=8)
    bins = np.linspace(0, summary["time_limit"], 26)
    right.hist(
        steps[success], bins=bins, color="C0", label=f"success ({int(success.sum())} episodes)"
    )
    right.axvline(
        summary["time_limit"], color="C3", label=f"time limit ({summary['failures']} failures)"
    )
    right.set(xlabel="control steps to success, base alone", ylabel="episodes")
    right.legend(fontsize=8, loc="upper left")
    for axis in (left, right):
        axis.grid(alpha=0.25)
    figure.suptitle(f"{summary['task']}: {summary['verdict']}", fontsize=11)
    _save(figure, path)


def plot_learning_curve(directory: Path, summary: Mapping[str, Any]) -> Path:
    """Draws success against decision steps (and wall-clock) from a run's metrics.

    Returns:
      The PNG written, `learning_curve.png` in the run's directory.
    """
    from matplotlib.ticker import MaxNLocator

    evaluations, epochs = read_metrics(directory, "eval"), read_metrics(directory, "train")
    figure, axis = _subplots(figsize=(7.2, 4.4))
    is_rate = summary["base_success"] is not None
    score, ci = ("success", "ci") if is_rate else ("return", "return_ci")
    if is_rate:
        axis.plot(
            [e["decision_steps"] for e in epochs],
            [e.get("train_success", np.nan) for e in epochs],
            color="0.75",
            linewidth=1.2,
            label="while exploring (training episodes)",
        )
    axis.plot(
        [e["decision_steps"] for e in evaluations],
        [e["success_once" if is_rate else "return"] for e in evaluations],
        color="C0",
        marker="o",
        markersize=4,
        label="refined, interim",
    )
    axis.axhline(summary[f"base_{score}"], color="C1", linestyle="--", label="base policy")
    if epochs:
        last = epochs[-1]["decision_steps"]
        final, ends = summary[f"refined_{score}"], summary[f"refined_{ci}"]
        low, high = (final if end is None else end for end in ends)  # one episode has no interval
        axis.errorbar(
            [last],
            [final],
            yerr=[[final - low], [high - final]],
            color="C2",
            marker="D",
            capsize=4,
            linestyle="none",
            label=f"refined, final ({summary['episodes']} episodes)",
        )
        minutes = [(e.get("wall_s") or 0.0) / 60 for e in epochs]
        top = axis.secondary_xaxis("top", functions=_time_axis(epochs, minutes))
        ticks = MaxNLocator(6).tick_values(0, minutes[-1])
        top.set_xticks([tick for tick in ticks if tick <= minutes[-1]])  # others would pile up
        top.set_xlabel("training wall-clock (minutes)")
    axis.set(xlabel="decision steps", **_scale(is_rate))
    axis.set_title(
        f"{summary['task']}, seed {summary['seed']}: gain {told_gain(summary)}", fontsize=11
    )
    axis.grid(alpha=0.25)
    axis.legend(loc="lower right", fontsize=8)
    return _save(figure, directory / "learning_curve.png")


def _scale(is_rate: bool) -> dict[str, Any]:
    """Returns name and limits of the axis of scores: success rates, or returns."""
    return {"ylabel": "success_once", "ylim": (-0.02, 1.02)} if is_rate else {"ylabel": "return"}


def plot_comparison(
    path: Path, task: str, groups: Sequence[Mapping[str, Any]], is_rate: bool = True
) -> Path:
    """Draws the success of groups of runs against decision steps and against wall-clock.

    Args:
      path: PNG to write.
      task: for the title.
      groups: for each group, its `name` and what `compare.bands` returns.
      is_rate: whether the curves are success rates; otherwise they are returns.

    Returns:
      The PNG written.
    """
    figure, axes = _subplots(1, 2, figsize=(10.8, 4.4 + 0.22 * len(groups)), sharey=True)
    labels = {"decisions": "decision steps", "minutes": "training wall-clock (minutes)"}
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        for index, group in enumerate(groups):
            color = f"C{index % 10}"
            grid, mean, ends = group[name]
            axis.axhline(group["base"], color=color, linestyle="--", linewidth=1, alpha=0.7)
            marker = "o" if name == "decisions" else None  # where all runs were evaluated
            axis.plot(
                grid,
                mean,
                color=color,
                marker=marker,
                markersize=3.5,
                label=f"{group['name']} ({_counted(group['runs'])})",
            )
            if ends is not None:
                axis.fill_between(grid, *ends, color=color, alpha=0.18, linewidth=0)
        axis.set(xlabel=label)
        axis.grid(alpha=0.25)
    axes[0].plot([], [], color="0.4", linestyle="--", linewidth=1, label="base policy")
    scale = _scale(is_rate)
    axes[0].set(**scale | {"ylabel": f"{scale['ylabel']}, interim evaluations"})
    figure.suptitle(f"{task}: interquartile mean over runs, 95 % bootstrap intervals", fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=8)
    return _save(figure, path)


def _counted(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"


def plot_importance(path: Path, title: str, importance: Mapping[str, float]) -> Path:
    """Draws bars of shares, the largest on top; `importance`: name -> share."""
    pairs = sorted(importance.items(), key=lambda pair: pair[1])
    figure, axis = _subplots(figsize=(7.2, 1.4 + 0.32 * len(pairs)))
    bars = axis.barh([name for name, _ in pairs], [share for _, share in pairs], color="C0")
    axis.bar_label(bars, [f" {share:.0%}" for _, share in pairs], fontsize=8)
    axis.set(xlabel="share of what sets good trials apart", xlim=(0, 1.15))
    axis.set_title(title, fontsize=11)
    axis.grid(alpha=0.25, axis="x")
    return _save(figure, path)


def plot_phases(path: Path, summary: Mapping[str, Any]) -> Path:
    """Draws where an epoch's time goes.

    Args:
      path: PNG to write.
      summary: see `profile.profile`.
    """
    phases = sorted(summary["phases"], key=lambda phase: phase["seconds"])
    figure, axis = _subplots(figsize=(7.2, 1.2 + 0.32 * len(phases)))
    bars = axis.barh([p["phase"] for p in phases], [p["seconds"] for p in phases], color="C0")
    axis.bar_label(bars, [f" {p['share']:.1%}" for p in phases], fontsize=8)
    axis.set(xlabel="seconds per epoch", xlim=(0, 1.15 * max(p["seconds"] for p in phases)))
    axis.set_title(
        f"{summary['task']}, {summary['num_envs']} environments,"
        f" {summary['decisions_per_s']:,.0f} decisions/s",
        fontsize=11,
    )
    axis.grid(alpha=0.25, axis="x")
    return _save(figure, path)


def plot_imitation(directory: Path, task: str) -> Path:
    """Draws losses and, if the policy was evaluated, success against gradient steps.

    Args:
      directory: holds `imitation.jsonl`.
      task: for the title.

    Returns:
      The PNG written, `learning_curve.png`.
    """
    records = read_records(directory / "imitation.jsonl")
    figure, axis = _subplots(figsize=(7.2, 4.4))
    for name, color in (("train_loss", "0.6"), ("validation_loss", "C0")):
        axis.plot([r["step"] for r in records], [r[name] for r in records], color=color, label=name)
    axis.set(xlabel="gradient steps", ylabel="loss", title=task)
    if all(r[name] > 0 for r in records for name in ("train_loss", "validation_loss")):
        axis.set_yscale("log")
    evaluated = [r for r in records if "success_once" in r]
    if evaluated:
        right = axis.twinx()
        right.plot(
            [r["step"] for r in evaluated],
            [r["success_once"] for r in evaluated],
            color="C2",
            marker="o",
            markersize=4,
        )
        right.set(ylim=(-0.02, 1.02))
        right.set_ylabel("success_once in the simulator", color="C2")
    axis.grid(alpha=0.25)
    axis.legend(loc="upper right", fontsize=8)
    return _save(figure, directory / "learning_curve.png")


def _subplots(*grid: int, figsize: tuple[float, float], **more: Any):
    """Returns a figure and its axes, for a file.

    Made without pyplot, whose choice of a screen and list of open figures belong to the process.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(*grid, **more)


def _save(figure: Any, path: Path) -> Path:
    """Writes a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as written:
        figure.savefig(written, dpi=150)
    return path


def _time_axis(epochs: list[dict[str, Any]], minutes: list[float]):
    steps = [e["decision_steps"] for e in epochs]
    return (
        lambda x: np.interp(x, [0, *steps], [0, *minutes]),
        lambda m: np.interp(m, [0, *minutes], [0, *steps]),
    )
