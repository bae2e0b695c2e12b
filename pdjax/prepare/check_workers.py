"""Checks an environment in worker processes: `envs check` where there is no pure function to trace.

Separate from `check_task`, whose checks trace the task. Not pure: it starts processes.
"""

import time

import numpy as np

from pdjax.output import terminal
from pdjax.prepare import verdicts
from pdjax.prepare.verdicts import FAIL, NOTE, OK, Finding
from pdjax_envs.demonstrations.trajectory import column_names
from pdjax_envs.task import Env
from pdjax_envs.workers import begin, play_actions, same_starts

NUM_ENVS = 8
MOST_STEPS = 200  # control steps of an episode that are played


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
        first, begun = begin(pool, seeds), time.perf_counter()
        random = play_actions(pool, first, actions, seeds)
        seconds = time.perf_counter() - begun
        bar.update(1)
        again = play_actions(pool, begin(pool, seeds), actions, seeds)
        bar.update(2)
        still = play_actions(pool, begin(pool, seeds), np.zeros_like(actions), seeds)
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
    same = np.array_equal(random.obs, again.obs)
    said = f"the same seeds and actions give {'the same' if same else 'other'} numbers"
    found.append(Finding("determinism", OK if same else NOTE, said))
    flat = random.obs.reshape(-1, task.obs_dim)
    found.append(
        Finding("observed numbers", *verdicts.numbers(flat, column_names(task.observation)))
    )
    if task.has_success:
        rate, idle = (float(one.success.any(axis=0).mean()) for one in (random, still))
        found.append(Finding("success", *verdicts.random_success(rate, has_expert=False)))
        found.append(Finding("doing nothing", *verdicts.still_success(idle)))
    low, high = random.lengths.min(), random.lengths.max()
    lengths = f"{low}" if low == high else f"{low} to {high}"
    said = f"{lengths} control steps under random actions, of {task.episode_steps} at most"
    found.append(Finding("episodes", OK, said))
    said = reasons[0] if reasons else "none failed"
    found.append(Finding("workers", FAIL if reasons else OK, said))
    speed = random.steps * NUM_ENVS / seconds
    said = f"{speed:,.0f} control steps/s with {NUM_ENVS} environments in {workers} workers"
    found.append(Finding("speed", OK, said))
    return found
