"""A run of a task in a file keeps a copy of it: for resuming, evaluating and drawing."""

import json
import os
import shutil
from pathlib import Path

import pytest

from pdjax.commands import cli
from tests.training.test_run import SMALL, ask, refused

POLICY = """
import numpy as np

def act(obs_history):
    return np.clip(obs_history[:, :, 10:12] * 5, -1, 1).astype(np.float32)
"""
SETTINGS = [*SMALL, "task.name=push.py:make_task"]


def train(capsys, *more, out="run", settings=SETTINGS):
    return ask(capsys, "train", "peg_fast", "--out", out, *more, "--set", *settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a task's file, a base policy and a finished run; the tests take copies."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    Path("hand.py").write_text(POLICY)
    assert cli.main(["envs", "new", "push.py"]) == 0
    name = ["--task", "push.py:make_task"]
    assert cli.main(["wrap", "hand.py:act", *name, "--episodes", "4", "--out", "base"]) == 0
    assert cli.main(["train", "peg_fast", "--out", "run", "--set", *SETTINGS]) == 0
    os.chdir(before)
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of that folder, which is the working folder."""
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def test_the_run_holds_the_file_and_its_model(here):
    assert json.loads(Path("base/policy.json").read_text())["task"] == "Push"
    assert json.loads(Path("run/result.json").read_text())["gradient_steps"] > 0
    for name in ("push.py", "push.xml"):
        assert Path("run/task", name).read_bytes() == Path(name).read_bytes()


def test_evaluating_and_comparing_need_only_the_run(here, capsys):
    for name in ("push.py", "push.xml", "hand.py"):
        Path(name).unlink()
    Path("run").rename("elsewhere")
    code, said = ask(capsys, "eval", "elsewhere", "--episodes", "4")
    assert code == 0, said
    assert "running Python code: elsewhere/task/push.py" in said, said
    code, said = ask(capsys, "compare", "elsewhere", "--out", "a.png")
    assert code == 0 and any("push.py:make_task" in line for line in said), said


def test_resuming_goes_on_with_the_copy(here, capsys):
    shutil.copytree("run", "whole")
    before = json.loads(Path("run/result.json").read_text())
    shutil.rmtree("run/checkpoints/128")
    Path("run/result.json").unlink()
    text = Path("push.py").read_text()
    Path("push.py").write_text(text.replace("NEAR = 0.02", "NEAR = 20.0"))  # always solved
    code, said = train(capsys, "--resume")
    assert code == 0, said
    assert any("push.py has changed since the run began" in line for line in said), said
    after = json.loads(Path("run/result.json").read_text())
    assert {k: v for k, v in after.items() if k != "wall_s"} == {
        k: v for k, v in before.items() if k != "wall_s"
    }


def test_from_another_folder_the_name_may_differ_but_not_the_task(here, capsys, monkeypatch):
    Path("work").mkdir()
    monkeypatch.chdir("work")
    moved = [*SMALL, "task.name=../push.py:make_task", "base_policy.path=../base"]
    assert train(capsys, "--resume", out="../run", settings=moved)[0] == 0
    Path("push.py").write_text("def make_task(): ...")
    other = [*SMALL, "task.name=push.py:make_task", "base_policy.path=../base"]
    assert train(capsys, "--resume", out="../run", settings=other)[0] == 0  # the name is the run's
    Path("../far").mkdir()
    Path("../far/push.py").write_text("def make_task(): ...")
    other[-2] = "task.name=../far/push.py:make_task"
    said = refused(train(capsys, "--resume", out="../run", settings=other))
    assert "begun with task.name='push.py:make_task', got '../far/push.py:make_task'" in said


def test_a_damaged_copy_is_told(here, capsys):
    Path("run/result.json").unlink()
    Path("run/task/push.xml").write_text("<mujoco/>")
    said = refused(train(capsys, "--resume"))
    assert "the task in run/task is not the one that the run began with (push.xml has ch" in said
    said = refused(ask(capsys, "eval", "run"))
    assert "the task in run/task is not the one" in said


def test_a_run_plays_in_another_task_of_the_same_sizes(here, capsys):
    text = Path("push.py").read_text().replace("NEAR = 0.02", "NEAR = 20.0")  # always solved
    Path("easy.py").write_text(text)
    command = ["eval", "run", "--episodes", "8", "--set"]
    code, said = ask(capsys, *command, "task.name=easy.py:make_task")
    assert (
        code == 0
        and "trained in run/task/push.py:make_task, evaluated in easy.py:make_task" in said
    )
    (solved,) = [line for line in said if "success_once" in line]
    assert solved.count("100.0%") == 2
    code, said = ask(capsys, *command, "task.shift=sensor_noise")
    assert code == 0 and not any("100.0%" in line or "trained" in line for line in said)
    said = refused(ask(capsys, *command, "task.name=AdroitDoor"))
    assert "but task.name is AdroitDoor (obs_dim 39, act_dim 28)" in said
    said = refused(ask(capsys, *command, "sac.gamma=0.5"))
    assert "--set got 'sac.gamma=0.5', expected keys of the task here" in said
