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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bases import run
from policy_decorator import Reference
from refine import refine
from simulators import EXPERIMENTS, HERE, record

from pdjax_envs.names import task_named

FOLDER = Path("runs/reference_code")
RESULTS = HERE / "results" / "reference_code.jsonl"
EVALUATE_EVERY, EPISODES = 16_384, 100


@dataclass(frozen=True)
class Case:
    """A base policy of the reference and how it is refined.

    Attributes:
      experiment: of `simulators.EXPERIMENTS`, whose demonstrations it imitates.
      environment: name in the reference.
      control_mode: of the environment.
      kind: `diffusion` or `bet`.
      imitation: flags of the offline script.
      refinement: published flags of the online script.
      pd: our config with the same values.
      fast: our own config.
    """

    experiment: str
    environment: str
    control_mode: str
    kind: str
    imitation: dict[str, Any]
    refinement: dict[str, Any]
    pd: str
    fast: str


# Flags of the README of policy_decorator, but batches and iterations for two cores.
CASES = {
    "peg_diffusion": Case(
        "peg",
        "PegInsertionSide-v2",
        "pd_ee_delta_pose",
        "diffusion",
        {"batch-size": 256, "total-iters": 10_000, "lr": 3e-4},
        {"res-scale": 0.1, "prog-explore": 30_000},
        "paper/peg_diffusion",
        "peg_fast",
    ),
    "peg_bet": Case(
        "peg",
        "PegInsertionSide-v2",
        "pd_ee_delta_pose",
        "bet",
        {"batch-size": 256, "total-iters": 5_000, "lr": 3e-4, "n-embedding": 256},
        {"res-scale": 0.3, "prog-explore": 8_000_000, "policy-lr": 3e-4, "q-lr": 3e-4},
        "paper/peg_bet",
        "peg_fast",
    ),
    "stack_bet": Case(
        "stack",
        "StackCube-v0",
        "pd_ee_delta_pos",
        "bet",
        {"batch-size": 256, "total-iters": 5_000, "lr": 1e-3},
        {"res-scale": 0.03, "prog-explore": 1_000_000},
        "paper/stack_bet",
        "fast_long",
    ),
}
OFFLINE = {"diffusion": "diffusion_policy_unet_maniskill2", "bet": "bet_maniskill2"}


def imitate(case: Case, recorded: Path, reference: Reference, folder: Path) -> Path:
    """Returns the checkpoint of the reference's imitation, made if it is missing."""
    folder = folder.absolute()  # the script runs in another folder
    found = list(folder.rglob("checkpoints/*.pt"))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        demos = folder / "demos.h5"
        demos.symlink_to(recorded.absolute())
        info = {"env_info": {"env_kwargs": {"control_mode": case.control_mode}}}
        demos.with_suffix(".json").write_text(json.dumps(info))
        flags = {
            "env-id": case.environment,
            "control-mode": case.control_mode,
            "demo-path": demos,
            "num-eval-envs": 1,
            "num-eval-episodes": 1,
            "eval-freq": 10**9,
            "save-freq": case.imitation["total-iters"],
        }
        reference.run(f"offline/{OFFLINE[case.kind]}.py", flags | case.imitation, folder)
        found = list(folder.rglob("checkpoints/*.pt"))
    (checkpoint,) = found
    return checkpoint


def refine_theirs(
    case: Case, reference: Reference, checkpoint: Path, decisions: int, out: Path
) -> dict[str, Any]:
    """Refines by the reference's online script; returns its row."""
    flags = {
        "env-id": case.environment,
        "base-policy-ckpt": checkpoint,
        "total-timesteps": decisions,
        "log-freq": 4_096,
        "eval-freq": EVALUATE_EVERY,
        "num-eval-episodes": EPISODES,
    }
    out = out.absolute()
    out.mkdir(parents=True)
    start = time.time()
    reference.run(f"online/pi_dec_{case.kind}_maniskill2.py", flags | case.refinement, out)
    curve = [
        [step, round(wall - start, 1), success]
        for step, wall, success in reference.scalars(out, "eval/success")
    ]
    return {"decision_steps": decisions, "curve": curve, "cores": os.cpu_count()}


def refine_ours(case: Case, method: str, base: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Refines by `pd` or `fast`; returns its row."""
    experiment = EXPERIMENTS[case.experiment]
    settings = (
        f"task.name={experiment.task}",
        f"task.python={args.python}",
        *experiment.settings,
        f"train.total_decisions={args.decisions}",
        f"train.replay_capacity={args.decisions}",
        f"eval.interim_every={EVALUATE_EVERY}",
        f"eval.interim_episodes={EPISODES}",
    )
    more = (f"task.features={task_named(case.environment)}",) if method == "fast" else ()
    config = case.pd if method == "pd" else case.fast
    return refine(config, base, f"reference_{method}", 0, [*settings, *more])


def main() -> None:
    """Refines the policies that the command line names."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=CASES)
    parser.add_argument("--reference", type=Path, required=True, help="checkout of the code")
    parser.add_argument("--python", required=True, help="its interpreter")
    parser.add_argument("--decisions", type=int, default=98_304)
    parser.add_argument("--by", nargs="+", default=["fast", "pd", "reference"])
    args = parser.parse_args()
    reference = Reference(args.reference.absolute(), Path(args.python).absolute())
    for name in args.cases:
        case, folder = CASES[name], FOLDER / name
        checkpoint = imitate(case, record(case.experiment, args.python), reference, folder / "base")
        base = folder / "imported"
        if not base.exists():
            task = task_named(case.environment)
            run("import", checkpoint, "--task", task, "--out", base, "--episodes", 10)
        for method in args.by:
            if method == "reference":
                out = folder / f"reference_{int(time.time())}"
                row = refine_theirs(case, reference, checkpoint, args.decisions, out)
            else:
                row = refine_ours(case, method, base, args)
            with RESULTS.open("a") as file:
                file.write(json.dumps({"case": name, "method": method} | row) + "\n")


if __name__ == "__main__":
    main()
