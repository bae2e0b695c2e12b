"""Sweeps: what a file may ask for, what is refused, and a sweep whose worker is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pdjax.commands import cli
from pdjax.config import files as configs
from pdjax.config.options import ConfigError
from pdjax.sweep import report
from pdjax.sweep import spec as sweep_spec
from pdjax.sweep.spec import Dimension
from tests.commands.test_cli import make_base_policy

SHORT = [
    "train.num_envs=4",
    "train.decisions_per_round=16",
    "train.decisions_per_epoch=64",
    "train.total_decisions=256",
    "train.learning_starts=16",
    "train.replay_capacity=2000",
    "eval.episodes=4",
    "eval.interim_episodes=4",
    "eval.interim_every=64",
    "checkpoint.every=64",
    "sac.hidden=[8]",
    "sac.batch_size=16",
]


def write(path, **values):
    path.write_text(yaml.safe_dump(values))
    return path


def test_every_value_of_a_grid_is_a_trial(tmp_path):
    spec = sweep_spec.read(
        write(
            tmp_path / "s.yaml",
            config=["peg_fast", "door_fast"],
            space={"sac.gamma": [0.9, 0.95], "sac.actor_lr": {"grid": ["1e-4", 0.001, 0.01]}},
        )
    )
    trials = sweep_spec.trials(spec)
    assert trials is not None
    assert len(trials) == 12 and len({json.dumps(trial) for trial in trials}) == 12
    assert trials[0] == {"config": "peg_fast", "sac.gamma": 0.9, "sac.actor_lr": 1e-4}
    (member,) = sweep_spec.make_members(spec, trials[-1])
    assert (member.task.name, member.sac.gamma, member.sac.actor_lr) == ("AdroitDoor", 0.95, 0.01)


def test_members_and_settings_reach_every_trial(tmp_path):
    spec = sweep_spec.read(
        write(
            tmp_path / "s.yaml",
            config="peg_fast",
            set="seed=3",
            members=2,
            search="random",
            samples=5,
            space={"sac.n_step": {"randint": [1, 4]}, "sac.tau": {"uniform": ["1e-3", 0.1]}},
        )
    )
    assert sweep_spec.trials(spec) is None
    assert spec.space[1] == Dimension("sac.tau", "uniform", [1e-3, 0.1])
    values = {"config": "peg_fast", "sac.n_step": 3, "sac.tau": 0.05}
    found = sweep_spec.make_members(spec, values)
    assert [(one.seed, one.sac.n_step, one.sac.tau) for one in found] == [
        (3, 3, 0.05),
        (4, 3, 0.05),
    ]


def test_the_example_of_the_help_is_a_sweep(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(sweep_spec.EXAMPLE)
    assert sweep_spec.read(path).settings.samples == 20


GRID = {"sac.gamma": [0.9, 0.99]}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"space": GRID}, "names no config"),
        ({"config": "nope", "space": GRID}, "no config 'nope'"),
        ({"config": "peg_fast"}, "empty space and one config: nothing to sweep"),
        (
            {"config": "peg_fast", "spaec": GRID},
            "unknown key 'spaec' in s.yaml; did you mean space?",
        ),
        ({"config": "peg_fast", "space": {"sac.gama": [1]}}, "did you mean sac.gamma"),
        ({"config": "peg_fast", "space": {"sac.gamma": []}}, "which is empty"),
        ({"config": "peg_fast", "space": {"sac.gamma": 0.9}}, "expected a list, or one of grid"),
        ({"config": "peg_fast", "space": {"sac.gamma": [0.9, 2]}}, "sac.gamma got 2, expected"),
        ({"config": "peg_fast", "space": {"sac.tau": {"uniform": [1, 0]}}}, "low < high"),
        ({"config": "peg_fast", "space": {"sac.tau": {"loguniform": [0, 1]}}}, "both above 0"),
        ({"config": "peg_fast", "space": {"sac.tau": {"uniform": [0.1, 1]}}}, "cannot enumerate"),
        ({"config": "peg_fast", "space": GRID, "search": "optuna"}, "use choice"),
        ({"config": "peg_fast", "space": GRID, "cpus": 0}, "cpus got 0, expected integer >= 1"),
        (
            {"config": "peg_fast", "space": GRID, "members": {"sac.n_step": [1, 3]}},
            "one program cannot hold",
        ),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_starts(
    values, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "s.yaml", **values)
    assert cli.main(["sweep", "s.yaml", "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere.yaml"], "cannot read sweep nowhere.yaml"),
        (["report"], "sweep got report and no directory, expected SPEC.yaml alone, or"),
        (["report", "."], "is no sweep"),
        (["none.yaml"], "base policy '' of peg_fast does not exist; make it, or name another"),
        (["s.yaml", "--address", "127.0.0.1:1"], "cannot reach a Ray cluster at 127.0.0.1:1"),
        (["s.yaml", "--address", "here"], "--address got 'here', expected HOST:PORT"),
        (["many.yaml"], "a trial asks for 1000 CPUs, but no machine of the cluster has more than"),
    ],
)
def test_mistakes_on_the_command_line(argv, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if argv[0] not in ("nowhere.yaml", "report"):
        pytest.importorskip("ray", reason="sweeps need pdjax[sweep]")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "policy.json").write_text("{}")
    base = ["base_policy.path=base"]
    write(tmp_path / "none.yaml", config="peg_fast", space=GRID)
    write(tmp_path / "s.yaml", config="peg_fast", set=base, space=GRID)
    write(tmp_path / "many.yaml", config="peg_fast", set=base, space=GRID, cpus=1000)
    assert cli.main(["sweep", *argv, "--out", "out"]) == 2
    said = capsys.readouterr().err
    assert words in said.splitlines()[-1] and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def kill_a_worker(out, process):
    """kill -9 of the process of a trial that has a checkpoint and has not ended; its directory."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        for directory in (out / "trials").glob("*"):
            names = [path.name for path in directory.glob("run/checkpoints/*")]
            saved = any(name.isdigit() for name in names)  # others are still being written
            if saved and not (directory / "run" / "result.json").exists():
                start = json.loads((directory / "starts.jsonl").read_text().splitlines()[0])
                os.kill(start["pid"], signal.SIGKILL)
                return directory
        time.sleep(0.05)
    raise AssertionError("no trial could be killed")


@pytest.mark.slow
def test_a_sweep_whose_worker_is_killed_ends_with_all_trials(tmp_path):
    pytest.importorskip("ray", reason="sweeps need pdjax[sweep]")
    make_base_policy(tmp_path / "base")
    spec = write(
        tmp_path / "s.yaml",
        config="peg_fast",
        set=[f"base_policy.path={tmp_path / 'base'}", *SHORT],
        space={"decorator.residual_scale": [0.1, 0.2, 0.3], "sac.gamma": [0.9, 0.95]},
    )
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "pdjax.commands.cli",
        "sweep",
        str(spec),
        "--out",
        str(out),
        "--json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed = kill_a_worker(out, process)
    stdout, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    found = json.loads(stdout.splitlines()[-1])
    assert [row["status"] for row in found["trials"]] == ["finished"] * 6
    assert {row["trial"]: row["starts"] for row in found["trials"]}[killed.name] == 2
    assert f"trial {killed.name} was lost and continues" in said
    assert "starts" in said and "resumed after" in (killed / "log.txt").read_text()
    for row in found["trials"]:
        assert row["decisions"] == 256 and len(row["runs"]) == 1
    for name in ("trials.json", "trials.parquet", "curves_PegInsertionSide.png", "best.yaml"):
        assert name in found["files"] and (out / name).stat().st_size > 0
    best = configs.load(str(out / "best.yaml"))
    values = found["trials"][0]["values"]
    assert best.decorator.residual_scale == values["decorator.residual_scale"]
    result = json.loads(Path(found["trials"][0]["runs"][0], "result.json").read_text())
    assert result["gradient_steps"] > 0
    assert report.write(out)["trials"] == found["trials"]
    with pytest.raises(ConfigError, match="not empty"):
        from pdjax.sweep import tune

        tune.sweep(spec, out)


def test_how_a_trial_ends_is_noted_where_the_sweep_is_now(tmp_path):
    """Ray keeps the progress line with its own records, while a sweep may be moved and resumed."""
    from types import SimpleNamespace

    from pdjax.sweep import tune

    line = tune._make_progress(SimpleNamespace(Callback=object), 1)
    moved = tmp_path / "moved"
    (moved / "trials" / "t_0").mkdir(parents=True)
    trial = SimpleNamespace(trial_id="t_0", storage=SimpleNamespace(storage_fs_path=str(moved)))
    line.on_trial_complete(0, [trial], trial)
    assert (moved / "trials" / "t_0" / "status.txt").read_text() == "ended early\n"
