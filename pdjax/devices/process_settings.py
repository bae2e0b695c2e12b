"""Settings of the whole process, made before JAX and MuJoCo are imported.

Only the program makes them, here and once. Importing pdjax changes nothing in a process.
"""

import logging
import os
import warnings
from pathlib import Path

CACHE_GIB = 2  # of compiled programs on disk; those unused for longest make room

# Notices that a user of pdjax can do nothing about. Warnings of pdjax itself, of the tasks, of a
# policy that the user brings, and of NumPy about their arithmetic are shown.
LOGGERS = ("absl", "alembic", "asyncio", "jax", "matplotlib", "mlflow", "orbax")
MODULES = (
    *LOGGERS,
    "brax",
    "flax",
    "gymnasium",
    "mujoco",
    "mujoco_playground",
    "optuna",
    "ray",
    "tensorboardX",
    "torch",
    "wandb",
    "warp",
)


def prepare() -> None:
    """Sets up the cache of compiled programs, and keeps other libraries off the terminal."""
    _keep_programs()
    _quiet_libraries()
    _quiet_physics()


def _keep_programs() -> None:
    """Keeps compiled programs on disk, so that a second start compiles nothing again.

    JAX's own environment variables come first: JAX_ENABLE_COMPILATION_CACHE=false switches it off.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(caches / "pdjax" / "programs"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(CACHE_GIB * 2**30))


def _quiet_libraries() -> None:
    """Silences the loggers and the warnings of other libraries; pdjax reports what matters."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA: errors only
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in MODULES:
        warnings.filterwarnings("ignore", module=rf"{name}(\.|$)")


def _quiet_physics() -> None:
    """Keeps MuJoCo from printing warnings and from writing MUJOCO_LOG.TXT to the user's folder.

    An unstable episode shows in its reward; the engine resets it.
    """
    import mujoco

    log = mujoco.MjLogConfig.get()
    log.logto_console = log.logto_file = False
    log.set()
