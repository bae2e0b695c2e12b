"""Writes `sapien_grasps.npz`: motions, grasps and insertions for `test_sapien_grasps.py`.

    python tests/envs/maniskill/make_sapien_grasps.py peg.h5 stack.h5 --run RUN --python PYTHON

The files hold demonstrations of our experts in mani-skill2 0.5.3, recorded by `pdjax demos
experiments/simulators/maniskill2.py:make_env`; docs/tasks_and_originals.md says how. The base
policy of RUN, a run of PegInsertionSide, plays there with the interpreter PYTHON.
"""

import argparse
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np

from pdjax.rollout.playing import make_play, no_residual
from pdjax.runs.load import load_refined
from pdjax_envs.maniskill.peg_insertion_side import features

OUT = Path(__file__).with_name("sapien_grasps.npz")
EPISODES, FREE, GRASP, ENTRY = 12, 20, 28, 8  # and control steps
WORLD = "experiments/simulators/maniskill2.py:make_env"


def windows(path: str) -> dict[str, np.ndarray]:
    """Returns observations (EPISODES, steps + 1, obs_dim) and actions (EPISODES, steps, act_dim).

    `free` ones begin with an episode, `grasp` ones when the fingers begin to close on an object
    that is then lifted.
    """
    found: dict[str, list[np.ndarray]] = {"free": [], "grasp": []}
    with h5py.File(path) as file:
        for number in range(len(file)):
            obs, actions = (
                np.asarray(file[f"traj_{number}/{key}"]) for key in ("obs", "executed_actions")
            )
            closed = actions[:, -1] < 0
            begins = [
                at
                for at in range(1, len(closed) - GRASP)
                if closed[at : at + GRASP].all() and not closed[at - 1]
            ]
            if begins and obs[begins[0] + GRASP, 34] > obs[0, 34] + 0.02:
                for name, at, steps in (("free", 0, FREE), ("grasp", begins[0], GRASP)):
                    found[name] += [obs[at : at + steps + 1], actions[at : at + steps]]
            if len(found["grasp"]) == 2 * EPISODES:
                break
    return {
        f"{name}_{what}": np.stack(rows[first::2]).astype(np.float32)
        for name, rows in found.items()
        for first, what in enumerate(("obs", "actions"))
    }


def entries(run: str, python: str, episodes: int = 250) -> dict[str, np.ndarray]:
    """Returns how pegs meet the box: observation before (n, 50), ENTRY actions, observation after.

    Of each episode it takes the first decision that begins with the held peg less than 4 cm in
    front of the box and ends with the peg at the box or inside.
    """
    refined = load_refined(Path(run), changes=[f"task.name={WORLD}", f"task.python={python}"])
    play = make_play(refined.playing)
    found = play(40_000, episodes, no_residual(refined.actor), 0.0, record=True)
    obs, chunks = found.obs, found.base_action  # (decisions, episodes, ...)
    assert obs is not None and chunks is not None
    horizon = refined.playing.base.act_horizon
    decisions = -(-ENTRY // horizon)
    # the first feature is the depth of the peg's head in the box, per 2 cm
    depth = 20 * np.asarray(jax.vmap(jax.vmap(features))(obs))[..., 0]  # mm
    held = obs[..., 34] - obs[..., 40] > 0.005
    rows: dict[str, list[np.ndarray]] = {"before": [], "actions": [], "after": []}
    for episode in range(episodes):
        last = -(-found.steps_to_success[episode] // horizon) - 1 - decisions
        for at in range(1, min(last + 1, len(obs) - decisions)):
            near = held[at, episode] and -40 < depth[at, episode] < -1
            if near and depth[at + 1, episode] > -1.5:
                actions = chunks[at : at + decisions, episode].reshape(-1, 7)
                rows["before"].append(obs[at, episode])
                rows["actions"].append(actions[:ENTRY])
                rows["after"].append(obs[at + decisions, episode])
                break
    return {f"entry_{name}": np.stack(found).astype(np.float32) for name, found in rows.items()}


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("peg", help="demonstrations of PegInsertionSide-v0")
    parser.add_argument("stack", help="demonstrations of StackCube-v0")
    parser.add_argument("--run", required=True)
    parser.add_argument("--python", required=True)
    args = parser.parse_args()
    parts = {
        "PegInsertionSide": windows(args.peg) | entries(args.run, args.python),
        "StackCube": windows(args.stack),
    }
    named: dict[str, Any] = {
        f"{task}_{name}": x for task, found in parts.items() for name, x in found.items()
    }
    np.savez_compressed(OUT, **named)


if __name__ == "__main__":
    main()
