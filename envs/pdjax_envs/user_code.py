"""Runs other people's code, and says in one line what went wrong in it.

Whatever the code raises becomes a `UserCodeError` that names the line of the code, `sys.exit` too.
Imports no JAX, because the program's border needs it.
"""

import sys
import sysconfig
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pdjax_envs import reading
from pdjax_envs.reading import InputError, short

MOST_WORDS = 150  # characters of somebody else's message
OURS = ("pdjax", "pdjax_envs")  # packages
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


class UserCodeError(InputError):
    """Other people's code failed; the message names its line."""


def guard(function: Callable[..., Any], doing: str, *args: Any) -> Any:
    """Calls the user's code and turns whatever it raises into a one-line error.

    An interruption stays one: nobody can tell whether the user or the code asked for it. So does an
    error that pdjax raised, whose message says all.

    Args:
      function: the user's code.
      doing: what the call does, as the start of the error message.
      *args: arguments of `function`.

    Raises:
      UserCodeError: the call failed, or called `sys.exit`.
    """
    try:
        return function(*args)
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UserCodeError(f"{doing} failed with {words(error)}") from None


def run_file(path: Path, what: str) -> types.ModuleType:
    """Runs a Python file as a module without writing bytecode beside it.

    Args:
      path: the file.
      what: what the file is, for error messages, such as "the task's code".

    Raises:
      InputError: the file cannot be read, or its code fails.
    """
    source = reading.read_bytes(path, what)
    module = types.ModuleType(f"pdjax_user_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look up their module there

    def run() -> None:
        exec(compile(source, str(path), "exec"), module.__dict__)

    guard(run, f"running {path}")
    return module


def words(error: BaseException) -> str:
    """Returns type, message and place of an error in somebody else's code, in one short line."""
    if isinstance(error, SystemExit):
        text = f"sys.exit({text_of(error)})"
    else:
        text = f"{type(error).__name__}: {text_of(error) or 'no message'}"
    place = _place(error)
    return short(text, MOST_WORDS) + (f" ({place})" if place else "")


def text_of(error: BaseException) -> str:
    """Returns an error's message; "" if the error fails to describe itself."""
    try:
        return str(error).strip()
    except BaseException:
        return ""


def _place(error: BaseException) -> str:
    """Returns FILE:LINE of the innermost line outside of libraries, or "" if there is none."""
    theirs: list[tuple[str, int]] = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__package__") or frame.f_globals.get("__name__")
        package = str(module).partition(".")[0]
        name = frame.f_code.co_filename
        if package not in OURS and not name.startswith("<"):
            theirs.append((name, line))
    own = [(name, line) for name, line in theirs if not name.startswith(LIBRARIES)]
    name, line = (own or theirs or [("", 0)])[-1]
    return f"{Path(name).name}:{line}" if name else ""
