"""Measures the cost of a unit of work with more environments, more seeds, or more devices.

    python benchmarks/scaling.py                     # environments and seeds
    python benchmarks/scaling.py --only devices

- envs: seconds per decision of `fast` on AdroitDoor with 16 to 4,096 environments and one update
  for every 8 decisions;
- seeds: seconds per epoch of one seed, with 1 to 16 seeds vmapped in one program. A program of one
  seed takes turns with each of them;
- devices: seconds per epoch on 1 to 4 devices. Two cores emulate missing devices, so this shows the
  cost of splitting, not its gain. It runs `brax:fast`, whose physics is split like everything else.

Base policies are untrained. The program appends a row to `benchmarks/results/scaling.jsonl`.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from base_policies import save_base
from harness import alternate, append_row, median, ratio

from pdjax.config import files as configs
from pdjax.devices.rates import timed
from pdjax.learner.sac import make_hyperparams, residual_dim
from pdjax.training.build import Run, build
from pdjax.training.epoch import placement

ENVS = (16, 64, 256, 1024, 4096)
SEEDS = (1, 2, 4, 8, 16)
DEVICES = (1, 2, 4)


def make_run(task_name: str, overrides: list[str]) -> Run:
    """Builds `door_fast` on any task, under an untrained MLP that acts in chunks of four."""
    with tempfile.TemporaryDirectory() as folder:
        path = save_base(Path(folder), "mlp", task_name)
        return build(
            configs.load(
                "door_fast",
                [
                    f"task.name={task_name}",
                    f"base_policy.path={path}",
                    "train.learning_starts=0",
                    *overrides,
                ],
            )
        )


def make_epoch(run: Run, seeds: int = 0) -> Callable[[], float]:
    """Makes () -> seconds of the next epoch, of `seeds` members in one program; 0 = a run alone."""
    init, train_epoch, there = run.trainer.init, run.trainer.train_epoch, placement(run.mesh)
    hyperparams = make_hyperparams(run.config, residual_dim(run.config.decorator, run.base))
    key = jax.random.key(0)
    if seeds:
        key = jax.random.split(key, seeds)
        init = jax.vmap(init, (None, None, 0))
        train_epoch, there = run.trainer.train_members, None
    epoch = jax.jit(
        train_epoch, donate_argnums=1, in_shardings=(None, there), out_shardings=(there, None)
    )
    state = jax.jit(init, out_shardings=there)(run.frozen, hyperparams, key)
    state, _ = epoch(run.frozen, state)

    def seconds() -> float:
        nonlocal state
        took, (state, metrics) = timed(epoch, run.frozen, state)
        assert (metrics["gradient_steps"] > 0).all()
        return took

    seconds()  # warms up
    return seconds


def rates_of(loops: dict[int, Callable[[], float]], amounts: dict[int, float], repeats: int):
    """Measures the units of work per second of each loop, in turns."""
    return alternate(
        {
            str(size): partial(lambda loop, amount: amount / loop(), loop, amounts[size])
            for size, loop in loops.items()
        },
        repeats,
    )


def costs(what: str, rates: dict[str, list[float]], name: str, reference: str) -> dict[str, Any]:
    """Returns median rates, and the cost of a unit of work over the reference's."""
    over = {size: ratio(rates[reference], found) for size, found in rates.items()}
    return {what: {size: median(found) for size, found in rates.items()}, name: over}


def measure_envs(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the cost of a decision over the cost at 256 environments."""
    amounts = {num_envs: 4.0 * max(num_envs, 256) for num_envs in ENVS}
    loops = {}
    for num_envs, decisions in amounts.items():
        run = make_run(
            "AdroitDoor",
            [
                f"train.num_envs={num_envs}",
                f"train.decisions_per_round={int(decisions) // 4}",
                f"train.decisions_per_epoch={int(decisions)}",
                "train.replay_capacity=500_000",
            ],
        )
        loops[num_envs] = make_epoch(run)
    rates = rates_of(loops, amounts, args.repeats)
    return costs("decisions_per_s", rates, "cost_over_256", "256")


def measure_seeds(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the cost of a seed's epoch over that of a program with one seed."""
    run = make_run("AdroitDoor", ["train.decisions_per_epoch=512", "train.replay_capacity=50_000"])
    loops = {0: make_epoch(run)} | {seeds: make_epoch(run, seeds) for seeds in args.seeds}
    rates = rates_of(loops, {n: float(n or 1) for n in loops}, args.repeats)
    return costs("epochs_per_s", rates, "cost_over_apart", "0")


def measure_devices(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the cost of an epoch over the cost on one device."""
    loops = {
        devices: make_epoch(
            make_run(
                "brax:fast",
                [
                    f"train.devices={devices}",
                    "train.decisions_per_epoch=2048",
                    "train.replay_capacity=50_000",
                    "task.reward=dense",
                ],
            )
        )
        for devices in DEVICES
    }
    rates = rates_of(loops, dict.fromkeys(loops, 1.0), args.repeats)
    return costs("epochs_per_s", rates, "cost_over_one", "1")


MEASURES = {"envs": measure_envs, "seeds": measure_seeds, "devices": measure_devices}


def main() -> None:
    """Measures, prints and appends rows."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=["envs", "seeds"])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="in one program")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--dry", action="store_true", help="append no row")
    args = parser.parse_args()
    if "devices" in args.only and len(args.only) > 1:
        parser.error("several emulated devices slow native physics: measure --only devices apart")
    if "devices" in args.only:  # JAX reads it when it is first used
        flag = f" --xla_force_host_platform_device_count={max(DEVICES)}"
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flag
    for name in args.only:
        row = {"scaling": name} | MEASURES[name](args)
        found = next(value for key, value in row.items() if key.startswith("cost_"))
        for size, cost in found.items():
            print(f"{name} {size}: {cost['median']:.2f} of the cost", flush=True)
        if not args.dry:
            append_row("scaling", row)


if __name__ == "__main__":
    main()
