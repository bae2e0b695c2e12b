"""Runs the whole chain in minutes: demonstrations, imitation, refinement, evaluation, video."""

import json
import time
from pathlib import Path
from typing import Any

from pdjax.base_policies import settings
from pdjax.config import files as configs
from pdjax.config.seeds import shift_seed
from pdjax.output import plots, tables, terminal
from pdjax.output.paths import new_directory
from pdjax.output.run_directory import write_result
from pdjax.prepare import demonstrate, imitate
from pdjax.runs import render
from pdjax.runs.video import RenderError
from pdjax.training import run as runner

TASK = "TurnFaucet"
EPISODES = 100  # demonstrations
NOISE = 0.03  # of the demonstrator
IMITATION = {"steps": 2_000}
CONFIG = "fast/faucet_diffusion"  # refines on faucets that no demonstration shows
SEEDS_APART = 1_000_000  # between the demonstrations of two neighbouring seeds: they share none


def quickstart(out: Path, seed: int) -> dict[str, Any]:
    """Runs the whole chain into one directory and prints the result.

    Args:
      out: new or empty; receives `demos.h5`, `base/`, the run in `run/`, and what people look at
        first: `result.json`, `learning_curve.png` and `base_and_refined.mp4`.
      seed: of everything random; 0 to 2**31 - 1.

    Returns:
      The content of `result.json`; `wall_s` covers the whole chain.
    """
    start = time.monotonic()
    new_directory(out)
    terminal.say(f"1/4 recording demonstrations of {TASK} by its scripted expert", "bold")
    demonstrate.record_demonstrations(
        TASK, out / "demos.h5", EPISODES, first_episode(seed), noise=NOISE
    )
    terminal.say("2/4 training a diffusion policy on them", "bold")
    imitation = settings.recipe("diffusion", {**IMITATION, "seed": seed})
    imitate.train_base_policy(out / "demos.h5", TASK, out / "base", imitation, eval_episodes=0)
    terminal.say(
        "3/4 refining it on faucets that it has never seen; the base policy stays frozen", "bold"
    )
    base = json.dumps(str(out / "base"))  # quoted for YAML
    config = configs.load(CONFIG, [f"base_policy.path={base}", f"seed={seed}"])
    result = runner.run(config, out / "run")
    terminal.say("4/4 rendering a video of both", "bold")
    video = _try_video(result.directory, out / "base_and_refined.mp4")
    summary = result.summary | {"wall_s": time.monotonic() - start, "video": video}
    write_result(out, summary)
    plots.plot_learning_curve(out / "run", summary).replace(out / "learning_curve.png")
    tables.show_comparison(summary)
    terminal.say(
        f"{summary['wall_s'] / 60:.1f} minutes; look at {out}/learning_curve.png"
        + (f" and {video}" if video else "")
    )
    return summary


def first_episode(seed: int) -> int:
    """Returns the seed of the first demonstration that a quickstart with `seed` records."""
    return shift_seed(0, SEEDS_APART * seed)


def _try_video(run: Path, path: Path) -> str | None:
    """Renders a video if this machine can, else prints why not; returns its path or None."""
    try:
        render.render_run(run, path, episodes=1, seed=20_000)
    except RenderError as error:
        terminal.say(f"no video: {error}")
        return None
    return str(path)
