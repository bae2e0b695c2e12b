"""Where a user's own policy comes from: names of Python objects, files of code, TorchScript files.

Kept apart because this is where other people's code is run, and where what must not be run is
refused. This file is not pure: it imports modules and reads files.
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

from pdjax.config.schema import ConfigError


def guard(function: Callable[..., Any], doing: str, *args: Any) -> Any:
    """Calls the user's code; what it raises becomes one line.

    Raises:
      ConfigError: it failed while `doing`.
    """
    try:
        return function(*args)
    except ConfigError:
        raise
    except Exception as error:
        first = (str(error).strip() or "no message").splitlines()[0][:200]
        raise ConfigError(f"{doing} failed with {type(error).__name__}: {first}") from None


def find(entry: str, directory: Path = Path()) -> Any:
    """The policy that FILE.py:NAME or MODULE:NAME names; a function without arguments makes it.

    Args:
      entry: a file is looked for in `directory`; a module where Python looks, and in the working
        directory.
      directory: see above.

    Raises:
      ConfigError: no such file, module or name, or running it fails.
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
    """Runs a Python file as a module, leaving no bytecode beside it."""
    try:
        source = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the policy's code {path}: {error}") from None
    module = types.ModuleType(f"pdjax_policy_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look themselves up there

    def run():
        exec(compile(source, str(path), "exec"), module.__dict__)

    guard(run, f"running {path}")
    return module


def read_torchscript(path: Path) -> Any:
    """Reads a TorchScript module. Its archive is looked at first: a pickle could run code.

    Raises:
      ConfigError: no TorchScript file, or torch is not installed.
    """
    advice = "save it by torch.jit.script(module).save(FILE) or torch.jit.trace(...).save(FILE)"
    if not path.is_file():
        raise ConfigError(f"no TorchScript file at {path}; {advice}")
    names = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    if not any(name.endswith("/constants.pkl") for name in names):
        raise ConfigError(
            f"{path} is no TorchScript file; a pickle (torch.save), which may run code when it is"
            f" read, is not taken; {advice}; `pdjax import` takes some state dicts"
        )
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            f"{path} needs torch, which is not installed; pip install 'pdjax[torch]'"
        ) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises another format for new files
        return guard(lambda: torch.jit.load(str(path), map_location="cpu"), f"reading {path}")
