"""Paired evaluation: intervals against hand-computed and published numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.rollout.evaluate import Evaluation
from pdjax.rollout.intervals import mean_gain, rate_gain, score_of, summarize, wilson


def outcomes(both, only_refined, only_base, neither):
    """(base, refined), bool, with these counts of episodes."""
    counts = (both, only_refined, only_base, neither)
    base = np.repeat([True, False, True, False], counts)
    refined = np.repeat([True, True, False, False], counts)
    return base, refined


def test_wilson_by_hand():
    # z^2 = 3.841459; centre (0.8 + 0.192073) / 1.384146 = 0.716740
    # half = 1.959964 / 1.384146 * sqrt(0.8 * 0.2 / 10 + 3.841459 / 400) = 0.226578
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=2e-6)
    # none of 4: z^2/n / (1 + z^2/n) = 0.960365 / 1.960365
    assert wilson(0, 4) == pytest.approx((0.0, 0.489891), abs=2e-6)
    low, high = wilson(4, 4)
    assert (low, high) == pytest.approx((1 - 0.489891, 1.0), abs=2e-6)


def test_paired_gain_is_newcombes_method_10():
    # Newcombe 1998, Statistics in Medicine 17: 2635, table III, a, b, c, d = 36, 12, 2, 0
    gain, (low, high) = rate_gain(*outcomes(36, 12, 2, 0))
    assert gain == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_paired_gain_by_hand_with_a_positive_correlation():
    # a, b, c, d = 6, 2, 0, 2: refined 8/10 in [0.490162, 0.943318], base 6/10 in
    # [0.312674, 0.831820]; a d - b c = 12, less n/2 = 7; phi = 7 / sqrt(8 * 2 * 6 * 4) = 0.357217
    # down^2 = 0.309838^2 - 2 phi 0.309838 * 0.231820 + 0.231820^2 = 0.098424
    # up^2 = 0.287326^2 - 2 phi 0.287326 * 0.143318 + 0.143318^2 = 0.073676
    gain, (low, high) = rate_gain(*outcomes(6, 2, 0, 2))
    assert gain == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.2 - 0.313725, 0.2 + 0.271433), abs=2e-5)


def test_a_change_of_roles_changes_the_sign():
    base, refined = outcomes(20, 9, 3, 8)
    gain, (low, high) = rate_gain(base, refined)
    back, (back_low, back_high) = rate_gain(refined, base)
    assert (back, back_low, back_high) == pytest.approx((-gain, -high, -low))


def test_equal_policies_gain_nothing_and_certainty_grows_with_episodes():
    few, many = (rate_gain(*outcomes(n, 0, 0, n))[1] for n in (5, 500))
    assert few[0] < many[0] < 0 < many[1] < few[1]
    assert rate_gain(*outcomes(5, 0, 0, 5))[0] == 0
    low, high = rate_gain(*outcomes(10, 0, 0, 0))[1]
    assert -0.4 < low < 0 < high < 0.4


def evaluation(success, at_end, steps):
    count = len(success)
    return Evaluation(
        success_once=jnp.array(success),
        success_at_end=jnp.array(at_end),
        steps_to_success=jnp.array(steps),
        smoothness=jnp.arange(count, dtype=jnp.float32),
        saturation=jnp.full(count, 0.25),
        returns=jnp.array(success, jnp.float32),
        qpos=None,
    )


def test_summary_by_hand():
    base = evaluation([True, False, False, False], [False] * 4, [10, 50, 50, 50])
    refined = evaluation([True, True, True, False], [True, True, False, False], [8, 20, 32, 50])
    summary = summarize(base, refined)
    assert summary["episodes"] == 4
    assert (summary["base_success"], summary["refined_success"]) == (0.25, 0.75)
    assert (summary["base_success_at_end"], summary["refined_success_at_end"]) == (0.0, 0.5)
    assert summary["gain"] == 0.5
    assert summary["refined_ci"] == list(wilson(3, 4))
    assert summary["refined_at_end_ci"] == list(wilson(2, 4))
    # over successful episodes only
    assert (summary["base_steps_to_success"], summary["refined_steps_to_success"]) == (10.0, 20.0)
    assert summary["base_smoothness"] == 1.5
    assert summary["refined_saturation"] == 0.25


def test_steps_to_success_are_unknown_without_success():
    failed = evaluation([False, False], [False, False], [50, 50])
    summary = summarize(failed, failed)
    assert summary["base_steps_to_success"] is None
    assert summary["gain"] == 0


def test_a_gain_in_return_has_the_interval_of_a_paired_t_test():
    # differences 1, 2, 3: mean 2, deviation 1; t(0.975, 2) = 4.302653, over sqrt(3): 2.484138
    gain, (low, high) = mean_gain([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    assert gain == pytest.approx(2.0)
    assert (low, high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)
    assert np.isnan(mean_gain([1.0], [2.0])[1]).all()


def test_without_success_a_summary_compares_returns():
    def without(returns):
        found = evaluation([False] * 3, [False] * 3, [50] * 3)
        return found._replace(success_once=None, success_at_end=None, returns=np.array(returns))

    summary = summarize(without([0.0, 1.0, 2.0]), without([1.0, 3.0, 5.0]))
    assert summary["base_success"] is None and summary["refined_steps_to_success"] is None
    assert (summary["base_return"], summary["refined_return"], summary["gain"]) == (1.0, 3.0, 2.0)
    assert score_of(summary, "refined") == 3.0
    assert score_of({"success_once": 0.25, "return": 7.0}) == 0.25
    assert score_of({"success_once": None, "return": 7.0}) == 7.0
