"""A base policy's training on disk while it runs: so that it can be resumed, and is finished whole.

Kept apart from the training because only this touches the directory. Until the policy is finished
its directory holds `training/`: what is trained (`config.json`) and the state at the latest
evaluation (`checkpoints/`). `policy.json` comes last.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdjax.base_policies import imitation
from pdjax.base_policies.settings import ImitationConfig
from pdjax.config.schema import ConfigError
from pdjax.output import checkpoint
from pdjax.output.checkpoint import Checkpoints
from pdjax.types import BasePolicy, Params


class Kept(NamedTuple):
    """What a resumed training needs to equal one that never stopped.

    Attributes:
      state: of the training.
      best: parameters of the best policy so far.
      success: () float32, its success_once; -1 before any.
    """

    state: imitation.ImitationState
    best: Params
    success: Any


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


def checkpoints(directory: Path) -> Checkpoints:
    """Where the state at the latest evaluation is kept."""
    return Checkpoints(directory / "training" / "checkpoints", keep=1)


def is_begun(directory: Path, description: Mapping[str, Any]) -> bool:
    """Whether a directory holds this training, not yet finished.

    Raises:
      ConfigError: it holds a training with other settings.
    """
    return _holds(directory, directory / "training" / "config.json", description)


def is_finished(directory: Path, config: ImitationConfig, task: str) -> bool:
    """Whether a directory holds the result of this training; demonstrations are not compared.

    Raises:
      ConfigError: it holds that of a training with other settings.
    """
    if not (directory / "result.json").is_file():
        return False
    wanted = json.loads(json.dumps(imitation.describe(config, task)))  # as it is read back
    return _holds(directory, directory / "policy.json", wanted)


def _holds(directory: Path, path: Path, description: Mapping[str, Any]) -> bool:
    try:
        started = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(started, dict):
        return False
    difference = _difference(started, description)
    if difference:
        raise ConfigError(f"cannot resume {directory}: {difference}; give what it was begun with")
    return True


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


def finish(
    directory: Path, best: BasePolicy, last: BasePolicy | None, config: ImitationConfig, task: str
) -> None:
    """Writes the policy, and the last parameters where they may be others; removes `training/`."""
    for name in ("params", "last"):  # left by a process that ended right here
        shutil.rmtree(directory / name, ignore_errors=True)
    if last is not None:
        checkpoint.save(directory / "last", last.params)
    imitation.save(directory, best, config, task)
    shutil.rmtree(directory / "training", ignore_errors=True)
