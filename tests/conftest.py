"""What all tests share: programs compiled quickly and once, strict key handling, one key."""

import os
from importlib.metadata import version
from pathlib import Path

# Compiling is most of a test's time. All this comes before the first import that starts JAX.
# Without optimisation it takes a third, and half of that where older jaxlibs leave out the emitters
# for fusions; mathematics stay the same.
# `XLA_FLAGS=--xla_backend_optimization_level=3 pytest` tests what users run.
FAST_COMPILE = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # newer ones know no such option
    FAST_COMPILE.append("--xla_cpu_use_fusion_emitters=false")
if "--xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FAST_COMPILE]).strip()
# Equal programs are compiled once for all files and both workers.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
# Without a limit, as a command would set one: caches with and without one do not share a folder.
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", "-1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import mujoco  # noqa: E402
import pytest  # noqa: E402

# In the tests, every call of a function of the learner checks the shapes that its annotations name.
# It has to come before the first import of pdjax.
jaxtyping.install_import_hook("pdjax.learner", "beartype.beartype")

# MuJoCo writes its warnings, which some tests provoke, to a file in the current folder.
log = mujoco.MjLogConfig.get()
log.logto_file = False
log.set()

DRAW_KEYS = {"test_contract", "test_experts", "test_brax", "test_gymnasium", "test_native"}


@pytest.fixture(autouse=True, scope="module")
def _programs(request):
    """A key consumed twice is an error; `jax.random.clone` where a test means it.

    Looking for it takes a third of an environment's test, so there only the contract's looks, in
    every task, and those whose subject draws keys of its own.
    Compiled programs of one file are of no use to the next, and slow it down by the thousand.
    """
    path = request.path
    with jax.debug_key_reuse("envs" not in path.parts or path.stem in DRAW_KEYS):
        yield
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)
