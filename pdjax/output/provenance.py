"""Records what made a run: command, code, versions, machine. Not pure: it reads all of these."""

import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "pdjax",
    "jax",
    "jaxlib",
    "mujoco",
    "mujoco-mjx",
    "warp-lang",
    "flax",
    "optax",
    "orbax-checkpoint",
    "brax",
    "numpy",
)

GIT_SECONDS = 10  # after which Git gets no more time: the file system may be slow or gone
PLAIN_DIFF = ("--no-ext-diff", "--no-textconv")
NO_TRANSPORT = {"GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}


def describe() -> dict[str, Any]:
    """Returns everything that is known of this process, ready for JSON; None for what is unknown.

    `commit` is the commit of the working folder's Git repository. `pdjax_commit` is the commit of
    pdjax's own repository, if this code runs from a checkout of it; an installed pdjax is named by
    its version in `versions`. Both end in `-dirty` if files differ from the commit.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "folder": str(Path.cwd()),
        "commit": commit(Path.cwd()),
        "pdjax_commit": own_commit(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "processes": jax.process_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def commit(folder: Path) -> str | None:
    """Returns the Git commit that a folder is at; None outside a repository.

    The content of submodules does not count, and that of filtered files counts as it lies there.
    """
    name = _git(folder, "describe", "--always")
    changed = _git(folder, "diff", "--quiet", "--ignore-submodules", *PLAIN_DIFF, "HEAD")
    if name is None or name.returncode or changed is None or changed.returncode > 1:
        return None
    return name.stdout.strip() + ("-dirty" if changed.returncode else "")


def own_commit(file: Path = Path(__file__)) -> str | None:
    """Returns the commit of pdjax's own repository; None if this code does not come from it.

    Git looks for a repository in all parent folders, so an installed pdjax may lie inside somebody
    else's. Only pdjax's own has this file under version control, at this path from its root.

    Args:
      file: this file, or a copy of it at the same path inside a package `pdjax`.
    """
    found = _git(file.parent, "ls-files", "--error-unmatch", "--full-name", file.name)
    is_own = found is not None and found.stdout.strip() == "/".join(file.parts[-3:])
    return commit(file.parent) if is_own else None


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str] | None:
    """Runs a Git command that only reads; returns None without Git or without an answer in time.

    A repository's settings can name programs: a monitor of files, hooks, filters, and transports to
    fetch what is missing. None of them is started.
    """
    off = {"core.fsmonitor": "false", "core.hooksPath": os.devnull}
    listed = _run(folder, ["config", "--null", "--name-only", "--get-regexp", r"^filter\."], off)
    names = listed.stdout.split("\0") if listed else []
    filters = {name.rpartition(".")[0] for name in names if name}
    for name in filters:
        off |= {f"{name}.clean": "", f"{name}.process": "", f"{name}.required": "false"}
    return _run(folder, arguments, off)


def _run(
    folder: Path, arguments: Sequence[str], settings: Mapping[str, str]
) -> subprocess.CompletedProcess[str] | None:
    """Runs a Git command with settings that come before all others."""
    own = os.environ.get("GIT_CONFIG_COUNT", "")
    begin = int(own) if own.isdecimal() else 0
    env = os.environ | NO_TRANSPORT | {"GIT_CONFIG_COUNT": str(begin + len(settings))}
    for index, (name, value) in enumerate(settings.items(), begin):
        env |= {f"GIT_CONFIG_KEY_{index}": name, f"GIT_CONFIG_VALUE_{index}": value}
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, cwd=folder, env=env, timeout=GIT_SECONDS
        )
    except (OSError, ValueError, subprocess.SubprocessError):  # no Git, no text, or no answer
        return None


def cpu() -> str:
    """Returns the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
