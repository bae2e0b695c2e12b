"""Checks the arguments of the Python library against the ranges that the commands' flags have.

Separate from `options`, which knows no particular option.
"""

import dataclasses
from typing import Annotated, Any

from pdjax.config import options
from pdjax.config.options import MOST_HORIZON, Count, Natural, NonNegative, Range, Seed, Share


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The numbers that several functions take, with their ranges."""

    episodes: Count = 1
    obs_horizon: Annotated[int, Range(0, MOST_HORIZON)] = 0
    eval_episodes: Natural = 0
    seed: Seed = 0
    threshold: Share = 0.0
    memory_gib: NonNegative = 0.0


def check(**values: Any) -> None:
    """Checks arguments, such as `episodes=100`.

    Raises:
      ConfigError: a value has the wrong type or is out of range.
    """
    known = {option.name: option for option in options.describe(Arguments)}
    for name, value in values.items():
        options.convert(known[name], value, name)
