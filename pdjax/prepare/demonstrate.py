"""Records demonstrations of a scripted expert or a published policy.

This file is not pure: it writes files and shows progress.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pdjax.config.options import ConfigError
from pdjax.output import terminal
from pdjax.output.paths import check_file
from pdjax_envs import registry, task_files
from pdjax_envs.adroit import dapg
from pdjax_envs.demonstrations import record, store, through_workers
from pdjax_envs.reading import check_fits, is_file, short
from pdjax_envs.task import Expert, Task


def record_demonstrations(
    task: str,
    out: Path,
    episodes: int,
    seed: int,
    noise: float,
    physics: str = "auto",
    expert: str | None = None,
) -> dict[str, Any]:
    """Records an expert's successful episodes to an HDF5 file.

    Args:
      task: name of the task.
      out: the file to write; a sidecar with the ending .json goes beside it.
      episodes: number of successful episodes to record.
      seed: seed of the first episode.
      noise: size of the disturbances, see `record.record`.
      physics: physics engine.
      expert: `dapg:FILE` or `dapg-noisy:FILE`, see `adroit.dapg`; FILE.py:FUNCTION, or a task
        whose expert knows these observations, for an environment in worker processes; None = the
        task's own expert.

    Returns:
      A summary of the recording, as `--json` prints it.

    Raises:
      ConfigError: the file or its sidecar exists or cannot be written, or `expert` is invalid.
      demonstrations.DataError: the task has no expert, or FILE holds none for it.
      registry.UnknownName: there is no such task.
    """
    check_file(out, (".h5", ".hdf5"))
    check_file(out.with_suffix(".json"), (".json",))
    env = registry.make(task, physics)
    # All are kept until they are written, with one control step each at least.
    size = 4 * episodes * (env.task.obs_dim + 2 * env.task.act_dim)
    check_fits(size, f"{episodes:,} demonstrations of {task}", "record fewer")
    if env.open is not None:
        recorder = partial(through_workers.record, expert=_lead(expert, env.task))
    else:
        chosen = None if expert is None else _load_expert(expert, env.task)
        recorder = partial(record.record, expert=chosen)
    with terminal.progress("recording", episodes, "episodes") as bar:
        found, rate = recorder(env, episodes=episodes, seed=seed, noise=noise, progress=bar.update)
    out.parent.mkdir(parents=True, exist_ok=True)
    store.write(out, env.task, found)
    lengths = [len(trajectory.actions) for trajectory in found]
    terminal.say(
        f"{out}: {episodes} episodes of {task}, {np.mean(lengths):.0f} control steps on average;"
        f" the expert succeeded in {rate:.1%} of its attempts"
    )
    return {
        "task": task,
        "file": str(out),
        "episodes": episodes,
        "expert_success": rate,
        "mean_steps": np.mean(lengths),
        "seed": seed,
        "noise": noise,
        "expert": expert or "scripted",
    }


def _lead(text: str | None, task: Task) -> str | Expert:
    """Returns FILE.py:FUNCTION with the file's whole path, for the workers; or a task's expert."""
    source = task_files.split(text or "")
    if source is not None and is_file(source[0]):
        return f"{source[0].absolute()}:{source[1]}"
    other = registry.make_task(text) if text in registry.task_names() else None
    if other is not None and other.expert is not None:
        if (other.obs_dim, other.act_dim) == (task.obs_dim, task.act_dim):
            return other.expert()
        raise ConfigError(
            f"the expert of {text} reads {other.obs_dim} numbers and returns {other.act_dim}, but"
            f" {task.name} has {task.obs_dim} and {task.act_dim}"
        )
    raise ConfigError(
        f"--expert got {short(repr(text))}, expected FILE.py:FUNCTION for {task.name}: a function"
        " of (env, observation) that returns an action of the environment's own"
    )


def _load_expert(text: str, task: Task) -> Expert:
    kind, _, file = text.partition(":")
    if kind not in ("dapg", "dapg-noisy") or not file:
        raise ConfigError(
            f"--expert got {short(repr(text))}, expected dapg:FILE or dapg-noisy:FILE;"
            " FILE.py:FUNCTION leads in Gymnasium environments only"
        )
    return dapg.make_expert(Path(file), task, noisy=kind == "dapg-noisy")
