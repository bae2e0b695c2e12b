"""Trackers get every number, offline, and resumed runs go on in theirs; what a start says."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pdjax.config import files as configs
from pdjax.config.options import ConfigError
from pdjax.output import provenance, records, trackers


@pytest.fixture
def track(monkeypatch):
    monkeypatch.setattr(trackers, "_chosen", "none")
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)

    def use(name):
        pytest.importorskip(name, reason=f"needs pdjax[{name}]")
        trackers.use(name)

    return use


def write_run(directory, begin=0, fails=False):
    """Records of a run, in two starts where it begins after some decisions."""
    directory.mkdir(exist_ok=True)
    configs.save(configs.preset("fast"), directory / "config.yaml")
    with records.MetricsLog(directory, begin) as log:
        for step in range(begin + 100, begin + 301, 100):
            log.write("eval", step, {"success_once": step / 1000, "wall_s": 1.0, "note": "text"})
        if fails:
            raise RuntimeError


def test_mlflow_knows_config_and_curve_and_goes_on_where_a_run_is_resumed(track, tmp_path):
    track("mlflow")
    from mlflow import MlflowClient

    with pytest.raises(RuntimeError):
        write_run(tmp_path / "run", fails=True)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = client.get_experiment_by_name("pdjax")
    assert found is not None
    experiment = found.experiment_id
    assert [run.info.status for run in client.search_runs([experiment])] == ["FAILED"]
    write_run(tmp_path / "run", begin=300)
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params["sac.batch_size"] == "256"
    assert run.data.params["task.name"] == "PegInsertionSide"
    history = client.get_metric_history(run.info.run_id, "eval/success_once")
    assert [(point.step, point.value) for point in history] == [
        (step, step / 1000) for step in range(100, 601, 100)
    ]


def test_wandb_keeps_a_run_on_this_machine_under_one_name(track, tmp_path):
    track("wandb")
    import wandb

    write_run(tmp_path / "run")
    write_run(tmp_path / "run", begin=300)
    wandb.teardown()  # its own process writes the files
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and files[0].name == files[1].name  # one run, in two starts
    for path, steps in zip(files, (range(100, 301, 100), range(400, 601, 100)), strict=True):
        data = path.read_bytes()
        assert data.count(b"eval/success_once") >= 3 and b"PegInsertionSide" in data
        for step in steps:
            assert str(step).encode() in data and str(step / 1000).encode() in data


def test_a_tracker_that_fails_is_told_once_and_ends_nothing(track, tmp_path, capsys, monkeypatch):
    track("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://mlflow")
    write_run(tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count("the run continues without it") == 1 and "mlflow failed (" in said
    assert len(records.read_metrics(tmp_path / "run", "eval")) == 3


def test_no_tracker_is_used_unless_asked_for(tmp_path):
    write_run(tmp_path / "run")
    assert not (tmp_path / "run" / "trackers.json").exists()


def test_a_tracker_that_is_not_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb is not installed; pip install 'pdjax\[wandb\]'"):
        trackers.use("wandb")


def test_a_start_says_what_it_was_made_by(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/pdjax", "train", "a b", "--json"])
    monkeypatch.chdir(tmp_path)
    found = provenance.describe()
    assert found["command"] == "pdjax train 'a b' --json"
    assert shlex.split(found["command"])[2] == "a b"
    assert found["commit"] is None and found["folder"] == str(tmp_path)
    assert found["versions"]["jax"] and found["device"] and found["cores"] > 0
    for command in ("init -q", "-c user.name=a -c user.email=a commit -q --allow-empty -m a"):
        subprocess.run(["git", *command.split()], check=True)
    first = provenance.commit(Path.cwd())
    Path("file").write_text("1")
    subprocess.run(["git", "add", "file"], check=True)
    assert first and provenance.commit(Path.cwd()) == f"{first}-dirty"
