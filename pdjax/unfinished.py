"""A base policy's training on disk while it runs: so that it can be resumed, and is finished whole.

Kept apart from the training because only this touches the directory. Until the policy is finished
its directory holds `training/`: what is trained (`config.json`) and the state at the latest
evaluation (`step_N/`, each written whole before the one before it goes). `policy.json` comes last.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdjax import checkpoint
from pdjax.base_policies import imitation
from pdjax.base_policies.settings import ImitationConfig
from pdjax.schema import ConfigError
from pdjax.types import BasePolicy, Params


class Kept(NamedTuple):
    """What a resumed training needs to equal one that never stopped.

    Attributes:
      state: of the training.
      best: parameters of the best policy so far.
      success: () float32, its success_once; -1 before any.
      step: () int32, gradient steps done.
    """

    state: imitation.ImitationState
    best: Params
    success: Any
    step: Any


def describe(config: ImitationConfig, task: str, episodes: imitation.Episodes) -> dict[str, Any]:
    """What must be the same when a training is resumed."""
    digest = hashlib.sha256()
    for obs, actions in episodes:
        digest.update(np.ascontiguousarray(obs).tobytes())
        digest.update(np.ascontiguousarray(actions).tobytes())
    described = {"task": task, "demonstrations": digest.hexdigest(), **dataclasses.asdict(config)}
    return json.loads(json.dumps(described))  # as it will be read back


def start(directory: Path, description: Mapping[str, Any]) -> None:
    """Notes what is trained."""
    folder = directory / "training"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(description, indent=2) + "\n")


def check(directory: Path, description: Mapping[str, Any]) -> None:
    """Checks that a directory holds a training that can be resumed with these settings.

    Raises:
      ConfigError: it does not.
    """
    path = directory / "training" / "config.json"
    if (directory / "policy.json").is_file():
        raise ConfigError(f"{directory} is finished already; train into another --out")
    try:
        started = json.loads(path.read_text())
    except (OSError, ValueError):
        started = None
    if not isinstance(started, dict) or _latest(directory) is None:
        raise ConfigError(
            f"nothing to resume in {directory}: expected training/ as `pdjax imitate` with"
            " --eval-every writes it at its first evaluation; start without --resume"
        )
    difference = _difference(started, description)
    if difference:
        raise ConfigError(f"cannot resume {directory}: {difference}; give what it was begun with")


def _difference(started: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> str:
    """The first value that differs, in words; \"\" where none does."""
    for name, value in wanted.items():
        before = started.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            inner = _difference(before, value, f"{prefix}{name}.")
            if inner:
                return inner
        elif before != value:
            if name == "demonstrations":
                return "the demonstrations are others"
            return f"{prefix}{name} was {before!r} and is {value!r}"
    return ""


def save(directory: Path, kept: Kept) -> None:
    """Writes the state, then removes earlier ones."""
    folder = directory / "training"
    new = folder / f"step_{int(kept.step)}"
    checkpoint.save(new, kept)
    for old in folder.glob("step_*"):
        if old != new:
            shutil.rmtree(old)


def restore(directory: Path, like: Kept) -> Kept:
    """Reads the latest state.

    Raises:
      checkpoint.CheckpointError: it is damaged or of another shape.
    """
    latest = _latest(directory)
    assert latest is not None, "see check"
    return checkpoint.restore(latest, like)


def _latest(directory: Path) -> Path | None:
    """Orbax gives unfinished writes other names, so that what is called step_N is whole."""
    steps = [path for path in (directory / "training").glob("step_*") if path.name[5:].isdigit()]
    return max(steps, key=lambda path: int(path.name[5:]), default=None)


def finish(directory: Path, best: BasePolicy, last: BasePolicy | None, config: ImitationConfig,
           task: str) -> None:  # fmt: skip
    """Writes the policy, and the last parameters where they may be others; removes `training/`."""
    for name in ("params", "last"):  # left by a process that ended right here
        shutil.rmtree(directory / name, ignore_errors=True)
    if last is not None:
        checkpoint.save(directory / "last", last.params)
    imitation.save(directory, best, config, task)
    shutil.rmtree(directory / "training", ignore_errors=True)
