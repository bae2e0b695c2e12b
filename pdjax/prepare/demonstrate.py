"""Records demonstrations of a scripted expert or a published policy."""

from pathlib import Path
from typing import Any

import numpy as np

from pdjax.config.schema import ConfigError
from pdjax.output import terminal
from pdjax.output.paths import check_file
from pdjax_envs import registry
from pdjax_envs.adroit import dapg
from pdjax_envs.demonstrations import record, store
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
    """Records an expert into an HDF5 file; returns what was written.

    Args:
      task: its name.
      out: file to write.
      episodes: successful episodes to record.
      seed: of the first episode.
      noise: see `record.record`.
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
    with terminal.progress("recording", episodes, "episodes") as bar:
        found, rate = record.record(env, episodes, seed, noise, bar.update, chosen)
    out.parent.mkdir(parents=True, exist_ok=True)
    store.write(out, env.task, found)
    lengths = [len(trajectory.actions) for trajectory in found]
    terminal.say(
        f"{out}: {episodes} episodes of {task}, {np.mean(lengths):.0f} control steps each;"
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


def _load_expert(text: str, task: Task) -> Expert:
    kind, _, file = text.partition(":")
    if kind not in ("dapg", "dapg-noisy") or not file:
        raise ConfigError(f"--expert got {text!r}, expected dapg:FILE or dapg-noisy:FILE")
    return dapg.make_expert(Path(file), task, noisy=kind == "dapg-noisy")
