"""Measures whole training in decisions per second, phase by phase.

    python benchmarks/training.py                    # the published setting, and `fast`

- published: preset `pd` on PegInsertionSide: 16 environments, batch 1,024, 0.25 updates per
  decision, under an untrained U-Net of 4.45 M parameters with 4 DDIM steps, called once in 4
  control steps;
- fast: preset `fast` on AdroitDoor under an untrained MLP.

Untrained policies cost what trained ones do, except for the contacts that they make. Figures are
those of `pdjax profile`: an epoch with its part of evaluations, checkpoints and records.
`explained` is the share of the epoch that the phases add up to. `roofline_decisions_per_s` is the
rate that the machine would reach if only the matrix products of an epoch took time. The program
appends rows to `benchmarks/results/training.jsonl`.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from base_policies import save_base
from harness import append_row

from pdjax.config import files as configs
from pdjax.profile.profile import profile

SETTINGS = {  # name -> preset, task, kind of base policy
    "published": ("pd", "PegInsertionSide", "diffusion_unet"),
    "fast": ("fast", "AdroitDoor", "mlp"),
}
EPOCH = {"published": 512, "fast": 4_096}  # decisions


def measure(name: str, repeats: int, overrides: list[str]) -> dict[str, Any]:
    """Profiles one setting, without advice."""
    preset, task_name, kind = SETTINGS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = save_base(Path(folder), kind, task_name)
        file = Path(folder) / "run.yaml"
        file.write_text(f"preset: {preset}\ntask:\n  name: {task_name}\n")
        config = configs.load(str(file), [f"base_policy.path={path}", *overrides])
        found = profile(config, repeats, advise=False)
    flops = sum(phase["flops"] for phase in found["phases"])
    per_epoch = config.train.decisions_per_epoch
    found["roofline_decisions_per_s"] = per_epoch * found["machine"]["flops"] / flops
    return {"setting": name, "overrides": overrides} | found


def main() -> None:
    """Measures, prints and appends rows."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="append no row")
    args = parser.parse_args()
    rows = []
    for name in args.settings:
        rows.append(measure(name, args.repeats, [f"train.decisions_per_epoch={EPOCH[name]}"]))
        row = rows[-1]
        print(
            f"{name}: {row['decisions_per_s']:.1f} decisions/s, at most"
            f" {row['roofline_decisions_per_s']:.1f} by the machine's rate; phases explain"
            f" {row['explained']:.0%} of an epoch",
            flush=True,
        )
    if not args.dry:
        append_row("training", {"rows": rows})


if __name__ == "__main__":
    main()
