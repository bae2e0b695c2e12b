"""Writes `sapien_grasps.npz`: free motion and grasps of SAPIEN, for `test_sapien_grasps.py`.

    python tests/envs/maniskill/make_sapien_grasps.py peg.h5 stack.h5

The files hold demonstrations of our experts in mani-skill2 0.5.3, recorded by `pdjax demos
experiments/simulators/maniskill2.py:make_env`; docs/tasks_and_originals.md says how.
"""

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

OUT = Path(__file__).with_name("sapien_grasps.npz")
EPISODES, FREE, GRASP = 12, 20, 28  # and control steps


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


if __name__ == "__main__":
    parts = dict(zip(("PegInsertionSide", "StackCube"), map(windows, sys.argv[1:]), strict=True))
    named: dict[str, Any] = {
        f"{task}_{name}": x for task, found in parts.items() for name, x in found.items()
    }
    np.savez_compressed(OUT, **named)
