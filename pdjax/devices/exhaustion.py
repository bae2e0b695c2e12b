"""Turns JAX's and NumPy's errors about memory into a line that says what to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from pdjax_envs.reading import InputError, reason

SIGNS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


@contextmanager
def lower(what: str) -> Iterator[None]:
    """Runs a block whose memory follows from numbers that the user gave.

    Args:
      what: what to lower if the memory does not suffice.

    Raises:
      InputError: the memory does not suffice.
    """
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or any(sign in str(error) for sign in SIGNS):
            raise InputError(f"not enough memory: {reason(error)}; lower {what}") from None
        raise
