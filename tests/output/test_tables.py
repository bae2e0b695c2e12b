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

    def savefig(self, path, **_):
        drawn.append(self)
        path.touch()

    monkeypatch.setattr(figure.Figure, "savefig", savefig)
    plots.plot_learning_curve(tmp_path, SUMMARY)
    assert drawn[0].axes[0].get_title() == "Point, seed 3: gain +45.0 points"


@pytest.mark.parametrize("name", [name for name in SUMMARY if "refined" in name or "gain" in name])
def test_what_is_unknown_is_told_as_a_dash(capsys, name):
    unknown = SUMMARY | {name: [None, None] if name.endswith("_ci") else None}
    tables.show_comparison(unknown)
    tables.show_shifts([unknown])
    tables.show_members([{"seed": 0}], [unknown])
    assert "nan" not in words(capsys)


RETURN = {
    "base_success": None,
    "base_ci": None,
    "base_return": -1234.5,
    "base_return_ci": [-1300.0, -1200.0],
    "refined_success": None,
    "refined_ci": None,
    "refined_return": 2.5,
    "refined_return_ci": [2.0, 3.0],
    "gain": 1237.0,
    "gain_ci": [1200.0, 1300.0],
}


def test_a_task_without_success_is_told_by_its_return(capsys):
    tables.show_comparison(SUMMARY | RETURN)
    said = words(capsys)
    assert "return" in said and "success" not in said and "%]" not in said
    assert "-1,234 [-1,300, -1,200]" in said and "gain: +1,237 [+1,200, +1,300]" in said
    tables.show_base(RETURN | {"eval_episodes": 20}, "base: ")
    assert words(capsys) == "base: return -1,234 [-1,300, -1,200] over 20 episodes"
    tables.show_groups("ant", [GROUP | {"is_rate": False, "refined_success": 99.5}], 0.9)
    assert "99.5" in words(capsys)


def test_a_run_without_gradient_steps_says_so(capsys):
    tables.show_comparison(SUMMARY | {"gradient_steps": 1})
    assert "gradient step" not in words(capsys)
    tables.show_comparison(SUMMARY | {"gradient_steps": 0})
    assert "no gradient step was taken" in words(capsys)
    tables.show_members([{"seed": 0}], [SUMMARY | {"gradient_steps": 0}])
    assert "no gradient step was taken" in words(capsys)
