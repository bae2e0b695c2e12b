"""What all tests share: strict key handling and one key."""

import jax
import pytest

# A key consumed twice is an error; `jax.random.clone` where a test means it.
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture
def key():
    return jax.random.key(0)
