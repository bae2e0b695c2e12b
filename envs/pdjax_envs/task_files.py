"""Tasks in a file of the user's own, named FILE.py:FUNCTION wherever a task's name is taken.

Separate from `registry` because it runs other people's code. Not pure: it reads files.
"""

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pdjax_envs import user_code
from pdjax_envs.names import UnknownName, unknown
from pdjax_envs.reading import is_file, short

if TYPE_CHECKING:
    from pdjax_envs.task import Task

_SOURCE = re.compile(r"(.+\.py):([^\W\d]\w*)")


def split(name: str) -> tuple[Path, str] | None:
    """Returns file and function of a task named FILE.py:FUNCTION; None for any other name."""
    match = _SOURCE.fullmatch(name)
    return (Path(match[1]), match[2]) if match else None


def in_name(name: str) -> str:
    """Returns a task's name for titles and comparisons: that of a file without its folder."""
    source = split(name)
    return f"{source[0].name}:{source[1]}" if source else name


def load(path: Path, function: str) -> "Task":
    """Runs a file and returns the task that its function makes.

    As long as the file stays as it is, every call returns the same object.

    Args:
      path: the file.
      function: the name of a function without arguments that returns a `Task`.

    Raises:
      UnknownName: there is no such file or function, or it returns something else.
      InputError: the code fails, or the task's `files` lie outside of the file's folder.
    """
    if not is_file(path):
        raise UnknownName(
            f"no task at {short(str(path))}: no such file; `pdjax envs new {short(path.name)}`"
            " writes one"
        )
    return _load(path.absolute(), path.stat().st_mtime_ns, function)


@cache
def _load(path: Path, _: int, function: str) -> "Task":
    """Loads a file of some age."""
    from pdjax_envs.task import Task  # brings JAX, which the names of tasks do without

    shown = short(os.path.relpath(path))
    module = user_code.run_file(path, "the task's code")
    own = [name for name, value in vars(module).items() if callable(value)]
    if function not in own:
        made_here = [
            n for n in own if getattr(vars(module)[n], "__module__", "") == module.__name__
        ]
        raise unknown(f"function of {shown}", function, made_here)
    task = user_code.guard(vars(module)[function], f"{shown}:{function}()")
    if not isinstance(task, Task):
        hint = ""
        if hasattr(task, "action_space") or hasattr(task, "step"):
            hint = "; a function that makes a Gymnasium environment has a name make_env..."
        raise UnknownName(
            f"{shown}:{function}() returned {short(repr(task))}, expected a pdjax_envs.Task{hint}"
        )
    if task.scene is None and task.engine is None:
        raise UnknownName(
            f"{shown}:{function}() returned a task with neither scene nor engine; give it one"
        )
    files_beside(path, task.files)
    return task


def files_beside(path: Path, files: Sequence[Path]) -> dict[Path, Path]:
    """Returns the files that a task's file needs, itself first: place in its folder -> file.

    Raises:
      UnknownName: a file lies elsewhere or is missing.
    """
    folder = path.absolute().parent
    found = {Path(path.name): path.absolute()}
    for file in files:
        resolved = Path(file).absolute()
        if not resolved.is_relative_to(folder) or not is_file(resolved):
            raise UnknownName(
                f"the task of {short(str(path))} needs {short(str(file))}, which is not in the"
                " file's folder; put it there, so that a run can keep a copy"
            )
        found[resolved.relative_to(folder)] = resolved
    return found
