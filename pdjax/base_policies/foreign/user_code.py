"""Calls the code of other people's policies, and says in one line what went wrong in it.

Whatever the code raises becomes a `ConfigError`, see `pdjax_envs.user_code`. Inside a compiled
program an exception passes through XLA, which keeps only its text: `in_program` writes that text,
and `cause` reads it. Imports no JAX, because the program's border needs it.
"""

import re
import threading
from collections.abc import Callable
from typing import Any

from pdjax.config.options import ConfigError
from pdjax_envs import user_code
from pdjax_envs.reading import InputError
from pdjax_envs.user_code import UserCodeError, words

FAILED, INTERRUPTED = "the base policy failed in play", "interrupted in the base policy's code"


def guard(function: Callable[..., Any], doing: str, *args: Any) -> Any:
    """Calls the user's code, see `pdjax_envs.user_code.guard`.

    Raises:
      ConfigError: the call failed, or called `sys.exit`.
    """
    try:
        return user_code.guard(function, doing, *args)
    except UserCodeError as error:
        raise ConfigError(str(error)) from None


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
    text = "" if isinstance(error, InputError) else user_code.text_of(error)
    if INTERRUPTED in text:
        return KeyboardInterrupt()
    found = re.search(f"{FAILED}: .*", text)
    return ConfigError(found[0]) if found else error
