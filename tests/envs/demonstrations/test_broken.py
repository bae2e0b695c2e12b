"""Demonstration files that are wrong: through the command line, one line, exit 2, no change."""

import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from pdjax.commands import cli
from tests.layouts import make_episode, write_d4rl, write_dapg, write_minari

TASK, OBS_DIM, ACT_DIM = "PegInsertionSide", 50, 7


class Malicious:
    def __reduce__(self):
        return os.system, ("touch mark",)


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def change(path, name, value):
    with h5py.File(path, "a") as file:
        del file[name]
        if value is not None:
            file[name] = value


def dapg_with(**values):
    def make(path):
        episode = make_episode(obs_dim=OBS_DIM, act_dim=ACT_DIM) | values
        write_dapg(path, [{name: a for name, a in episode.items() if a is not None}])

    return make


def h5_with(write, name=None, value=None, **sizes):
    def make(path):
        write(path, **{"obs_dim": OBS_DIM, "act_dim": ACT_DIM} | sizes)
        if name:
            change(path, name, value)

    return make


def truncated(make):
    return lambda path: (make(path), cut(path))


def wrong_task(path):
    with h5py.File(path, "w") as file:
        file["traj_0/obs"], file["traj_0/actions"] = np.zeros((4, OBS_DIM)), np.zeros((3, ACT_DIM))
    path.with_suffix(".json").write_text('{"env_info": {"env_id": "StackCube-v0"}}')


NAN = np.where(np.arange(OBS_DIM) == 25, np.nan, np.zeros((4, OBS_DIM)))
BROKEN = {
    "truncated pickle": (truncated(dapg_with()), "is not a readable demonstration file"),
    "truncated HDF5": (truncated(h5_with(write_minari)), "is not a readable demonstration file"),
    "malicious pickle": (dapg_with(x=Malicious()), "is a pickle that names posix.system"),
    "text": (lambda path: path.write_text("hello\n"), "(neither HDF5 nor a pickle)"),
    "nothing": (lambda path: path.touch(), "(neither HDF5 nor a pickle)"),
    "no episodes": (lambda path: write_dapg(path, []), "holds no episodes; expected at least one"),
    "no steps": (h5_with(write_d4rl, lengths=(0,)), "holds no episodes"),
    "other things": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "of other things"),
    "other HDF5": (
        lambda path: change(write_d4rl(path), "actions", None),
        "holds no episodes: it has",
    ),
    "wrong dims, DAPG": (
        dapg_with(observations=np.zeros((4, 39))),
        "episode_0/observations has shape (4, 39), expected (T + 1, 50)",
    ),
    "wrong dims, Minari": (
        h5_with(write_minari, act_dim=8),
        "episode_0/actions has shape (3, 8), expected (T, 7)",
    ),
    "wrong dims, D4RL": (
        h5_with(write_d4rl, "observations", np.zeros(7)),
        "observations has shape (3,), expected (T + 1, 50)",
    ),
    "no dims, D4RL": (h5_with(write_d4rl, "observations", 0.5), "is not a readable demonstration"),
    "not numbers": (
        dapg_with(actions=np.array(["a"] * 4)),
        "found an array of 'U1', expected one of numbers",
    ),
    "wrong task": (wrong_task, "holds demonstrations of StackCube, expected PegInsertionSide"),
    "NaN, DAPG": (
        dapg_with(observations=NAN),
        "episode_0 holds NaN, or numbers beyond 1e+10; drop the episode (the first is in"
        " observations, step 0, tcp_pose[0])",
    ),
    "infinity, D4RL": (
        h5_with(write_d4rl, "actions", np.full((7, ACT_DIM), np.inf)),
        "episode_0 (rows 0-2) holds NaN, or numbers beyond 1e+10",
    ),
    "mixed lengths, DAPG": (
        dapg_with(actions=np.zeros((3, ACT_DIM))),
        "episode_0 has 4 observations for 3 actions, expected as many",
    ),
    "mixed lengths, D4RL": (
        h5_with(write_d4rl, "rewards", np.zeros(5)),
        "has 5 rewards for 7 actions, expected as many",
    ),
    "mixed lengths, Minari": (
        h5_with(write_minari, "episode_1/actions", np.zeros((4, ACT_DIM))),
        "episode_1 has 3 observations for 4 actions, expected T + 1",
    ),
    "missing key, DAPG": (dapg_with(rewards=None), "episode_0 has no array `rewards`; expected D"),
    "missing key, D4RL": (h5_with(write_d4rl, "terminals"), "has no array `terminals`; expected D"),
    "missing key, Minari": (
        h5_with(write_minari, "episode_1/observations"),
        "episode_1 has no array `observations`; expected Minari's layout",
    ),
    "zero length, Minari": (
        h5_with(write_minari, lengths=(3, 0)),
        "episode_1 has 1 observations for 0 actions, expected T + 1 for T >= 1",
    ),
    "zero length, DAPG": (
        dapg_with(
            observations=np.zeros((1, OBS_DIM)), actions=np.zeros((1, ACT_DIM)), rewards=np.zeros(1)
        ),
        "episode_0 has 1 observations for 0 actions",
    ),
}


@pytest.mark.parametrize("command", ["data check", "imitate"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_ends_in_one_line(capsys, monkeypatch, tmp_path, command, kind):
    make, message = BROKEN[kind]
    monkeypatch.chdir(tmp_path)
    make(Path("file"))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    more = ["--out", "base"] if command == "imitate" else []
    assert cli.main([*command.split(), "file", "--task", TASK, *more]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("pdjax: file")
    assert message in captured.err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
