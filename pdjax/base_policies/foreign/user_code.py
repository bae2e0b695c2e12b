"""Calls other people's code, and says in one line what went wrong in it.

Whatever the code raises becomes a `ConfigError` that names the line of the code, `sys.exit` too.
Inside a compiled program an exception passes through XLA, which keeps only its text: `in_program`
writes that text, and `cause` reads it. Imports no JAX, because the program's border needs it.
"""

import re
import sysconfig
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pdjax.config.options import ConfigError
from pdjax_envs import reading
from pdjax_envs.reading import short

FAILED, INTERRUPTED = "the base policy failed in play", "interrupted in the base policy's code"
MOST_WORDS = 150  # characters of somebody else's message
OURS = (str(Path(__file__).parents[2]), str(Path(reading.__file__).parent))  # pdjax, pdjax_envs
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


def guard(function: Callable[..., Any], doing: str, *args: Any) -> Any:
    """Calls the user's code and turns whatever it raises into a one-line error.

    An interruption stays one: nobody can tell whether the user or the code asked for it.

    Args:
      function: the user's code.
      doing: what the call does, as the start of the error message.
      *args: arguments of `function`.

    Raises:
      ConfigError: the call failed, or called `sys.exit`.
    """
    try:
        return function(*args)
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ConfigError(f"{doing} failed with {words(error)}") from None


def in_program(function: Callable[..., Any], *args: Any) -> Any:
    """Calls the user's code from a compiled program; see `cause`.

    Raises:
      RuntimeError: the call failed; its text survives XLA.
    """
    try:
        return function(*args)
    except BaseException as error:
        ours = threading.current_thread() is threading.main_thread()
        if isinstance(error, KeyboardInterrupt) and ours:  # signals arrive in the main thread only
            raise RuntimeError(INTERRUPTED) from None
        raise RuntimeError(f"{FAILED}: {words(error)}") from None


def cause(error: BaseException) -> BaseException:
    """Returns the error that a failed program stands for.

    Args:
      error: what a command raised.

    Returns:
      A `ConfigError` if `in_program` failed or the code called `sys.exit`; a `KeyboardInterrupt`
      if it was interrupted there; otherwise the error itself.
    """
    if isinstance(error, SystemExit):
        return ConfigError(f"the policy's or the task's code failed with {words(error)}")
    text = "" if isinstance(error, ConfigError) else _text(error)
    if INTERRUPTED in text:
        return KeyboardInterrupt()
    found = re.search(f"{FAILED}: .*", text)
    return ConfigError(found[0]) if found else error


def words(error: BaseException) -> str:
    """Returns type, message and place of an error in somebody else's code, in one short line."""
    if isinstance(error, SystemExit):
        text = f"sys.exit({_text(error)})"
    else:
        text = f"{type(error).__name__}: {_text(error) or 'no message'}"
    place = _place(error)
    return short(text, MOST_WORDS) + (f" ({place})" if place else "")


def _text(error: BaseException) -> str:
    try:
        return str(error).strip()
    except BaseException:  # the user's own exception fails to describe itself
        return ""


def _place(error: BaseException) -> str:
    """Returns FILE:LINE of the innermost line outside of libraries, or "" if there is none."""
    steps = traceback.walk_tb(error.__traceback__)
    frames = [(frame.f_code.co_filename, line) for frame, line in steps]
    theirs = [(name, line) for name, line in frames if not name.startswith(("<", *OURS))]
    own = [(name, line) for name, line in theirs if not name.startswith(LIBRARIES)]
    name, line = (own or theirs or [("", 0)])[-1]
    return f"{Path(name).name}:{line}" if name else ""
