"""The error for an unknown name, which suggests the closest known one."""

import difflib
from collections.abc import Iterable

from pdjax_envs.reading import InputError


class UnknownName(InputError):  # noqa: N818 (a mistake, not a failure)
    """No task, engine, reward or shift has this name; the message lists names that exist."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """Returns the error for a name that is not among those known; suggests the closest one."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose one of: {', '.join(known)}"
    return UnknownName(f"unknown {kind} {name!r}; {hint}")
