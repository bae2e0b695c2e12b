"""Runs whose numbers are not finite: in the residual policy, or now and then in the base policy."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from pdjax.base_policies.foreign import exported
from pdjax.commands import cli
from pdjax.output import checkpoint
from pdjax.runs.load import load_refined
from tests.probe import make_constant_policy, make_point_task, registered
from tests.profile.test_profile import TINY


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with registered(make_point_task()):
        yield tmp_path


SOMETIMES = """
import os
import numpy as np

class policy:
    def init_carry():
        return np.zeros((), np.float32)

    def act(carry, obs_history, seed):
        action = np.full((len(seed), 2, 1), 0.2, np.float32)
        if os.environ.get("BAD"):
            action[seed % 7 == 3] = np.nan  # as a policy that divides by zero now and then
        return action, carry
"""


def train(out, *sets, flags=()):
    settings = [*TINY, "train.learning_starts=64", *sets]
    return cli.main(["train", "peg_fast", "--out", out, *flags, "--set", *settings])


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_run_that_diverges_keeps_the_base_policy(here, capsys):
    exported.export_policy(make_constant_policy(0.9), Path("base"), "Point")
    huge = ["sac.actor_lr=1e38", "sac.critic_lr=1e38", "train.total_decisions=512"]
    assert train("run", *huge, "eval.interim_episodes=0", "eval.episodes=8") == 0
    result = json.loads(Path("run/result.json").read_text())
    assert result["base_success"] == result["refined_success"] == 1.0
    assert result["base_smoothness"] == result["refined_smoothness"] == 0.0
    said = " ".join(capsys.readouterr().err.split())
    assert "the residual policy diverged" in said and "gain: +0.0 points" in said

    # A directory from before, with what has diverged in it.
    actor = load_refined(Path("run")).actor
    checkpoint.save(Path("broken"), jax.tree.map(lambda leaf: np.asarray(leaf) + np.nan, actor))
    Path("run/residual").rename("kept")
    Path("broken").rename("run/residual")
    for argv in (
        ["eval", "run"],
        ["export", "run", "--out", "o"],
        ["render", "run", "--out", "v.gif"],
    ):
        capsys.readouterr()
        assert cli.main(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "run/residual holds numbers that are not finite" in line
    assert not Path("o").exists()


@jax.debug_key_reuse(False)  # as in `test_members`
def test_a_base_policy_that_gives_nan_now_and_then_is_refined_all_the_same(
    here, capsys, monkeypatch
):
    Path("sometimes.py").write_text(SOMETIMES)
    assert cli.main(["wrap", "sometimes.py:policy", "--task", "Point", "--out", "base"]) == 0
    monkeypatch.setenv("BAD", "1")  # only now, because `wrap` refuses such a policy
    sets = ["train.total_decisions=256", "eval.episodes=8"]
    assert train("runs", *sets, flags=["--members", "2"]) == 0
    said = capsys.readouterr().err
    assert "episodes cut short by numbers that are not finite" in " ".join(said.split())
    for member in ("member_0", "member_1"):
        epochs = [r for r in lines(f"runs/{member}/metrics.jsonl") if r["group"] == "train"]
        assert len(epochs) == 4 and all(None not in record.values() for record in epochs)
        assert epochs[-1]["gradient_steps"] > 0 and epochs[0]["cut_episodes"] > 0
        rules = {record["rule"] for record in lines(f"runs/{member}/audit.jsonl")}
        assert "cut_episodes" in rules and "non_finite" not in rules
    assert train("runs", *sets, flags=["--members", "2", "--resume"]) == 0
