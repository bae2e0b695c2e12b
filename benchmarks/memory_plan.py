"""Plans an accelerator's memory for training with thousands of environments, task by task.

    python benchmarks/memory_plan.py                        # every task on MJX, 4,096 environments
    python benchmarks/memory_plan.py --physics warp
    python benchmarks/memory_plan.py --tasks AdroitDoor --compile

Plans preset `fast` under an untrained MLP with a replay of 10^6 decisions in float32, and prints
how much of 16, 24, 40 and 80 GiB is left. It counts the arrays of training and, on MJX, one copy of
all that a simulator computes in a step (`mjx.Data`); a step needs a few such copies. Nothing runs.
`--compile` compiles an epoch to count its working memory, which takes minutes and on a CPU only
hints at a GPU's. The program appends rows to `benchmarks/results/memory_plan.jsonl`.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax
from accelerator import make_config
from harness import append_row
from mujoco import mjx

from pdjax.training.build import build
from pdjax.training.compiled import make_init
from pdjax.training.memory_plan import FLAGS, NUMBERS, OTHERS, make_plans, text, working_memory
from pdjax_envs import registry
from pdjax_envs.physics import mjx_flags

GIB = (16, 24, 40, 80)


def measure(task_name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Plans the bytes of each part on the accelerator."""
    with tempfile.TemporaryDirectory() as folder:
        run = build(make_config(task_name, args.physics, args.num_envs, Path(folder)))
    state, working = jax.eval_shape(make_init(run)), 0
    if args.compile:
        working = working_memory(
            jax.jit(run.trainer.train_epoch).lower(run.frozen, state).compile()
        )
    held = make_plans(state, run.frozen, (), run.mesh, 1e6, working)[0].held
    held.pop(OTHERS)  # of the host
    data = ()
    if args.physics == "mjx":
        scene = run.env.task.adapt(run.env.task.scene, "mjx")
        data = jax.eval_shape(lambda: mjx.make_data(scene.model))
    parts = {
        "a step's data": args.num_envs
        * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(data)),
        "environments": held.pop("environments"),
        "replay": sum(held.pop(name) for name in (*NUMBERS.values(), FLAGS)),
        "working memory": held.pop("working memory of an epoch"),
        "rest": sum(held.values()),
    }
    return {
        "task": task_name,
        "physics": args.physics,
        "num_envs": args.num_envs,
        "bytes": parts,
        "total_bytes": sum(parts.values()),
    }


def main() -> None:
    """Plans, prints and appends a row for each task."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=registry.task_names())
    parser.add_argument("--physics", default="mjx", choices=["mjx", "warp"])
    parser.add_argument("--num-envs", type=int, default=4_096)
    parser.add_argument("--compile", action="store_true", help="count an epoch's working memory")
    parser.add_argument("--dry", action="store_true", help="append no row")
    args = parser.parse_args()
    mjx_flags.prepare()
    for task_name in args.tasks:
        row = measure(task_name, args)
        left = {gib: gib * 2**30 - row["total_bytes"] for gib in GIB}
        fits = ", ".join(
            f"{gib} GiB leave {text(size)}" if size > 0 else f"{gib} GiB do not hold it"
            for gib, size in left.items()
        )
        parts = ", ".join(f"{name} {text(size)}" for name, size in row["bytes"].items() if size)
        print(
            f"{task_name} on {args.physics}, {args.num_envs:,} environments:"
            f" {text(row['total_bytes'])} ({parts}); {fits}",
            flush=True,
        )
        if not args.dry:
            append_row("memory_plan", row)


if __name__ == "__main__":
    main()
