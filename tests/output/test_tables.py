"""What tables say: rates in per cent, differences of rates in points."""

import re

import pytest
from matplotlib import figure

from pdjax.output import plots, tables

SUMMARY = {
    "task": "Point",
    "seed": 3,
    "episodes": 50,
    "shift": "",
    "decision_steps": 1000,
    "base_success": 0.4,
    "base_ci": [0.27, 0.55],
    "base_success_at_end": 0.3,
    "base_steps_to_success": 40.0,
    "base_smoothness": 0.2,
    "refined_success": 0.85,
    "refined_ci": [0.72, 0.93],
    "refined_success_at_end": 0.8,
    "refined_steps_to_success": None,
    "refined_smoothness": 0.1,
    "gain": 0.45,
    "gain_ci": [0.372, 0.508],
}
GROUP = {
    "name": "all",
    "runs": ["a"],
    "finished": 1,
    "is_rate": True,
    "refined_ci": None,
    "base_success": 0.4,
    "refined_success": 0.85,
    "decisions_to_threshold": None,
    "minutes_to_threshold": None,
    "largest_fall": 0.3,
    "base_smoothness": 0.2,
    "refined_smoothness": 0.1,
}


def words(capsys):
    return " ".join(capsys.readouterr().err.split())


def test_a_gain_is_told_in_points(capsys):
    tables.show_comparison(SUMMARY)
    assert "gain: +45.0 points [+37, +51]" in words(capsys)


def test_a_loss_is_told_in_points(capsys):
    tables.show_comparison(SUMMARY | {"gain": -0.125, "gain_ci": [-0.25, 0.0]})
    assert "gain: -12.5 points [-25, +0]" in words(capsys)


@pytest.mark.parametrize(
    "show",
    [
        lambda: tables.show_shifts([SUMMARY]),
        lambda: tables.show_members([{"seed": 0}], [SUMMARY]),
    ],
)
def test_gains_in_tables_are_told_in_points(capsys, show):
    show()
    said = words(capsys)
    assert "+45.0 points" in said
    assert not re.search(r"[+-][0-9.]+%", said)


def test_a_fall_is_told_in_points(capsys):
    tables.show_groups("Point", [GROUP], 0.9)
    cells = re.sub(r"[^\w. ]", "", words(capsys)).split()
    assert "largest fall of a run 30.0 points" in " ".join(cells)


def test_a_learning_curve_tells_its_gain_in_points(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path, **_: drawn.append(self))
    plots.plot_learning_curve(tmp_path, SUMMARY)
    assert drawn[0].axes[0].get_title() == "Point, seed 3: gain +45.0 points"
