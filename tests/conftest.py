"""What all tests share: strict key handling and one key."""

import jax
import mujoco
import pytest

# MuJoCo writes its warnings, which some tests provoke, to a file in the current folder.
log = mujoco.MjLogConfig.get()
log.logto_file = False
log.set()

# A key consumed twice is an error; `jax.random.clone` where a test means it.
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture
def key():
    return jax.random.key(0)
