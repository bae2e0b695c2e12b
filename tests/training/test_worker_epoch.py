"""Training in worker processes, through the command: learning, overlap, resuming, refusals."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pdjax.base_policies.foreign import exported
from pdjax.commands import cli
from pdjax_envs import from_gymnasium
from tests.rollout.test_workers import CODE, make_base
from tests.training.test_run import SMALL, ask, refused

SETTINGS = [
    *SMALL,
    "task.name=walk.py:make_env",
    "task.workers=2",
    "eval.interim_every=128",
    "decorator.exploration_steps=0",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with an environment, a base policy and a finished run; the tests take copies."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    Path("walk.py").write_text(CODE)
    exported.export_policy(make_base(), Path("base"), "walk.py:make_env")
    assert cli.main(["train", "peg_fast", "--out", "run", "--set", *SETTINGS]) == 0
    os.chdir(before)
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of that folder, which is the working folder."""
    shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")


def train(capsys, out, *more, settings=()):
    return ask(capsys, "train", "peg_fast", "--out", out, *more, "--set", *SETTINGS, *settings)


def read(run):
    """The result and the records of a run, without times."""
    result = json.loads(Path(run, "result.json").read_text())
    lines = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in one.items() if k != "wall_s"} for one in (result, *lines)]


def leftovers():
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False)
    return [line for line in listed.stdout.splitlines() if "workers/worker.py" in line]


def test_a_run_learns_and_repeats(here, capsys):
    assert train(capsys, "again")[0] == 0
    first, again = read("run"), read("again")
    assert first == again
    assert first[0]["gradient_steps"] == 28 and first[0]["decision_steps"] == 128
    assert Path("run/task/walk.py").read_text() == CODE
    assert all(line["restarts"] == 0 for line in first if line.get("group") == "train")


def test_without_overlap_the_newest_policy_acts(here, capsys):
    assert train(capsys, "alone", settings=["train.overlap=false"])[0] == 0
    alone, overlapped = read("alone")[0], read("run")[0]
    assert alone["gradient_steps"] == overlapped["gradient_steps"] == 28
    assert read("alone") != read("run")


def test_the_number_of_workers_changes_nothing(here, capsys):
    assert train(capsys, "one", settings=["task.workers=1"])[0] == 0
    assert read("one") == read("run")


def test_resuming_goes_on_with_new_episodes(here, capsys):
    shutil.rmtree("run/checkpoints/128")
    Path("run/result.json").unlink()
    code, said = train(capsys, "run", "--resume")
    assert code == 0, said
    result, *lines = read("run")
    assert result["gradient_steps"] == 28 and result["decision_steps"] == 128
    (last,) = [one for one in lines if one.get("group") == "train" and one["decision_steps"] == 128]
    assert last["cut_episodes"] > 0  # those that were lost with the first process
    assert any("begin new episodes" in line for line in said), said


def test_evaluating_needs_only_the_run(here, capsys):
    before = json.loads(Path("run/result.json").read_text())
    for name in ("walk.py", "base"):
        Path(name).rename(f"{name}.gone")
    code = cli.main(["eval", "run", "--episodes", "8", "--seed", "10000", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0 and found["base_success"] == before["base_success"]


def test_what_it_cannot_do_is_refused_in_one_line(here, capsys):
    said = refused(train(capsys, "two", "--members", "2"))
    assert "trains one run at a time, not 2 members" in said
    said = refused(train(capsys, "new", settings=["task.shift=mass"]))
    assert "takes no shift" in said
    said = refused(train(capsys, "new", settings=["task.physics=mjx"]))
    assert "brings its own physics, got 'mjx'" in said
    said = refused(train(capsys, "new", settings=["task.options=[x]"]))
    assert "task.options got 'x', expected name=value" in said
    said = refused(train(capsys, "new", settings=["task.python=/nowhere/python"]))
    assert "/nowhere/python" in said
    said = refused(ask(capsys, "profile", "peg_fast", "--set", *SETTINGS))
    assert "lives in worker processes" in said
    assert not Path("new").exists() and not Path("two").exists()


def test_commands_without_a_config_take_the_tasks_settings(here, capsys):
    argv = ["screen", "base", "--task", "walk.py:make_env", "--episodes", "4"]
    short = ["--set", "task.episode_steps=4"]
    assert cli.main([*argv, *short, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["command"] is None or "task.episode_steps=4" in found["command"]
    said = refused(ask(capsys, "envs", "walk.py:make_env", "--set", "task.python=/nowhere/python"))
    assert "/nowhere/python" in said
    said = refused(ask(capsys, *argv, "--out", "x.png", "--set", "seed=3"))
    assert "--set got 'seed=3', expected keys of the task here" in said
    from_gymnasium.use(from_gymnasium.Workers())


def test_starts_that_differ_are_told(here, capsys):
    loose = CODE.replace("super().reset(seed=seed)", "super().reset(seed=None)")
    Path("walk.py").write_text(loose)
    code, said = train(capsys, "loose")
    assert code == 0, said
    assert any("resets of one seed differ in walk.py:make_env" in line for line in said)


def test_no_worker_is_left(here, capsys):
    del capsys
    assert not leftovers()


def test_a_worker_that_dies_all_the_time_ends_the_run_saved(here, capsys):
    counted = "        self.steps += 1\n"
    broken = CODE.replace(counted, f"{counted}        _die(self)\n")
    broken += """
def _die(self):
    import os, pathlib
    played = pathlib.Path("played")
    with played.open("a") as file:
        file.write(".")
    if played.stat().st_size > 150 and not pathlib.Path("repaired").exists():
        os.kill(os.getpid(), 9)
"""
    Path("walk.py").write_text(broken)
    code, said = train(capsys, "dying", settings=["task.restarts=2"])
    assert code == 2, said
    assert "more than restarts=2" in said[-1] and "Traceback" not in "".join(said)
    saved = re.search(r"saved after ([0-9,]+) of ", said[-1])
    assert saved and int(saved[1].replace(",", "")) > 0 and not leftovers(), said[-1]
    Path("repaired").touch()
    code, said = train(capsys, "dying", "--resume", settings=["task.restarts=2"])
    assert code == 0, said
    assert f"resumed after {saved[1]} decisions" in "".join(said)
    assert any(one.get("gradient_steps", 0) > 0 for one in read("dying"))
