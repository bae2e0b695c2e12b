"""Checks an environment in worker processes: `envs check` where there is no pure function to trace.

Separate from `check_task`, whose checks trace the task. Not pure: it starts processes.
"""

import time
from typing import NamedTuple

import numpy as np

from pdjax.output import terminal
from pdjax.prepare import verdicts
from pdjax.prepare.verdicts import FAIL, NOTE, OK, Finding
from pdjax_envs.demonstrations.trajectory import column_names
from pdjax_envs.task import Env
from pdjax_envs.workers import WorkerPool, same_starts

NUM_ENVS = 8
MOST_STEPS = 200  # control steps of an episode that are played


class Shown(NamedTuple):
    """Episodes of all environments, one each.

    Attributes:
      obs: (steps + 1, NUM_ENVS, obs_dim).
      success: (NUM_ENVS,) bool, at any step.
      lengths: (NUM_ENVS,) control steps.
      seconds: how long they took.
    """

    obs: np.ndarray
    success: np.ndarray
    lengths: np.ndarray
    seconds: float


def check_workers(env: Env, seed: int) -> list[Finding]:
    """Plays episodes of random actions, twice, and of none.

    Args:
      env: the environment; has `open`.
      seed: of starts and actions.

    Raises:
      workers.WorkerError: workers cannot start, or failed too often.
    """
    assert env.open is not None
    task, found = env.task, list[Finding]()
    steps = min(task.episode_steps, MOST_STEPS)
    shape = (steps, NUM_ENVS, task.act_dim)
    actions = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
    with env.open(NUM_ENVS, 1) as pool, terminal.progress("checking", 3, "rounds") as bar:
        seeds = seed + np.arange(NUM_ENVS)
        random = _play(pool, actions, seeds)
        bar.update(1)
        again = _play(pool, actions, seeds)
        bar.update(2)
        still = _play(pool, np.zeros_like(actions), seeds)
        is_repeated = same_starts(pool, seed)
        bar.update(3)
        rule, reasons, workers = pool.description.success, pool.reasons, pool.workers
    said = f"{task.obs_dim} observed numbers, {task.act_dim} of the action; success: {rule}"
    if not task.has_success:
        said = f"{said.rpartition(';')[0]}; nothing says what success is: set task.success"
    found.append(Finding("spaces", OK if task.has_success else NOTE, said))
    found.append(Finding("starts", *verdicts.starts(random.obs[0])))
    said = "resets of one seed agree" if is_repeated else (
        "resets of one seed differ: evaluations will not be paired"
    )  # fmt: skip
    found.append(Finding("seeds", OK if is_repeated else NOTE, said))
    same = random.obs.shape == again.obs.shape and np.array_equal(random.obs, again.obs)
    said = f"the same seeds and actions give {'the same' if same else 'other'} numbers"
    found.append(Finding("determinism", OK if same else NOTE, said))
    flat = random.obs.reshape(-1, task.obs_dim)
    found.append(
        Finding("observed numbers", *verdicts.numbers(flat, column_names(task.observation)))
    )
    if task.has_success:
        rate = float(random.success.mean())
        found.append(Finding("success", *verdicts.random_success(rate, has_expert=False)))
        found.append(Finding("doing nothing", *verdicts.still_success(float(still.success.mean()))))
    low, high = random.lengths.min(), random.lengths.max()
    lengths = f"{low}" if low == high else f"{low} to {high}"
    said = f"{lengths} control steps under random actions, of {task.episode_steps} at most"
    found.append(Finding("episodes", OK, said))
    said = reasons[0] if reasons else "none failed"
    found.append(Finding("workers", FAIL if reasons else OK, said))
    speed = len(random.obs[1:]) * NUM_ENVS / random.seconds
    said = f"{speed:,.0f} control steps/s with {NUM_ENVS} environments in {workers} workers"
    found.append(Finding("speed", OK, said))
    return found


def _play(pool: WorkerPool, actions: np.ndarray, seeds: np.ndarray) -> Shown:
    """Plays an episode in each environment; one that is over stands still."""
    pool.send(np.zeros_like(actions[0])[:, None], np.ones(len(seeds), bool), seeds)
    obs = [pool.receive().obs[:, 0]]
    success = over = np.zeros(len(seeds), bool)
    lengths = np.zeros(len(seeds), int)
    begun = time.perf_counter()
    for action in actions:
        pool.send(action[:, None], pool.ended, seeds)
        answer = pool.receive()
        obs.append(np.where(over[:, None], obs[-1], answer.obs[:, 0]))
        success = success | (answer.success[:, 0] & ~over)
        lengths += answer.executed[:, 0] & ~over
        over = over | (answer.terminated | answer.truncated)[:, 0]
        if over.all():
            break
    seconds = time.perf_counter() - begun
    pool.abandon()
    return Shown(np.stack(obs), success, lengths, seconds)
