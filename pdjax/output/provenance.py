"""Records what made a run: command, code, versions, machine. Not pure: it reads all of these."""

import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
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
    """Returns the Git commit that a folder is at; None outside a repository."""
    return _git(folder, "describe", "--always", "--dirty")


def own_commit(file: Path = Path(__file__)) -> str | None:
    """Returns the commit of pdjax's own repository; None if this code does not come from it.

    Git looks for a repository in all parent folders, so an installed pdjax may lie inside somebody
    else's. Only pdjax's own has this file under version control, at this path from its root.

    Args:
      file: this file, or a copy of it at the same path inside a package `pdjax`.
    """
    path = _git(file.parent, "ls-files", "--error-unmatch", "--full-name", file.name)
    return commit(file.parent) if path == "/".join(file.parts[-3:]) else None


def _git(folder: Path, *arguments: str) -> str | None:
    """Returns what a Git command prints; None if it fails.

    The command only reads, and starts no file system monitor that the repository's settings name.
    """
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=folder, timeout=GIT_SECONDS
        )
    except (OSError, subprocess.SubprocessError):  # no Git, no repository, or no answer
        return None
    return done.stdout.strip() or None


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
