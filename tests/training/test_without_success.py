"""A task without success is judged by its return, from the screening to the comparison of runs."""

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

import pdjax
from pdjax.base_policies.foreign import exported
from pdjax.commands import cli
from pdjax.config import files as configs
from tests.probe import make_constant_policy, make_point_task, registered
from tests.profile.test_profile import TINY

GAINING = [
    "decorator.residual_scale=0.3",
    "decorator.exploration_steps=0",
    "sac.residual_penalty=0",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The point, whose dense reward is its position: the farther, the better."""
    monkeypatch.chdir(tmp_path)
    exported.export_policy(make_constant_policy(0.2), Path("base"), "Point")
    with registered(dataclasses.replace(make_point_task(), has_success=False)):
        yield tmp_path


def test_it_is_trained_compared_and_exported_by_its_return(here, capsys):
    sets = [*TINY, *GAINING, "train.learning_starts=64", "train.total_decisions=1024"]
    sets += ["eval.episodes=16", "eval.interim_every=256", "guard.hopeless_decisions=64"]
    argv = ["train", "peg_fast", "--out", "run", "--set", *sets]
    assert cli.main(argv) == 2  # the success that the config asks for would always be 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "Point has no success" in line and "set task.reward=dense" in line

    assert cli.main([*argv, "task.reward=dense"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "success" not in said and "%," not in said and "gain: +" in said
    result = json.loads(Path("run/result.json").read_text())
    assert result["base_success"] is None and result["gain_ci"][0] > 0
    assert result["gain"] == pytest.approx(result["refined_return"] - result["base_return"])
    assert result["decision_steps"] == 1024  # nobody gave up hope
    assert not Path("run/audit.jsonl").exists()
    run = pdjax.load_run("run")
    assert run.evaluation is not None and run.evaluation.base.success_once is None
    # The best interim actor was kept: it is better than the base policy, which came first.
    assert run.curve["return"][0] < np.max(run.curve["return"])

    assert cli.main(["compare", "run", "--json"]) == 0
    captured = capsys.readouterr()
    (group,) = json.loads(captured.out)["groups"]
    assert not group["is_rate"] and group["refined_success"] == result["refined_return"]
    assert "success" not in captured.err
    assert cli.main(["eval", "run", "--episodes", "8"]) == 0
    assert cli.main(["eval", "run", "--episodes", "8", "--failures"]) == 2
    assert "Point has no success, so no episode fails" in capsys.readouterr().err
    assert cli.main(["export", "run", "--out", "out", "--episodes", "8"]) == 0
    assert "out: return" in capsys.readouterr().err


def test_it_is_screened_by_its_return(here, capsys):
    assert cli.main(["screen", "base", "--task", "Point", "--episodes", "16", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["verdict"] == "refine" and found["base_success"] is None
    # 8 steps of 0.02: 0.02 * 36 = 0.72 and 8 times a start of 0 on average, which random residuals
    # do not change on average
    assert found["base_return"] == pytest.approx(0.72, abs=0.3)
    assert found["scales"][0]["success"] == pytest.approx(found["base_return"], abs=0.1)
    words = shlex.split(found["command"])
    config = configs.load(words[2], words[words.index("--set") + 1 :])
    assert config.task.reward == "dense"


def test_a_picture_that_a_task_lacks_is_not_blamed_on_the_machine(here, capsys):
    sets = [*TINY, "train.total_decisions=128", "train.learning_starts=64", "eval.episodes=2"]
    sets += ["task.reward=dense"]
    assert cli.main(["train", "peg_fast", "--out", "run", "--set", *sets]) == 0
    capsys.readouterr()
    assert cli.main(["render", "run", "--out", "v.gif"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "cannot draw Point: this task has no model to draw" in said and "EGL" not in said
