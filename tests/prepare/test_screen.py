"""Screening: verdicts and figures that can be derived by hand."""

import dataclasses
import json
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdjax
from pdjax.base_policies.foreign import exported
from pdjax.commands import cli
from pdjax.config import files as configs
from pdjax.config.files import preset
from pdjax.prepare import screen
from tests.probe import make_constant_policy, make_point_env, make_point_task, registered

# The point starts uniformly in [-0.1, 0.1] and moves by velocity / 10 per step, for 5 steps in
# chunks of one. At 0.85 it ends at start + 0.425, and solves |x - 0.5| < 0.1 if start > -0.025:
# 62.5 % of episodes. At 1 it always passes 0.4; at -1 it never does.
EPISODES = 200


POINT = {"episode_steps": 5, "tolerance": 0.1}


def screened(velocity, goal=0.5, episodes=EPISODES):
    base = make_constant_policy(velocity, act_horizon=1)
    return screen.screen(make_point_env(goal=goal, **POINT), base, episodes, seed=0).summary


def test_a_perfect_base_leaves_nothing():
    summary = screened(1.0)
    assert summary["verdict"] == "nothing left to refine" and summary["base_success"] == 1.0
    # from 0.1 four steps lead past 0.4 (and three at most to 0.4), from -0.1 + 0.5 the fifth
    assert summary["steps_to_success_10_50_90"][0] == 4.0
    assert summary["failures"] == 0 and summary["undone"] == 0
    assert summary["near_bounds"] == 1.0 and summary["worst_action_number"] == 0


def test_a_hopeless_base_is_to_be_improved():
    summary = screened(-1.0)
    assert summary["verdict"] == "improve the base first" and summary["base_success"] == 0.0
    assert summary["failures"] == EPISODES and summary["steps_to_success_10_50_90"] is None
    assert summary["explorable_scale"] is None


def test_a_middling_base_is_to_be_refined():
    summary = screened(0.85)
    assert summary["verdict"] == "refine"
    assert summary["near_bounds"] == 0.0
    # A residual uniform in +-0.5 adds 0.1 * 0.5 * sum of 5 draws: mean 0, deviation 0.065. Half of
    # the successes are kept at every scale, since start + that is below -0.025 half of the time at
    # most (clipping at 1 takes a little): the largest tried can be explored.
    assert summary["explorable_scale"] == summary["residual_scale"] == 0.5
    for scale in summary["scales"]:
        low, high = scale["ci"]
        assert low <= scale["success"] <= high and scale["success"] > 0.3


def test_rates_under_random_residuals_are_those_of_the_same_game_in_numpy():
    summary = screened(0.85, episodes=2_000)
    assert abs(summary["base_success"] - 0.625) < 0.045  # 4 deviations
    rng = np.random.default_rng(0)
    start = rng.uniform(-0.1, 0.1, 20_000)
    for scale in summary["scales"]:
        draws = scale["residual_scale"] * rng.uniform(-1, 1, (20_000, 5))
        path = start[:, None] + 0.1 * np.cumsum(np.clip(0.85 + draws, -1, 1), axis=1)
        expected = (np.abs(path - 0.5) < 0.1).any(axis=1).mean()
        assert abs(scale["success"] - expected) < 0.045, scale  # 4 deviations of 2,000 episodes


def test_the_verdict_by_hand():
    # 200 of 200: Wilson's lower end 200 / 203.84 = 98.1 %; 98 of 98: 98 / 101.84 = 96.2 %
    assert screen.judge(200, [200] * 6, 200)[0] == screen.NOTHING
    assert screen.judge(98, [98] * 6, 98)[0] == screen.REFINE
    # 4 of 200 = 2 %, upper end 5 %; 1 of 30 = 3.3 %, but its upper end is 17 %
    assert screen.judge(4, [4] * 6, 200)[0] == screen.IMPROVE
    assert screen.judge(1, [1] * 6, 30)[0] == screen.REFINE
    # 30 %, but never with a random residual
    verdict, reasons = screen.judge(60, [0] * 6, 200)
    assert verdict == screen.IMPROVE and "never with random residuals" in reasons[0]


def test_the_recommendation_by_hand():
    # 100 of 200 alone; half is kept up to 0.1, a quarter up to 0.2. Midway between 100 and 40 of
    # 200: 35 %; 50 examples of 50 decisions: 7,143 decisions, rounded up to 7 * 1,024.
    found = screen.recommend(100, [90, 80, 60, 40, 10, 0], 200, decisions=50)
    wanted = {"explorable_scale": 0.1, "residual_scale": 0.2, "exploration_steps": 7_168}
    assert found == wanted | {"kept_success": 0.125}
    # Nothing keeps a quarter: the smallest; (100 + 20) / 2 of 200 = 30 %: 8,333 -> 9 * 1,024
    found = screen.recommend(100, [20, 10, 0, 0, 0, 0], 200, decisions=50)
    wanted = {"explorable_scale": None, "residual_scale": 0.02, "exploration_steps": 9_216}
    assert found == wanted | {"kept_success": 0.125}
    # The recorded recipe of PegInsertionSide is 0.1 and 8,192; a base of 33 % and what was measured
    # under random residuals of it: 50 * 50 / ((66 + 25) / 2 / 200) = 10,989 -> 11 * 1,024
    found = screen.recommend(66, [61, 39, 25, 0, 0, 0], 200, decisions=50)
    wanted = {"explorable_scale": 0.05, "residual_scale": 0.1, "exploration_steps": 11_264}
    assert found == wanted | {"kept_success": 0.0825}


def test_the_settings_for_a_new_task_by_hand():
    # 5,120 decisions make 640 updates, 4 half-lives; 4 times as many decisions are 5 epochs
    assert screen.suit({"residual_scale": 0.3, "exploration_steps": 5_120}) == {
        "decorator.residual_scale": 0.3,
        "decorator.exploration_steps": 5_120,
        "sac.penalty_half_life": 160.0,
        "train.learning_starts": 2_560,
        "train.total_decisions": 20_480,
        "eval.interim_every": 4_096,
    }


@pytest.mark.slow
def test_the_settings_gain_on_a_task_that_no_config_knows(tmp_path, monkeypatch):
    """The MuJoCo task of the examples, on which the preset alone gains nothing."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    sys.modules.pop("slot", None)
    import slot  # pyright: ignore[reportMissingImports]

    task, base = slot.make_task(), slot.make_base()
    found = pdjax.screen(base, task, episodes=100).summary
    assert found["verdict"] == screen.REFINE
    changes = {}
    for name, value in found["settings"].items():
        section, _, key = name.partition(".")
        changes.setdefault(section, {})[key] = value
    with jax.debug_key_reuse(False):
        config = pdjax.load_config("fast", **changes)
        run = pdjax.train(config, base=base, task=task, out=tmp_path / "run")
    assert run.summary["gain_ci"][0] > 0.3


def test_no_disturbance_is_the_policy_bit_for_bit():
    def apply(params, carry, obs_history, key):
        return jax.random.uniform(key, (2, 1), minval=-1.0), carry

    base = make_constant_policy()._replace(apply=apply)
    disturbed = screen.disturb(base)

    def act(policy, params, seed):
        key = jax.random.key(seed)
        return np.asarray(policy.apply(params, jnp.int32(0), jnp.zeros((2, 3)), key)[0])

    at = lambda scale: {"base": base.params, "scale": jnp.float32(scale)}  # noqa: E731
    alone = act(base, base.params, 0)
    np.testing.assert_array_equal(act(disturbed, at(0.0), 0), alone)
    changed = act(disturbed, at(0.3), 0) - alone
    assert 0 < np.abs(changed).max() <= 0.3 + 1e-6
    np.testing.assert_allclose(changed[0], changed[1], atol=1e-6)  # constant within the chunk


@pytest.fixture
def point(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with registered(make_point_task(**POINT)):
        yield


def test_the_command_draws_and_ends_with_a_command_that_parses(point, tmp_path, capsys):
    exported.export_policy(make_constant_policy(0.85, act_horizon=1), tmp_path / "base", "Point")
    assert cli.main(["screen", "base", "--task", "Point", "--episodes", "64", "--json"]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    assert summary["verdict"] == "refine" and "verdict: refine" in captured.err
    assert (tmp_path / "screen.png").stat().st_size > 10_000
    words = shlex.split(summary["command"])
    assert summary["command"] in captured.err
    config = configs.load(words[2], words[words.index("--set") + 1 :])
    assert config.base_policy.path == "base" and config.task.name == "Point"
    assert config.decorator.residual_scale == summary["residual_scale"]
    assert config.decorator.exploration_steps == summary["exploration_steps"]
    assert config.train.total_decisions >= 4 * summary["exploration_steps"]
    half_life = summary["settings"]["sac.penalty_half_life"]
    assert config.sac == dataclasses.replace(preset("fast").sac, penalty_half_life=half_life)
    # the picture exists now, and is not overwritten
    assert cli.main(["screen", "base", "--task", "Point", "--out", "screen.png"]) == 2
    assert "screen.png exists already" in capsys.readouterr().err
    before = (tmp_path / "screen.png").read_bytes()
    assert cli.main(["screen", "base", "--task", "Point", "--episodes", "8"]) == 0
    assert (tmp_path / "screen2.png").exists()
    assert (tmp_path / "screen.png").read_bytes() == before


def test_mistakes(point, capsys):
    for argv, words in {
        ("base", "--task", "Point"): "no usable base policy in base",
        ("base", "--task", "Point", "--out", "x.jpg"): "x.jpg must end in .png",
        ("base",): "required: --task",
    }.items():
        assert cli.main(["screen", *argv]) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and words in captured.err
