"""What a command settles for its whole process, before JAX and MuJoCo are imported.

Libraries of this project never change global settings; only the program does, here and once.
"""

import logging
import os
import warnings


def prepare() -> None:
    """Keeps other libraries' notices off the terminal: what matters comes from pdjax itself."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA: errors only
    for name in ("absl", "asyncio", "jax", "orbax", "matplotlib"):
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
