"""The guard's rules, each at and beyond its threshold."""

import math

import numpy as np
import pytest

from pdjax.config.schema import GuardConfig
from pdjax.training import guard
from pdjax.training.guard import Verdict

CONFIG = GuardConfig()
FINE = {"q_mean": 0.5, "cut_episodes": 0.0, "anomalies": 0.0, "drift": 0.02, "actor_loss": -0.1}


def judged(limit=1.0, first_drift=0.02, **changes):
    found = guard.check_epoch(CONFIG, FINE | changes, limit, first_drift)
    return [(verdict.rule, verdict.action) for verdict in found]


def test_a_healthy_epoch_gives_no_verdict():
    assert judged() == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite(value):
    (verdict,) = guard.check_epoch(CONFIG, FINE | {"actor_loss": value}, 1.0, 0.02)
    assert (verdict.rule, verdict.action) == ("non_finite", "roll_back")
    assert list(verdict.numbers) == ["actor_loss"]


def test_critics_that_claim_more_than_ten_times_what_rewards_allow():
    assert judged(q_mean=-10.0) == []
    assert judged(q_mean=-10.1) == [("exploding_q", "roll_back")]
    assert judged(q_mean=1e9, limit=math.inf) == []  # another reward: nothing is known


def test_anomalies_and_drift_shrink():
    assert judged(anomalies=0.01, drift=0.07) == []
    assert judged(anomalies=0.011, drift=0.071) == [("anomalies", "shrink"), ("drift", "shrink")]


def test_worse_than_the_base_only_with_confidence_and_by_the_margin():
    assert guard.check_evaluation(CONFIG, -0.2, (-0.4, -0.05), 0.5) == []
    (verdict,) = guard.check_evaluation(CONFIG, -0.2, (-0.3, -0.06), 0.0)
    assert (verdict.rule, verdict.action) == ("below_base", "shrink")
    (verdict,) = guard.check_evaluation(CONFIG, 0.2, (0.1, 0.3), 0.51)
    assert (verdict.rule, verdict.action) == ("saturation", "note")


def test_hope_and_perfection():
    assert guard.check_base(CONFIG, 63, 64) == []
    assert guard.check_base(CONFIG, 64, 64)[0].action == "stop"
    assert guard.check_hope(CONFIG, 0, 0.0, 49_999) == []
    assert guard.check_hope(CONFIG, 0, 1.0, 50_000) == []
    assert guard.check_hope(CONFIG, 1, 0.0, 50_000) == []
    assert guard.check_hope(CONFIG, 0, 0.0, 50_000)[0].action == "stop"


def test_the_most_severe_action_counts():
    verdicts = [Verdict("a", action, {}) for action in ("shrink", "stop", "roll_back", "note")]
    assert guard.worst(verdicts) == "stop"
    assert guard.worst(verdicts[2:]) == "roll_back"
    assert guard.worst([]) == "note"


def test_the_largest_return():
    # 1 at the last decision only; with -1 each decision: -1 - 0.97 - 0.97^2 ... = -1 / 0.03
    assert guard.largest_return(0.98, 0.0) == 1.0
    assert guard.largest_return(0.97, -1.0) == pytest.approx(100 / 3)
    assert guard.largest_return(1.0, -1.0) == math.inf


def test_entropy_that_critics_count_is_no_explosion():
    # 2 nats, each worth 0.5, in each decision, discounted by 0.9: 1 / 0.1
    metrics = {"temperature": 0.5, "entropy": -2.0}
    assert guard.largest_bonus(metrics, -1.0, 0.9) == pytest.approx(10.0)
    assert guard.largest_bonus(metrics, -4.0, 0.9) == pytest.approx(20.0)
    assert guard.largest_bonus(metrics, -1.0, 1.0) == math.inf


def test_cut_episodes_are_noted():
    (verdict,) = guard.check_epoch(CONFIG, FINE | {"cut_episodes": 3.0}, 1.0, 0.02)
    assert verdict == Verdict("cut_episodes", "note", {"episodes": 3.0})


def test_an_actor_that_is_not_finite_rolls_back():
    assert guard.check_actor({"w": np.zeros(2)}) == []
    (verdict,) = guard.check_actor({"w": np.array([0.0, np.inf])})
    assert (verdict.rule, verdict.action) == ("non_finite", "roll_back")


def test_the_margin_below_the_base_is_a_share_of_its_return():
    assert guard.check_evaluation(CONFIG, -40.0, (-90.0, -49.0), 0.0, unit=1000.0) == []
    (verdict,) = guard.check_evaluation(CONFIG, -60.0, (-90.0, -51.0), 0.0, unit=1000.0)
    assert (verdict.rule, verdict.numbers["margin"]) == ("below_base", 50.0)
