"""Looks at an environment before it is used: what it is made of, whether its starts repeat.

Separate from `pool`, because these are two of its users.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pdjax_envs.workers.pool import WorkerPool
from pdjax_envs.workers.spaces import Description


def describe(spec: Mapping[str, Any], python: str = "", **limits: Any) -> Description:
    """Makes one environment in a worker, plays its first step, and says what it is made of.

    Args:
      spec, python: see `WorkerPool`.
      **limits: `start_timeout`.

    Raises:
      WorkerError, InputError: see `WorkerPool`.
    """
    with WorkerPool(spec, 1, python=python, **limits) as pool:
        return pool.description


def same_starts(pool: WorkerPool, seed: int = 0) -> bool:
    """Returns whether resets of one seed agree: in all environments, and after other episodes.

    Episodes that were being played end; begin new ones.
    """
    actions = np.zeros((pool.num_envs, pool.chunk, pool.description.act_dim), np.float32)
    everywhere, nowhere = np.ones(pool.num_envs, bool), np.zeros(pool.num_envs, bool)
    one, others = np.full(pool.num_envs, seed), seed + 1 + np.arange(pool.num_envs)

    def starts() -> Iterator[np.ndarray]:
        for begin, seeds in (
            (everywhere, one),
            (everywhere, others),
            (nowhere, one),
            (everywhere, one),
        ):
            pool.send(actions, begin, seeds)
            yield pool.receive().obs[:, -1]

    first, _, _, again = starts()
    pool.abandon()
    return bool((first == first[0]).all() and (again == first).all())
