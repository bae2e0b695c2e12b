"""Gymnasium environments in worker processes of any interpreter, played a decision at a time.

`pool` is what others use. `process` is one worker seen from here, `spaces` what its environments
are made of, and `worker` the script that runs there. Nothing here imports JAX.
"""

from pdjax_envs.workers.pool import Played, WorkerPool, describe, same_starts
from pdjax_envs.workers.process import WorkerError
from pdjax_envs.workers.spaces import Description

__all__ = ["Description", "Played", "WorkerError", "WorkerPool", "describe", "same_starts"]
