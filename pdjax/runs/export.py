"""Writes the refined policy of a finished run as a directory that needs no pdjax.

Separate from `deployed`, which builds that policy as pure functions.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pdjax.base_policies import load
from pdjax.base_policies.foreign import exported
from pdjax.config.schema import BasePolicyConfig, ConfigError
from pdjax.learner.decorator import far_numbers
from pdjax.output.paths import check_directory
from pdjax.rollout import intervals
from pdjax.rollout.playing import make_play, make_playing
from pdjax.runs.deployed import make_deployed
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

    The fail-safe's limit is the largest share of far numbers in any observation of the base policy
    that plays alone, plus `guard.drift`.

    Args:
      directory: the run's directory.
      out: directory to write, new or empty; it may serve as a base policy's directory.
      episodes: number of episodes. The base policy plays them to set the limit; the refined policy
        and the policy that was written play the same ones.
      seed: seed of the episodes.
      physics: physics engine; "" = as in the run's config.
      base: the base policy, if it exists in memory only; None = the copy in the directory.

    Returns:
      What `pdjax export --json` prints: success_once of both (shares in [0, 1]) or, if `is_rate` is
      False because the task has no success, their returns; the 95 % interval, the limit, and the
      decisions in which the fail-safe tripped.

    Raises:
      ConfigError, checkpoint.CheckpointError: the run is not finished, its base policy is called
        through the host, or the directory cannot be written.
    """
    check_directory(out)
    refined = load_refined(directory, physics, base=base)
    playing, env, base = refined.playing, refined.playing.env, refined.playing.base
    if load.through_host(base):
        raise ConfigError(
            f"{directory} refines a policy that is called through the host (NumPy, torch), which an"
            " exported program cannot contain; refine a JAX policy, see docs/base_policies.md"
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
    is_rate = played.success_once is not None
    decisions = episodes * -(-env.task.episode_steps // deployed.act_horizon)
    return {
        "policy": str(out),
        "task": env.task.name,
        "run": str(directory),
        "episodes": episodes,
        "is_rate": is_rate,
        "success": played.score,
        "ci": intervals.base_summary(played)["base_ci" if is_rate else "base_return_ci"],
        "run_success": before.score,
        "physics": env.engine,
        "drift_limit": limit,
        "drift_of_base": covered,
        "trips": int(played.carry[0].sum()),
        "decisions": decisions,
    }


HOW_TO = """\
# {task}: a refined policy

`policy.jaxexport` is the whole policy, base and residual. With `init_carry.jaxexport` it needs only
JAX. JAX {version} wrote it; newer versions read it for at least six months.

```python
import jax
import numpy as np
from jax import export

num_envs = 1  # any number of robots; all arrays begin with it
rng = np.random.default_rng()


def read(name):
    with open(name, "rb") as file:
        return jax.jit(export.deserialize(bytearray(file.read())).call)


def draw():  # the policy's noise, fresh in each decision
    return rng.integers(0, 2**32, (num_envs, 2), np.uint32)


act, start = read("policy.jaxexport"), read("init_carry.jaxexport")
carry = start(draw())  # at an episode's start
obs_history = np.zeros((num_envs, {obs_horizon}, {obs_dim}), np.float32)  # oldest first
chunk, carry = act((), carry, obs_history, draw())  # (num_envs, {act_horizon}, {act_dim})
trips = carry[0]  # (num_envs,) decisions of the episode with the residual switched off
```

A chunk has {act_horizon} control step(s), with actions in [-1, 1]. Observe after each step; at an
episode's start the first observation fills the history. `pdjax envs {task}` explains each number.

The residual is switched off in a decision if more than {drift_limit:.2%} of the newest
observation's numbers are more than 10 standard deviations from the mean of the base policy's data,
or if one is not finite. A number that is not finite is replaced by its latest finite value.
"""
"""README.md of an exported policy; a test runs its code."""
