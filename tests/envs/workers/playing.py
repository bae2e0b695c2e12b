"""What the tests of the workers share: the point mass, rounds of random decisions, no leftovers."""

import contextlib
import os
import time
from pathlib import Path

import numpy as np

from pdjax_envs.workers import WorkerPool

FILE = Path(__file__).with_name("point_env.py")
ENV = f"{FILE}:make_env"


def point(**options):
    return {"env": ENV, "options": options}


def play(pool, decisions, seed=0):
    """Plays random decisions; each ended episode is followed by another. Yields what was played."""
    draw = np.random.default_rng(seed)
    begin = np.ones(pool.num_envs, bool)
    for decision in range(decisions):
        actions = draw.uniform(-1, 1, (pool.num_envs, pool.chunk, pool.description.act_dim))
        pool.send(actions, begin, 1000 * decision + np.arange(pool.num_envs))
        played = pool.receive()
        check(played, begin)
        yield played
        begin = (played.terminated | played.truncated).any(1)


def check(played, began):
    """What holds in every answer."""
    assert np.isfinite(played.obs).all() and np.isfinite(played.reward).all()
    assert not played.executed[began].any()
    ended = (played.terminated | played.truncated).any(1)
    chunk = played.executed.shape[1]
    lost = ~began & ~played.executed.any(1)
    assert played.truncated[lost, 0].all() and not played.terminated[lost].any()
    complete = played.executed.all(1)
    assert (complete | ended | began).all()
    for flags in (played.terminated, played.truncated, played.success):
        assert not flags[~lost][~played.executed[~lost]].any()
    for t in range(1, chunk):
        idle = ~played.executed[:, t]
        np.testing.assert_array_equal(played.obs[idle, t], played.obs[idle, t - 1])


def pids(pool: WorkerPool):
    return [process._process.pid for process in pool._processes]


def groups():
    """Process groups of all that runs: pid -> group."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                found[int(entry.name)] = int(fields[2])
    return found


def is_gone(group, seconds=5.0):
    """Whether nothing of a process group runs within so many seconds."""
    until = time.monotonic() + seconds
    while group in groups().values():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


def descriptors():
    return len(os.listdir("/proc/self/fd"))
