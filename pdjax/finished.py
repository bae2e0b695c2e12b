"""This file is not pure: it reads finished runs back, to evaluate, export and draw them."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from pdjax import checkpoint, report
from pdjax import config as configs
from pdjax import render as rendering
from pdjax.base_policies import exported, foreign
from pdjax.config import ConfigError
from pdjax.decorator import far_numbers
from pdjax.deployed import HOW_TO, make_deployed
from pdjax.evaluation import wilson
from pdjax.outputs import check_directory, check_file
from pdjax.programs import Run, build, compare, make_assess
from pdjax.rollout import episode_overrides, make_base_play
from pdjax.types import Params
from pdjax.wrap import try_policy
from pdjax_envs import registry, shifts


def load_run(directory: Path, physics: str = "", shift: str = "") -> tuple[Run, Params]:
    """Reads a finished run back: the built run and its residual policy's parameters.

    Args:
      directory: of the run.
      physics: another engine than in training; "" = the same.
      shift: other perturbations than in training, `none` for none; "" = the same.

    Raises:
      ConfigError, checkpoint.CheckpointError: the directory is no finished run.
    """
    overrides = [f"task.physics={physics}"] if physics else []
    overrides += [f"task.shift={'' if shift == 'none' else shift!r}"] if shift else []
    built = build(configs.load_of_run(directory, overrides))
    like = jax.eval_shape(built.sac.init, jax.random.key(0)).actor
    return built, checkpoint.restore(directory / "residual", like)


def evaluate_run(
    directory: Path, episodes: int, seed: int, physics: str = "", shift: str = ""
) -> dict[str, Any]:
    """Paired evaluation of a finished run on other episodes than its training saw.

    Args:
      directory: of the run.
      episodes: played by both policies.
      seed: of the episodes; the same with and without a shift.
      physics: engine; "" = as in training.
      shift: see `registry.make`; "" = as in training.
    """
    built, actor = load_run(directory, physics, shift)
    refined = [(actor, built.config.decorator.residual_scale)]
    (summary,) = compare(built, refined, episodes, seed)
    return summary | {"run": str(directory), "seed": seed, "shift": built.config.task.shift}


def evaluate_shifts(
    directory: Path, episodes: int, seed: int, physics: str = ""
) -> list[dict[str, Any]]:
    """`evaluate_run` without a shift and under each that the run's task has, one at a time."""
    task = load_run(directory, physics)[0].env.task
    names = [name for name in shifts.SHIFTS if not shifts.needed(name, task)]
    return [evaluate_run(directory, episodes, seed, physics, name) for name in ["none", *names]]


def export_run(
    directory: Path, out: Path, episodes: int, seed: int, physics: str = ""
) -> dict[str, Any]:
    """Writes a run's refined policy as a directory that needs no pdjax, and tries what it wrote.

    The fail-safe's limit is the largest share of far numbers in an observation of the base policy,
    played alone, and `guard.drift` on top of it.

    Args:
      directory: of the run.
      out: directory to write, new or empty; also a base policy's.
      episodes: played by the base policy for the limit, then by the refined policy and, on the same
        seeds, by what was written.
      seed: of the episodes.
      physics: engine; "" = as in training.

    Raises:
      ConfigError, checkpoint.CheckpointError: no finished run, its base policy is called through
        the host, or the directory cannot be written.
    """
    check_directory(out)
    built, actor = load_run(directory, physics)
    task, scale = built.config.task, built.config.decorator.residual_scale
    if foreign.through_host(built.base):
        raise ConfigError(
            f"{directory} refines a policy that is called through the host (NumPy, torch); no file"
            " of a program can hold it; refine one in JAX, see docs/base_policies.md"
        )
    env = registry.make(task.name, task.physics, task.reward, False, task.shift)
    obs, _, _ = try_policy(env, built.base, episodes, seed)
    covered = float(far_numbers(obs, built.base.obs_mean, built.base.obs_std).mean(axis=-1).max())
    limit = covered + built.config.guard.drift

    def choose(obs, base_action):
        return built.sac.act_deterministic(actor, built.rollout.see(built.frozen, obs), base_action)

    deployed = make_deployed(built.base, choose, scale, limit)
    exported.export_policy(deployed, out, env.task.name)
    sizes = {name: getattr(deployed, name)
             for name in ("obs_horizon", "obs_dim", "act_horizon", "act_dim")}  # fmt: skip
    text = HOW_TO.format(task=env.task.name, version=jax.__version__, drift_limit=limit, **sizes)
    (out / "README.md").write_text(text)
    refined = make_assess(built)(actor, scale, seed, episodes)
    written = foreign.load(out)[0]
    played = make_base_play(env, written)(written.params, seed, episodes, record=True)
    decisions = episodes * -(-env.task.episode_steps // deployed.act_horizon)
    return {
        "policy": str(out), "task": env.task.name, "run": str(directory), "episodes": episodes,
        "success": float(played.success_once.mean()),
        "ci": list(wilson(int(played.success_once.sum()), episodes)),
        "run_success": float(refined.success_once.mean()),
        "drift_limit": limit, "drift_of_base": covered,
        "trips": int(played.carry[0].sum()), "decisions": decisions,
    }  # fmt: skip


def render_run(
    directory: Path, out: Path, episodes: int, seed: int, grid: tuple[int, int] = (1, 1)
) -> dict[str, Any]:
    """Renders a run: base and refined policy side by side, or many episodes of the refined one.

    Args:
      directory: of the run.
      out: the video.
      episodes: shown side by side, where the grid is (1, 1).
      seed: of the episodes.
      grid: rows and columns of episodes of the refined policy.

    Raises:
      ConfigError, checkpoint.CheckpointError: no finished run, or the video exists already.
      rendering.RenderError: nothing to draw with on this machine.
    """
    check_file(out, (".mp4", ".gif"))
    built, actor = load_run(directory)
    assess = make_assess(built)
    scale = built.config.decorator.residual_scale
    labels = {"base policy": 0.0, "refined": scale}
    if grid != (1, 1):
        episodes, labels = grid[0] * grid[1], {"refined": scale}
    sides = []
    for label, chosen in labels.items():
        result = assess(actor, chosen, seed, episodes, True)
        played = (result.qpos, result.steps_to_success, result.success_once)
        sides.append(rendering.Side(label, *map(np.asarray, played)))
    overrides = episode_overrides(built.env, jax.random.split(jax.random.key(seed), episodes))
    with report.progress("rendering", rendering.count_frames(sides, grid), "frames") as bar:
        rendering.render(built.env.task.name, overrides, sides, out, grid, bar.update)
    return {"video": str(out), "episodes": episodes, "seed": seed, "grid": list(grid)}
