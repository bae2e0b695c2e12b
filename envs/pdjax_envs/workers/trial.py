"""Tries an environment: what it is made of, whether its starts repeat, what given actions do.

Separate from `pool`, because these are its users.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

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


class Episodes(NamedTuple):
    """An episode of each environment under given actions; one that is over stands still.

    Attributes:
      obs: (T + 1, num_envs, obs_dim).
      success: (T, num_envs) bool.
      lengths: (num_envs,) control steps until its end.
      steps: control steps until all were over, T at most.
    """

    obs: np.ndarray
    success: np.ndarray
    lengths: np.ndarray
    steps: int


def begin(pool: WorkerPool, seeds: np.ndarray) -> np.ndarray:
    """Begins an episode of each seed in each environment.

    Returns:
      First observations (num_envs, obs_dim).
    """
    still = np.zeros((pool.num_envs, pool.chunk, pool.description.act_dim), np.float32)
    pool.send(still, np.ones(pool.num_envs, bool), seeds)
    return pool.receive().obs[:, -1]


def play_actions(
    pool: WorkerPool, first: np.ndarray, actions: np.ndarray, seeds: np.ndarray
) -> Episodes:
    """Plays actions in the episodes that `begin` began, and ends these.

    Args:
      pool: of one control step a decision.
      first: what `begin` returned.
      actions: (T, num_envs, act_dim).
      seeds: of environments whose episode is over, and which have to play something.
    """
    obs, over = [first], np.zeros(pool.num_envs, bool)
    success, lengths = np.zeros(actions.shape[:2], bool), np.zeros(pool.num_envs, int)
    for step, action in enumerate(actions):
        if over.all():
            break
        pool.send(action[:, None], pool.ended, seeds)
        answer = pool.receive()
        obs.append(np.where(over[:, None], obs[-1], answer.obs[:, 0]))
        success[step] = answer.success[:, 0] & ~over
        lengths += answer.executed[:, 0] & ~over
        over |= (answer.terminated | answer.truncated)[:, 0]
    pool.abandon()
    steps = len(obs) - 1
    obs += obs[-1:] * (len(actions) - steps)
    return Episodes(np.stack(obs), success, lengths, steps)
