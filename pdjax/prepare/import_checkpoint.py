"""Turns a PyTorch checkpoint into a base policy's directory and tries the policy.

`base_policies.torch_checkpoints` reads the checkpoint. The written directory holds a policy of one
of pdjax's own kinds, so refining it does not need torch. This file is not pure: it reads and writes
files, and prints.
"""

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pdjax.base_policies import imitation
from pdjax.base_policies.torch_checkpoints import lerobot, policy_decorator
from pdjax.base_policies.torch_checkpoints.adaptation import Adaptation, adapt
from pdjax.base_policies.torch_checkpoints.imported import Imported
from pdjax.config.options import ConfigError
from pdjax.output import tables, terminal
from pdjax.output.paths import check_directory, new_directory
from pdjax.prepare.wrap import Play, try_aloud
from pdjax.rollout import intervals
from pdjax.rollout.evaluate import Evaluation
from pdjax.types import BasePolicy
from pdjax_envs import registry
from pdjax_envs.demonstrations import store
from pdjax_envs.reading import is_file, short
from pdjax_envs.task import Task


def import_checkpoint(
    checkpoint: Path,
    task: str,
    out: Path,
    play: Play,
    demos: Path | None = None,
    ddim_steps: int = 0,
) -> dict[str, Any]:
    """Reads a checkpoint, tries the policy and writes it to a directory for `base_policy.path`.

    Args:
      checkpoint: a .pt file of policy_decorator, or a LeRobot folder, see `find`.
      task: name of the policy's task.
      out: the directory to write, new or empty.
      play: how the policy is tried.
      demos: demonstrations whose observations give the statistics for the residual policy; None =
        the checkpoint's statistics if it has them, else those of the trial.
      ddim_steps: denoising steps of a diffusion policy; 0 = the importer's choice.

    Returns:
      The findings, as `--json` prints them.

    Raises:
      ConfigError: the checkpoint cannot be used, or the directory cannot be written.
      demonstrations.DataError: the demonstrations cannot be used.
      registry.UnknownName: there is no such task.
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
    obs, _, seen = try_aloud(
        env,
        adapted,
        play,
        (str(checkpoint), "check that --task is the task that it was trained on"),
    )
    if known is None:
        known, where = (obs.mean(axis=0), obs.std(axis=0)), f"the trial's {play.episodes} episodes"
    new_directory(out)
    adaptation = _adaptation(found, policy, known)
    imitation.save_imported(out, policy, found.shape, task, adaptation)
    return _report(out, found, policy, where, seen)


def find(path: Path) -> Path:
    """Returns the .pt file, or the folder of LeRobot's policy, that a path means.

    LeRobot writes RUN/checkpoints/STEPS/pretrained_model with the policy's files, and
    RUN/checkpoints/last; any of these will do, or one of the files.
    """
    if path.name in ("model.safetensors", "config.json"):
        return path.parent
    for inner in (
        "",
        "pretrained_model",
        "last/pretrained_model",
        "checkpoints/last/pretrained_model",
    ):
        if is_file(path / inner / "config.json"):
            return path / inner
    return path


def read(checkpoint: Path, task: Task, ddim_steps: int = 0) -> Imported:
    """Reads a checkpoint and checks that its sizes are those of the task.

    Raises:
      ConfigError: the checkpoint cannot be read, or has other sizes than the task.
      demonstrations.DataError: its settings name another task or another control mode.
    """
    checkpoint = find(checkpoint)
    importer = lerobot if os.path.isdir(checkpoint) else policy_decorator
    found = importer.read(checkpoint, ddim_steps)
    if ddim_steps and found.kind != "diffusion":
        raise ConfigError(
            f"--ddim-steps got {ddim_steps}, but {checkpoint} holds a policy of kind {found.kind},"
            " which has no denoising steps; leave --ddim-steps out"
        )
    holder = f"{short(str(checkpoint))} holds a policy"
    store.check_origin(holder, found.tasks, found.control_modes, task)
    sizes = {
        "observation": (len(found.params["obs_mean"]), task.obs_dim),
        "action": (found.act_dim, task.act_dim),
    }
    for name, (got, expected) in sizes.items():
        if got != expected:
            raise ConfigError(
                f"{checkpoint}: its {name} has {got} numbers, expected {expected} for {task.name};"
                " give the --task that it was trained on"
            )
    return found


def make_policy(found: Imported, task: Task) -> BasePolicy:
    """Builds the policy, before its actions and statistics are adapted."""
    kind = imitation.MAKERS[found.kind](found.shape, task.obs_dim, task.act_dim)
    return kind.make_policy(found.params)


def _adaptation(found: Imported, policy: BasePolicy, statistics=None) -> Adaptation:
    mean, std = statistics or (np.zeros(policy.obs_dim), np.ones(policy.obs_dim))
    std = np.maximum(std, imitation.STD_FLOOR)
    return Adaptation(
        tuple(mean.tolist()), tuple(std.tolist()), found.action_scale, found.action_offset
    )


def _report(
    out: Path, found: Imported, policy: BasePolicy, where: str, seen: Evaluation
) -> dict[str, Any]:
    """Prints and returns the findings."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(policy.params)) - 2 * policy.obs_dim
    pred_horizon = getattr(found.shape, "pred_horizon", policy.act_horizon)
    steps = getattr(found.shape, "ddim_steps", 0)
    terminal.say(
        f"{out}: {found.kind} policy of {found.origin}, {parameters:,} parameters,"
        f" obs_horizon {policy.obs_horizon}, act_horizon {policy.act_horizon}, pred_horizon"
        f" {pred_horizon}" + (f", {steps} DDIM steps" if steps else "")
    )
    terminal.say(f"observation statistics for the residual policy come from {where}")
    success = intervals.base_summary(seen)
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
