"""Settings of the whole process, made before JAX and MuJoCo are imported.

Only the program makes them, here and once. Importing pdjax changes nothing in a process; the
library puts `plain_numbers` around what it computes.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pdjax_envs.reading import InputError, reason, short

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

# How JAX computes: what all of pdjax and every stored policy assumes.
NUMBERS = {
    "JAX_ENABLE_X64": "0",
    "JAX_NUMPY_DTYPE_PROMOTION": "standard",
    "JAX_NUMPY_RANK_PROMOTION": "allow",
}
DEVICES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")  # variables that choose JAX's devices


def prepare() -> None:
    """Sets up JAX and the cache of compiled programs, and keeps libraries off the terminal.

    Raises:
      InputError: JAX cannot be imported, such as with a wrong value in a variable of its own.
    """
    os.environ.update(NUMBERS)
    _keep_programs()
    _quiet_libraries()
    try:
        import jax  # noqa: F401
    except Exception as error:  # JAX reads its variables while it is imported
        raise InputError(
            f"JAX does not start: {reason(error)}; correct the environment or the installation"
        ) from None
    _quiet_physics()


@contextmanager
def plain_numbers() -> Iterator[None]:
    """Computes by JAX's own rules for numbers within the block, whatever the caller has set."""
    import jax

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def missing_devices() -> InputError | None:
    """Returns an error if JAX finds no device, which is then why something else has failed."""
    jax = sys.modules.get("jax")
    try:
        if jax is not None:
            jax.devices()
    except Exception as error:
        asked = [f"{name}={short(os.environ[name])}" for name in DEVICES if os.environ.get(name)]
        wanted = f" for {' '.join(asked)}" if asked else ""
        why = f" ({reason(error)})" if str(error) else ""
        return InputError(
            f"JAX finds no device{wanted}{why}; unset {' and '.join(DEVICES)} to take what there"
            " is, or install JAX for that device"
        )
    return None


def _keep_programs() -> None:
    """Keeps compiled programs on disk, so that a second start compiles nothing again.

    JAX's own environment variables come first: JAX_ENABLE_COMPILATION_CACHE=false switches it off.
    """
    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # this user has no home
        return
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
