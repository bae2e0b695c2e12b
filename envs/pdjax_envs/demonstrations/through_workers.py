"""Records and replays demonstrations in environments that live in worker processes.

Separate from `record` and `playback`, which trace pure functions: here the host sends actions and
the workers step. An expert of the user's runs beside the simulator, in its interpreter, so it may
look into it. Not pure: it starts processes.
"""

# pyright: reportUnknownMemberType=false

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pdjax_envs.demonstrations.playback import Replay
from pdjax_envs.demonstrations.record import DISTURBANCE_STEPS, gather
from pdjax_envs.demonstrations.trajectory import DataError, Trajectory, episode_keys
from pdjax_envs.task import Env, Expert
from pdjax_envs.workers import Played, WorkerPool, begin, play_actions

SLOTS = 16  # episodes that are played at once


class Lead(Protocol):
    """What leads the episodes of a recording."""

    def begin(self, pool: WorkerPool, seeds: np.ndarray) -> None:
        """Forgets all; an episode of each seed begins."""
        ...

    def decide(self, obs: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the actions that are wanted and those to execute, (episodes, act_dim).

        Args:
          obs: (episodes, obs_dim), of now.
          step: the control step.
        """
        ...


class Beside:
    """An expert in the workers, beside the simulator; disturbances come from the episode's seed.

    Args:
      noise: standard deviation of the disturbances, as a share of [-1, 1].
    """

    def __init__(self, noise: float):
        self._noise = noise

    def begin(self, pool: WorkerPool, seeds: np.ndarray) -> None:
        """See `Lead`."""
        self._pool = pool
        self._draws = [np.random.default_rng([int(seed), 1]) for seed in seeds]

    def decide(self, obs: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Lead`."""
        wanted = self._pool.advise()
        if step % DISTURBANCE_STEPS == 0:
            drawn = [draw.standard_normal(wanted.shape[1]) for draw in self._draws]
            self._disturbance = self._noise * np.array(drawn)
        return wanted, np.clip(wanted + self._disturbance, -1, 1).astype(np.float32)


class Ours:
    """An expert of one of our own tasks, on observations of an environment that equals it.

    Args:
      expert: the expert.
      noise: size of its disturbances.
    """

    def __init__(self, expert: Expert, noise: float):
        def decide(carry: Any, obs: Any, act_keys: Any, noise_keys: Any, step: Any) -> Any:
            fold = jax.vmap(jax.random.fold_in, (0, None))
            wanted, carry = jax.vmap(expert.act)(carry, obs, fold(act_keys, step))
            keys = fold(noise_keys, step // DISTURBANCE_STEPS)
            executed = jax.vmap(expert.disturb, (0, 0, 0, None))(wanted, obs, keys, noise)
            return wanted, executed, carry

        self._init, self._decide = jax.jit(jax.vmap(expert.init)), jax.jit(decide)

    def begin(self, pool: WorkerPool, seeds: np.ndarray) -> None:
        """See `Lead`."""
        del pool
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
        _, memory_keys, *self._keys = jax.vmap(episode_keys)(keys)
        self._carry = self._init(memory_keys)

    def decide(self, obs: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Lead`."""
        wanted, executed, self._carry = self._decide(self._carry, obs, *self._keys, step)
        return np.asarray(wanted), np.asarray(executed)


def record(
    env: Env,
    expert: str | Expert,
    episodes: int,
    seed: int = 0,
    noise: float = 0.0,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[list[Trajectory], float]:
    """Records successful episodes of an expert, each cut at its first success, as `record.record`.

    Args:
      env: the environment; has `open`.
      expert: FILE.py:FUNCTION, see `workers.spec.check_spec`; or an expert of our own.
      episodes, seed, noise, progress: as there.

    Returns:
      The trajectories and the share of attempts that succeeded.

    Raises:
      DataError: the environment does not say what success is, or the expert never succeeds.
      workers.WorkerError: the expert fails, or workers failed too often.
    """
    assert env.open is not None
    task = env.task
    if not task.has_success:
        raise DataError(f"{task.name} does not say when it is solved; set task.success")
    is_beside = isinstance(expert, str)
    lead: Lead = Beside(noise) if is_beside else Ours(expert, noise)
    width = min(SLOTS, episodes)
    with env.open(width, 1, expert=expert if is_beside else "") as pool:
        attempt = partial(_attempt, pool, lead, task.episode_steps)
        return gather(attempt, width, episodes, seed, progress, task)


def _attempt(pool: WorkerPool, lead: Lead, limit: int, seeds: np.ndarray) -> list[Trajectory]:
    """Plays an episode of each seed; returns those that succeed."""
    first = obs = begin(pool, seeds)
    lead.begin(pool, seeds)
    rows: list[tuple[np.ndarray, np.ndarray, Played]] = []
    over = np.zeros(len(seeds), bool)
    for step in range(limit):
        wanted, executed = lead.decide(obs, step)
        pool.send(executed[:, None], pool.ended, seeds)
        answer = pool.receive()
        obs = answer.obs[:, 0]
        rows.append((wanted, executed, answer))
        over |= (answer.success | answer.terminated | answer.truncated)[:, 0]
        if over.all():
            break
    pool.abandon()
    return [t for i, s in enumerate(seeds) if (t := _cut(first[i], rows, i, int(s))) is not None]


def _cut(
    first: np.ndarray, rows: list[tuple[np.ndarray, np.ndarray, Played]], index: int, seed: int
) -> Trajectory | None:
    """Returns an episode up to and including its first success; None if it ended before."""
    success = np.array([answer.success[index, 0] for _, _, answer in rows])
    over = np.array([(answer.terminated | answer.truncated)[index, 0] for _, _, answer in rows])
    steps = int(success.argmax()) + 1
    if not success.any() or over[: steps - 1].any():
        return None
    played = rows[:steps]
    wanted, done = (np.stack([row[k][index] for row in played]) for k in (0, 1))
    obs = np.stack([first, *(answer.obs[index, 0] for _, _, answer in played)])
    return Trajectory(
        obs=obs,
        actions=wanted,
        success=success[:steps],
        env_states=np.zeros((len(obs), 0), np.float32),
        seed=seed,
        executed=None if np.array_equal(wanted, done) else done,
        rewards=np.array([answer.reward[index, 0] for _, _, answer in played]),
    )


def replay(env: Env, trajectories: list[Trajectory]) -> list[Replay]:
    """Plays the executed actions of episodes from the resets of their seeds.

    Where an episode ends sooner than its recording, it stands still.

    Raises:
      DataError: a seed is unknown.
      workers.WorkerError: workers failed too often.
    """
    assert env.open is not None
    if any(trajectory.seed < 0 for trajectory in trajectories):
        raise DataError("the episode's seed is unknown; it cannot be replayed")
    if not trajectories:
        return []
    width = min(SLOTS, len(trajectories))
    with env.open(width, 1) as pool:
        waves = range(0, len(trajectories), width)
        return [one for k in waves for one in _replay(pool, trajectories[k : k + width])]


def _replay(pool: WorkerPool, trajectories: list[Trajectory]) -> Iterator[Replay]:
    """Replays as many episodes as the pool has environments, or fewer."""
    lengths = [len(trajectory.actions) for trajectory in trajectories]
    actions = np.zeros((max(lengths), pool.num_envs, pool.description.act_dim), np.float32)
    seeds = np.zeros(pool.num_envs, int)
    for index, trajectory in enumerate(trajectories):
        executed = trajectory.actions if trajectory.executed is None else trajectory.executed
        actions[: len(executed), index], seeds[index] = executed, trajectory.seed
    played = play_actions(pool, begin(pool, seeds), actions, seeds)
    for index, steps in enumerate(lengths):
        yield Replay(played.obs[: steps + 1, index], played.success[:steps, index])
