"""What a foreign policy's directory says of it: `policy.json`, checked field by field.

Kept apart because three writers and readers share it: exporting, wrapping and loading.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pdjax.config import schema
from pdjax.config.schema import ConfigError, Count, Range

FILE = "policy.json"
KINDS = ("export", "torchscript", "python")
Device = Literal["cpu", "cuda"]


@dataclasses.dataclass(frozen=True)
class Description:
    """A policy that was not trained by pdjax: what it is and which numbers it takes and gives."""

    kind: Literal["export", "torchscript", "python"]
    """What the directory holds: a jax.export artefact, a TorchScript file or Python code."""
    task: str
    """Task that it acts in."""
    obs_dim: Count
    """Numbers in one observation."""
    act_dim: Count
    """Numbers in one action."""
    obs_horizon: Count
    """Observations that it reads."""
    act_horizon: Count
    """Control steps in one of its chunks."""
    obs_mean: tuple[float, ...]
    """Mean of each number observed; the learner's, the policy reads raw observations."""
    obs_std: Annotated[tuple[float, ...], Range(0, above=True)]
    """Their standard deviations."""
    entry: str = ""
    """Of Python code: FILE.py:NAME for a file in the directory, or MODULE:NAME."""
    action_low: tuple[float, ...] = (-1.0,)
    """The action that means -1, for all numbers of an action or for each."""
    action_high: tuple[float, ...] = (1.0,)
    """The action that means 1."""
    device: Device = "cpu"
    """Where a torch policy computes."""

    def validate(self) -> None:
        """Raises ConfigError at a value out of range or of the wrong size."""
        schema.check(self)
        sizes = {"obs_mean": (self.obs_dim,), "obs_std": (self.obs_dim,)}
        sizes |= {"action_low": (1, self.act_dim), "action_high": (1, self.act_dim)}
        schema.check_lengths(self, sizes)
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
    """The content of `policy.json`; empty where it cannot be read."""
    try:
        values = json.loads((directory / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def read(directory: Path) -> Description:
    """Reads a directory's description.

    Raises:
      ConfigError: it is missing, lacks a field, or a value cannot be.
    """
    values, path = peek(directory), directory / FILE
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
        description = schema.build(Description, values)
        description.validate()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return description


def write(directory: Path, description: Description) -> None:
    """Writes a description that `read` reads."""
    description.validate()
    text = json.dumps(dataclasses.asdict(description), indent=2)
    (directory / FILE).write_text(text + "\n")
