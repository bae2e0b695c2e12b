"""Refines recorded base policies and records success against decisions and minutes.

    python experiments/refine.py door_fast runs/bases/AdroitDoor/diffusion_seed0 --seeds 0 1 2
    python experiments/refine.py my_pd.yaml runs/bases/AdroitDoor/mlp_seed1 --label pd

Base policies come from `experiments/bases.py`. Runs go to `runs/refine/`. For each run a row goes
to `experiments/results/refine.jsonl`: the command line, success of base and refined policy over 200
paired episodes, the interim evaluations, and how far one of these fell below the best before it.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from bases import run

from pdjax.output.records import read_metrics
from pdjax.runs.curves import largest_fall, points

RESULTS = Path(__file__).parent / "results" / "refine.jsonl"
KEPT = (
    "task",
    "episodes",
    "base_success",
    "base_ci",
    "refined_success",
    "refined_ci",
    "gain",
    "gain_ci",
    "base_smoothness",
    "refined_smoothness",
    "seed",
    "decision_steps",
    "control_steps",
    "gradient_steps",
    "physics",
    "wall_s",
)


def refine(config: str, base: Path, label: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Trains one run; returns its row."""
    out = Path("runs/refine") / f"{config}_{base.parent.name}_{base.name}_{label}_seed{seed}"
    command, result = run(
        "train",
        config,
        "--set",
        f"base_policy.path={base}",
        f"seed={seed}",
        *overrides,
        "--out",
        out,
        "--resume",
    )
    curve = points(read_metrics(out, "eval"))
    return {
        "label": label,
        "base": f"{base.parent.name}/{base.name}",
        **{name: result[name] for name in KEPT},
        "largest_fall": largest_fall([score for _, _, score in curve]),
        "curve": curve,
        "cores": os.cpu_count(),
        "command": command,
    }


def main() -> None:
    """Refines the base policies that the command line names."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("config", help="one that comes with pdjax, or a YAML file")
    parser.add_argument("base", type=Path, nargs="+", help="directories of base policies")
    parser.add_argument("--label", default="fast", help="names the recipe in the row")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides")
    args = parser.parse_args()
    for base in args.base:
        for seed in args.seeds:
            row = refine(args.config, base, args.label, seed, args.overrides)
            with RESULTS.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{row['base']} {args.label} seed {seed}: {row['base_success']:.1%} ->"
                f" {row['refined_success']:.1%}",
                file=sys.stderr,
            )


if __name__ == "__main__":
    main()
