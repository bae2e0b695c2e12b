"""This file is not pure: it reads what a run was made by: command, code, versions, machine."""

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


def describe() -> dict[str, Any]:
    """All of it, ready for JSON; None where something is not known.

    `commit` is that of the working folder's Git repository and `pdjax_commit` of this code's own,
    each with `-dirty` where files differ from it.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "folder": str(Path.cwd()),
        "commit": commit(Path.cwd()),
        "pdjax_commit": commit(Path(__file__).parent),
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
    """The Git commit that a folder is at."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
        )
    except OSError:  # no Git here
        return None
    return done.stdout.strip() or None


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
