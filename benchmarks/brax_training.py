"""Compares our whole training with Brax's SAC, in control steps per second.

    python benchmarks/brax_training.py                   # AdroitDoor, all three
    python benchmarks/brax_training.py --trainers ours brax-native

- ours: `train_epoch` on the native engine, with a base policy (an untrained MLP that acts in every
  control step, so a decision is a control step) and a residual on top;
- brax-native: `brax.training.agents.sac.train` on the same native engine, through
  `pdjax_envs.brax`;
- brax-mjx: the same on MJX, Brax's own kind of physics, on this CPU.

All have the same task, reward, environments, batch, networks, network inputs (no task features, no
LayerNorm, one-step targets) and number of gradient steps per control step, after their prefill.
They take turns, each with its own program. The first epoch of a turn compiles and does not count.
Evaluations are left out. Ours does more work: it calls a base policy for acting, and stores its
actions. The program appends a row to `benchmarks/results/brax_training.jsonl`.
"""

import argparse
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from base_policies import save_base
from harness import alternate, append_row, median, ratio

from pdjax.config import files as configs
from pdjax.devices.rates import timed
from pdjax.training.build import build
from pdjax.training.compiled import prepare
from pdjax_envs import brax, registry
from pdjax_envs.physics import mjx_flags

CAPACITY = 100_000  # transitions in the replay
PLAIN = (  # what Brax does not do
    "decorator.actor_input=obs",
    "decorator.task_features=false",
    "sac.critic_layer_norm=false",
    "sac.n_step=1",
)


def make_ours(args: argparse.Namespace) -> Callable[[], float]:
    """Returns a loop that measures the control steps per second of our epoch."""
    per_round = 8 * args.num_envs
    with tempfile.TemporaryDirectory() as folder:
        path = save_base(Path(folder), "mlp", args.task, mlp={"act_horizon": 1})
        run = build(
            configs.load(
                "door_fast",
                [
                    f"task.name={args.task}",
                    "task.physics=native",
                    f"base_policy.path={path}",
                    f"train.num_envs={args.num_envs}",
                    f"train.decisions_per_round={per_round}",
                    f"train.decisions_per_epoch={args.steps}",
                    f"sac.batch_size={args.batch_size}",
                    f"train.updates_per_decision={args.updates / args.num_envs}",
                    f"sac.hidden={list(args.hidden)}",
                    "train.learning_starts=0",
                    f"train.replay_capacity={CAPACITY}",
                    *PLAIN,
                ],
            )
        )
    steps, _ = prepare(run)
    state, updates = steps.train_epoch(steps.init(0))[0], 0

    def rate() -> float:
        nonlocal state, updates
        before = float(state.control_steps)
        seconds, (state, metrics) = timed(steps.train_epoch, state)
        assert metrics["gradient_steps"] > updates
        updates = metrics["gradient_steps"]
        return (float(state.control_steps) - before) / seconds

    return rate


def make_brax(args: argparse.Namespace, physics: str) -> Callable[[], float]:
    """Returns a loop that measures Brax's trainer: the median of its epochs after the first."""
    from brax.training.agents.sac import networks, train

    env = brax.make(args.task, physics)
    steps = args.steps if physics == "native" else args.mjx_steps
    factory: Any = functools.partial(
        networks.make_sac_networks, hidden_layer_sizes=tuple(args.hidden)
    )

    def rate() -> float:
        found: list[float] = []
        train.train(
            env,
            4 * steps,
            registry.make_task(args.task).episode_steps,
            num_envs=args.num_envs,
            num_eval_envs=1,
            num_evals=4,
            batch_size=args.batch_size,
            grad_updates_per_step=args.updates,
            min_replay_size=steps,
            max_replay_size=CAPACITY,
            network_factory=factory,
            progress_fn=lambda _, metrics: found.append(float(metrics.get("training/sps", 0.0))),
        )
        return median(found[2:])

    return rate


def main() -> None:
    """Measures, prints and appends a row."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--task", default="AdroitDoor")
    parser.add_argument("--trainers", nargs="+", default=["ours", "brax-native", "brax-mjx"])
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--updates", type=int, default=2, help="for a step of all environments")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 256])
    parser.add_argument("--steps", type=int, default=8_192, help="control steps of an epoch")
    parser.add_argument("--mjx-steps", type=int, default=512, help="the same for MJX")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--dry", action="store_true", help="append no row")
    args = parser.parse_args()
    if "brax-mjx" in args.trainers:
        mjx_flags.prepare()
    loops = {
        name: make_ours(args) if name == "ours" else make_brax(args, name.split("-")[1])
        for name in args.trainers
    }
    rates = alternate(loops, args.repeats)
    row = {name: value for name, value in vars(args).items() if name not in ("dry", "trainers")}
    row |= {
        "control_steps_per_s": {name: median(found) for name, found in rates.items()},
        "ours_over": {
            name: ratio(rates["ours"], found)
            for name, found in rates.items()
            if name != "ours" and "ours" in rates
        },
    }
    for name, value in row["control_steps_per_s"].items():
        over = row["ours_over"].get(name)
        print(
            f"{name}: {value:,.0f} control steps/s"
            + (f", ours {over['median']:.2f}x" if over else ""),
            flush=True,
        )
    if not args.dry:
        append_row("brax_training", row)


if __name__ == "__main__":
    main()
