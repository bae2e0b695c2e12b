"""A run whose files fail or whose process is killed at every point loses nothing, or says what.

Slow: `PDJAX_FAULTS=N pytest -m slow -n 0 tests/training/test_faults.py` tries about N points of
each kind and N random moments; 0 tries all points and 100 moments.
"""

import collections
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pdjax.base_policies.foreign import exported
from pdjax.output import checkpoint
from tests.probe import make_constant_policy
from tests.profile.test_profile import TINY

pytestmark = pytest.mark.slow

MANY = int(os.environ.get("PDJAX_FAULTS", "25"))
SETTINGS = [
    *TINY,
    "train.total_decisions=192",
    "checkpoint.every=64",
    "checkpoint.keep=2",
    "eval.episodes=8",
    "eval.interim_every=64",
    "decorator.exploration_steps=0",
    "train.learning_starts=32",
    "guard.enabled=false",
]
ARGV = ["train", "peg_fast", "--out", "run", "--resume", "--set", *SETTINGS]


class Server:
    """Processes with faults, see `faulty`."""

    def __init__(self, folder):
        self._folder, self._numbers = folder, iter(range(1_000_000))
        caches = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.faulty"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | caches,
            cwd=Path(__file__).parents[2],
        )

    def place(self):
        """A new folder with the base policy."""
        folder = self._folder / f"place_{next(self._numbers)}"
        folder.mkdir()
        shutil.copytree(self._folder / "base", folder / "base")
        return folder

    def run(self, folder, fault="", at=0.0):
        """Runs the command in a folder; returns exit code, lines that it said, and points met."""
        log = self._folder / f"log_{next(self._numbers)}"
        order = {"argv": ARGV, "folder": str(folder), "log": str(log), "fault": fault, "at": at}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = json.loads(self._process.stdout.readline())
        points = Path(f"{log}.points")
        count = int(points.read_text()) if points.is_file() else 0
        return code, log.read_text(errors="replace").splitlines(), count

    def close(self):
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    exported.export_policy(make_constant_policy(0.2), folder / "base", "Point")
    server = Server(folder)
    server.run(server.place())  # fills the cache of compiled programs
    yield server
    server.close()


def outcome(run):
    """Everything that a run ends with, but for times."""
    result = json.loads((run / "result.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    with np.load(run / "episodes.npz") as file:
        episodes = {name: file[name].tobytes() for name in file.files}
    files = sorted(path for path in (run / "residual").glob("**/d/*") if path.is_file())
    assert checkpoint.is_intact(run / "residual") and files
    untimed = [{k: v for k, v in one.items() if k != "wall_s"} for one in (result, *lines)]
    return untimed, episodes, residual(run)


def residual(run):
    """The numbers of a run's residual policy, read without knowing their shapes."""
    import orbax.checkpoint as ocp

    tree = ocp.StandardCheckpointer().restore((run / "residual").absolute())
    leaves = collections.deque([tree])
    found = []
    while leaves:
        leaf = leaves.popleft()
        below = leaf.values() if isinstance(leaf, dict) else leaf if isinstance(leaf, list) else ()
        leaves.extend(below)
        if hasattr(leaf, "dtype"):
            found.append(np.asarray(leaf).tobytes())
    return found


@pytest.fixture(scope="module")
def whole(server):
    """An undisturbed run: what it ends with, the points that it meets, and its seconds."""
    place, start = server.place(), time.monotonic()
    code, lines, points = server.run(place)
    assert code == 0 and points > 50, lines
    return outcome(place / "run"), points, time.monotonic() - start


def judge(server, whole, tried):
    """Disturbs runs, resumes each, and counts how they ended.

    Args:
      server: see `Server`.
      whole: the undisturbed outcome.
      tried: the faults: (kind, point or seconds).
    """
    ends = collections.Counter()
    wrong = []
    for fault, at in tried:
        place = server.place()
        code, said, _ = server.run(place, fault, at)
        if fault in ("kill", "later"):
            clear = code in (-9, 0)
        else:
            clear = code in (0, 1, 2) and not any("Traceback" in line for line in said)
            last = said[-1] if said else ""
            clear = clear and (not code or last.startswith("pdjax:"))
        if not clear:
            wrong.append((fault, at, "at the fault", code, said[-4:]))
        again, told, _ = server.run(place)
        if again == 0:
            same = outcome(place / "run") == whole
            ends[fault, code, "the same" if same else "other"] += 1
            if not same:
                wrong.append((fault, at, "resumed with another outcome", code, told[-4:]))
        else:
            ends[fault, code, f"resume ends with {again}"] += 1
            one_line = again == 2 and sum(line.startswith("pdjax:") for line in told) == 1
            if not one_line:
                wrong.append((fault, at, "resuming", again, told[-4:]))
        shutil.rmtree(place)
    for end, count in sorted(ends.items(), key=str):
        print(f"{count:5d} x {end}")
    assert not wrong, "\n".join(map(str, wrong[:20]))
    return ends


@pytest.mark.parametrize("fault", ["kill", "ENOSPC", "EIO"])
def test_every_point(server, whole, fault):
    outcome_of_whole, points, _ = whole
    step = max(1, points // MANY) if MANY else 1
    tried = [(fault, at) for at in range(1, points + 1, step)]
    print(f"{len(tried)} of {points} points, {fault}")
    ends = judge(server, outcome_of_whole, tried)
    assert sum(ends.values()) == len(tried)


def test_random_moments(server, whole):
    outcome_of_whole, _, seconds = whole
    draw = random.Random(0)
    tried = [("later", draw.uniform(0, 0.8 * seconds)) for _ in range(MANY or 100)]
    ends = judge(server, outcome_of_whole, tried)
    assert any(code == -9 for _, code, _ in ends)  # not all came too late
