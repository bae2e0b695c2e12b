"""A base policy's directory while it is trained, so that training can be resumed.

Separate from the training, because only this file touches the directory. Until the policy is
finished, its directory holds `training/`: what is trained (`config.json`) and the states at the
latest evaluations (`checkpoints/`). `policy.json` is written last, so a directory that has it is
complete.
"""

import contextlib
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
from pdjax.config.options import ConfigError
from pdjax.output import checkpoint
from pdjax.output.checkpoint import Checkpoints
from pdjax.output.run_directory import read_result
from pdjax.types import BasePolicy, Params
from pdjax_envs import reading, writing
from pdjax_envs.reading import InputError


class Kept(NamedTuple):
    """What a resumed training needs to equal one that never stopped.

    Attributes:
      state: training state.
      best: parameters of the best policy so far.
      success: () float32, its success_once; -1 before the first evaluation.
    """

    state: imitation.ImitationState
    best: Params
    success: Any


def describe(config: ImitationConfig, task: str, episodes: imitation.Episodes) -> dict[str, Any]:
    """Describes a training: everything that must be the same when it is resumed."""
    digest = hashlib.sha256()
    for obs, actions in episodes:
        digest.update(np.ascontiguousarray(obs).tobytes())
        digest.update(np.ascontiguousarray(actions).tobytes())
    described = {"task": task, "demonstrations": digest.hexdigest(), **dataclasses.asdict(config)}
    return json.loads(json.dumps(described))  # as `_holds` reads it back


def start(directory: Path, description: Mapping[str, Any]) -> None:
    """Writes what is trained, as `describe` returns it."""
    folder = directory / "training"
    folder.mkdir(exist_ok=True)
    writing.write_json(folder / "config.json", dict(description))


def checkpoints(directory: Path) -> Checkpoints:
    """Returns the checkpoints of a training: two, so that one may be damaged."""
    return Checkpoints(directory / "training" / "checkpoints", keep=2)


def is_begun(directory: Path, description: Mapping[str, Any]) -> bool:
    """Whether a directory holds this training, not yet finished.

    Raises:
      ConfigError: the directory holds a training with other settings.
    """
    return _holds(directory, directory / "training" / "config.json", description)


def is_finished(directory: Path, config: ImitationConfig, task: str) -> bool:
    """Whether a directory holds the result of this training; demonstrations are not compared.

    Raises:
      ConfigError: the directory holds the result of a training with other settings.
    """
    try:
        if not read_result(directory):
            return False
    except InputError as error:
        if (directory / "training").is_dir():  # its training can go on, and evaluates it again
            return False
        raise ConfigError(f"{error}; remove that file, or choose another --out") from None
    wanted = json.loads(json.dumps(imitation.describe(config, task)))  # as it is read back
    return _holds(directory, directory / "policy.json", wanted)


def _holds(directory: Path, path: Path, description: Mapping[str, Any]) -> bool:
    try:
        started = reading.read_json_object(path, "training")
    except InputError:
        return False
    difference = _difference(started, description)
    if difference:
        raise ConfigError(
            f"cannot resume {directory}: {difference}; give the settings that it was begun with"
        )
    return True


def _difference(started: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> str:
    """Describes the first value that differs; \"\" if none does."""
    for name, value in wanted.items():
        before = started.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            inner = _difference(before, value, f"{prefix}{name}.")
            if inner:
                return inner
        elif before != value:
            if name == "demonstrations":
                return "the demonstrations are not the same"
            return f"{prefix}{name} was {before!r} and is {value!r}"
    return ""


def finish(
    directory: Path, best: BasePolicy, last: BasePolicy | None, config: ImitationConfig, task: str
) -> None:
    """Writes the finished policy and removes `training/`, but no checkpoint that was set aside.

    Args:
      directory: of the policy.
      best: the policy.
      last: policy with the last parameters, if they may differ from the best ones.
      config: policy and training.
      task: name of its task.
    """
    for name in ("params", "last"):  # left by a process that was killed right here
        shutil.rmtree(directory / name, ignore_errors=True)
    if last is not None:
        checkpoint.save(directory / "last", last.params)
    imitation.save(directory, best, config, task)
    training = directory / "training"
    checkpoint.remove(training / "checkpoints")
    (training / "config.json").unlink(missing_ok=True)
    for folder in (training / "checkpoints", training):
        with contextlib.suppress(OSError):  # something was set aside there, or was never made
            folder.rmdir()
