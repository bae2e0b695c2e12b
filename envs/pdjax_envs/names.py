"""What names of tasks stand for, and the error for an unknown one, which suggests known ones."""

import difflib
import re
from collections.abc import Iterable

from pdjax_envs.reading import InputError, short

MOST_NAMES = 160  # characters of the known names in an error message
NEAREST = 5  # names that it gives if all would be longer


class UnknownName(InputError):  # noqa: N818 (a mistake, not a failure)
    """No task, engine, reward or shift has this name; the message names some that exist."""


def unknown(kind: str, name: str, known: Iterable[str], listed_by: str = "") -> UnknownName:
    """Returns the error for a name that is not among those known, see `suggest`."""
    hint = suggest(name, known, listed_by)
    return UnknownName(f"unknown {kind} {short(repr(name))}; {hint}")


def suggest(name: str, known: Iterable[str], listed_by: str = "") -> str:
    """Returns a hint for an unknown name: the closest known name, else the known names.

    Args:
      name: the unknown name.
      known: the known names; of many, the hint gives the nearest.
      listed_by: the command that lists all of them; "" = none does.
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    text = ", ".join(known)
    if len(text) <= MOST_NAMES:
        return f"known: {text}"
    nearest = difflib.get_close_matches(name, known, n=NEAREST, cutoff=0)
    where = f" ({listed_by} lists them)" if listed_by else ""
    return f"known: {', '.join(nearest)} and {len(known) - len(nearest)} more{where}"


def task_named(environment: str) -> str:
    """Returns the task that another project's name of an environment stands for.

    ManiSkill and Gymnasium add a version; Gymnasium-Robotics has `AdroitHandDoorSparse-v1`. A name
    with a colon is one of ours.
    """
    if ":" in environment:
        return environment
    return re.sub(r"(Sparse)?-v\d+$", "", environment).replace("AdroitHand", "Adroit")
