"""How much of MuJoCo C's speed is left once physics runs inside a jitted rollout.

    python benchmarks/physics.py            # 64 and 1,024 environments, native engine
    python benchmarks/physics.py --mjx      # MJX instead (compiles for a minute on a CPU)

For each number of environments it measures, alternately in the same process:

- rollout: jit + scan + vmap of the task's whole control step (inverse kinematics, physics,
  observation, success) under uniformly random actions from fresh initial states;
- raw: `mujoco.batch` alone, from Python, replaying the controls that the rollout produced from the
  same states with the same overrides, substeps and threads - so both do identical physics, which
  is checked bit by bit.

The figures are medians over the repeats; the ratio is the median of the repeats' ratios. Where
others use the machine too, the ratio of the best repeats says more. One row per run is appended to
`benchmarks/results/physics.jsonl`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import jax
import mujoco
import mujoco.batch
import numpy as np

from pdjax_envs import registry
from pdjax_envs.physics import mjx_flags
from pdjax_envs.physics.engine import Scene, row_ids
from pdjax_envs.task import Env, EnvState

RESULTS = Path(__file__).parent / "results" / "physics.jsonl"
TASK = "PegInsertionSide"


def make_rollout(env: Env, num_envs: int, num_steps: int, record: bool = False):
    """A jitted (states, key) -> (states, sums of all outcomes); with `record` also the controls.

    Controls are (num_steps, num_envs, nu); recording computes them a second time.
    """

    def control_step(states: EnvState, key):
        actions = jax.random.uniform(key, (num_envs, env.task.act_dim), minval=-1.0)
        after, outcome = jax.vmap(env.step, in_axes=(None, 0, 0))(env.model, states, actions)
        # Everything that a learner would read is kept alive.
        outcomes = jax.tree.map(lambda x: x.sum(), outcome)
        if not record:
            return after, outcomes
        ctrl = jax.vmap(env.task.control)(states.episode, states.physics, actions)
        return after, (outcomes, ctrl)

    return jax.jit(
        lambda states, key: jax.lax.scan(control_step, states, jax.random.split(key, num_steps))
    )


def reset(env: Env, num_envs: int, seed: int) -> tuple[EnvState, jax.Array]:
    """Fresh states and a key for the rollout."""
    reset_key, key = jax.random.split(jax.random.key(seed))
    states, _ = jax.jit(jax.vmap(env.reset, in_axes=(None, 0)))(
        env.model, jax.random.split(reset_key, num_envs)
    )
    return states, key


class RawLoop:
    """The same physics without JAX: a Python loop over `mujoco.batch`."""

    def __init__(self, scene: Scene, states: EnvState, num_threads: int = 0):
        num_envs = states.steps.shape[0]
        self._batch = mujoco.batch.Batch(scene.model, num_envs, num_threads)
        for field, names in scene.override_rows.items():
            rows = row_ids(scene.model, field, names)
            values = np.asarray(states.episode.overrides[field])
            target = self._batch.expand(field)
            target[:, rows] = values.reshape(num_envs, len(rows), *target.shape[2:])
        self._n_substeps = scene.n_substeps
        self._start = (np.asarray(states.physics.qpos), np.asarray(states.physics.qvel))
        self.num_threads = self._batch.nthread

    def run(self, ctrl: np.ndarray) -> tuple[float, np.ndarray]:
        """Seconds to replay controls (num_steps, num_envs, nu) from the start, and final qpos."""
        self._batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self._batch.qpos, self._batch.qvel = self._start
        target = self._batch.bind("ctrl")
        began = time.perf_counter()
        for row in ctrl:
            target[:] = row
            self._batch.step(nstep=self._n_substeps)
        return time.perf_counter() - began, self._batch.qpos.astype(np.float32)


def timed(function, *args):
    """Seconds until the result is there, and the result."""
    began = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return time.perf_counter() - began, result


def measure(num_envs: int, num_steps: int, repeats: int, seed: int) -> dict[str, float]:
    """Control steps per second of both loops, alternately."""
    env = registry.make(TASK, "native")
    states, key = reset(env, num_envs, seed)
    _, (_, ctrl) = make_rollout(env, num_envs, num_steps, record=True)(states, key)
    ctrl = np.asarray(ctrl)
    rollout = make_rollout(env, num_envs, num_steps)
    compile_s, (after, _) = timed(rollout, states, key)
    raw = RawLoop(env.task.scene, states)
    _, raw_qpos = raw.run(ctrl)
    if not np.array_equal(raw_qpos, np.asarray(after.physics.qpos)):
        raise AssertionError("rollout and raw loop did different physics; the ratio means nothing")

    rollout_rates, raw_rates = [], []
    for repeat in range(repeats):
        # Who goes first changes, so that a drift of the machine's speed favours neither.
        for first in (repeat % 2, 1 - repeat % 2):
            if first:
                seconds, _ = timed(rollout, states, key)
                rollout_rates.append(num_envs * num_steps / seconds)
            else:
                seconds, _ = raw.run(ctrl)
                raw_rates.append(num_envs * num_steps / seconds)
    ratios = [a / b for a, b in zip(rollout_rates, raw_rates, strict=True)]
    return {
        "num_envs": num_envs,
        "num_steps": num_steps,
        "repeats": repeats,
        "threads": raw.num_threads,
        "first_call_s": round(compile_s, 2),
        "rollout_steps_per_s": round(statistics.median(rollout_rates)),
        "raw_steps_per_s": round(statistics.median(raw_rates)),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_of_best": round(max(rollout_rates) / max(raw_rates), 3),
        "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def measure_mjx(num_envs: int, num_steps: int, repeats: int, seed: int) -> dict[str, float]:
    """Control steps per second of the same rollout on MJX."""
    env = registry.make(TASK, "mjx")
    states, key = reset(env, num_envs, seed)
    rollout = make_rollout(env, num_envs, num_steps)
    compile_s, _ = timed(rollout, states, key)
    rates = [num_envs * num_steps / timed(rollout, states, key)[0] for _ in range(repeats)]
    return {
        "num_envs": num_envs,
        "num_steps": num_steps,
        "repeats": repeats,
        "first_call_s": round(compile_s, 2),
        "rollout_steps_per_s": round(statistics.median(rates), 1),
    }


def describe_machine() -> dict[str, object]:
    """What the figures depend on: device, versions, commit."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": jax.devices()[0].device_kind,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "mujoco": mujoco.__version__,
        "commit": git.stdout.strip() or None,
    }


def main() -> None:
    """Measures, prints and appends one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-envs", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--samples", type=int, default=4096, help="control steps per repeat")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mjx", action="store_true", help="measure MJX instead")
    parser.add_argument("--mjx-envs", type=int, default=64)
    parser.add_argument("--dry", action="store_true", help="append no row")
    args = parser.parse_args()

    rows = {}
    if args.mjx:
        # Not beside native in one process: on a CPU, MJX needs XLA options that change its figures.
        mjx_flags.prepare()
        row = measure_mjx(args.mjx_envs, num_steps=5, repeats=3, seed=args.seed)
        print(
            f"mjx, {args.mjx_envs} environments: rollout {row['rollout_steps_per_s']:,} control"
            f" steps/s, first call {row['first_call_s']} s"
        )
        rows[f"mjx_{args.mjx_envs}"] = row
        args.num_envs = []
    for num_envs in args.num_envs:
        num_steps = max(8, args.samples // num_envs)
        row = measure(num_envs, num_steps, args.repeats, args.seed)
        print(
            f"native, {num_envs} environments: rollout {row['rollout_steps_per_s']:,} control"
            f" steps/s, raw {row['raw_steps_per_s']:,}, ratio {row['ratio']}"
            f" ({row['ratio_range'][0]} to {row['ratio_range'][1]}; of the best repeats"
            f" {row['ratio_of_best']})",
            flush=True,
        )
        rows[f"native_{num_envs}"] = row
    if not args.dry:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps({**describe_machine(), "task": TASK, **rows}) + "\n")


if __name__ == "__main__":
    main()
