"""The Python library: from memory, silent, typed; and every public name is documented."""

import dataclasses
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdjax
from pdjax.commands import cli
from tests.probe import make_constant_policy, make_point_task, registered

ROOT = Path(__file__).parents[1]
TINY = {
    "train": {
        "num_envs": 4,
        "decisions_per_round": 16,
        "decisions_per_epoch": 128,
        "total_decisions": 512,
        "learning_starts": 64,
        "updates_per_decision": 0.5,
    },
    "sac": {"batch_size": 32, "hidden": [16], "residual_penalty": 0, "head_gain": 1},
    "eval": {"episodes": 32, "interim_episodes": 16, "interim_every": 256},
    "checkpoint": {"every": 128},
    "decorator": {"exploration_steps": 0, "residual_scale": 0.5},
}
EVALUATION_FREE_OF = ("pdjax.training", "pdjax.learner.replay", "pdjax_envs.demonstrations")


def child(code, *arguments, cwd=None):
    """Runs Python code in a fresh process of this checkout."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "envs")])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def records(directory, name):
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def task():
    with registered(make_point_task(12, 0.1)) as point:
        yield point


@pytest.fixture(scope="module")
def config(task):
    return pdjax.load_config("fast", **TINY, task={"name": task.name})


@pytest.fixture(scope="module")
def base():
    """Stops short of the goal in about half of the episodes, by its own noise."""

    def apply(params, carry, obs_history, key):
        del obs_history
        return params["velocity"] + 0.1 * jax.random.normal(key, (2, 1)), carry + 1

    params = {"velocity": jnp.float32(0.33)}
    return make_constant_policy()._replace(apply=apply, params=params)


@pytest.fixture(scope="module")
def trained(config, base, task, tmp_path_factory):
    """A run from memory, and what its callback was given."""
    epochs = []
    out = tmp_path_factory.mktemp("runs") / "run"
    run = pdjax.train(config, base=base, task=task, out=out, on_epoch=epochs.append)
    return run, epochs


def test_the_script_of_the_examples_trains_from_memory_and_says_nothing(tmp_path):
    script = (ROOT / "examples/in_memory.py").read_text()
    assert len(script.splitlines()) <= 28  # 25 lines and what ruff puts between them
    done = child(script, str(tmp_path / "run"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    run = pdjax.load_run(tmp_path / "run")
    assert run.summary["gradient_steps"] == run.metrics["gradient_steps"][-1] > 0
    train = [r for r in records(run.directory, "metrics.jsonl") if r["group"] == "train"]
    assert [r["decision_steps"] for r in train] == [4096, 8192, 12288, 16384]
    assert len(records(run.directory, "starts.jsonl")) == 1
    names = {path.name for path in run.directory.iterdir()}
    kept = {"config.yaml", "base_policy", "residual", "checkpoints", "best", "tb"}
    assert kept | {"result.json", "episodes.npz", "learning_curve.png"} <= names
    assert list((run.directory / "tb").iterdir())


def test_a_run_is_arrays(trained, config, task):
    run, epochs = trained
    assert run.config.train == config.train and run.summary["task"] == task.name
    np.testing.assert_array_equal(run.curve["decision_steps"], [0, 256, 512])
    assert run.curve["success_once"].shape == (3,)
    np.testing.assert_array_equal(run.metrics["decision_steps"], [128, 256, 384, 512])
    assert run.metrics["gradient_steps"][-1] > 0 and (np.diff(run.metrics["wall_s"]) > 0).all()
    played = run.evaluation
    assert played.refined.success_once.shape == played.base.smoothness.shape == (32,)
    assert played.summary["refined_success"] == run.summary["refined_success"]
    assert played.summary["gain_ci"] == run.summary["gain_ci"]
    assert (played.task, played.physics, played.seed) == ("Point", "probe", config.eval.seed)
    again = pdjax.load_run(run.directory)
    assert again.evaluation is not None
    np.testing.assert_array_equal(again.evaluation.base.success_once, played.base.success_once)
    # The callback met every epoch, and the evaluations that the curve shows.
    assert [epoch.decision_steps for epoch in epochs] == [128, 256, 384, 512]
    scores = [e.evaluation.success_once.mean() for e in epochs if e.evaluation is not None]
    np.testing.assert_allclose(scores, run.curve["success_once"][1:])
    assert epochs[-1].metrics["gradient_steps"] == run.summary["gradient_steps"]


def test_an_evaluation_repeats_the_run_and_takes_it_or_its_directory(trained):
    run, _ = trained
    seed = run.evaluation.seed
    found = [pdjax.evaluate(one, episodes=32, seed=seed) for one in (run, run.directory)]
    for paired in found:
        for side in ("base", "refined"):
            for name in ("success_once", "steps_to_success"):
                got = getattr(getattr(paired, side), name)
                expected = getattr(getattr(run.evaluation, side), name)
                np.testing.assert_array_equal(got, expected)


def test_a_run_plays_in_another_task_of_the_same_sizes(trained, task):
    run, _ = trained
    easier = dataclasses.replace(task, name="Easier", success=lambda *_: jnp.array(True))
    with registered(easier):
        found = pdjax.evaluate(run, episodes=8, task="Easier", task_settings={"shift": ""})
    assert found.task == "Easier" and found.base.success_once.all()
    with pytest.raises(pdjax.ConfigError, match=r"task\.nothing"):
        pdjax.evaluate(run, task_settings={"nothing": 1})


def test_a_stopped_run_is_resumed_with_the_same_numbers(trained, config, base, tmp_path):
    run, _ = trained

    def stop(epoch):
        if epoch.decision_steps == 256:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pdjax.train(config, base=base, out=tmp_path / "run", on_epoch=stop)
    assert not pdjax.load_run(tmp_path / "run").summary
    resumed = pdjax.resume(tmp_path / "run")
    assert len(records(resumed.directory, "starts.jsonl")) == 2
    np.testing.assert_array_equal(resumed.curve["success_once"], run.curve["success_once"])
    np.testing.assert_array_equal(resumed.metrics["critic_loss"], run.metrics["critic_loss"])
    assert pdjax.resume(tmp_path / "run").summary == resumed.summary  # finished: at once


def test_a_run_that_was_moved_is_resumed_with_its_own_copy_of_the_base_policy(
    trained, config, base, tmp_path, monkeypatch
):
    """Wherever the run lies and whatever the working directory is, by each way of resuming."""
    run, _ = trained

    def stop(epoch):
        if epoch.decision_steps == 256:
            raise KeyboardInterrupt

    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    pdjax.export_policy(base, Path("base"), "Point")
    with pytest.raises(KeyboardInterrupt):
        pdjax.train(config, base="base", out="runs/stopped", on_epoch=stop)
    stopped = tmp_path / "moved"
    shutil.move("runs/stopped", stopped)
    shutil.rmtree("base")
    (tmp_path / "second").mkdir()
    monkeypatch.chdir(tmp_path / "second")
    for name in ("by_path", "with_another_base", "by_config"):
        shutil.copytree(stopped, name)
    resumed = pdjax.resume("../second/by_path")
    assert resumed.directory == Path("../second/by_path")
    other = base._replace(params={"velocity": jnp.float32(-1.0)})
    kept = pdjax.resume("with_another_base", base=other)  # the run keeps the policy it began with
    same = ["train", "by_config/config.yaml", "--out", "by_config", "--resume"]
    assert cli.main(same) == 0
    for found in (resumed, kept, pdjax.load_run("by_config")):
        np.testing.assert_array_equal(found.curve["success_once"], run.curve["success_once"])
        np.testing.assert_array_equal(found.metrics["critic_loss"], run.metrics["critic_loss"])
        assert found.evaluation is not None
        played = found.evaluation.refined.success_once
        np.testing.assert_array_equal(played, run.evaluation.refined.success_once)
    # A run with another base policy is another run.
    pdjax.export_policy(other, Path("elsewhere"), "Point")
    another = [*same, "--set", "base_policy.path=elsewhere"]
    assert cli.main(another) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda run: pdjax.evaluate(run, episodes=0), "episodes got 0, expected integer >= 1"),
        (lambda run: pdjax.evaluate(run, seed=-1), "seed got -1, expected integer 0 to"),
        (lambda run: pdjax.export(run, "out", episodes=0), "episodes got 0, expected integer >= 1"),
        (lambda run: pdjax.screen("base", "Point", episodes=0), "episodes got 0, expected"),
        (lambda run: pdjax.wrap("f.py:act", "Point", "out", episodes=0), "episodes got 0, expect"),
        (lambda run: pdjax.imitate("d.h5", "Point", "out", eval_episodes=-1), "eval_episodes got"),
        (lambda run: pdjax.imitate("d.h5", "Point", "out", "dif"), "unknown policy 'dif'; "),
        (lambda run: pdjax.compare([run], threshold=90), "threshold got 90, expected number 0 to"),
        (lambda run: pdjax.compare([]), "no runs to compare; give at least one run directory"),
        (lambda run: pdjax.train("fast", out="out", memory_gib=-1), "memory_gib got -1, expected"),
    ],
)
def test_arguments_are_checked_as_flags_are(trained, call, message):
    with pytest.raises(pdjax.ConfigError, match=message):
        call(trained[0])


@pytest.mark.parametrize("in_program", [True, False])
def test_a_policy_in_memory_of_other_sizes_is_refused_by_its_sizes(config, tmp_path, in_program):
    zeros = (lambda obs: jnp.zeros(2)) if in_program else (lambda obs: np.zeros((len(obs), 2)))
    base = pdjax.base_policy(zeros, obs_dim=5, act_dim=2, in_program=in_program)
    message = "has obs_dim 5 and act_dim 2, but Point has obs_dim 3 and act_dim 1; change the"
    with pytest.raises(pdjax.ConfigError, match=message):
        pdjax.train(config, base=base, out=tmp_path / "run")
    with pytest.raises(pdjax.ConfigError, match=message):
        pdjax.screen(base, "Point", episodes=2)
    assert not list(tmp_path.iterdir())


def test_a_policy_that_no_file_can_hold_is_given_again(config, tmp_path):
    def act(obs_history):  # NumPy, through the host
        return np.full((len(obs_history), 2, 1), 0.33, np.float32)

    base = pdjax.base_policy(act, obs_dim=3, act_dim=1, act_horizon=2, in_program=False)
    run = pdjax.train(config, base=base, out=tmp_path / "run")
    assert not (tmp_path / "run/base_policy").exists() and run.summary["gradient_steps"] > 0
    assert run.evaluation is not None
    seed = run.evaluation.seed
    expected = run.evaluation.refined.success_once
    for paired in (
        pdjax.evaluate(run, episodes=32, seed=seed),
        pdjax.evaluate(tmp_path / "run", episodes=32, seed=seed, base=base),
    ):
        np.testing.assert_array_equal(paired.refined.success_once, expected)
    with pytest.raises(pdjax.ConfigError, match=r"existed only in memory; pass it as base="):
        pdjax.evaluate(tmp_path / "run")
    (tmp_path / "run/result.json").unlink()
    with pytest.raises(pdjax.ConfigError, match=r"existed only in memory; pass it as base="):
        pdjax.resume(tmp_path / "run")
    assert pdjax.resume(tmp_path / "run", base=base).summary["gain"] == run.summary["gain"]


def test_runs_are_compared_and_exported(trained, tmp_path):
    run, _ = trained
    other = tmp_path / "other"
    shutil.copytree(run.directory, other)
    (other / "config.yaml").write_text(
        (other / "config.yaml").read_text().replace("\nseed: 0", "\nseed: 1")
    )
    found = pdjax.compare([run, other])
    (group,) = found.groups
    assert found.task == "Point" and group["finished"] == 2
    assert group["refined_success"] == pytest.approx(run.summary["refined_success"])
    deployed = pdjax.export(run, tmp_path / "deployed", episodes=16)
    assert (deployed.directory / "policy.jaxexport").is_file()
    assert deployed.summary["physics"] == "probe"
    screened = pdjax.screen(deployed, "Point", episodes=16)
    assert screened.success.shape == (16,)


def test_a_run_with_demonstrations_and_devices_plays_without_them_elsewhere(
    trained, tmp_path, monkeypatch
):
    run, _ = trained
    moved = tmp_path / "moved"
    shutil.copytree(run.directory, moved)
    text = (moved / "config.yaml").read_text()
    text = text.replace("demos: ''", "demos: gone.h5").replace(
        "demo_share: 0.0", "demo_share: 0.25"
    )
    text = text.replace("devices: 0", "devices: 4")
    (moved / "config.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    loaded = pdjax.load_run("moved").config.train
    assert (loaded.demos, loaded.demo_share, loaded.devices) == ("gone.h5", 0.25, 4)
    paired = pdjax.evaluate("moved", episodes=32, seed=run.evaluation.seed)
    np.testing.assert_array_equal(paired.refined.success_once, run.evaluation.refined.success_once)


def test_an_evaluation_imports_no_training_replay_or_demonstrations():
    code = (
        "import sys, pdjax.prepare.screen"
        "\nimport pdjax.runs.evaluate, pdjax.runs.export, pdjax.runs.render"
        f"\nprint([name for name in sys.modules if name.startswith({EVALUATION_FREE_OF!r})])"
    )
    done = child(code)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    # The check sees what it is there to see.
    done = child(code.replace("pdjax.runs.evaluate", "pdjax.training.build"))
    assert "pdjax.learner.replay" in done.stdout


def test_importing_pdjax_imports_no_jax():
    code = "import sys, pdjax; print('jax' in sys.modules, pdjax.__version__); pdjax.train"
    done = child(code + "; print('jax' in sys.modules)")
    first, second = done.stdout.splitlines()
    assert first.split()[0] == "False" and first.split()[1][0].isdigit() and second == "True"


def test_configs_are_changed_by_keyword():
    found = pdjax.load_config("door_fast", train={"total_decisions": 8192}, seed=3)
    assert (found.train.total_decisions, found.seed, found.task.name) == (8192, 3, "AdroitDoor")
    assert pdjax.load_config("pd").sac.gamma == 0.97  # a preset
    with pytest.raises(pdjax.ConfigError, match=r"unknown config key 'train\.total_decision'"):
        pdjax.load_config("fast", train={"total_decision": 1})
    with pytest.raises(pdjax.ConfigError, match="config key train got 3"):
        pdjax.load_config("fast", train=3)


def undocumented(name, value):
    """What a public name's docstring leaves out."""
    text = inspect.getdoc(value) or ""
    if not text or text.startswith(f"{getattr(value, '__name__', '')}("):
        return [f"{name}: no docstring"]  # dataclasses and tuples make one of their fields
    if inspect.isfunction(value):
        wanted = list(inspect.signature(value).parameters)
    elif dataclasses.is_dataclass(value):
        wanted = [] if name == "Config" else [field.name for field in dataclasses.fields(value)]
    else:
        wanted = list(getattr(value, "_fields", ()))
    lines = [line.strip() for line in text.splitlines()]
    listed = {part for line in lines for part in line.split(":")[0].replace("`", "").split(", ")}
    return [f"{name}: {part} is not explained" for part in wanted if part not in listed]


@pytest.mark.parametrize("name", sorted(set(pdjax.__all__) - {"__version__"}))
def test_public_names_are_documented(name):
    assert not undocumented(name, getattr(pdjax, name))


def test_what_is_not_documented_is_seen():
    def bare(x):
        return x

    def half(x, y):
        """Adds.

        Args:
          x: a number.
        """
        return x + y

    assert undocumented("bare", bare) == ["bare: no docstring"]
    assert undocumented("half", half) == ["half: y is not explained"]
    assert undocumented("E", dataclasses.make_dataclass("E", ["x"])) == ["E: no docstring"]


def test_unknown_names_are_no_attributes():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = pdjax.trian
    assert "train" in dir(pdjax)


def test_an_evaluation_plays_the_engine_of_the_run(trained, tmp_path, capsys):
    run, _ = trained
    moved = tmp_path / "moved"
    shutil.copytree(run.directory, moved)
    path = moved / "config.yaml"
    path.write_text(path.read_text().replace("physics: auto", "physics: native"))
    # The probe steps itself, so an engine of ours is refused: the run's setting counts ...
    assert cli.main(["eval", str(moved), "--episodes", "2"]) == 2
    assert "native" in capsys.readouterr().err
    # ... unless another one is asked for, and the result names it.
    assert cli.main(["eval", str(moved), "--episodes", "2", "--physics", "auto", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["physics"] == "probe"
