"""What a worker's environments are made of: the flat observation, the bounds of actions, versions.

Separate from `worker`, which only lists the spaces: what is refused, and in which words, is decided
here, once for all interpreters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pdjax_envs.reading import InputError, short

LARGEST_BOUND = 1e10  # of an action; libraries write "unbounded" as infinity or as 1e38
LARGEST_BYTES = 1024  # numbers of a uint8 observation; more are a picture


class Part(NamedTuple):
    """A Box within an observation.

    Attributes:
      name: its keys and indices joined by dots; `observation` if it is the whole observation.
      path: the keys and indices that lead to it.
      shape: its shape; it is flattened in C order.
      start, stop: where it lies in the flat observation.
    """

    name: str
    path: tuple[str | int, ...]
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Description:
    """What an environment is made of.

    Attributes:
      parts: of the flat observation, in order: dictionaries by sorted keys, tuples by index.
      low, high: (act_dim,) bounds of the environment's own actions, which [-1, 1] is scaled to.
      episode_steps: control steps after which an episode is truncated; 0 = no limit is known.
      control_hz: control steps a second, 0 = unknown; of `dt`, else metadata's `render_fps`.
      success: what says that the task is solved; for `auto` a key of info, "" = none was found.
      info: the keys of info after the first step.
      python: version of the interpreter.
      versions: of the libraries.
    """

    parts: tuple[Part, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    episode_steps: int
    control_hz: float
    success: str
    info: tuple[str, ...]
    python: str
    versions: dict[str, str]

    @property
    def obs_dim(self) -> int:
        """Numbers in a flat observation."""
        return self.parts[-1].stop

    @property
    def act_dim(self) -> int:
        """Numbers in an action."""
        return len(self.low)

    def names(self) -> list[str]:
        """Returns a name for each number of the flat observation, such as `desired_goal[1]`."""
        return [f"{p.name}[{i}]" for p in self.parts for i in range(p.stop - p.start)]


def read_description(made: dict[str, Any], rule: str) -> Description:
    """Checks what a worker says of its environments.

    Args:
      made: the answer to "make", see `worker`.
      rule: the success rule of the spec; `auto` is resolved by `with_info`.

    Raises:
      InputError: spaces of this kind are not supported; the message says what to do.
    """
    check_actions(made["actions"], made["low"], made["high"])
    parts = _parts(made["observations"])
    if not parts or not parts[-1].stop:
        raise InputError(f"its observation is empty, {short(made['observations']['text'])}")
    return Description(
        parts=tuple(parts),
        low=tuple(made["low"]),
        high=tuple(made["high"]),
        episode_steps=made["episode_steps"],
        control_hz=made["control_hz"],
        success=rule,
        info=(),
        python=made["python"],
        versions=made["versions"],
    )


def check_actions(space: dict[str, Any], low: Sequence[float], high: Sequence[float]) -> None:
    """Raises InputError unless actions are a bounded Box of real numbers."""
    text = short(space["text"])
    if space["kind"] != "Box" or not space["dtype"].startswith("float"):
        raise InputError(
            f"its actions are {text}, expected a Box of real numbers: a residual is a small change"
            " of a continuous action"
        )
    # the comparison is False for NaN too
    if not all(abs(bound) <= LARGEST_BOUND for bound in (*low, *high)):
        raise InputError(
            f"its actions are unbounded, {text}; give them bounds with"
            " gymnasium.wrappers.RescaleAction in a FILE.py:make_env"
        )
    if not low or any(a > b for a, b in zip(low, high, strict=True)):
        raise InputError(f"its actions have no range, {text}")


def _parts(space: dict[str, Any], path: tuple[Any, ...] = (), start: int = 0) -> list[Part]:
    """Lists the Boxes of an observation space from `start` on."""
    name, kind = ".".join(map(str, path)) or "observation", space["kind"]
    if kind in ("Dict", "Tuple"):
        items = space["items"]
        found: list[Part] = []
        for key, item in sorted(items, key=lambda i: str(i[0])) if kind == "Dict" else items:
            found += _parts(item, (*path, key), found[-1].stop if found else start)
        return found
    if kind != "Box":
        raise InputError(
            f"its {name} is {short(space['text'])}, expected a Box, or a Dict or Tuple of Boxes;"
            " turn it into numbers with an ObservationWrapper in a FILE.py:make_env"
        )
    size = math.prod(space["shape"])
    if space["dtype"] == "uint8" and size > LARGEST_BYTES:
        raise InputError(
            f"its {name} is a picture, uint8 {tuple(space['shape'])}; choose state observations in"
            " the environment's options, or drop it with an ObservationWrapper in a"
            " FILE.py:make_env"
        )
    return [Part(name, path, tuple(space["shape"]), start, start + size)]
