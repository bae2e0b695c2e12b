"""This file is not pure: it makes a base policy of a PyTorch checkpoint and tries it.

`base_policies.torch_checkpoints` reads what a checkpoint holds; the directory that is written holds
a policy of pdjax's own kind, so that nothing of torch is needed to refine it.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from pdjax.base_policies import imitation
from pdjax.base_policies.torch_checkpoints import lerobot, policy_decorator
from pdjax.base_policies.torch_checkpoints.adaptation import Adaptation, adapt
from pdjax.base_policies.torch_checkpoints.imported import Imported
from pdjax.config.schema import ConfigError
from pdjax.output import tables, terminal
from pdjax.output.paths import check_directory, new_directory
from pdjax.prepare.wrap import Play, try_aloud
from pdjax.rollout import intervals
from pdjax.types import BasePolicy
from pdjax_envs import registry
from pdjax_envs.demonstrations import store
from pdjax_envs.task import Task


def import_checkpoint(
    checkpoint: Path,
    task: str,
    out: Path,
    play: Play,
    demos: Path | None = None,
    ddim_steps: int = 0,
) -> dict[str, Any]:
    """Reads a checkpoint, tries it and writes the directory that `base_policy.path` takes.

    Args:
      checkpoint: a .pt file of policy_decorator, or a folder of LeRobot.
      task: its name.
      out: directory to write, new or empty.
      play: how it is tried.
      demos: whose observations the learner's statistics are taken of; None = the checkpoint's
        where it has them, else the trial's.
      ddim_steps: of a diffusion policy; 0 = see the importers.

    Raises:
      ConfigError: the checkpoint cannot be used, or the directory cannot be written.
      demonstrations.DataError: the demonstrations cannot be used.
      registry.UnknownName: no such task.
    """
    check_directory(out)
    env = registry.make(task, play.physics, terminate_on_success=False)
    found = read(checkpoint, env.task, ddim_steps)
    known, where = found.statistics, "the checkpoint"
    if demos is not None:
        episodes = [(t.obs, t.actions) for t in store.read(demos, env.task)]
        known, where = imitation.statistics(episodes), str(demos)
    policy = make_policy(found, env.task)
    adapted = adapt(policy, _adaptation(found, policy))
    obs, _, successes = try_aloud(env, adapted, play, (str(checkpoint), "is it its task?"))
    if known is None:
        known, where = (obs.mean(axis=0), obs.std(axis=0)), f"the trial's {play.episodes} episodes"
    new_directory(out)
    adaptation = _adaptation(found, policy, known)
    imitation.save_imported(out, policy, found.shape, task, adaptation)
    return _report(out, found, policy, where, (successes, play.episodes))


def read(checkpoint: Path, task: Task, ddim_steps: int = 0) -> Imported:
    """Reads a checkpoint and compares its sizes with the task's.

    Raises:
      ConfigError: it cannot be read, or acts elsewhere.
    """
    importer = lerobot if checkpoint.is_dir() else policy_decorator
    found = importer.read(checkpoint, ddim_steps)
    if ddim_steps and found.kind != "diffusion":
        raise ConfigError(
            f"--ddim-steps got {ddim_steps}, but {checkpoint} is {found.kind}, which"
            " denoises nothing; leave it out"
        )
    sizes = {
        "observation": (len(found.params["obs_mean"]), task.obs_dim),
        "action": (found.act_dim, task.act_dim),
    }
    for name, (got, expected) in sizes.items():
        if got != expected:
            raise ConfigError(
                f"{checkpoint}: its {name} has {got} numbers, expected {expected} of {task.name};"
                " give the --task that it was trained on"
            )
    return found


def make_policy(found: Imported, task: Task) -> BasePolicy:
    """The policy as its kind makes it, not yet adapted."""
    kind = imitation.MAKERS[found.kind](found.shape, task.obs_dim, task.act_dim)
    return kind.make_policy(found.params)


def _adaptation(found: Imported, policy: BasePolicy, statistics=None) -> Adaptation:
    mean, std = statistics or (np.zeros(policy.obs_dim), np.ones(policy.obs_dim))
    std = np.maximum(std, imitation.STD_FLOOR)
    return Adaptation(
        tuple(mean.tolist()), tuple(std.tolist()), found.action_scale, found.action_offset
    )


def _report(
    out: Path, found: Imported, policy: BasePolicy, where: str, tried: tuple[int, int]
) -> dict[str, Any]:
    """Says and returns what was made."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(policy.params)) - 2 * policy.obs_dim
    pred_horizon = getattr(found.shape, "pred_horizon", policy.act_horizon)
    steps = getattr(found.shape, "ddim_steps", 0)
    terminal.say(
        f"{out}: {found.kind} policy of {found.origin}, {parameters:,} parameters,"
        f" obs_horizon {policy.obs_horizon}, act_horizon {policy.act_horizon}, pred_horizon"
        f" {pred_horizon}" + (f", {steps} DDIM steps" if steps else "")
    )
    terminal.say(f"observation statistics for the learner come from {where}")
    success = intervals.base_summary(*tried)
    tables.show_base(success)
    return {
        "policy": str(out),
        "kind": found.kind,
        "origin": found.origin,
        "parameters": parameters,
        "obs_horizon": policy.obs_horizon,
        "act_horizon": policy.act_horizon,
        "pred_horizon": pred_horizon,
        "statistics": where,
        **success,
    }
