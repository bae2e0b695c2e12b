"""Writes the refined policy of a finished run, or a base policy, as files that need no pdjax.

Separate from `deployed`, which builds that policy as pure functions.
"""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pdjax.base_policies import load
from pdjax.base_policies.foreign import exported
from pdjax.config.schema import BasePolicyConfig, Config, ConfigError
from pdjax.learner.decorator import far_numbers
from pdjax.output.paths import check_directory
from pdjax.rollout import intervals
from pdjax.rollout.playing import make_play, make_playing
from pdjax.runs.deployed import make_deployed
from pdjax.runs.load import Refined, load_refined
from pdjax.types import BasePolicy
from pdjax_envs import registry
from pdjax_envs.task import Task


def export_run(
    directory: Path,
    out: Path,
    episodes: int,
    seed: int,
    physics: str = "",
    base: BasePolicy | None = None,
) -> dict[str, Any]:
    """Writes a policy as a directory that needs no pdjax, and tries what it wrote.

    The fail-safe's limit is the largest share of far numbers in any observation of the base policy
    that plays alone, plus `guard.drift`.

    Args:
      directory: a run's directory, for its refined policy; or a base policy's, for that alone, as
        if refined by a residual policy that does nothing.
      out: directory to write, new or empty; it may serve as a base policy's directory.
      episodes: number of episodes. The base policy plays them to set the limit; the refined policy
        and the policy that was written play the same ones.
      seed: seed of the episodes.
      physics: physics engine; "" = as in the run's config, or `auto` for a base policy.
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
    if load.is_policy(directory):
        refined = _load_alone(directory, physics)
    else:
        refined = load_refined(directory, physics, base=base)
    playing, env, base = refined.playing, refined.playing.env, refined.playing.base
    if load.through_host(base):
        raise ConfigError(
            f"{directory} has a policy that is called through the host (NumPy, torch), which an"
            " exported program cannot contain; use a JAX policy, see docs/base_policies.md"
        )
    play = make_play(playing)
    seen = play(seed, episodes, record=True).obs
    covered = float(far_numbers(jnp.asarray(seen), base.obs_mean, base.obs_std).mean(axis=-1).max())
    limit = covered + refined.config.guard.drift

    def choose(obs, base_action):
        if refined.actor is None:
            return jnp.zeros_like(base_action)
        view = playing.rollout.see(playing.frozen, obs)
        return playing.sac.act_deterministic(refined.actor, view, base_action)

    deployed = make_deployed(base, choose, refined.residual_scale, limit)
    text = _how_to(deployed, env.task, limit)
    exported.export_policy(deployed, out, env.task.name, texts={"README.md": text})
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


def _load_alone(directory: Path, physics: str) -> Refined:
    """Loads a base policy's directory as a run without a residual policy."""
    env = registry.make(load.task_of(directory), physics or "auto", terminate_on_success=False)
    base = load.load_base(BasePolicyConfig(str(directory)), env.task)
    return Refined(Config(), make_playing(env, base), None, 0.0)


def _how_to(policy: BasePolicy, task: Task, limit: float) -> str:
    sizes = ("obs_horizon", "obs_dim", "act_horizon", "act_dim")
    is_known = not math.isnan(task.control_hz)
    return HOW_TO.format(
        task=task.name,
        version=jax.__version__,
        needs=" ".join(NEEDS),
        drift_limit=limit,
        rate=f"{task.control_hz:g} Hz" if is_known else "the simulator's rate",
        episode_steps=task.episode_steps,
        duration=f" ({task.episode_steps / task.control_hz:g} s)" if is_known else "",
        **{name: getattr(policy, name) for name in sizes},
    )


NEEDS = ("jax", "flatbuffers")
"""What to install, by pip, to read an exported policy."""

HOW_TO = """\
# {task}: a policy to deploy

`policy.jaxexport` is the whole policy, `init_carry.jaxexport` its memory at the start. They need
`pip install {needs}`, and no pdjax. JAX {version} wrote them; newer versions read them for at
least six months.

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


def reset(carry, is_new):  # is_new: (num_envs,) bool, the robots that start another episode
    choose = lambda new, old: np.where(np.reshape(is_new, (-1,) + (1,) * (old.ndim - 1)), new, old)
    return jax.tree.map(choose, start(draw()), carry)


act, start = read("policy.jaxexport"), read("init_carry.jaxexport")
carry = start(draw())  # the policy's memory, at the start of an episode
obs_history = np.zeros((num_envs, {obs_horizon}, {obs_dim}), np.float32)  # oldest first
chunk, carry = act((), carry, obs_history, draw())  # (num_envs, {act_horizon}, {act_dim})
trips = carry[0]  # (num_envs,) decisions of the episode in which the fail-safe tripped
carry = reset(carry, np.arange(num_envs) == 0)  # robot 0 starts anew; the others go on
```

A chunk has {act_horizon} control step(s), with actions in [-1, 1], to be executed at
{rate}. Observe after each step. When an episode starts, `reset` the robot's memory and
fill its history with the first observation. The policy was made for episodes of {episode_steps}
control steps{duration}. `pdjax envs {task}` explains each number.

The fail-safe trips in a decision if more than {drift_limit:.2%} of the newest observation's
numbers are more than 10 standard deviations from the mean of the base policy's data, or if one is
not finite. The base policy then acts without its residual, if it has one. A number that is not
finite is replaced by its latest finite value.
"""
"""README.md of an exported policy; a test runs its code."""
