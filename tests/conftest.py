"""What all tests share: programs compiled quickly, strict key handling, one key."""

import os

# Compiling is most of a test's time; this takes a third of it, and changes no mathematics. Before
# the first import that starts JAX; `XLA_FLAGS=--xla_backend_optimization_level=3 pytest` tests what
# users run.
FAST_COMPILE = "--xla_backend_optimization_level=0"
if "--xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILE}".strip()

import jax  # noqa: E402
import mujoco  # noqa: E402
import pytest  # noqa: E402

# MuJoCo writes its warnings, which some tests provoke, to a file in the current folder.
log = mujoco.MjLogConfig.get()
log.logto_file = False
log.set()

# A key consumed twice is an error; `jax.random.clone` where a test means it.
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Compiled programs of one file are of no use to the next, and slow it down by the thousand."""
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)
