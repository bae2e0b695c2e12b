"""Measures base policies in a rollout: decisions per second, and the share of the machine's rate.

    python benchmarks/base_policies.py                    # all kinds, 16 environments
    python benchmarks/base_policies.py --kinds diffusion_unet bet --num-envs 64

Three loops take turns in one process. Parameters are untrained, which costs the same as trained:

- rollout: decisions of the jitted rollout on the native engine, with an untrained residual;
- base: calls of the base policy alone for all environments, in decisions per second;
- matmul: a plain float32 matrix product of 1,024 x 1,024, the highest rate of this machine.

Each kind of policy is the one that `pdjax imitate --policy KIND` makes. The share of the machine's
rate is the base policy's floating-point operations per second, counted by XLA's cost analysis, over
those of matmul. The program appends a row to `benchmarks/results/base_policies.jsonl`.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np
from harness import alternate, append_row, median, ratio

from pdjax.base_policies import imitation, settings
from pdjax.devices.rates import product, timed
from pdjax.rollout.collect import make_rollout
from pdjax.rollout.decision import Frozen, base_actions
from pdjax.types import BasePolicy
from pdjax_envs import registry


def make_base(kind: str, obs_dim: int, act_dim: int, **changes: Any) -> BasePolicy:
    """Makes an untrained policy from a recipe with changes, on random data."""
    config = settings.recipe(kind, {"steps": 1} | changes)
    rng = np.random.default_rng(0)
    obs = rng.uniform(-1, 1, (65, obs_dim)).astype(np.float32)
    actions = rng.uniform(-1, 1, (64, act_dim)).astype(np.float32)
    return imitation.train([(obs, actions)] * 20, config)


def save_base(folder: Path, kind: str, task_name: str, **changes: Any) -> Path:
    """Writes `make_base` for a task as `pdjax imitate` would; returns its directory in `folder`."""
    task = registry.make_task(task_name)
    base = make_base(kind, task.obs_dim, task.act_dim, **changes)
    path = folder / "base"
    imitation.save(path, base, settings.recipe(kind, {"steps": 1} | changes), task_name)
    return path


def measure(kind: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures the rates of one kind of policy."""
    env = registry.make(args.task, "native")
    base = make_base(kind, env.task.obs_dim, env.task.act_dim)
    rollout = make_rollout(env, base)
    frozen = Frozen(env.model, base.params, base.obs_mean, base.obs_std)
    state = jax.jit(rollout.init, static_argnums=2)(frozen, jax.random.key(0), args.num_envs)
    keys = jax.random.split(jax.random.key(1), args.decisions)

    def choose(obs, base_action, key, index):
        del obs, index
        return jax.random.uniform(key, base_action.shape, minval=-1.0), 0.01

    @jax.jit
    def collect(frozen, state, keys):
        return rollout.collect(frozen, state, choose, keys)[2]

    @jax.jit
    def call(frozen, carry, history, key):
        keys = jax.random.split(key, len(history))
        return base_actions(base, frozen, carry, history, keys)

    arguments = (frozen, state.carry, state.history, keys[0])
    cost: Any = call.lower(*arguments).compile().cost_analysis()
    multiply, matrices, product_flops = product()
    for function, inputs in (
        (collect, (frozen, state, keys)),
        (call, arguments),
        (multiply, matrices),
    ):
        timed(function, *inputs)

    def repeated(function, inputs, times, amount):
        seconds = sum(timed(function, *inputs)[0] for _ in range(times))
        return times * amount / seconds

    rates = alternate(
        {
            "rollout": lambda: repeated(
                collect, (frozen, state, keys), 1, args.decisions * args.num_envs
            ),
            "base": lambda: repeated(call, arguments, 10, args.num_envs),
            "matmul": lambda: repeated(multiply, matrices, 10, product_flops),
        },
        args.repeats,
    )
    # What a scan repeats is counted once by XLA: the denoising steps.
    flops = cost["flops"] * (getattr(settings.recipe(kind, {}).policy, "ddim_steps", 1))
    base_flops = [flops / args.num_envs * rate for rate in rates["base"]]
    return {
        "kind": kind,
        "task": args.task,
        "num_envs": args.num_envs,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(base.params)),
        "act_horizon": base.act_horizon,
        "decisions_per_s": {name: median(rates[name]) for name in ("rollout", "base")},
        "gflop_per_s": {
            "base": median([rate / 1e9 for rate in base_flops]),
            "matmul": median([rate / 1e9 for rate in rates["matmul"]]),
        },
        "base_over_matmul": ratio(base_flops, rates["matmul"]),
    }


def main() -> None:
    """Measures, prints and appends a row."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=list(settings.RECIPES))
    parser.add_argument("--task", default="PegInsertionSide")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--decisions", type=int, default=32, help="of each environment, per turn")
    parser.add_argument("--repeats", type=int, default=9, help="turns")
    parser.add_argument("--dry", action="store_true", help="append no row")
    args = parser.parse_args()
    rows = []
    for kind in args.kinds:
        row = measure(kind, args)
        print(
            f"{kind}, {row['parameters']:,} parameters, {args.num_envs} environments:"
            f" {row['decisions_per_s']['rollout']:,.0f} decisions/s"
            f" ({row['decisions_per_s']['base']:,.0f} of the base alone), base at"
            f" {row['base_over_matmul']['median']:.0%} of the matrix product's"
            f" {row['gflop_per_s']['matmul']:,.0f} GFLOP/s",
            flush=True,
        )
        rows.append(row)
    if not args.dry:
        append_row("base_policies", {"rows": rows})


if __name__ == "__main__":
    main()
