"""Workers that misbehave: each is one line, its episodes end as truncated, and nothing stays."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from pdjax_envs.workers import WorkerError, WorkerPool, describe
from tests.envs.workers.playing import (
    ENV,
    FILE,
    check,
    descriptors,
    groups,
    is_gone,
    pids,
    play,
    point,
)

QUICK = 1.5  # s, `step_timeout`


@pytest.fixture(autouse=True)
def nothing_is_left():
    """No process of any session that was started, and no descriptor, outlives a test."""
    before, open_before = groups(), descriptors()
    yield
    new = groups().keys() - before.keys()
    assert all(is_gone(pid) for pid in new if is_worker(pid)) and descriptors() == open_before


def is_worker(pid):
    try:
        return b"worker.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


# trouble -> kind of failure, what its line says
TROUBLES = {
    "dies": ("died", "was killed by SIGKILL; its log ends with: about to die"),
    "exits": ("raised", "SystemExit: 3 (point_env.py:"),
    "raises": ("raised", "ValueError: the gripper is stuck (point_env.py:"),
    "reset_raises": ("raised", "ValueError: the gripper is stuck (point_env.py:"),
    "sleeps": ("hung", 'it hangs in "' + str(FILE)[:20]),
    "nan": ("numbers", "its observation is not finite"),
    "huge": ("numbers", "its observation is not finite"),
    "shape": ("numbers", "observation has shape (3,), expected (2, 2)"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_failing_worker_is_replaced_and_its_episodes_are_truncated(trouble, tmp_path):
    once = tmp_path / "once"
    with WorkerPool(
        point(trouble=trouble, once=str(once)), 4, 2, chunk=2, step_timeout=QUICK
    ) as pool:
        rounds = play(pool, 12)
        before = [next(rounds)] if trouble == "reset_raises" else [next(rounds), next(rounds)]
        once.touch()
        played = [*before, *rounds]
        kind, words = TROUBLES[trouble]
        assert pool.restarts == 1 and pool.failures == {kind: 1}
        (line,) = pool.new_reasons()
        assert words in line and "\n" not in line and len(line) < 400, line
        assert not pool.new_reasons() and pool.reasons == [line]
    lost = [p.truncated[:, 0] & ~p.executed[:, 0] for p in played]
    count = np.sum(lost, 1)
    assert (np.sum(count) <= 2) if trouble == "reset_raises" else (sorted(count)[-2:] == [0, 2])
    for k in np.flatnonzero(count):
        index = np.flatnonzero(lost[k])
        np.testing.assert_array_equal(played[k].obs[index, 0], played[k - 1].obs[index, -1])
        assert not played[k].terminated[index].any()
    # the other worker noticed nothing
    with WorkerPool(point(), 4, 2, chunk=2) as pool:
        expected = list(play(pool, 12))
    rows = slice(2, 4) if line.startswith("worker 0") else slice(0, 2)
    for a, b in zip(played, expected, strict=True):
        for found, plain in zip(a, b, strict=True):
            np.testing.assert_array_equal(found[rows], plain[rows])


def test_what_environments_print_does_not_matter():
    with (
        WorkerPool(point(trouble="prints"), 2, chunk=2) as loud,
        WorkerPool(point(), 2, chunk=2) as quiet,
    ):
        for a, b in zip(play(loud, 10), play(quiet, 10), strict=True):
            for found, expected in zip(a, b, strict=True):
                np.testing.assert_array_equal(found, expected)
        assert loud.restarts == 0 and "trouble ahead" in loud._processes[0].log_end()


def test_more_failures_than_allowed_are_one_error():
    with WorkerPool(point(trouble="raises", at=2), 2, 2, restarts=3) as pool:
        started = pids(pool)
        with pytest.raises(WorkerError) as error:
            list(play(pool, 50))
        assert "more than restarts=3" in str(error.value) and "stuck" in str(error.value)
        assert pool.restarts == 3 and pool.failures["raised"] == 4
        assert "\n" not in str(error.value) and all(map(is_gone, started))
        assert len(pool.new_reasons()) == 2  # one line for each worker, however often


def test_workers_killed_at_random_moments_cost_only_their_episodes():
    draw = random.Random(0)
    with WorkerPool(point(limit=20), 4, 2, chunk=2, restarts=20) as pool:
        actions, begin = np.zeros((4, 2, 2)), np.ones(4, bool)
        for kill in range(20):
            victim = draw.randrange(2)
            before = draw.random() < 0.5
            if before:
                os.kill(pids(pool)[victim], signal.SIGKILL)
            pool.send(actions, begin, np.arange(4) + kill)
            if not before:
                time.sleep(draw.random() * 0.001)
                os.kill(pids(pool)[victim], signal.SIGKILL)
            played = pool.receive()
            check(played, begin)
            begin = (played.terminated | played.truncated).any(1)
            pool.send(actions, begin, np.arange(4) + kill)
            played = pool.receive()  # a worker that was killed after its answer is noticed here
            check(played, begin)
            begin = (played.terminated | played.truncated).any(1)
        assert pool.restarts == 20 and pool.failures == {"died": 20}
        assert all("SIGKILL" in line for line in pool.reasons)


def test_a_worker_that_hangs_while_it_draws_is_replaced():
    spec = {"env": ENV, "options": {"trouble": "render_hangs"}, "render": True}
    with WorkerPool(spec, 4, 2, step_timeout=QUICK) as pool:
        rounds = play(pool, 4)
        next(rounds)
        with pytest.raises(WorkerError, match="it hangs in"):
            pool.render(3)
        played = next(rounds)
        assert played.executed[:, 0].tolist() == [True, True, False, False]
        assert played.truncated[:, 0].tolist() == [False, False, True, True]
        assert next(rounds).executed[:, 0].tolist() == [True, True, False, False]  # begins again
        assert next(rounds).executed.all() and pool.restarts == 1


def test_what_an_environment_started_ends_with_it():
    with WorkerPool(point(trouble="starts_program", at=1), 1, chunk=2) as pool:
        list(play(pool, 2))
        (group,) = pids(pool)
        assert list(groups().values()).count(group) == 3  # the probe started one too
    assert is_gone(group)


REFUSED = {
    "Discrete": (point(space="discrete"), "its actions are Discrete(4)"),
    "unbounded": (point(space="unbounded"), "unbounded"),
    "text": (point(space="text"), "its said is Text("),
    "picture": (point(space="picture"), "its cam is a picture, uint8 (64, 64, 3)"),
    "raises": (point(trouble="reset_raises"), "ValueError: the gripper is stuck (point_env.py:"),
    "exits": (point(trouble="exits", at=1), "SystemExit: 3"),
    "dies": (point(trouble="dies", at=1), "SIGKILL; its log ends with: about to die"),
    "nan": (point(trouble="nan", at=1), "not finite"),
    "inf_reward": (point(trouble="inf_reward"), "its reward is not finite"),
    "options": (point(limits=3), "unexpected keyword argument 'limits'"),
    "file": ({"env": "absent.py:make_env"}, "there is no file absent.py"),
    "function": ({"env": f"{FILE}:make"}, "has no function 'make'"),
    "no environment": (
        {"env": f"{FILE}:make_wrong"},
        "it is no environment, expected a gymnasium.Env",
    ),
    "ID": ({"env": "Pendulumm-v1"}, "there is no Pendulumm-v1; did you mean Pendulum-v1"),
    "version": ({"env": "Pendulum-v7"}, "did you mean Pendulum-v1"),
    "module": ({"env": "absent:X-v0"}, "No module named 'absent'"),
    "registered": ({"env": "CartPole-v1"}, "its actions are Discrete(2)"),
    "registered options": ({"env": "Pendulum-v1", "options": {"h": 1}}, "argument 'h'"),
    "success": ({"env": ENV, "success": "absent.py:f"}, "there is no file absent.py"),
    "number": ({"env": ENV, "success": "energy"}, "its success is 2.0, expected yes or no"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_one_line(name):
    spec, words = REFUSED[name]
    with pytest.raises(WorkerError) as error:
        WorkerPool(spec, 2, 2)
    assert words in str(error.value) and "\n" not in str(error.value), str(error.value)


def test_a_file_that_raises_is_one_line(tmp_path):
    file = tmp_path / "broken.py"
    for source, words in {"x = 1\nx.y": "(broken.py:2)", "def f(:": "SyntaxError"}.items():
        file.write_text(source)
        with pytest.raises(WorkerError, match=r"broken\.py") as error:
            describe({"env": f"{file}:make_env"})
        assert words in str(error.value) and "\n" not in str(error.value), str(error.value)


def script(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo not today >&2; exit 3", "exit code 3; its log ends with: not today; it needs"),
        ("sleep 1000", "did not answer in time"),
        (f"exec {sys.executable} -S $@", "lacks a package (No module named 'numpy'"),
    ],
    ids=["stops", "sleeps", "without NumPy"],
)
def test_an_unsuitable_interpreter_is_one_line(tmp_path, body, words):
    with pytest.raises(WorkerError) as error:
        describe(point(), python=script(tmp_path / "python", body), start_timeout=2)
    assert words in str(error.value) and "\n" not in str(error.value), str(error.value)


def test_an_absent_interpreter_is_one_line(tmp_path):
    for name in (str(tmp_path / "python"), "no-such-python", str(tmp_path), str(FILE)):
        with pytest.raises(WorkerError, match="cannot start the interpreter"):
            WorkerPool(point(), 2, 2, python=name)


def test_a_launcher_may_start_the_interpreter(tmp_path):
    launcher = script(tmp_path / "python", f"{sys.executable} $@\nexit 1")
    with WorkerPool(point(), 2, python=launcher, chunk=2) as pool:
        assert [p.executed.all() for p in play(pool, 2)] == [False, True]
        group = pids(pool)
    assert is_gone(group[0])


OWNER = """
import signal, sys, threading, time
import numpy as np
from pdjax_envs.workers import WorkerPool
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
def use():
    global pool
    pool = WorkerPool({spec}, 2, 2, python={python!r})
    pool.send(np.zeros((2, 1, 2)), [True] * 2, [0, 0])
    pool.receive()
{start}
print(*[process._process.pid for process in pool._processes], flush=True)
pool.send(np.zeros((2, 1, 2)), [False] * 2, [0, 0])
{end}
"""
IN_A_THREAD = "thread = threading.Thread(target=use); thread.start(); thread.join()"
FORKED = "import os\nif os.fork() == 0: sys.exit()\nos.wait(); pool.receive(); time.sleep(1000)"


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("use()", "time.sleep(1000)"),
        (IN_A_THREAD, "time.sleep(1000)"),
        ("use()", ""),
        ("use()", "raise ValueError"),
        ("use()", FORKED),
        ("use()", "time.sleep(1001)"),
    ],
    ids=["killed", "thread", "ends", "raises", "forks", "interrupted"],
)
@pytest.mark.parametrize("launched", [False, True], ids=["", "launcher"])
def test_workers_end_with_the_process_that_started_them(start, end, launched, tmp_path):
    launcher = script(tmp_path / "python", f"{sys.executable} $@\nexit 1") if launched else ""
    spec = point(trouble="sleeps", at=2) if "sleep" in end and end != FORKED else point()
    source = textwrap.dedent(OWNER).format(spec=spec, python=launcher, start=start, end=end)
    command = [sys.executable, "-c", source]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert owner.stdout is not None
    started = [int(pid) for pid in owner.stdout.readline().split()]
    assert len(started) == 2
    time.sleep(0.3)  # in a step that sleeps, or after the fork
    if end and "raise" not in end:
        assert owner.poll() is None and all(pid in groups() for pid in started)
        owner.send_signal(signal.SIGINT if "1001" in end else signal.SIGKILL)
    owner.wait(10)
    owner.stdout.close()
    assert all(map(is_gone, started))


def test_an_interrupted_wait_can_go_on():
    with WorkerPool(point(), 2, 2) as pool:
        rounds = play(pool, 2)
        next(rounds)
        for pid in pids(pool):
            os.kill(pid, signal.SIGSTOP)
        pool.send(np.zeros((2, 1, 2)), np.zeros(2, bool), np.zeros(2, int))

        def interrupt(*_):
            raise KeyboardInterrupt

        old = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            pool.receive()
        signal.signal(signal.SIGALRM, old)
        for pid in pids(pool):
            os.kill(pid, signal.SIGCONT)
        assert pool.receive().executed.all() and pool.restarts == 0


def test_an_interrupted_restart_can_go_on(monkeypatch):
    with WorkerPool(point(), 4, 2) as pool:
        rounds = play(pool, 4)
        next(rounds)
        os.kill(pids(pool)[1], signal.SIGKILL)
        pool.send(np.zeros((4, 1, 2)), np.zeros(4, bool), np.zeros(4, int))
        with monkeypatch.context() as patch:

            def interrupt(index):
                raise KeyboardInterrupt

            patch.setattr(pool._crew, "_prepare", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pool.receive()
        played = pool.receive()
        assert played.executed[:, 0].tolist() == [True, True, False, False]
        assert played.truncated[:, 0].tolist() == [False, False, True, True]
        assert pool.restarts == 2


def test_the_log_of_a_talkative_environment_begins_anew():
    with WorkerPool(point(trouble="prints", at=1), 1) as pool:
        process = pool._processes[0]
        list(play(pool, 20))
        size = os.fstat(process._log.fileno()).st_size
        process.trim_log()
        assert os.fstat(process._log.fileno()).st_size == size > 1000
        os.truncate(process._log.fileno(), (1 << 20) + 1)
        process.trim_log()
        list(play(pool, 4))
        assert 0 < os.fstat(process._log.fileno()).st_size < size
