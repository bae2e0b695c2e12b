"""Learning curves: numbers derived by hand."""

import numpy as np
import pytest

from pdjax.runs import curves

# decisions, seconds, success_once
CURVE = [(0, 6.0, 0.5), (100, 60.0, 0.8), (200, 120.0, 0.95), (300, 180.0, 0.7), (400, 240.0, 0.9)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.4], 0.4),
        ([0.0, 0.5, 1.0], 0.5),  # a quarter of three rounds down to none
        ([0.0, 0.2, 0.4, 1.0], 0.3),  # one at each end is left out
        # two of eight at each end: (3 + 4 + 5 + 6) / 4
        ([100, 1, 2, 3, 4, 5, 6, -100], 3.5),
    ],
)
def test_the_interquartile_mean_of_known_values(values, expected):
    assert curves.iqm(values) == pytest.approx(expected)


def test_the_interquartile_mean_is_taken_at_each_point():
    np.testing.assert_allclose(curves.iqm([[0, 1], [2, 3], [4, 8]]), [2, 4])


def test_one_run_has_no_interval():
    assert curves.interval([0.7]) is None


def test_equal_runs_have_an_interval_without_width():
    assert curves.interval([0.7, 0.7, 0.7]) == pytest.approx((0.7, 0.7))


def test_the_interval_is_that_of_all_resamples():
    # Two runs: (0, 0), (1, 1) and twice (0, 1), so means 0, 1/2 and 1 with chances 1/4, 1/2, 1/4;
    # 2.5 % from either end lies in the outer quarters.
    assert curves.interval([0.0, 1.0]) == (0.0, 1.0)
    # Three runs at 0 and three at 1. Their mean in a resample is that of the middle four of six
    # fair coins in order, so 0 takes five tails or more: 7/64 > 2.5 %, and 1 likewise.
    assert curves.interval([0.0, 0, 0, 1, 1, 1]) == (0.0, 1.0)
    # One of six at 1. Drawn k times it is k - 1 of the middle four: 0.5 with k = 3, 0.75 with
    # k = 4. 6.2 % of resamples have k >= 3 and 0.9 % k >= 4, so the upper end is 0.5.
    assert curves.interval([0.0, 0, 0, 0, 0, 1]) == (0.0, 0.5)


def test_the_interval_goes_along_the_curve():
    ends = curves.interval([[0.0, 0.5], [1.0, 0.5]])
    np.testing.assert_allclose(np.array(ends), [[0, 0.5], [1, 0.5]])


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], 0.0),
        ([0.5, 0.6, 0.9], 0.0),
        ([0.5, 0.8, 0.95, 0.7, 0.9], 0.25),  # 0.95 -> 0.7
        ([0.6, 0.1, 0.9, 0.8], 0.5),  # before the peak counts too
        ([0.6, 0.2, 0.3], 0.4),  # below the base policy, which comes first
    ],
)
def test_the_largest_fall(scores, expected):
    assert curves.largest_fall(scores) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.5, (0, 6.0)), (0.8, (100, 60.0)), (0.81, (200, 120.0)), (0.96, None)],
)
def test_the_first_evaluation_at_a_threshold(threshold, expected):
    assert curves.first_reach(CURVE, threshold) == expected


def test_the_median_is_of_runs_that_all_reached_it():
    slower = [(0, 1.0, 0.5), (100, 300.0, 0.2), (200, 700.0, 0.9)]
    # 0.9 after 200 decisions in both; after 120 and 700 seconds
    assert curves.median_reach([CURVE, slower], 0.9) == (200, 410)
    assert curves.median_reach([CURVE, slower], 0.95) is None  # one did not
    assert curves.median_reach([CURVE], 0.95) == (200, 120)


def test_curves_meet_on_the_grid_of_all_their_points():
    first = np.array([1.0, 3.0, 5.0]), np.array([0.0, 1.0, 0.0])
    second = np.array([2.0, 4.0, 9.0]), np.array([0.0, 0.5, 1.0])
    grid, values = curves.on_shared_grid([first, second])
    np.testing.assert_allclose(grid, [2, 3, 4, 5])  # from the later start to the earlier end
    np.testing.assert_allclose(values, [[0.5, 1.0, 0.5, 0.0], [0.0, 0.25, 0.5, 0.6]])


def test_curves_that_never_overlap_share_nothing():
    early, late, y = np.array([0.0, 1.0]), np.array([2.0, 3.0]), np.array([0.0, 1.0])
    grid, values = curves.on_shared_grid([(early, y), (late, y)])
    assert grid.size == 0 and values.shape == (2, 0)


def test_points_are_what_the_records_say():
    record = {"group": "eval", "decision_steps": 64, "wall_s": 1.26, "success_once": 0.5, "x": 1}
    assert curves.points([record]) == [(64, 1.3, 0.5)]
