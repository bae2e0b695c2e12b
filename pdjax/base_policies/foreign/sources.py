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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pdjax.config.options import ConfigError


def guard(function: Callable[..., Any], doing: str, *args: Any) -> Any:
    """Calls the user's code and turns any exception into a one-line error.

    Args:
      function: the user's code.
      doing: what the call does, as the start of the error message.
      *args: arguments of `function`.

    Raises:
      ConfigError: the call failed.
    """
    try:
        return function(*args)
    except ConfigError:
        raise
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0][:200]
        raise ConfigError(f"{doing} failed with {type(error).__name__}: {first}") from None


def find(entry: str, directory: Path = Path()) -> Any:
    """Finds the policy that FILE.py:NAME or MODULE:NAME names.

    A function without parameters is called, and its result is the policy.

    Args:
      entry: the name. Modules are searched on Python's path and in the working directory.
      directory: the directory that contains FILE.py.

    Returns:
      The policy.

    Raises:
      ConfigError: there is no such file, module or name, or the code fails.
    """
    where, colon, name = entry.rpartition(":")
    if not colon or not where or not name:
        raise ConfigError(f"entry got {entry!r}, expected FILE.py:NAME or MODULE:NAME")
    if where.endswith(".py"):
        module = _run_file(directory / where)
    else:
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        module = guard(importlib.import_module, f"importing {where}", where)
    if not hasattr(module, name):
        raise ConfigError(f"{where} has no {name!r}; name a function or object that it defines")
    found = getattr(module, name)
    if inspect.isfunction(found) and not inspect.signature(found).parameters:
        found = guard(found, f"{entry}()")
    return found


def _run_file(path: Path) -> types.ModuleType:
    """Runs a Python file as a module without writing bytecode beside it."""
    try:
        source = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the policy's code {path}: {error}") from None
    module = types.ModuleType(f"pdjax_policy_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look up their module there

    def run():
        exec(compile(source, str(path), "exec"), module.__dict__)

    guard(run, f"running {path}")
    return module


def read_torchscript(path: Path) -> Any:
    """Reads a TorchScript module, after checking that the file is not a pickle, which can run code.

    Raises:
      ConfigError: the file is not a TorchScript file, or torch is not installed.
    """
    advice = "save it with torch.jit.script(module).save(FILE) or torch.jit.trace(...).save(FILE)"
    if not path.is_file():
        raise ConfigError(f"no TorchScript file at {path}; {advice}")
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
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
