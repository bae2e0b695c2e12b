"""Refines imitations of scripted experts in simulators of their own Python, and records the gain.

    python experiments/simulators.py fetch --python robotics/bin/python
    python experiments/simulators.py metaworld --python meta/bin/python
    python experiments/simulators.py peg stack --python ms2/bin/python

The interpreters need `gymnasium-robotics` and `mujoco<3.4`, or `metaworld` and `packaging`, or the
original ManiSkill2 that `simulators/maniskill2.sh` installs. Each experiment records disturbed
demonstrations of its expert, imitates them and refines the imitation, in `runs/simulators/`; its
row goes to `experiments/results/simulators.jsonl`.
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

from bases import RECIPES, run
from refine import refine

HERE = Path(os.path.relpath(Path(__file__).parent))  # as rows show it
RESULTS = HERE / "results" / "simulators.jsonl"
FOLDER = Path("runs/simulators")


@dataclass(frozen=True)
class Experiment:
    """An environment, its expert and what is made of them.

    Attributes:
      task: name of the task.
      expert: FILE.py:FUNCTION, or one of our tasks, whose expert leads there as well.
      settings: of the task.
      demonstrations: how many.
      noise: size of the expert's disturbances.
      imitation: flags of `pdjax imitate`.
      config: of the refinement.
      refinement: its changes; for `peg_fast` those that `pdjax screen` proposes, with more
        decisions.
    """

    task: str
    expert: str
    settings: tuple[str, ...]
    demonstrations: int
    noise: float
    imitation: str
    config: str
    refinement: tuple[str, ...]


MANISKILL2 = f"{HERE}/simulators/maniskill2.py:make_env"
EXPERIMENTS = {
    "peg": Experiment(
        task=MANISKILL2,
        expert="PegInsertionSide",
        settings=(),
        demonstrations=300,
        noise=0.03,
        imitation=f"--policy diffusion {RECIPES['PegInsertionSide'].flags['diffusion']}",
        config="peg_fast",
        refinement=(
            "task.features=PegInsertionSide",
            f"train.demos={FOLDER}/peg/demos.h5",
            "train.demo_share=0.25",
            "eval.interim_every=16384",
        ),
    ),
    "stack": Experiment(
        task=MANISKILL2,
        expert="StackCube",
        settings=("task.options=[name=StackCube-v0,control_mode=pd_ee_delta_pos]",),
        demonstrations=30,
        noise=0.03,
        imitation=f"--policy diffusion {RECIPES['StackCube'].flags['diffusion']}",
        config="fast_long",
        refinement=(
            "task.features=StackCube",
            f"train.demos={FOLDER}/stack/demos.h5",
            "train.demo_share=0.25",
            "train.total_decisions=65536",
            "eval.interim_every=16384",
        ),
    ),
    "fetch": Experiment(
        task="gymnasium:FetchPickAndPlace-v4",
        expert=f"{HERE}/simulators/fetch_pick_and_place.py:expert",
        settings=(),
        demonstrations=50,
        noise=0.1,
        imitation="--policy mlp --steps 3000",
        config="peg_fast",
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
        imitation="--policy mlp --steps 2000",
        config="peg_fast",
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
    parser.add_argument("experiments", nargs="+", choices=EXPERIMENTS)
    parser.add_argument("--python", required=True, help="the interpreter that has the simulator")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    for experiment in args.experiments:
        conduct(experiment, args.python, args.seeds)


def record(experiment: str, python: str) -> Path:
    """Returns the demonstrations of an experiment; records them if they are missing."""
    chosen, demos = EXPERIMENTS[experiment], FOLDER / experiment / "demos.h5"
    if not demos.exists():
        how = "--episodes", chosen.demonstrations, "--noise", chosen.noise
        settings = "--set", f"task.python={python}", *chosen.settings
        run("demos", chosen.task, "--expert", chosen.expert, "--out", demos, *how, *settings)
    return demos


def conduct(experiment: str, python: str, seeds: list[int]) -> None:
    """Does what one experiment still lacks; writes a row per seed."""
    chosen, demos = EXPERIMENTS[experiment], record(experiment, python)
    base, settings = FOLDER / experiment / "base", (f"task.python={python}", *chosen.settings)
    if not base.exists():
        how = (*chosen.imitation.split(), "--set", *settings)
        run("imitate", demos, "--task", chosen.task, "--out", base, *how)
    for seed in seeds:
        changes = [f"task.name={chosen.task}", *chosen.refinement, *settings]
        row = refine(chosen.config, base, experiment, seed, changes)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
