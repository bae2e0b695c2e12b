"""Writes the refined policy of a finished run as a directory that needs no pdjax."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pdjax.base_policies import load
from pdjax.base_policies.foreign import exported
from pdjax.config.fields import BasePolicyConfig, ConfigError
from pdjax.learner.decorator import far_numbers
from pdjax.output.paths import check_directory
from pdjax.rollout.intervals import wilson
from pdjax.rollout.playing import make_play, make_playing
from pdjax.runs.deployed import HOW_TO, make_deployed
from pdjax.runs.load import load_refined
from pdjax.types import BasePolicy


def export_run(
    directory: Path,
    out: Path,
    episodes: int,
    seed: int,
    physics: str = "",
    base: BasePolicy | None = None,
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
      physics: engine; "" = as in the run's config.
      base: see `load.Run`.

    Raises:
      ConfigError, checkpoint.CheckpointError: no finished run, its base policy is called through
        the host, or the directory cannot be written.
    """
    check_directory(out)
    refined = load_refined(directory, physics, base=base)
    playing, env, base = refined.playing, refined.playing.env, refined.playing.base
    if load.through_host(base):
        raise ConfigError(
            f"{directory} refines a policy that is called through the host (NumPy, torch); no file"
            " of a program can hold it; refine one in JAX, see docs/base_policies.md"
        )
    play = make_play(playing)
    seen = play(seed, episodes, record=True).obs
    covered = float(far_numbers(jnp.asarray(seen), base.obs_mean, base.obs_std).mean(axis=-1).max())
    limit = covered + refined.config.guard.drift

    def choose(obs, base_action):
        view = playing.rollout.see(playing.frozen, obs)
        return playing.sac.act_deterministic(refined.actor, view, base_action)

    deployed = make_deployed(base, choose, refined.residual_scale, limit)
    exported.export_policy(deployed, out, env.task.name)
    sizes = {
        name: getattr(deployed, name)
        for name in ("obs_horizon", "obs_dim", "act_horizon", "act_dim")
    }
    text = HOW_TO.format(task=env.task.name, version=jax.__version__, drift_limit=limit, **sizes)
    (out / "README.md").write_text(text)
    before = play(seed, episodes, refined.actor, refined.residual_scale)
    written = load.load_base(BasePolicyConfig(str(out)), env.task)
    played = make_play(make_playing(env, written))(seed, episodes, record=True)
    decisions = episodes * -(-env.task.episode_steps // deployed.act_horizon)
    return {
        "policy": str(out),
        "task": env.task.name,
        "run": str(directory),
        "episodes": episodes,
        "success": float(played.success_once.mean()),
        "ci": list(wilson(int(played.success_once.sum()), episodes)),
        "run_success": float(before.success_once.mean()),
        "physics": env.engine,
        "drift_limit": limit,
        "drift_of_base": covered,
        "trips": int(played.carry[0].sum()),
        "decisions": decisions,
    }
