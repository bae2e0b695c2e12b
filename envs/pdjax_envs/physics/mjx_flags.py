"""XLA options that MJX needs on a CPU, added before any JAX backend starts.

Separate from `mjx.py` so that a program can call `prepare` at its very start without importing
MuJoCo. It changes the environment variable XLA_FLAGS of this process and nothing else.
"""

import os
import re
from pathlib import Path

import jax
import jaxlib.version
from jax._src import xla_bridge  # JAX has no public way to ask whether a backend has started

from pdjax_envs.reading import InputError

# (option, value, first jaxlib version that does not need it). A jaxlib aborts the process at an
# unknown option, so each option is added only below its version.
_OPTIONS = (
    # Without it, a batched MJX step deadlocks in XLA's CPU runtime (jaxlib 0.10.2: Adroit Relocate,
    # 512 environments).
    ("xla_cpu_enable_concurrency_optimized_scheduler", "false", (0, 12)),
    # Without it, each joint of a chain recomputes all joints before it: a step of the Panda takes
    # 60 times as long.
    ("xla_cpu_use_fusion_emitters", "false", (0, 11)),
)


def prepare() -> None:
    """Adds the options to XLA_FLAGS that MJX needs on a CPU with the installed jaxlib.

    Call it at start-up if MJX may run on a CPU. Options that are already in XLA_FLAGS keep their
    value, calling it again changes nothing, and accelerators ignore the options.

    Raises:
      InputError: a CPU backend has already started without the options.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    missing = _missing(flags, jaxlib.version.__version__)
    if not missing:
        return
    added = " ".join(missing)
    if xla_bridge.backends_are_initialized():
        if jax.default_backend() != "cpu":
            return
        raise InputError(
            f"JAX's CPU backend has started without options that MJX needs; set XLA_FLAGS='{added}'"
            " or call pdjax_envs.physics.mjx_flags.prepare() before the first use of JAX"
        )
    if flags and not flags.startswith("-"):
        raise InputError(f"MJX needs XLA options: add '{added}' to the file XLA_FLAGS={flags}")
    os.environ["XLA_FLAGS"] = f"{flags} {added}".strip()


def _missing(flags: str, version: str) -> list[str]:
    """Returns options that jaxlib needs and `flags` (options or a file with options) lacks."""
    if flags and not flags.startswith("-") and Path(flags).exists():
        flags = Path(flags).read_text()
    present = re.findall(r"--(\w+)", flags)
    release = tuple(int(part) for part in version.split(".")[:2])
    return [
        f"--{name}={value}"
        for name, value, fixed in _OPTIONS
        if release < fixed and name not in present
    ]
