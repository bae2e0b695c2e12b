"""XLA options that MJX needs on a CPU, added before any JAX backend starts.

Separate from `mjx.py` so that a program can call `prepare` first thing, without importing MuJoCo.
It changes this process's environment variable XLA_FLAGS and nothing else.
"""

import os
import re
from pathlib import Path

import jax
import jaxlib.version
from jax._src import xla_bridge  # JAX has no public way to ask whether a backend has started

# (option, value, first jaxlib version without the need). An option that a jaxlib does not know
# aborts the process, so each is added only below its version.
_OPTIONS = (
    # Otherwise a batched MJX step deadlocks in XLA's CPU runtime (jaxlib 0.10.2: Adroit Relocate,
    # 512 environments).
    ("xla_cpu_enable_concurrency_optimized_scheduler", "false", (0, 12)),
    # Otherwise each joint of a chain computes all joints before it anew: a step of the Panda takes
    # 60 times as long.
    ("xla_cpu_use_fusion_emitters", "false", (0, 11)),
)


def prepare() -> None:
    """Adds to XLA_FLAGS what MJX needs on a CPU with the installed jaxlib.

    Call it at start-up where MJX may run on a CPU. Options already in XLA_FLAGS keep the user's
    value; calling it again changes nothing; accelerators ignore the options.

    Raises:
      RuntimeError: too late, a CPU backend has started without them.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    missing = _missing(flags, jaxlib.version.__version__)
    if not missing:
        return
    added = " ".join(missing)
    if xla_bridge.backends_are_initialized():
        if jax.default_backend() != "cpu":
            return
        raise RuntimeError(
            f"JAX's CPU backend has started without options that MJX needs; set XLA_FLAGS='{added}'"
            " or call pdjax_envs.physics.mjx_flags.prepare() before the first use of JAX"
        )
    if flags and not flags.startswith("-"):
        raise RuntimeError(f"MJX needs XLA options: add '{added}' to the file XLA_FLAGS={flags}")
    os.environ["XLA_FLAGS"] = f"{flags} {added}".strip()


def _missing(flags: str, version: str) -> list[str]:
    """Options that this jaxlib needs and `flags` (options, or the name of a file of them) lacks."""
    if flags and not flags.startswith("-") and Path(flags).exists():
        flags = Path(flags).read_text()
    present = re.findall(r"--(\w+)", flags)
    release = tuple(int(part) for part in version.split(".")[:2])
    return [
        f"--{name}={value}"
        for name, value, fixed in _OPTIONS
        if release < fixed and name not in present
    ]
