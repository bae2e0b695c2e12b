"""Refines imitations of scripted experts in simulators of their own Python, and records the gain.

    python experiments/simulators.py fetch --python robotics/bin/python
    python experiments/simulators.py metaworld --python meta/bin/python

The interpreters need `gymnasium-robotics` and `mujoco<3.4`, or `metaworld` and `packaging`. Each
experiment records disturbed demonstrations of its expert, imitates them and refines the imitation,
in `runs/simulators/`; its row goes to `experiments/results/simulators.jsonl`.
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

from bases import run
from refine import refine

HERE = Path(os.path.relpath(Path(__file__).parent))  # as rows show it
RESULTS = HERE / "results" / "simulators.jsonl"


@dataclass(frozen=True)
class Experiment:
    """An environment, its expert and what is made of them.

    Attributes:
      task: name of the task.
      expert: FILE.py:FUNCTION.
      settings: of the task.
      demonstrations: how many.
      noise: size of the expert's disturbances.
      imitation: gradient steps of the base policy.
      refinement: changes of `peg_fast`, as `pdjax screen` proposes them, with more decisions.
    """

    task: str
    expert: str
    settings: tuple[str, ...]
    demonstrations: int
    noise: float
    imitation: int
    refinement: tuple[str, ...]


EXPERIMENTS = {
    "fetch": Experiment(
        task="gymnasium:FetchPickAndPlace-v4",
        expert=f"{HERE}/simulators/fetch_pick_and_place.py:expert",
        settings=(),
        demonstrations=50,
        noise=0.1,
        imitation=3_000,
        refinement=(
            "decorator.residual_scale=0.5",
            "decorator.exploration_steps=3072",
            "sac.penalty_half_life=96",
            "train.learning_starts=1536",
            "train.total_decisions=65536",
            "eval.interim_every=8192",
        ),
    ),
    "metaworld": Experiment(
        task=f"{HERE}/simulators/metaworld_push.py:make_env",
        expert=f"{HERE}/simulators/metaworld_push.py:expert",
        settings=("task.episode_steps=150",),
        demonstrations=15,
        noise=0.3,
        imitation=2_000,
        refinement=(
            "decorator.residual_scale=0.5",
            "decorator.exploration_steps=6144",
            "sac.penalty_half_life=192",
            "train.learning_starts=3072",
            "train.total_decisions=49152",
            "eval.interim_every=4096",
        ),
    ),
}


def main() -> None:
    """Runs the experiment that the command line names."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--python", required=True, help="the interpreter that has the simulator")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    chosen = EXPERIMENTS[args.experiment]
    folder = Path("runs/simulators") / args.experiment
    demos, base = folder / "demos.h5", folder / "base"
    settings = ("--set", f"task.python={args.python}", *chosen.settings)
    if not demos.exists():
        how = "--episodes", chosen.demonstrations, "--noise", chosen.noise
        run("demos", chosen.task, "--expert", chosen.expert, "--out", demos, *how, *settings)
    if not base.exists():
        how = "--policy", "mlp", "--steps", chosen.imitation
        run("imitate", demos, "--task", chosen.task, "--out", base, *how, *settings)
    for seed in args.seeds:
        changes = [f"task.name={chosen.task}", *chosen.refinement, *settings[1:]]
        row = refine("peg_fast", base, args.experiment, seed, changes)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
