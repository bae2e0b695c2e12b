"""What a command settles for its whole process, before JAX and MuJoCo are imported.

Libraries of this project never change global settings; only the program does, here and once.
"""

import logging
import os
import warnings
from pathlib import Path

CACHE_GIB = 2  # of compiled programs on disk; the longest unused make room


def prepare() -> None:
    """Settles the cache and the terminal."""
    _keep_programs()
    _quiet_libraries()


def _keep_programs() -> None:
    """Keeps compiled programs on disk, so that a second start compiles nothing again.

    JAX's own environment variables go before: JAX_ENABLE_COMPILATION_CACHE=false switches it off.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(caches / "pdjax" / "programs"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(CACHE_GIB * 2**30))


def _quiet_libraries() -> None:
    """Keeps other libraries' notices off the terminal: what matters comes from pdjax itself."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA: errors only
    for name in ("absl", "asyncio", "jax", "orbax", "matplotlib", "mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")
    _quiet_physics()


def _quiet_physics() -> None:
    """Keeps MuJoCo from printing warnings and from writing MUJOCO_LOG.TXT into the user's folder.

    An unstable episode shows in its reward; the engine resets it.
    """
    import mujoco

    log = mujoco.MjLogConfig.get()
    log.logto_console = log.logto_file = False
    log.set()
