"""Names that are not known: one error, which suggests the closest known name."""

import difflib
from collections.abc import Iterable


class UnknownName(ValueError):  # noqa: N818 (a mistake, not a failure)
    """A task or engine that does not exist here; the message says what does."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that is none of those known; says which one was meant."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose one of: {', '.join(known)}"
    return UnknownName(f"unknown {kind} {name!r}; {hint}")
