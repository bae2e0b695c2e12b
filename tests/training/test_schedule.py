"""How a run is divided, and what is said where a config does not divide into whole units."""

import dataclasses

import pytest

from pdjax.config.schema import ConfigError
from pdjax.training import schedule
from tests.training.test_epoch import small_config


def test_a_budget_is_rounded_up_to_whole_epochs_and_said():
    config = small_config(total_decisions=2_000, decisions_per_epoch=512)
    assert schedule.whole_epochs(config) == 2_048
    (line,) = schedule.describe_rounding(config)
    assert line.startswith("train.total_decisions=2,000 becomes 2,048: whole epochs of 512")
    config = small_config(total_decisions=2_048, decisions_per_epoch=512)
    assert schedule.whole_epochs(config) == 2_048
    assert schedule.describe_rounding(config) == []


def test_a_replay_that_loses_much_to_rounding_is_said():
    config = small_config(total_decisions=1_024, decisions_per_epoch=512)
    train = config.train
    capacity = train.decisions_per_round * 3 - 1
    config = dataclasses.replace(config, train=dataclasses.replace(train, replay_capacity=capacity))
    (line,) = schedule.describe_rounding(config)
    kept = train.decisions_per_round * 2
    assert line.startswith(f"train.replay_capacity={capacity:,} becomes {kept:,}: whole rounds")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"total_decisions": 2_000, "learning_starts": 4_000}, "so nothing would be learnt"),
        ({"total_decisions": 2**31 - 1}, "is more than 32 bits can count"),
    ],
)
def test_a_budget_in_which_nothing_is_learnt_or_counted_is_refused(train, message):
    with pytest.raises(ConfigError, match=message):
        schedule.whole_epochs(small_config(decisions_per_epoch=512, **train))
