"""Training in worker processes, through the command: learning, overlap, resuming, refusals."""

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import imageio.v2 as imageio
import jax.numpy as jnp
import pytest

from pdjax.base_policies.foreign import exported
from pdjax.commands import cli
from pdjax.config.schema import TaskConfig
from pdjax.rollout.playing import _with_features
from pdjax.runs.load import load_refined
from pdjax_envs import from_gymnasium, registry
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
    code = cli.main(["eval", "run", "--episodes", "8", "--seed", "10000", "--failures", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0 and found["base_success"] == before["base_success"]
    for side in ("base", "refined"):  # a task without stages
        ends = {one["end"]: one["episodes"] for one in found["failures"][side]}
        assert ends.get("never solved", 0) == 8 - round(8 * found[f"{side}_success"])


def test_what_it_cannot_do_is_refused_in_one_line(here, capsys):
    said = refused(train(capsys, "two", "--members", "2"))
    assert "trains one run at a time, not 2 members" in said
    said = refused(train(capsys, "new", settings=["task.shift=mass"]))
    assert "takes no shift" in said
    said = refused(train(capsys, "new", settings=["task.physics=mjx"]))
    assert "brings its own physics, got 'mjx'" in said
    said = refused(train(capsys, "new", settings=["task.hold_steps=3"]))
    assert "takes no hold_steps, got 3" in said
    said = refused(train(capsys, "new", settings=["train.retry_share=0.5"]))
    assert "cannot go back to a moment of an episode" in said and "set it to 0" in said
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


def test_the_learner_reads_the_features_of_a_named_task(here, capsys, monkeypatch):
    door, two = registry.make_task("AdroitDoor"), (("x", 2),)
    like = dataclasses.replace(door, name="Walked", observation=two, features=jnp.square)
    monkeypatch.setitem(registry._registered, "Walked", like)
    settings = ["task.features=Walked", "decorator.task_features=true"]
    assert train(capsys, "new", settings=settings)[0] == 0
    refined = load_refined(Path("new"))
    assert refined.playing.rollout.view_dim == 4  # two numbers of the observation, two squares
    seen = refined.playing.rollout.see(refined.playing.frozen, jnp.array([[2.0, 3.0]]))
    assert seen[0, 2:].tolist() == [4.0, 9.0]
    assert read("new")[0]["gradient_steps"] == 28 and read("new")[1:] != read("run")[1:]
    said = refused(train(capsys, "other", settings=["task.features=walk.py:make_task"]))
    assert "unknown task.features 'walk.py:make_task'; known: " in said
    said = refused(train(capsys, "other", settings=["task.features=PegInsertionSide"]))
    assert "a task with obs_dim 50 and features, but walk.py:make_env has obs_dim 2" in said
    said = refused(train(capsys, "other", settings=["task.features=AdroitDoor"]))
    assert "a task with obs_dim 39 and no features" in said and not Path("other").exists()


@pytest.mark.parametrize(
    ("name", "features", "reads"),
    [("x.py:make_env", "", False), ("x.py:make_env", "StackCube", True), ("StackCube", "", True)],
)
def test_an_actor_reads_elsewhere_what_it_read_in_training(name, features, reads):
    env = registry.make("StackCube")
    assert env.task.features is not None
    found = _with_features(env, "StackCube", TaskConfig(name=name, features=features)).task.features
    assert (found is not None) == reads


def test_starts_that_differ_are_told(here, capsys):
    loose = CODE.replace("super().reset(seed=seed)", "super().reset(seed=None)")
    Path("walk.py").write_text(loose)
    code, said = train(capsys, "loose")
    assert code == 0, said
    assert any("resets of one seed differ in walk.py:make_env" in line for line in said)
    result = json.loads(Path("loose/result.json").read_text())
    assert not result["paired"] and any("8 unpaired episodes" in line for line in said), said
    assert json.loads(Path("run/result.json").read_text())["paired"]


TROUBLES = {  # what the environment does once -> what its line says
    "import time; time.sleep(1000)": "did not answer in time; it hangs in",
    "self.x = float('nan')": "its reward is not finite",
    "self.observe = lambda: np.zeros(3)": "observation has shape (3,), expected (2,)",
    "raise ValueError('stuck')": "ValueError: stuck (walk.py:",
}


@pytest.mark.parametrize("place", ["step", "reset"])
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_run_outlives_what_its_simulator_does_once(here, capsys, trouble, place):
    """Once for all workers: whoever finds the file `once` removes it."""
    if place == "reset" and trouble.startswith("self.x"):
        pytest.skip("a reset that is NaN fails when its task is described, before any training")
    before = {"step": "        self.steps += 1\n", "reset": "        super().reset(seed=seed)\n"}
    inserted = f"        if _due():\n            {trouble}\n"
    troubled = CODE.replace(before[place], before[place] + inserted)
    troubled += (
        f"late = {8 if place == 'reset' else 20}"
        + """

def _due():
    import contextlib, os, pathlib
    print("talkative", flush=True)
    played = pathlib.Path("played")
    with played.open("a") as file:
        file.write(".")
    with contextlib.suppress(FileNotFoundError):
        if played.stat().st_size > late:
            os.unlink("once")
            return True
    return False
"""
    )
    Path("walk.py").write_text(troubled)
    Path("once").touch()
    code, said = train(capsys, "troubled", settings=["task.step_timeout=2"])
    assert code == 0 and not Path("once").exists(), said
    told = [line for line in said if TROUBLES[trouble] in line]
    assert not any("talkative" in line for line in said if line not in told)
    assert len(told) == 1 and "it was replaced" in told[0] and not leftovers()
    assert json.loads(Path("troubled/result.json").read_text())["gradient_steps"] > 0


def test_a_run_is_drawn_by_its_simulator(here, capsys):
    assert cli.main(["render", "run", "--out", "run.gif", "--episodes", "2"]) == 0, capsys
    frames = imageio.mimread("run.gif")
    assert frames[0].shape[:2] == (40, 2 * 64)  # sides are multiples of 8
    assert 4 < len(frames) <= 14  # two episodes of at most 7 control steps
    assert {int(frame[-1, 0, 0]) for frame in frames} >= {10, 20}  # as its render() shows


def test_an_environment_without_pictures_is_one_line(here, capsys):
    shutil.rmtree("run")
    Path("walk.py").write_text(CODE.replace("def render", "def draw"))
    assert train(capsys, "run")[0] == 0
    code, said = ask(capsys, "render", "run", "--out", "run.gif")
    assert code == 2 and "Traceback" not in "".join(said)
    assert "was not drawn" in said[-1] and not Path("run.gif").exists()


def test_a_policy_is_imitated_from_demonstrations_of_an_expert(here, capsys):
    expert = "def expert(env, observation):\n    return [0.3 * (1 - observation[0])]\n"
    Path("expert.py").write_text(expert)
    argv = ["demos", "walk.py:make_env", "--expert", "expert.py:expert", "--out", "demos.h5"]
    assert cli.main([*argv, "--episodes", "12", "--noise", "0.2"]) == 0
    assert cli.main(["data", "check", "demos.h5", "--task", "walk.py:make_env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert max(row["max_drift"] for row in found["replay"]) == 0 and found["success_rate"] == 1
    argv = ["imitate", "demos.h5", "--task", "walk.py:make_env", "--out", "cloned"]
    small = ["--policy", "mlp", "--steps", "20", "--eval-episodes", "4"]
    assert cli.main([*argv, *small, "--set", "mlp.hidden=[16]", "task.workers=1"]) == 0
    assert cli.main(["export", "run", "--out", "deployed", "--episodes", "4"]) == 0
    deployed = ["base_policy.path=deployed", "train.total_decisions=64"]
    assert train(capsys, "of_deployed", settings=deployed)[0] == 0
    assert json.loads(Path("cloned/policy.json").read_text())["task"] == "walk.py:make_env"
    code, said = train(capsys, "of_clone", settings=["base_policy.path=cloned"])
    assert code == 0, said
    argv = ["demos", "walk.py:make_env"]
    said = refused(ask(capsys, *argv, "--expert", "PegInsertionSide", "--out", "x.h5"))
    assert "reads 50 numbers and returns 7, but walk.py:make_env has 2 and 1" in said
    said = refused(ask(capsys, "demos", "walk.py:make_env", "--out", "x.h5"))
    assert "expected FILE.py:FUNCTION" in said
    said = refused(
        ask(capsys, "demos", "AdroitDoor", "--out", "x.h5", "--expert", "expert.py:expert")
    )
    assert "leads in Gymnasium environments only" in said
    from_gymnasium.use(from_gymnasium.Workers())


def test_envs_check_plays_it(here, capsys):
    even = CODE.replace("Box(-0.2, 0.6", "Box(-0.6, 0.6")  # so that 0 is to stand still
    Path("walk.py").write_text(even)
    assert cli.main(["envs", "check", "walk.py:make_env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    verdicts = {one["check"]: (one["verdict"], one["seen"]) for one in found["findings"]}
    assert found["passed"] and verdicts["determinism"][0] == verdicts["seeds"][0] == "ok"
    assert "success: success" in verdicts["spaces"][1]
    # always solved, unseeded, without time limit of its own
    loose = CODE.replace("abs(self.x - 1) < 0.1", "True").replace("seed=seed", "seed=None", 1)
    Path("walk.py").write_text(loose.replace("super().reset(seed=seed)", "super().reset()"))
    assert cli.main(["envs", "check", "walk.py:make_env", "--json"]) == 1
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    verdicts = {one["check"]: one["verdict"] for one in found["findings"]}
    assert verdicts["doing nothing"] == "FAIL"
    assert verdicts["seeds"] == verdicts["determinism"] == "note"


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


@pytest.mark.slow
def test_workers_killed_at_random_moments_of_a_training_cost_only_their_episodes(here, capsys):
    draw, killed, over = random.Random(0), [], threading.Event()

    def kill():
        while len(killed) < 20 and not over.wait(draw.uniform(0.05, 0.7)):
            listed = subprocess.run(
                ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())],
                capture_output=True,
                text=True,
                check=False,
            )
            workers = [line for line in listed.stdout.splitlines() if "workers/worker.py" in line]
            with contextlib.suppress(ProcessLookupError, IndexError):
                pid = int(draw.choice(workers).split()[0])
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    settings = ["task.restarts=40", "train.total_decisions=16384", "eval.interim_every=4096"]
    try:
        code, said = train(capsys, "killed", settings=settings)
    finally:
        over.set()
        killer.join()
    assert code == 0, said
    assert len(killed) == 20 and not leftovers()
    result = json.loads(Path("killed/result.json").read_text())
    assert result["decision_steps"] == 16384 and result["gradient_steps"] > 0
    replaced = [line for line in said if "was killed by SIGKILL" in line]
    assert replaced and all("it was replaced" in line for line in replaced), said
    epochs = [one for one in read("killed") if one.get("group") == "train"]
    assert 5 < epochs[-1]["restarts"] <= 20  # the others died in evaluations, or while they started
