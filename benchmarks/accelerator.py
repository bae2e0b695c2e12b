"""Measures one accelerator: physics, training and memory, against the number of environments.

    python benchmarks/accelerator.py                           # physics=auto, 256 to 8,192
    python benchmarks/accelerator.py --physics mjx --tasks AdroitDoor --num-envs 1024

For each task and number of environments it measures

- control steps per second of the jitted rollout under random actions;
- with `--train`: decisions per second, the time of each phase, and planned and used memory of
  preset `fast` under an untrained MLP. A round is one decision of all environments and one update
  for every 8 of them.

`benchmarks/gpu_suite.sh` calls it. It appends rows to `benchmarks/results/accelerator.jsonl`.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax
from base_policies import save_base
from harness import append_row, median
from physics import begin, make_rollout

from pdjax.config import files as configs
from pdjax.config.schema import Config
from pdjax.devices.rates import timed
from pdjax.profile.profile import profile
from pdjax_envs import registry
from pdjax_envs.physics import mjx_flags

STEPS = 20  # control steps of each environment in a turn


def make_config(task_name: str, physics: str, num_envs: int, folder: Path) -> Config:
    """Returns `fast` under an untrained MLP, written to `folder`; each round is one decision."""
    path = save_base(folder, "mlp", task_name)
    return configs.load(
        "door_fast",
        [
            f"task.name={task_name}",
            f"task.physics={physics}",
            f"base_policy.path={path}",
            f"train.num_envs={num_envs}",
            f"train.decisions_per_round={num_envs}",
            f"train.decisions_per_epoch={4 * num_envs}",
            "train.replay_capacity=1_000_000",
            "sac.batch_size=1024",
            "eval.interim_episodes=0",
        ],
    )


def measure_physics(task_name: str, num_envs: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measures the control steps per second of a rollout."""
    env = registry.make(task_name, args.physics)
    states, actions = begin(env, num_envs, STEPS, seed=0)
    rollout = make_rollout(env)
    compile_s = timed(rollout, states, actions)[0]
    found = [STEPS * num_envs / timed(rollout, states, actions)[0] for _ in range(args.repeats)]
    print(
        f"{task_name} on {env.engine}, {num_envs} environments: {median(found):,.0f} control"
        f" steps/s",
        flush=True,
    )
    return {
        "kind": "physics",
        "task": task_name,
        "physics": env.engine,
        "num_envs": num_envs,
        "control_steps_per_s": median(found),
        "first_s": compile_s,
    }


def measure_training(task_name: str, num_envs: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measures decisions per second of whole training, by phase, and planned and used memory."""
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(task_name, args.physics, num_envs, Path(folder))
        found = profile(config, args.repeats, advise=False)
    print(
        f"{task_name} on {found['physics']}, {num_envs} environments: training"
        f" {found['decisions_per_s']:,.0f} decisions/s, phases explain {found['explained']:.0%};"
        f" memory planned {found['planned_memory_bytes'] / 2**30:.2f} GiB, at most used"
        f" {found['peak_memory_bytes'] / 2**30:.2f}",
        flush=True,
    )
    return {"kind": "training"} | found


def main() -> None:
    """Measures and prints; appends a row after each measurement, because time may run out."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["AdroitDoor", "PegInsertionSide"])
    parser.add_argument("--physics", default="auto", help="auto, warp, mjx or native")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[256, 1024, 4096, 8192])
    parser.add_argument("--train", action="store_true", help="measure training, not physics alone")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="append no row")
    args = parser.parse_args()
    if args.physics in ("mjx", "warp"):
        mjx_flags.prepare()
    measure = measure_training if args.train else measure_physics
    for task_name in args.tasks:
        for num_envs in args.num_envs:
            row = measure(task_name, num_envs, args)
            jax.clear_caches()
            if not args.dry:
                append_row("accelerator", row)


if __name__ == "__main__":
    main()
