"""Refines the reference code's base policies in ManiSkill2 itself: by its code, `pd` and `fast`.

    python experiments/reference_code.py peg_diffusion peg_bet stack_bet \
      --reference policy_decorator --python ms2/bin/python

`policy_decorator.py` says how to install the reference. Its offline script imitates the
demonstrations that `simulators.py` records in ManiSkill2, with the published networks and horizons,
for fewer iterations. Its online script, our `pd` with the same published values, and `fast` then
refine that policy for as many decisions each. A row for each goes to
`experiments/results/reference_code.jsonl`: success against decisions and seconds, in episodes of
its own code.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from bases import run
from policy_decorator import Reference
from refine import refine
from simulators import EXPERIMENTS, HERE, record

FOLDER = Path("runs/reference_code")
RESULTS = HERE / "results" / "reference_code.jsonl"
METHODS = ("reference", "pd", "fast")
EVALUATE_EVERY, EPISODES = 16_384, 100


class Case(NamedTuple):
    """How a base policy of the reference is made and refined; named EXPERIMENT_KIND.

    Attributes:
      imitation: flags of the offline script.
      refinement: published flags of the online script; our config `paper/EXPERIMENT_KIND` has the
        same values.
    """

    imitation: dict[str, Any]
    refinement: dict[str, Any]


# Flags of the README of policy_decorator, but batches and iterations for two cores.
CASES = {
    "peg_diffusion": Case(
        {"batch-size": 256, "total-iters": 30_000, "lr": 3e-4},
        {"res-scale": 0.1, "prog-explore": 30_000},
    ),
    "peg_bet": Case(
        {"batch-size": 256, "total-iters": 5_000, "lr": 3e-4, "n-embedding": 256},
        {"res-scale": 0.3, "prog-explore": 8_000_000, "policy-lr": 3e-4, "q-lr": 3e-4},
    ),
    "stack_bet": Case(
        {"batch-size": 256, "total-iters": 5_000, "lr": 1e-3},
        {"res-scale": 0.03, "prog-explore": 1_000_000},
    ),
}
ENVIRONMENTS = {  # the reference's name and control mode of an experiment's environment
    "peg": ("PegInsertionSide-v2", "pd_ee_delta_pose"),
    "stack": ("StackCube-v0", "pd_ee_delta_pos"),
}
OFFLINE = {"diffusion": "diffusion_policy_unet_maniskill2", "bet": "bet_maniskill2"}


def imitate(name: str, recorded: Path, reference: Reference, folder: Path) -> Path:
    """Returns the checkpoint of the reference's imitation, made if it is missing."""
    folder = folder.absolute()  # the script runs in another folder
    found = list(folder.rglob("checkpoints/*.pt"))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        experiment, kind = name.split("_")
        environment, control_mode = ENVIRONMENTS[experiment]
        imitation, demos = CASES[name].imitation, folder / "demos.h5"
        demos.symlink_to(recorded.absolute())
        info = {"env_info": {"env_kwargs": {"control_mode": control_mode}}}
        demos.with_suffix(".json").write_text(json.dumps(info))
        flags = {
            "env-id": environment,
            "control-mode": control_mode,
            "demo-path": demos,
            "num-eval-envs": 1,
            "num-eval-episodes": 1,
            "eval-freq": 10**9,
            "save-freq": imitation["total-iters"],
        }
        reference.run(f"offline/{OFFLINE[kind]}.py", flags | imitation, folder)
        found = list(folder.rglob("checkpoints/*.pt"))
    (checkpoint,) = found
    return checkpoint


def refine_theirs(
    name: str, reference: Reference, checkpoint: Path, decisions: int, out: Path
) -> dict[str, Any]:
    """Refines by the reference's online script; returns its row."""
    experiment, kind = name.split("_")
    flags = {
        "env-id": ENVIRONMENTS[experiment][0],
        "base-policy-ckpt": checkpoint,
        "total-timesteps": decisions,
        "log-freq": 4_096,
        "eval-freq": EVALUATE_EVERY,
        "num-eval-episodes": EPISODES,
    }
    out = out.absolute()
    out.mkdir(parents=True)
    start = time.time()
    reference.run(f"online/pi_dec_{kind}_maniskill2.py", flags | CASES[name].refinement, out)
    curve = [
        [step, round(wall - start, 1), success]
        for step, wall, success in reference.scalars(out, "eval/success")
    ]
    return {"decision_steps": decisions, "curve": curve, "cores": os.cpu_count()}


def refine_ours(name: str, method: str, base: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Refines by `pd` or `fast`; returns its row."""
    experiment = EXPERIMENTS[name.split("_")[0]]
    settings = (
        f"task.name={experiment.task}",
        f"task.python={args.python}",
        *experiment.settings,
        f"train.total_decisions={args.decisions}",
        f"train.replay_capacity={args.decisions}",
        f"eval.interim_every={EVALUATE_EVERY}",
        f"eval.interim_episodes={EPISODES}",
    )
    if method == "pd":
        config, more = f"paper/{name}", ()
    else:
        config, more = experiment.config, (f"task.features={experiment.expert}",)
    return refine(config, base, f"reference_{method}", 0, [*settings, *more])


def main() -> None:
    """Refines the policies that the command line names."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--reference", type=Path, required=True, help="checkout of the code")
    parser.add_argument("--python", required=True, help="its interpreter")
    parser.add_argument("--decisions", type=int, default=98_304)
    parser.add_argument("--by", nargs="+", choices=METHODS, default=METHODS)
    args = parser.parse_args()
    reference = Reference(args.reference.absolute(), Path(args.python).absolute())
    for name in args.cases:
        experiment, folder = name.split("_")[0], FOLDER / name
        checkpoint = imitate(name, record(experiment, args.python), reference, folder / "base")
        base = folder / "imported"
        if not base.exists():
            task = EXPERIMENTS[experiment].expert  # ours, with the same observations
            run("import", checkpoint, "--task", task, "--out", base, "--episodes", 10)
        for method in args.by:
            if method == "reference":
                out = folder / f"reference_{int(time.time())}"
                row = refine_theirs(name, reference, checkpoint, args.decisions, out)
            else:
                row = refine_ours(name, method, base, args)
            with RESULTS.open("a") as file:
                file.write(json.dumps({"case": name, "method": method} | row) + "\n")


if __name__ == "__main__":
    main()
