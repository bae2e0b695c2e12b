"""Whole training in decisions per second, phase by phase, and how it scales.

    python benchmarks/training.py                    # the published setting, and `fast`
    python benchmarks/training.py --scaling          # decisions per second against environments

- published: preset `pd` on PegInsertionSide: 16 environments, batch 1,024, 0.25 updates a decision,
  under an untrained U-Net of 4.45 M parameters with 4 DDIM steps, called once in 4 control steps;
- fast: preset `fast` on AdroitDoor under an untrained MLP.

Untrained policies cost what trained ones do, but for the contacts that they make. Figures are
those of `pdjax profile`: an epoch with its part of evaluations, checkpoints and records; phases
explain `explained` of it. `roofline_decisions_per_s` is what the machine's rate of a matrix product
would allow if nothing but the products of an epoch took time. With `--scaling` a row has seconds of
a decision at each number of environments, with one update for each 8 decisions throughout. Rows are
appended to `benchmarks/results/training.jsonl`.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from base_policies import make_base
from harness import append_row

from pdjax import config as configs
from pdjax.base_policies import imitation, settings
from pdjax.profile import profile
from pdjax_envs import registry

SETTINGS = {  # name -> preset, task, kind of base policy
    "published": ("pd", "PegInsertionSide", "diffusion_unet"),
    "fast": ("fast", "AdroitDoor", "mlp"),
}
EPOCH = {"published": 512, "fast": 4_096}  # decisions
ENVS = (16, 64, 256, 1024, 4096)


def measure(name: str, repeats: int, overrides: list[str]) -> dict[str, Any]:
    """One setting's profile, without advice."""
    preset, task_name, kind = SETTINGS[name]
    task = registry.make_task(task_name)
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(kind, task.obs_dim, task.act_dim)
        imitation.save(Path(folder) / "base", base, settings.recipe(kind, {"steps": 1}), task_name)
        file = Path(folder) / "run.yaml"
        file.write_text(f"preset: {preset}\ntask:\n  name: {task_name}\n")
        config = configs.load(str(file), [f"base_policy.path={Path(folder) / 'base'}", *overrides])
        found = profile(config, repeats, advise=False)
    flops = sum(phase["flops"] for phase in found["phases"])
    per_epoch = config.train.decisions_per_epoch
    found["roofline_decisions_per_s"] = per_epoch * found["machine"]["flops"] / flops
    return {"setting": name, "overrides": overrides} | found


def measure_scaling(repeats: int) -> dict[str, Any]:
    """Seconds of a decision of `fast` at each number of environments."""
    seconds = {}
    for num_envs in ENVS:
        size = max(num_envs, 256)
        found = measure("fast", repeats, [
            f"train.num_envs={num_envs}", f"train.decisions_per_round={size}",
            f"train.decisions_per_epoch={4 * size}", "eval.interim_episodes=0",
            "train.replay_capacity=1_000_000",
        ])  # fmt: skip
        seconds[num_envs] = found["epoch_s"] / (4 * size)
        print(
            f"{num_envs:>5} environments: {1e3 * seconds[num_envs]:.2f} ms a decision", flush=True
        )
    return {"setting": "scaling", "decision_s": seconds,
            "over_256": {envs: took / seconds[256] for envs, took in seconds.items()}}  # fmt: skip


def main() -> None:
    """Measures, prints and appends rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="append no row")
    args = parser.parse_args()
    rows = []
    if args.scaling:
        rows.append(measure_scaling(args.repeats))
    for name in () if args.scaling else args.settings:
        rows.append(measure(name, args.repeats, [f"train.decisions_per_epoch={EPOCH[name]}"]))
        row = rows[-1]
        print(f"{name}: {row['decisions_per_s']:.1f} decisions/s, at most"
              f" {row['roofline_decisions_per_s']:.1f} by the machine's rate; phases explain"
              f" {row['explained']:.0%} of an epoch", flush=True)  # fmt: skip
    if not args.dry:
        append_row("training", {"rows": rows})


if __name__ == "__main__":
    main()
