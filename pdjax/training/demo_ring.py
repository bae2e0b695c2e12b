"""Turns demonstrations into a replay ring that holds the base policy's actions, too.

Separate from the replay, which knows no files and no demonstrations.

Source: RLPD (arXiv:2302.02948) draws a share of every batch from demonstrations; ResFiT
(arXiv:2509.19301) stores the base policy's action with them, to which the residual is added.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.base_policies.chunking import training_windows
from pdjax.config.schema import Config, ConfigError
from pdjax.learner.decorator import hold
from pdjax.learner.holes import mark_holes
from pdjax.learner.replay import ReplayState, make_packing
from pdjax.types import Array, BasePolicy, Key, Params, Transition
from pdjax_envs.demonstrations import store
from pdjax_envs.demonstrations.trajectory import Trajectory
from pdjax_envs.task import Task


def load_demos(config: Config, task: Task, base: BasePolicy, residual_dim: int) -> ReplayState:
    """Reads the demonstrations that a run's config names, in the format of its replay.

    Args:
      config: the run; `train.demo_share` is above 0.
      task: the task of the demonstrations.
      base: the base policy.
      residual_dim: count of numbers in one residual action, see `sac.residual_dim`.

    Raises:
      ConfigError: the config names no demonstrations or allows no residual, or an episode has no
        success flags.
      demonstrations.DataError: the demonstrations cannot be read.
    """
    if not config.train.demos or not config.decorator.residual_scale:
        raise ConfigError(
            f"train.demo_share={config.train.demo_share} needs train.demos, a file of"
            " demonstrations, and decorator.residual_scale above 0"
        )
    found = store.read(Path(config.train.demos), task)
    # A fixed key instead of the run's seed, because the members of one program share this ring.
    key, held = jax.random.key(0), config.task.hold_steps
    ring = make_demo_replay(base, found, residual_dim, key, held)
    packing = make_packing(config.train.replay_dtype, base.obs_mean, base.obs_std)
    return ring._replace(storage=packing.pack(ring.storage))


def make_demo_replay(
    base: BasePolicy,
    trajectories: Sequence[Trajectory],
    residual_dim: int,
    key: Key,
    hold_steps: int = 1,
) -> ReplayState:
    """Cuts demonstrations into decisions, up to and including the first success that lasts.

    Args:
      base: the base policy.
      trajectories: episodes with success flags. The reward of a decision is 1 if it succeeded,
        else 0.
      residual_dim: count of numbers in one residual action, see `sac.residual_dim`.
      key: consumed; draws the base policy's noise.
      hold_steps: see `TaskConfig.hold_steps`. An episode that ends before success has lasted that
        long is truncated.

    Returns:
      A full ring of one environment, episode after episode. Its `residual_action` is the
      difference between demonstrated and base action. It is not divided by residual_scale, because
      the members of one program share the ring and may differ in that: `epoch` divides by
      `Hyperparams.residual_scale` when it draws a batch.

    Raises:
      ConfigError: an episode has no success flags.
    """
    episodes = [_decisions(base, trajectory, hold_steps) for trajectory in trajectories]
    longest = max(len(history) for _, history in episodes)
    histories = np.zeros((len(episodes), longest, base.obs_horizon, base.obs_dim), np.float32)
    for padded, (_, history) in zip(histories, episodes):
        padded[: len(history)] = history
    chosen = np.asarray(jax.jit(partial(_base_actions, base))(base.params, histories, key))
    for (rows, history), chunks in zip(episodes, chosen):
        rows.base_action[: len(history)] = chunks[: len(history)]
    each = [rows for rows, _ in episodes]
    rows = jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)[:, None]), *each)
    change = hold(rows.residual_action - rows.base_action, residual_dim)
    rows = rows._replace(residual_action=change)
    numbers = jnp.concatenate([rows.obs, rows.base_action, rows.residual_action], axis=-1)
    rows = mark_holes(rows, ~jnp.all(jnp.isfinite(numbers), axis=-1))
    return ReplayState(rows, jnp.int32(0), jnp.int32(len(rows.reward)))


def _decisions(base: BasePolicy, trajectory: Trajectory, hold_steps: int) -> tuple[Any, np.ndarray]:
    """Cuts one episode into decisions.

    Returns:
      rows: Transition of NumPy arrays (decisions + 1, ...). base_action is still zero, and
        residual_action is the chunk that was executed.
      histories: (decisions, obs_horizon, obs_dim), what the base policy would read.
    """
    if trajectory.success is None:
        raise ConfigError(
            "train.demos has episodes without success flags; `pdjax data check` shows"
            " which files have them"
        )
    solved = np.asarray(trajectory.success, bool)
    # all of the last `hold_steps` control steps were solved
    in_a_row = np.convolve(solved, np.ones(hold_steps, int))[: len(solved)]
    success = in_a_row == hold_steps
    steps = int(np.argmax(success)) + 1 if success.any() else len(success)
    done = trajectory.actions if trajectory.executed is None else trajectory.executed
    begin = np.arange(0, steps, base.act_horizon)
    histories, chunks = training_windows(
        trajectory.obs, done[:steps], base.obs_horizon, base.act_horizon, from_now=True
    )
    count = len(begin)
    executed: Any = np.zeros((count + 1, base.act_horizon * base.act_dim), np.float32)
    executed[:-1] = chunks[begin].reshape(count, -1)
    obs: Any = trajectory.obs[[*begin, steps]].astype(np.float32)
    is_last: Any = np.arange(count + 1) == count - 1
    rows = Transition(
        obs=obs,
        base_action=np.zeros_like(executed),
        residual_action=executed,
        reward=(is_last & success.any()).astype(np.float32),
        terminated=is_last & success.any(),
        truncated=is_last & ~success.any(),
        is_reset=np.roll(is_last, 1),
    )
    return rows, histories[begin]


def _base_actions(base: BasePolicy, params: Params, histories: Array, key: Key) -> Array:
    """Returns the base policy's chunks along every episode, (episodes, decisions, chunk_dim)."""

    def play(histories: Array, key: Key) -> Array:
        carry_key, noise_key = jax.random.split(key)

        def decide(carry, inputs):
            history, key = inputs
            chunk, carry = base.apply(params, carry, history, key)
            return carry, chunk.ravel()

        inputs = (histories, jax.random.split(noise_key, len(histories)))
        return jax.lax.scan(decide, base.init_carry(carry_key), inputs)[1]

    return jax.vmap(play)(histories, jax.random.split(key, len(histories)))
