"""Measures the replay: time to insert and to sample, and memory against the plan.

    python benchmarks/replay.py                       # times, then memory in fresh processes
    python benchmarks/replay.py --no-memory --repeats 25

Times are for full rings of AdroitDoor's sizes with a held residual and 64 environments. They take
turns in one process; each turn is one jitted program with the ring donated, as in an epoch:

- insert: one round's rows (4 decisions of each environment), packed, again and again;
- sample: batches of 256 with 5 steps, unpacked.

`large_over_small` is the time at 1,000,000 decisions over the time at 100,000, both float32;
`bfloat16_over_float32` compares at 1,000,000. A round has few rows compared with the ring, so
inserting must take the same time; sampling reads from all over the ring, so caches matter.

Memory is the resident memory of a fresh process for each row: AdroitDoor, an untrained MLP as base
policy, the replay filled with random numbers (every page touched, nothing to compress). `held` is
the growth from before any allocation until two epochs and two evaluations are done, compared with
the plan's parts that did not exist before. `peak` is the largest growth while both kinds of
checkpoint are written and another epoch runs, compared with the plan's upper bound. The program
appends a row to `benchmarks/results/replay.jsonl`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from base_policies import save_base
from harness import alternate, append_row, median, ratio

from pdjax.config import files as configs
from pdjax.devices.rates import timed
from pdjax.learner.replay import ReplayBuffer, ReplayState, make_packing, make_replay
from pdjax.output.checkpoint import Checkpoints
from pdjax.training import build, compiled
from pdjax.types import Transition
from pdjax_envs import free_memory

SIZES = {"obs": 39, "base_action": 112, "residual_action": 28}  # of AdroitDoor, chunks of 4
NUM_ENVS, DECISIONS, BATCH_SIZE, N_STEP = 64, 4, 256, 5
SMALL, LARGE = 100_000, 1_000_000  # decisions
INSERTS, DRAWS = 2_000, 200  # of one program; so many that a turn outlasts what disturbs it
MEMORY_LIMIT = 900  # s


def make_rows(key: jax.Array, *lead: int) -> Transition:
    """Returns random rows with leaves (*lead, ...)."""
    keys = jax.random.split(key, 4)
    numbers = {
        name: jax.random.normal(k, (*lead, size)) for k, (name, size) in zip(keys, SIZES.items())
    }
    reward, no = jax.random.normal(keys[3], lead), jnp.zeros(lead, bool)
    return Transition(**numbers, reward=reward, terminated=no, truncated=no, is_reset=no)


def fill(storage: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
    """Fills all rows with random numbers, block by block, in place; leaves (rows, ...)."""
    rows = len(next(iter(storage.values())))
    block = next(size for size in range(64, 0, -1) if rows % size == 0)

    def noise(leaf, index):
        key_now = jax.random.fold_in(jax.random.fold_in(key, leaf.size), index)
        drawn = jax.random.normal(key_now, (block, *leaf.shape[1:]))
        if leaf.dtype == jnp.uint16:  # words, see `make_packing`
            return jax.lax.bitcast_convert_type(drawn.astype(jnp.bfloat16), jnp.uint16)
        return drawn

    def write(index, storage):
        return {
            name: jax.lax.dynamic_update_slice_in_dim(leaf, noise(leaf, index), index * block, 0)
            for name, leaf in storage.items()
        }

    loop = lambda storage: jax.lax.fori_loop(0, rows // block, write, storage)  # noqa: E731
    return jax.block_until_ready(jax.jit(loop, donate_argnums=0)(storage))


class Ring:
    """A full ring and its two programs; each method returns a rate per second."""

    def __init__(self, capacity: int, dtype: str):
        mean, std = jnp.zeros(SIZES["obs"]), jnp.ones(SIZES["obs"])
        packing = make_packing(dtype, mean, std)
        rows = capacity // NUM_ENVS // DECISIONS * DECISIONS
        example = jax.eval_shape(lambda: packing.pack(make_rows(jax.random.key(0))))
        replay: ReplayBuffer = make_replay(rows, NUM_ENVS, example)
        state = jax.jit(replay.init)()
        numbers = {name: getattr(state.storage, name) for name in SIZES}
        storage = state.storage._replace(**fill(numbers, jax.random.key(1)))
        self._state = ReplayState(storage, state.cursor, jnp.int32(rows))
        self._rows = make_rows(jax.random.key(2), DECISIONS, NUM_ENVS)

        def insert(state, rows):
            def add(state, _):
                return replay.add(state, packing.pack(rows)), None

            return jax.lax.scan(add, state, length=INSERTS)[0]

        def sample(state, key):
            def draw(key):
                return packing.unpack(replay.sample(state, key, BATCH_SIZE, N_STEP, 0.99, 0.0))

            return jax.lax.map(draw, jax.random.split(key, DRAWS))

        self._insert, self._sample = jax.jit(insert, donate_argnums=0), jax.jit(sample)
        self.insert()
        self.sample()

    def insert(self) -> float:
        """Measures the rounds inserted per second."""
        seconds, self._state = timed(self._insert, self._state, self._rows)
        return INSERTS / seconds

    def sample(self) -> float:
        """Measures the batches drawn per second."""
        return DRAWS / timed(self._sample, self._state, jax.random.key(3))[0]


def measure_times(repeats: int) -> dict[str, Any]:
    """Measures all rings in turns, in microseconds, and their ratios."""
    rings = {
        "small": Ring(SMALL, "float32"),
        "large": Ring(LARGE, "float32"),
        "large_bfloat16": Ring(LARGE, "bfloat16"),
    }
    row: dict[str, Any] = {
        "num_envs": NUM_ENVS,
        "rows": DECISIONS,
        "small": SMALL,
        "large": LARGE,
        "batch_size": BATCH_SIZE,
        "n_step": N_STEP,
        "repeats": repeats,
    }
    for verb in ("insert", "sample"):
        rates = alternate({name: getattr(ring, verb) for name, ring in rings.items()}, repeats)
        row[verb] = {
            "microseconds": {
                name: median([1e6 / r for r in found]) for name, found in rates.items()
            },
            # rates the other way round, to be ratios of times
            "large_over_small": ratio(rates["small"], rates["large"]),
            "bfloat16_over_float32": ratio(rates["large"], rates["large_bfloat16"]),
        }
    return row


class Peak:
    """Records the largest resident memory while the block runs, in bytes, every 5 ms."""

    def __enter__(self) -> "Peak":
        self.bytes, self._over = free_memory.resident_memory(), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self.bytes = max(self.bytes, free_memory.resident_memory())

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def measure_memory(task: str, capacity: int, dtype: str) -> dict[str, Any]:
    """Plans and measures the bytes of one run in this process, which must be a fresh one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = save_base(folder, "mlp", task)
        config = configs.load(
            "door_fast",
            [
                f"task.name={task}",
                f"base_policy.path={path}",
                f"train.replay_capacity={capacity}",
                f"train.replay_dtype={dtype}",
                "train.learning_starts=0",
            ],
        )
        steps, (plan, *_) = compiled.prepare(build.build(config))
        before = free_memory.resident_memory()
        state = steps.init(0)
        storage = state.replay.storage
        numbers = fill({name: getattr(storage, name) for name in SIZES}, jax.random.key(0))
        replay = state.replay._replace(storage=storage._replace(**numbers))
        state = state._replace(replay=replay)
        for _ in range(2):
            state, metrics = steps.train_epoch(state)
            steps.play(0, config.eval.episodes, state.sac.actor, 0.2)
        if not metrics["gradient_steps"]:
            raise AssertionError("nothing was learned; the row would not be of training")
        held = free_memory.resident_memory() - before
        savers = [Checkpoints(folder / name, keep=2) for name in ("best", "newest")]
        with Peak() as peak:
            for saver in savers:
                saver.save(1, state)
            state, _ = steps.train_epoch(state)
            for saver in savers:
                saver.close()
    there = plan.held["base policy and model"] + plan.held["demonstrations"]
    planned = plan.held_bytes - there
    return {
        "task": task,
        "replay_capacity": capacity,
        "replay_dtype": dtype,
        "held": {"planned": planned, "measured": held, "ratio": round(planned / held, 3)},
        "peak": {
            "planned": planned + plan.saving,
            "measured": peak.bytes - before,
            "ratio": round((planned + plan.saving) / (peak.bytes - before), 3),
        },
    }


def measure_memory_apart(task: str, capacity: int, dtype: str) -> dict[str, Any]:
    """Runs `measure_memory` in a fresh process."""
    command = [sys.executable, __file__, "--only-memory", task, str(capacity), dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MEMORY_LIMIT)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measures, prints and appends a row."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="turns")
    parser.add_argument("--no-memory", action="store_true", help="times alone")
    parser.add_argument(
        "--only-memory",
        nargs=3,
        metavar=("TASK", "CAPACITY", "DTYPE"),
        help="print the memory of one run in this process",
    )
    parser.add_argument("--dry", action="store_true", help="append no row")
    args = parser.parse_args()
    if args.only_memory:
        task, capacity, dtype = args.only_memory
        print(json.dumps(measure_memory(task, int(capacity), dtype)))
        return
    row = {"rows": [measure_times(args.repeats)]}
    for verb in ("insert", "sample"):
        print(f"{verb}: {row['rows'][0][verb]}", flush=True)
    if not args.no_memory:
        row["memory"] = []
        for capacity, dtype in (
            (1_000_000, "float32"),
            (2_000_000, "float32"),
            (2_000_000, "bfloat16"),
        ):
            began = time.perf_counter()
            row["memory"].append(measure_memory_apart("AdroitDoor", capacity, dtype))
            print(row["memory"][-1], f"{time.perf_counter() - began:.0f} s", flush=True)
    if not args.dry:
        append_row("replay", row)


if __name__ == "__main__":
    main()
