"""Makes base policies of all tasks: records demonstrations, imitates them, measures the policies.

    python experiments/bases.py                              # tasks with an expert of their own
    python experiments/bases.py AdroitDoor --dapg dapg/      # with the published files of DAPG
    python experiments/bases.py PushChair --policy bet --seeds 0 1 2
    python experiments/bases.py StackCube --policy diffusion_paper bet_paper   # hours on a GPU

A recipe chooses the amount of data and training so that the policy is worth refining: it succeeds
in 20 to 80 % of episodes. Demonstrations and policies go to `runs/bases/`. For each policy a row
goes to `experiments/results/bases.jsonl`: its command lines, the expert's success, and the policy's
success over 200 episodes with a 95 % interval, on held-out objects too where a task has them.
`KIND_paper` names the published networks and training, for the suite `paper`.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results" / "bases.jsonl"
EPISODES = 200


class Recipe(NamedTuple):
    """A recipe for the base policies of a task.

    Attributes:
      episodes: number of demonstrations of the expert; 0 = use a published file.
      flags: kind of policy -> flags of `pdjax imitate`.
      source: file in the DAPG folder, with a policy that demonstrates or with demonstrations;
        "" = the task's scripted expert.
      held_out: task with objects that the demonstrations do not show; "" = there is none.
    """

    episodes: int
    flags: dict[str, str]
    source: str = ""
    held_out: str = ""


# policy_decorator README.md, offline/diffusion_policy_unet_maniskill2.py, offline/bet_maniskill2.py
PAPER = {
    "diffusion_paper": "--policy diffusion_unet --steps 1000000 --eval-every 10000"
    " --set diffusion.prediction=epsilon batch_size=1024 learning_rate=1e-4",
    "bet_paper": "--policy bet --steps 200000 --eval-every 5000"
    " --set bet.obs_horizon=20 batch_size=2048 learning_rate=1e-4",
}
# Flags that the source changes for a task; they follow those above.
PAPER_CHANGES = {
    ("PegInsertionSide", "bet_paper"): "bet.width=256",
    ("StackCube", "bet_paper"): "batch_size=4096 learning_rate=1e-3",
    ("PushChair", "bet_paper"): "bet.bins=16",
    ("PushChair", "diffusion_paper"): "--steps 300000",
}

RECIPES = {
    "PegInsertionSide": Recipe(
        300,
        {
            "diffusion": "--steps 4000 --set diffusion.hidden=512",
            # Two observations, chunks, no dropout: else it copies its own history, imprecisely.
            "bet": "--steps 6000 --eval-every 2000 --set bet.act_horizon=4 bet.obs_horizon=2"
            " bet.dropout=0 bet.layers=2 batch_size=256",
        },
    ),
    "StackCube": Recipe(50, {"diffusion": "--steps 3000", "bet": "--set bet.act_horizon=4"}),
    "TurnFaucet": Recipe(
        100,
        {"diffusion": "--steps 4000", "bet": "--set bet.act_horizon=4"},
        held_out="TurnFaucetHeldOut",
    ),
    "PushChair": Recipe(
        100,
        {"diffusion": "--steps 4000", "bet": "--set bet.act_horizon=4"},
        held_out="PushChairHeldOut",
    ),
    # Clones of the published policies hardly ever fail: stop early, or use few demonstrations.
    "AdroitDoor": Recipe(
        100,
        {
            "diffusion": "--steps 200 --eval-every 10 --set stop_at=0.4",
            "bet": "--steps 200 --eval-every 10 --set stop_at=0.35 bet.act_horizon=4"
            " learning_rate=2e-4",
            "mlp": "--steps 200 --eval-every 10 --set stop_at=0.55 mlp.components=1",
        },
        "door-v0.pickle",
    ),
    "AdroitHammer": Recipe(
        2, {"diffusion": "--steps 600", "bet": "--set bet.act_horizon=4"}, "hammer-v0.pickle"
    ),
    "AdroitPen": Recipe(
        40,
        {"diffusion": "--steps 1000", "bet": "--steps 2000 --set bet.act_horizon=4"},
        "pen-v0.pickle",
    ),
    "AdroitRelocate": Recipe(10, {"diffusion": "--steps 1000", "bet": ""}, "relocate-v0.pickle"),
}


def run(*arguments: object) -> tuple[str, dict[str, Any]]:
    """Runs a pdjax command; returns its command line and its JSON output."""
    line = ["pdjax", *(str(argument) for argument in arguments)]
    print("$", shlex.join(line), file=sys.stderr, flush=True)
    program = [sys.executable, "-m", "pdjax.commands.cli", *line[1:], "--json"]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # the command has printed the reason
    return shlex.join(line), json.loads(done.stdout.splitlines()[-1])


def demonstrate(task: str, recipe: Recipe, folder: Path, dapg: Path | None) -> dict[str, Any]:
    """Records a task's demonstrations, unless they exist or are published as a file."""
    source = None
    if recipe.source:
        if dapg is None:
            raise SystemExit(f"{task} needs {recipe.source}: name its folder with --dapg")
        source = dapg / recipe.source
    if not recipe.episodes:
        return {"file": str(source), "command": "", "expert_success": None}
    file, note = folder / "demos.h5", folder / "demos_made.json"
    if not note.exists():
        # A published policy's own noise is disturbance enough.
        expert = ("--expert", f"dapg:{source}", "--noise", 0) if source else ()
        command, made = run("demos", task, "--out", file, "--episodes", recipe.episodes, *expert)
        note.write_text(
            json.dumps(
                {"file": str(file), "command": command, "expert_success": made["expert_success"]}
            )
        )
    return json.loads(note.read_text())


def make(task: str, policy: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Makes one policy; returns its row."""
    recipe, folder = RECIPES[task], args.out / task
    demos = demonstrate(task, recipe, folder, args.dapg)
    out = folder / f"{policy}_seed{seed}"
    flags = PAPER.get(policy) or f"--policy {policy} {recipe.flags[policy]}"
    changes = PAPER_CHANGES.get((task, policy), "")
    flags = (*flags.split(), *changes.split(), "--seed", seed)
    command, made = run(
        "imitate",
        demos["file"],
        "--task",
        task,
        "--out",
        out,
        "--resume",
        *flags,
        "--eval-episodes",
        EPISODES,
    )
    row = {
        "task": task,
        "policy": policy,
        "seed": seed,
        "expert_success": demos["expert_success"],
        "demonstrations": made["episodes"],
        "base_success": made["base_success"],
        "base_ci": made["base_ci"],
        "wall_s": made["wall_s"],
        "commands": [text for text in (demos["command"], command) if text],
    }
    if recipe.held_out:
        picture = folder / f"{policy}_seed{seed}_held_out.png"
        _, seen = run(
            "screen", out, "--task", recipe.held_out, "--episodes", EPISODES, "--out", picture
        )
        row |= {"held_out_success": seen["base_success"], "held_out_ci": seen["base_ci"]}
    return row


def main() -> None:
    """Makes the policies that the command line names."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="if none, all with an expert")
    parser.add_argument("--policy", nargs="+", default=["diffusion", "bet"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--dapg", type=Path, help="folder with the published files of DAPG")
    parser.add_argument("--out", type=Path, default=Path("runs/bases"))
    args = parser.parse_args()
    unknown = set(args.tasks) - RECIPES.keys()
    if unknown:
        parser.error(f"no recipe for {', '.join(sorted(unknown))}; there are: {', '.join(RECIPES)}")
    for task in args.tasks or [name for name, recipe in RECIPES.items() if not recipe.source]:
        for policy in args.policy:
            for seed in args.seeds:
                row = make(task, policy, seed, args)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
