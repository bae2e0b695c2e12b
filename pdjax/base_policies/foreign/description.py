"""Reads and writes `policy.json`, the description of a policy that pdjax did not train.

Kept apart because exporting, wrapping and loading share it. This file is not pure: it reads and
writes files.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pdjax.config import options
from pdjax.config.options import ConfigError, Count, Range
from pdjax.output import digests
from pdjax_envs import reading, writing

FILE = "policy.json"
KINDS = ("export", "torchscript", "python")
Device = Literal["cpu", "cuda"]


@dataclasses.dataclass(frozen=True)
class Description:
    """Describes a policy that pdjax did not train: its kind, task and sizes."""

    kind: Literal["export", "torchscript", "python"]
    """What the directory contains: a jax.export artefact, a TorchScript file or Python code."""
    task: str
    """Name of the policy's task."""
    obs_dim: Count
    """Numbers in one observation."""
    act_dim: Count
    """Numbers in one action."""
    obs_horizon: Count
    """Observations that the policy reads."""
    act_horizon: Count
    """Control steps in one chunk of actions."""
    obs_mean: tuple[float, ...]
    """Mean of each observed number, for the residual policy; the base policy reads raw numbers."""
    obs_std: Annotated[tuple[float, ...], Range(0, above=True)]
    """Standard deviation of each observed number."""
    entry: str = ""
    """Where Python code is: FILE.py:NAME for a file in the directory, or MODULE:NAME."""
    action_low: tuple[float, ...] = (-1.0,)
    """Lower end of the actions, mapped to -1: one number for the whole action, or one for each of
    its numbers."""
    action_high: tuple[float, ...] = (1.0,)
    """Upper end of the actions, mapped to 1."""
    device: Device = "cpu"
    """Device on which a torch policy computes."""

    def validate(self) -> None:
        """Raises ConfigError if a value is out of range or has the wrong size."""
        options.check(self)
        sizes = {"obs_mean": (self.obs_dim,), "obs_std": (self.obs_dim,)}
        sizes |= {"action_low": (1, self.act_dim), "action_high": (1, self.act_dim)}
        options.check_lengths(self, sizes)
        lows, highs = _paired(self.action_low, self.action_high)
        if not all(low < high for low, high in zip(lows, highs, strict=True)):
            raise ConfigError(
                f"action_low={list(self.action_low)} must lie below"
                f" action_high={list(self.action_high)}"
            )


def _paired(low: tuple[float, ...], high: tuple[float, ...]):
    count = max(len(low), len(high))
    return [side * (count if len(side) == 1 else 1) for side in (low, high)]


def peek(directory: Path) -> dict[str, Any]:
    """Returns the content of `policy.json`, or an empty dict if the file cannot be read."""
    try:
        return reading.read_json_object(directory / FILE, "description of a policy")
    except reading.InputError:
        return {}


def read(directory: Path) -> Description:
    """Reads the description in a directory.

    Raises:
      ConfigError: the file lacks a field or holds an invalid value.
      reading.InputError: the file is missing or damaged.
    """
    path = directory / FILE
    values = reading.read_json_object(path, "description of a policy")
    required = [
        field.name
        for field in dataclasses.fields(Description)
        if field.default is dataclasses.MISSING
    ]
    if lacking := [name for name in required if name not in values]:
        raise ConfigError(
            f"{path} lacks {', '.join(lacking)}; write the directory with `pdjax wrap`"
        )
    try:
        description = options.build(Description, values)
        description.validate()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return description


def write(directory: Path, description: Description) -> None:
    """Writes a description for `read`, and digests of the files of a program for `check_files`.

    Call it last: every other file must be there.
    """
    description.validate()
    if description.kind != "python":
        digests.write(directory, directory / digests.FILE, leave_out=(FILE,))
    writing.write_json(directory / FILE, dataclasses.asdict(description))


def check_files(directory: Path) -> None:
    """Checks that a program's files are as they were written; a damaged one could crash JAX.

    Directories without digests, from before there were any, are taken as they are.

    Raises:
      ConfigError: a file is missing or has changed.
    """
    try:
        digests.check(directory, directory / digests.FILE)
    except reading.InputError as error:
        raise ConfigError(
            f"the policy in {reading.short(str(directory))} is damaged: {error}; write it again"
            " with `pdjax wrap` or `pdjax export`"
        ) from None
