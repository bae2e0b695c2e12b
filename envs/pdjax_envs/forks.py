"""Notices a process that was forked after JAX had started, in which JAX hangs for ever.

Only the thread that forks goes on in the copy. JAX's other threads are missing there, and the locks
that they held are never released. Not pure: from its import on, it marks every fork.
"""

import os

from jax._src import xla_bridge  # JAX has no public way to ask whether a backend has started

_cut_off = False


def is_cut_off() -> bool:
    """Returns whether JAX would hang in this process."""
    return _cut_off


def refuse(*arguments: object) -> None:
    """Raises RuntimeError if JAX would hang in this process, whatever the arguments."""
    del arguments
    if _cut_off:
        raise RuntimeError(
            "JAX hangs in a process that was forked after it had started. Start workers afresh, in"
            " Gymnasium with vector_kwargs={'context': 'spawn'}; or let one program step all"
            " environments: gymnasium.make_vec(ID, NUM_ENVS)"
        )


def _mark() -> None:
    global _cut_off
    _cut_off = _cut_off or xla_bridge.backends_are_initialized()


if hasattr(os, "register_at_fork"):  # other systems do not fork
    os.register_at_fork(after_in_child=_mark)
