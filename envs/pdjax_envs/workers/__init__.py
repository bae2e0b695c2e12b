"""Gymnasium environments in worker processes of any interpreter, played a decision at a time.

`pool` is what others use, and `trial` looks at an environment first. `crew` is its workers,
`process` one of them seen from here, `memory` the arrays shared with it, `spec` and `spaces` what
its environments are made from and of, and `worker` the script that runs there. Nothing here imports
JAX.
"""

from pdjax_envs.workers.memory import Played
from pdjax_envs.workers.pool import WorkerPool, closing_pools
from pdjax_envs.workers.process import WorkerError
from pdjax_envs.workers.spaces import Description
from pdjax_envs.workers.trial import Episodes, begin, describe, play_actions, same_starts

__all__ = [
    "Description",
    "Episodes",
    "Played",
    "WorkerError",
    "WorkerPool",
    "begin",
    "closing_pools",
    "describe",
    "play_actions",
    "same_starts",
]
