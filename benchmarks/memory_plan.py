"""What training with thousands of environments takes of an accelerator's memory, task by task.

    python benchmarks/memory_plan.py                        # every task on MJX, 4,096 environments
    python benchmarks/memory_plan.py --tasks AdroitDoor --physics warp

Plans preset `fast` under an untrained MLP with a replay of 10^6 decisions in float32, as
`pdjax train --plan` does, and says which accelerators hold it. Nothing is trained, but an epoch is
compiled: its working memory is what XLA says for the machine this runs on, a CPU's only hints at a
GPU's. Each task takes minutes, in a process of its own with a limit. Rows are appended to
`benchmarks/results/memory_plan.jsonl`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from base_policies import make_base
from harness import append_row

from pdjax import config as configs
from pdjax.base_policies import imitation, settings
from pdjax.memory import FLAGS, NUMBERS, OTHERS, text
from pdjax.runner import plan
from pdjax_envs import registry
from pdjax_envs.physics import mjx_flags

GIB = (16, 24, 40, 80)
LIMIT_S = 1_200


def measure(task_name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Bytes of each part on the accelerator."""
    task = registry.make_task(task_name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base"
        base = make_base("mlp", task.obs_dim, task.act_dim)
        imitation.save(path, base, settings.recipe("mlp", {"steps": 1}), task_name)
        config = configs.load("door_fast", [
            f"task.name={task_name}", f"task.physics={args.physics}", f"base_policy.path={path}",
            f"train.num_envs={args.num_envs}", f"train.decisions_per_round={args.num_envs}",
            f"train.decisions_per_epoch={args.num_envs}", "train.replay_capacity=1_000_000",
        ])  # fmt: skip
        held = plan(config, memory_gib=1e6)["plans"][0]["held"]
    replay = sum(held.pop(name) for name in (*NUMBERS.values(), FLAGS))
    held.pop(OTHERS)  # of the host
    parts = {name: held.pop(name) for name in ("environments", "working memory of an epoch",
                                               "evaluation")}  # fmt: skip
    parts |= {"replay": replay, "rest": sum(held.values())}
    return {"task": task_name, "physics": args.physics, "num_envs": args.num_envs, "bytes": parts,
            "total_bytes": sum(parts.values())}  # fmt: skip


def measure_apart(task_name: str, args: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--one", "--tasks", task_name, "--physics", args.physics,
               "--num-envs", str(args.num_envs)]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=LIMIT_S)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Plans, prints and appends a row for each task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=registry.task_names())
    parser.add_argument("--physics", default="mjx", choices=["mjx", "warp"])
    parser.add_argument("--num-envs", type=int, default=4_096)
    parser.add_argument("--one", action="store_true", help="print one task's row as JSON")
    parser.add_argument("--dry", action="store_true", help="append no row")
    args = parser.parse_args()
    if args.one:
        mjx_flags.prepare()
        print(json.dumps(measure(args.tasks[0], args)))
        return
    for task_name in args.tasks:
        row = measure_apart(task_name, args)
        fits = ", ".join(f"{gib} GiB {'yes' if row['total_bytes'] < gib * 2**30 else 'no'}"
                         for gib in GIB)  # fmt: skip
        parts = ", ".join(f"{name} {text(size)}" for name, size in row["bytes"].items())
        print(f"{task_name} on {args.physics}, {args.num_envs:,} environments:"
              f" {text(row['total_bytes'])} ({parts}); {fits}", flush=True)  # fmt: skip
        if not args.dry:
            append_row("memory_plan", row)


if __name__ == "__main__":
    main()
