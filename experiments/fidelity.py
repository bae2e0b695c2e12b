"""Plays policies in mani-skill2's own simulator and in our port, from the same starts.

    sh experiments/simulators/maniskill2.sh ms2
    python experiments/fidelity.py --python ms2/bin/python runs/refine/peg_fast_... runs/refine/...

A run's base policy and its refined policy play the same episodes in both simulators, with the same
noise. A row per run goes to `experiments/results/fidelity.jsonl`: success, control steps until it,
and figures of the grasp, for which see `grasp`. `docs/make_task_pages.py` puts them on the task's
page.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pdjax.base_policies.load import kind_of
from pdjax.rollout import intervals
from pdjax.rollout.evaluate import Evaluation
from pdjax.rollout.playing import make_play, no_residual
from pdjax.rollout.worker_play import SLOTS, episode_seed
from pdjax.runs.load import load_refined
from pdjax_envs.rotations import quat_conjugate, quat_multiply, quat_to_rotvec, rotate

HERE = Path(os.path.relpath(Path(__file__).parent))  # as rows show it
RESULTS = HERE / "results" / "fidelity.jsonl"
WORLDS = HERE / "simulators"
SEED = 40_000
LIFTED = 0.01  # m, above its start
LATER = 24  # control steps after the lift


class Original(NamedTuple):
    """The original of a task: its name, its control mode, and where half a width is observed.

    Attributes:
      name: of mani-skill2.
      mode: its control mode.
      width: index of the held object's half width in the observation; -1 = `HALF_CUBE`.
    """

    name: str
    mode: str
    width: int


HALF_CUBE = 0.02  # m
ORIGINALS = {
    "PegInsertionSide": Original("PegInsertionSide-v0", "pd_ee_delta_pose", 40),
    "StackCube": Original("StackCube-v0", "pd_ee_delta_pos", -1),
}


def main() -> None:
    """Plays the runs that the command line names."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--python", required=True, help="the interpreter that has mani-skill2")
    parser.add_argument("--episodes", type=int, default=100)
    args = parser.parse_args()
    for run in args.runs:
        row = compare(run, args.python, args.episodes)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row, indent=1))


def compare(run: Path, python: str, episodes: int) -> dict[str, Any]:
    """Plays a run's two policies in both simulators; returns its row."""
    task = json.loads((run / "result.json").read_text())["task"]
    original = ORIGINALS[task]
    worlds = {
        "original": [
            f"task.name={WORLDS}/maniskill2.py:make_env",
            f"task.python={python}",
            f"task.options=[name={original.name},control_mode={original.mode}]",
        ],
        "port": [
            f"task.name={WORLDS}/port.py:make_env",
            f"task.options=[name={task},starts={_starts(original, python, episodes)}]",
        ],
    }
    kind, _ = kind_of(run / "base_policy")
    row: dict[str, Any] = {"task": task, "run": run.name, "policy": kind, "episodes": episodes}
    for world, changes in worlds.items():
        refined = load_refined(run, changes=changes)
        play = make_play(refined.playing)
        for name, actor, scale in (
            ("base", no_residual(refined.actor), 0.0),
            ("refined", refined.actor, refined.residual_scale),
        ):
            found = play(SEED, episodes, actor, scale, record=True)
            horizon = refined.playing.base.act_horizon
            row[f"{name}_{world}"] = _figures(found, horizon, original.width)
            row[f"{name}_{world}_success"] = np.flatnonzero(found.success_once).tolist()
    for name in ("base", "refined"):
        here, there = (set(row.pop(f"{name}_{world}_success")) for world in ("port", "original"))
        row[f"{name}_both"] = len(here & there)
    return row


def _starts(original: Original, python: str, episodes: int) -> Path:
    """Writes where the episodes begin in the original; returns the file."""
    folder = Path("runs/fidelity")
    folder.mkdir(parents=True, exist_ok=True)
    seeds, starts = folder / "seeds.npy", folder / f"{original.name}.npz"
    # the waves of an evaluation are full, and a worker is tried with the first seeds
    numbers = range(episodes + SLOTS)
    np.save(seeds, np.array([episode_seed(SEED, number) for number in numbers]))
    script = WORLDS / "maniskill2.py"
    subprocess.run([python, script, original.name, original.mode, seeds, starts], check=True)
    return starts


def _figures(found: Evaluation, act_horizon: int, width: int) -> dict[str, Any]:
    success = np.asarray(found.success_once)
    low, high = intervals.wilson(int(success.sum()), len(success))
    steps = np.asarray(found.steps_to_success)
    held = [
        grasp(found.obs[: -(-int(steps[episode]) // act_horizon), episode], act_horizon, width)
        for episode in range(len(success))
    ]
    lifted = [figures for figures in held if figures]
    medians = np.nanmedian([list(figures.values()) for figures in lifted], axis=0) if lifted else []
    return {
        "success": float(success.mean()),
        "ci": [low, high],
        "steps": float(np.median(steps[success])) if success.any() else None,
        "lifted": len(lifted) / len(success),
        **(dict(zip(lifted[0], map(float, medians), strict=True)) if lifted else {}),
    }


def grasp(obs: np.ndarray, act_horizon: int, width: int) -> dict[str, float]:
    """Measures how the hand holds the object of an episode.

    Args:
      obs: (decisions, obs_dim) of PegInsertionSide or StackCube.
      act_horizon: control steps of a decision.
      width: see `Original`.

    Returns:
      At the lift: `yaw`, degrees, from the object's nearest side to the finger pads, and `opening`,
      mm, by which the fingers are wider apart than the object, each. Until `LATER` control steps
      after it: `turn`, degrees, and `slip`, mm, of the object in the hand; NaN where the episode
      ended or the object was lost. Nothing if the object was not lifted.
    """
    height = obs[:, 34] - obs[0, 34]
    closed = obs[:, 7:9].sum(axis=1) < 0.078  # m; the object was thrown up if the hand is open
    lifts = np.flatnonzero((height > LIFTED) & closed)
    if not len(lifts):
        return {}
    at, later = lifts[0], lifts[0] + LATER // act_horizon
    half = HALF_CUBE if width < 0 else obs[at, width]
    place, turned = _in_hand(obs[at])
    x, y, _ = rotate(turned, jax.numpy.array([1.0, 0.0, 0.0]))
    yaw = np.degrees(np.arctan2(y, x))
    turn = slip = np.nan
    if later < len(obs) and (height[at : later + 1] > LIFTED / 2).all():
        after, turned_after = _in_hand(obs[later])
        slip = 1e3 * np.linalg.norm(after - place)
        by = quat_to_rotvec(quat_multiply(quat_conjugate(turned), turned_after))
        turn = np.degrees(np.linalg.norm(by))
    return {
        "yaw": float(abs((yaw + 45) % 90 - 45)),
        "opening": float(1e3 * (obs[at, 7:9].mean() - half)),
        "turn": float(turn),
        "slip": float(slip),
    }


def _in_hand(obs: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Returns place (3,), m, and orientation (4,) of the object in the tool's frame."""
    seen = jax.numpy.asarray(obs)
    back = quat_conjugate(seen[28:32])
    return rotate(back, seen[32:35] - seen[25:28]), quat_multiply(back, seen[35:39])


if __name__ == "__main__":
    main()
