"""One run on two processes: the run that it is in one, and none is left waiting for another."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from pdjax.commands import cli
from pdjax.config.options import ConfigError
from pdjax.devices import processes as distributed
from tests.commands.test_cli import make_base_policy
from tests.sweep.test_tune import SHORT
from tests.training.test_loop import records

# `pdjax train`, which also keeps what the training ends with, as this process holds it.
PROGRAM = """
import sys
import jax, numpy as np
from pdjax.commands import cli
from pdjax.training import run

refine, path = run.refine, sys.argv[1]

def keep(*arguments):
    (end,) = ends = refine(*arguments)
    assert end.state.sac.gradient_steps > 0
    learner = jax.tree.leaves((end.state.sac, end.best_actor))
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(end.state.sac))
    replay = [shard.data for shard in end.state.replay.storage.obs.addressable_shards]
    np.savez(path, replay=replay[0], **{f"leaf{i}": leaf for i, leaf in enumerate(learner)})
    return ends

run.refine = keep
sys.argv[:2] = ["pdjax"]
cli.program()
"""


def by_flags(index, port):
    return ["--coordinator", f"127.0.0.1:{port}", "--process", f"{index}/2"], {}


def by_environment(index, port):
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID", "JAX_NUM_PROCESSES")
    return [], dict(zip(names, (f"127.0.0.1:{port}", str(index), "2"), strict=True))


def by_slurm(index, port):
    found = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(index),
        "SLURM_LOCALID": str(index),
        "JAX_COORDINATOR_PORT": str(port),
    }
    return ["--coordinator", "auto"], found


def start(folder, out, index=None, way=([], {}), *more):
    """One process of a run, or the only one."""
    name = f"{out}_{index}"
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        str(folder / f"{name}.npz"),
        "train",
        "peg_fast",
        "--out",
        str(folder / out),
        "--set",
        f"base_policy.path={folder / 'base'}",
        *SHORT,
        "eval.episodes=5",
        *more,
    ]
    flags, variables = way
    log = (folder / f"{name}.log").open("w")
    return subprocess.Popen(command + flags, stdout=log, stderr=log, env=os.environ | variables)


def start_two(folder, out, way, *more):
    """`more`: flags of both, `{}` for the index."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    return [
        start(folder, out, index, way(index, port), *(text.format(index) for text in more))
        for index in range(2)
    ]


def codes(processes, seconds=300):
    """Exit codes; none may still run after so many seconds."""
    try:
        return [process.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()


def said(folder, out, index):
    return (folder / f"{out}_{index}.log").read_text()


def ends(folder, out, index):
    with np.load(folder / f"{out}_{index}.npz") as found:
        return dict(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a base policy and `two`, a run on two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("runs")
    make_base_policy(folder / "base")
    assert codes(start_two(folder, "two", by_environment)) == [0, 0], said(folder, "two", 0)
    return folder


def test_two_processes_train_what_one_does(folder):
    assert codes([start(folder, "one")]) == [0], said(folder, "one", None)
    first, second, alone = (
        ends(folder, *which) for which in (("two", 0), ("two", 1), ("one", None))
    )
    replay = [found.pop("replay") for found in (first, second, alone)]
    assert len(first) == len(alone) > 10
    for name, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[name])
        np.testing.assert_allclose(leaf, alone[name], rtol=1e-4, atol=1e-5)
    # each holds the rows of its own two environments
    assert replay[0].shape[1] == replay[1].shape[1] == 2
    np.testing.assert_allclose(np.concatenate(replay[:2], axis=1), replay[2], rtol=1e-4, atol=1e-4)
    ours, theirs = records(folder / "two"), records(folder / "one")
    assert [record["decision_steps"] for record in ours] == [r["decision_steps"] for r in theirs]
    assert "refining" in said(folder, "two", 0) and "refining" not in said(folder, "two", 1)


def test_a_run_whose_process_is_killed_ends_and_is_resumed_as_if_it_had_not(folder):
    processes = start_two(folder, "killed", by_flags)
    saved = folder / "killed" / "checkpoints"
    deadline = time.monotonic() + 300
    while not any(path.name.isdigit() for path in saved.glob("*")):  # others are being written
        assert time.monotonic() < deadline and processes[1].poll() is None
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGKILL)
    assert codes(processes)[0] == 1, said(folder, "killed", 0)
    assert "another process of this run is gone" in said(folder, "killed", 0)
    assert not (folder / "killed" / "result.json").exists()
    assert codes(start_two(folder, "killed", by_flags, "--resume")) == [0, 0]
    assert "resumed after" in said(folder, "killed", 0)
    for index in range(2):
        undisturbed = ends(folder, "two", index)
        for name, leaf in ends(folder, "killed", index).items():
            np.testing.assert_array_equal(leaf, undisturbed[name])
    assert records(folder / "killed") == records(folder / "two")


WAITING = """
import os, signal, sys
from jax._src import distributed
from pdjax.devices import processes

index, port = sys.argv[1:]
processes.SILENCE = 5
processes.join(f"127.0.0.1:{port}", f"{index}/2")
client = distributed.global_state.client
client.wait_at_barrier("both are here", 60_000)
if index == "1":
    os.kill(os.getpid(), signal.SIGKILL)
client.wait_at_barrier("never", 60_000)
"""


def test_a_process_that_waits_for_one_that_is_gone_ends_with_a_word(tmp_path):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    logs = [(tmp_path / str(index)).open("w+") for index in range(2)]
    processes = [
        subprocess.Popen([sys.executable, "-c", WAITING, str(index), port], stderr=log)
        for index, log in enumerate(logs)
    ]
    found = codes(processes, 100)
    logs[0].seek(0)
    said = logs[0].read()
    assert found == [1, -signal.SIGKILL], said
    assert "Traceback" not in said
    assert said.splitlines()[-1] == (
        "pdjax: another process of this run is gone or cannot be reached (process 1 was silent for"
        " 5 s); start all of them again with --resume"
    )


@pytest.mark.parametrize("kind", [jax.errors.JaxRuntimeError, ValueError])
def test_a_closed_connection_is_a_lost_process_however_jax_says_it(kind, monkeypatch):
    monkeypatch.setattr(distributed, "_count", 2)
    message = "UNKNOWN: Gloo AllGather failed: Connection closed by peer"
    with (
        pytest.raises(distributed.ProcessLostError, match="another process of this run is gone"),
        distributed.together(),
    ):
        raise kind(message)
    with pytest.raises(ValueError, match="no matter of processes"), distributed.together():
        raise ValueError("no matter of processes")


def test_processes_with_unequal_commands_are_refused(folder):
    processes = start_two(folder, "unequal", by_slurm, "--set", "seed={}")
    assert codes(processes) == [2, 2]
    for index in range(2):
        line = said(folder, "unequal", index).splitlines()[-1]
        assert line == (
            "pdjax: process 1 has another config than process 0; start all processes with the same"
            " command"
        )
    assert not (folder / "unequal").exists()


def test_a_cluster_that_is_not_there(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pdjax.commands.cli",
        "train",
        "peg_fast",
        "--coordinator",
        "auto",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "nothing says which process this is; give --process INDEX/COUNT" in done.stderr
    assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_nobody_at_the_address(monkeypatch):
    monkeypatch.setattr(distributed, "PATIENCE", 1)
    with pytest.raises(ConfigError, match=r"no process 0 answered at 127.0.0.1:9 within 1 s \(.*"):
        distributed.join("127.0.0.1:9", "1/2")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--coordinator", "here"], "--coordinator got 'here', expected HOST:PORT with a port"),
        (["--coordinator", "here:0"], "--coordinator got 'here:0', expected HOST:PORT with a port"),
        (["--coordinator", "here:99999"], "with a port from 1 to 65535, or auto"),
        (["--coordinator", "here:\u0661"], "expected HOST:PORT with a port"),
        (["--process", "0/2"], "--coordinator got '', expected HOST:PORT with a port"),
        (["--coordinator", "h:1", "--process", "2/2"], "--process got '2/2', expected INDEX/COUNT"),
        (["--coordinator", "h:1", "--process", "1"], "--process got '1', expected INDEX/COUNT"),
    ],
)
def test_mistakes(argv, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "peg_fast", *argv]) == 2
    captured = capsys.readouterr().err
    assert words in captured and captured.count("\n") == 1
    assert not list(Path().iterdir())
