"""Finds a user's own policy: a named Python object, a file of Python code or a TorchScript file.

Kept apart because only this file runs other people's code, and refuses files that must not be run.
This file is not pure: it imports modules and reads files.
"""

import importlib
import inspect
import sys
import types
import warnings
import zipfile
from pathlib import Path
from typing import Any

from pdjax.base_policies.foreign.user_code import guard
from pdjax.config.options import ConfigError
from pdjax.output import terminal
from pdjax_envs import reading, user_code
from pdjax_envs.names import suggest
from pdjax_envs.reading import short


def find(entry: str) -> Any:
    """Finds the policy that FILE.py:NAME or MODULE:NAME names, on the command line of its user.

    A function without parameters is called, and its result is the policy.

    Args:
      entry: the name. Modules are searched on Python's path and in the working directory.

    Raises:
      ConfigError: there is no such file, module or name, or the code fails.
    """
    where, name = _split(entry)
    _search_here()
    if where.endswith(".py"):
        return _take(_run_file(Path(where)), name, entry)
    return _take(guard(importlib.import_module, f"importing {where}", where), name, entry)


def find_inside(directory: Path, entry: str) -> Any:
    """Finds the policy that the description in a policy's directory names, and says that it runs.

    Args:
      directory: the policy's directory.
      entry: FILE.py:NAME, for a file that lies in the directory itself.

    Raises:
      ConfigError: the entry names code elsewhere, or see `find`.
    """
    where, name = _split(entry)
    path = directory / where
    if not where.endswith(".py") or Path(where).name != where or path.is_symlink():
        raise ConfigError(
            f"{directory} names code outside of it, {short(entry)}; expected FILE.py:NAME with FILE"
            " in the directory; write the directory with `pdjax wrap`"
        )
    terminal.say_code(path)
    _search_here()
    return _take(_run_file(path), name, entry)


def importing(entry: str) -> str:
    """Returns the code of a file that takes its policy from MODULE:NAME."""
    where, name = _split(entry)
    return f"import importlib\n\n{name} = importlib.import_module({where!r}).{name}\n"


def _split(entry: str) -> tuple[str, str]:
    where, _, name = entry.rpartition(":")
    if not where or not name.isidentifier():
        raise ConfigError(f"entry got {short(entry)!r}, expected FILE.py:NAME or MODULE:NAME")
    return where, name


def _search_here() -> None:
    """Lets the user's code import modules of the working directory, after all others."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))


def _take(module: types.ModuleType, name: str, entry: str) -> Any:
    """Returns what a module calls `name`, or what that returns if it takes no parameters."""
    if name not in vars(module) and not guard(hasattr, f"finding {name}", module, name):
        own = [n for n in vars(module) if not n.startswith("_")]
        raise ConfigError(f"{entry.rpartition(':')[0]} has no {name!r}; {suggest(name, own)}")
    found = getattr(module, name)
    if inspect.isfunction(found) and not inspect.signature(found).parameters:
        found = guard(found, f"{entry}()")
    return found


def _run_file(path: Path) -> types.ModuleType:
    """Runs a Python file as a module, see `user_code.run_file`.

    Raises:
      ConfigError: its code fails.
    """
    try:
        return user_code.run_file(path, "the policy's code")
    except user_code.UserCodeError as error:
        raise ConfigError(str(error)) from None


def read_torchscript(path: Path) -> Any:
    """Reads a TorchScript module, after checking that the file is not a pickle, which can run code.

    Raises:
      ConfigError: the file is not a TorchScript file, or torch is not installed.
    """
    advice = "save it with torch.jit.script(module).save(FILE) or torch.jit.trace(...).save(FILE)"
    if not reading.is_file(path):
        raise ConfigError(f"no TorchScript file at {path}; {advice}")
    is_zip = guard(zipfile.is_zipfile, f"reading {path}", path)
    names = guard(lambda: zipfile.ZipFile(path).namelist(), f"reading {path}") if is_zip else []
    if not any(name.endswith("/constants.pkl") for name in names):
        raise ConfigError(
            f"{path} is not a TorchScript file, and pdjax does not read pickles (torch.save), which"
            f" can run code; {advice}; `pdjax import` reads the state dicts of some projects"
        )
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            f"{path} needs torch, which is not installed; pip install 'pdjax[torch]'"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch recommends another format for new files
        return guard(lambda: torch.jit.load(str(path), map_location="cpu"), f"reading {path}")
