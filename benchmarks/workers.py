"""Measures environments in worker processes against Gymnasium's AsyncVectorEnv.

`python benchmarks/workers.py` steps the same environments with the same random actions in as many
processes: AsyncVectorEnv has one environment in each; a pool is measured with one, and with as many
as `--per-worker` says, which an AsyncVectorEnv cannot have. It is measured with chunks of one
control step, as AsyncVectorEnv steps, and with longer ones. Episodes end and begin again on both
sides. A ratio is the pool's control steps a second over AsyncVectorEnv's; 1.0 = no cost. The
program appends a row to `benchmarks/results/workers.jsonl`.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from harness import alternate, append_row, median, ratio

from pdjax_envs.workers import WorkerPool

# control steps of a turn
ENVS = {"Pendulum-v1": 4000, "Hopper-v5": 3000, "gymnasium_robotics:AdroitHandDoor-v1": 1000}


def gymnasium_loop(name: str, processes: int, steps: int) -> tuple[Callable[[], float], Any]:
    """Returns () -> control steps a second of an AsyncVectorEnv, and the environment to close."""
    env = gymnasium.vector.AsyncVectorEnv([lambda: gymnasium.make(name)] * processes)
    env.reset(seed=0)
    low, high = env.action_space.low, env.action_space.high
    actions = np.random.default_rng(0).uniform(low, high, (64, *low.shape)).astype(np.float32)

    def measure() -> float:
        start = time.perf_counter()
        for step in range(steps):
            env.step(actions[step % 64])
        return processes * steps / (time.perf_counter() - start)

    return measure, env


def pool_loop(pool: WorkerPool, steps: int) -> Callable[[], float]:
    """Returns () -> control steps a second of a pool; resets take time, but are no steps."""
    shape = (64, pool.num_envs, pool.chunk, pool.description.act_dim)
    actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    begin, seeds = np.ones(pool.num_envs, bool), np.arange(pool.num_envs)

    def measure() -> float:
        nonlocal begin
        executed, start = 0, time.perf_counter()
        for decision in range(max(1, steps // pool.chunk)):
            pool.send(actions[decision % 64], begin, seeds)
            played = pool.receive()
            begin = (played.terminated | played.truncated).any(1)
            executed += int(played.executed.sum())
        return executed / (time.perf_counter() - start)

    return measure


def measure_env(name: str, processes: int, per_worker: int, chunk: int, repeats: int) -> dict:
    """Measures one environment in turns: control steps a second, and ratios."""
    sizes = {
        "pool": (processes, 1),
        "pool_chunk": (processes, chunk),
        "pool_many": (processes * per_worker, 1),
        "pool_many_chunk": (processes * per_worker, chunk),
    }
    steps, loops = ENVS[name], {}
    loops["gymnasium"], env = gymnasium_loop(name, processes, steps)
    pools = {
        key: WorkerPool({"env": name}, num_envs, processes, chunk=chunk_now)
        for key, (num_envs, chunk_now) in sizes.items()
    }
    try:
        for key, pool in pools.items():
            loops[key] = pool_loop(pool, steps * processes // pool.num_envs)
        for loop in loops.values():
            loop()
        rates = alternate(loops, repeats)
    finally:
        env.close()
        for pool in pools.values():
            pool.close()
    return {
        "control_steps_per_s": {key: median(found) for key, found in rates.items()},
        "over_gymnasium": {key: ratio(rates[key], rates["gymnasium"]) for key in pools},
    }


def main() -> None:
    """Measures all environments that are installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--envs", nargs="*", default=list(ENVS), choices=list(ENVS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--per-worker", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    sizes = {
        key: getattr(arguments, key) for key in ("processes", "per_worker", "chunk", "repeats")
    }
    row: dict[str, Any] = dict(sizes)
    for name in arguments.envs:
        row[name] = measure_env(name, **sizes)
        for key, rate in row[name]["control_steps_per_s"].items():
            found = row[name]["over_gymnasium"].get(key, {"median": 1.0, "range": ""})
            print(f"{name} {key}: {rate:,.0f} steps/s, {found['median']} {found['range']}")
    append_row("workers", row)


if __name__ == "__main__":
    main()
