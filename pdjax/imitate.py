"""This file is not pure: it records demonstrations and trains base policies from them.

The first half of the program's job; the second, refining a base policy, is `runner`.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdjax import evaluation, report
from pdjax.base_policies import imitation
from pdjax.decision import Frozen
from pdjax.outputs import check_directory, check_file, new_directory
from pdjax.rollout import make_rollout
from pdjax.schema import ConfigError
from pdjax.types import BasePolicy
from pdjax_envs import demonstrations, registry
from pdjax_envs.adroit import dapg
from pdjax_envs.task import Env, Expert, Task


def record_demonstrations(
    task: str,
    out: Path,
    episodes: int,
    seed: int,
    noise: float,
    physics: str = "auto",
    expert: str | None = None,
) -> dict[str, Any]:
    """Records an expert into an HDF5 file; returns what was written.

    Args:
      task: its name.
      out: file to write.
      episodes: successful episodes to record.
      seed: of the first episode.
      noise: see `demonstrations.record`.
      physics: engine.
      expert: the task's own, or `dapg:FILE` or `dapg-noisy:FILE`, see `adroit.dapg`.

    Raises:
      ConfigError: the file or its sidecar exists, or cannot be written; no such expert.
      demonstrations.DataError: the task has no expert, or the file holds none for it.
      registry.UnknownName: no such task.
    """
    check_file(out, (".h5", ".hdf5"))
    check_file(out.with_suffix(".json"), (".json",))
    env = registry.make(task, physics)
    chosen = None if expert is None else _load_expert(expert, env.task)
    with report.progress("recording", episodes, "episodes") as bar:
        found, rate = demonstrations.record(env, episodes, seed, noise, bar.update, chosen)
    out.parent.mkdir(parents=True, exist_ok=True)
    demonstrations.write(out, env.task, found)
    lengths = [len(trajectory.actions) for trajectory in found]
    report.say(
        f"{out}: {episodes} episodes of {task}, {np.mean(lengths):.0f} control steps each;"
        f" the expert succeeded in {rate:.1%} of its attempts"
    )
    return {"task": task, "file": str(out), "episodes": episodes, "expert_success": rate,
            "mean_steps": np.mean(lengths), "seed": seed, "noise": noise,
            "expert": expert or "scripted"}  # fmt: skip


def _load_expert(text: str, task: Task) -> Expert:
    kind, _, file = text.partition(":")
    if kind not in ("dapg", "dapg-noisy") or not file:
        raise ConfigError(f"--expert got {text!r}, expected dapg:FILE or dapg-noisy:FILE")
    return dapg.make_expert(Path(file), task, noisy=kind == "dapg-noisy")


def train_base_policy(demos: Path, task: str, out: Path, config: imitation.ImitationConfig,
                      eval_episodes: int, physics: str = "auto") -> dict[str, Any]:  # fmt: skip
    """Trains a base policy on a demonstration file and writes its directory.

    Raises:
      ConfigError: the directory is not empty or cannot be written, or a number is out of range.
      demonstrations.DataError: the demonstrations cannot be used.
      registry.UnknownName: no such task.
    """
    config.validate()
    check_directory(out)
    env = registry.make(task, physics)
    found = demonstrations.read(demos, env.task)
    new_directory(out)
    with report.progress("imitating", config.steps, "steps") as bar:

        def show(step, losses):
            bar.update(step, f"loss {losses['train_loss']:.4f},"
                             f" validation {losses['validation_loss']:.4f}")  # fmt: skip

        policy = imitation.train([(t.obs, t.actions) for t in found], config, show)
    imitation.save(out, policy, config, task)
    summary: dict[str, Any] = {"task": task, "policy": str(out), "episodes": len(found),
                               "steps": config.steps, "seed": config.seed}  # fmt: skip
    if eval_episodes:
        success = base_success(env, policy, eval_episodes)
        low, high = evaluation.wilson(success.sum(), eval_episodes)
        report.say(f"{out}: success_once {success.mean():.1%} [{low:.1%}, {high:.1%}] over"
                   f" {eval_episodes} episodes")  # fmt: skip
        summary |= {"base_success": success.mean(), "base_ci": [low, high],
                    "eval_episodes": eval_episodes}  # fmt: skip
    return summary


def base_success(env: Env, policy: BasePolicy, episodes: int, seed: int = 30_000) -> np.ndarray:
    """(episodes,) bool, success_once of a base policy alone."""
    rollout = make_rollout(env, policy)
    frozen = Frozen(env.model, policy.params, policy.obs_mean, policy.obs_std)

    def play(frozen, key):
        nothing = lambda obs, base_action: jnp.zeros_like(base_action)  # noqa: E731
        return rollout.evaluate(frozen, nothing, 0.0, key, episodes).success_once

    return jax.device_get(jax.jit(play)(frozen, jax.random.key(seed)))
