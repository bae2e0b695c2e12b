"""Demonstrations as a replay ring, with what the base policy would have done at each decision.

Source: RLPD (arXiv:2302.02948) draws a share of every batch from demonstrations; ResFiT
(arXiv:2509.19301) stores with them the base policy's action, which the residual adds to.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.base_policies.chunking import training_windows
from pdjax.config import ConfigError
from pdjax.decorator import hold
from pdjax.replay import ReplayState
from pdjax.types import Array, BasePolicy, Key, Params, Transition
from pdjax_envs.trajectory import Trajectory


def make_demo_replay(
    base: BasePolicy, trajectories: Sequence[Trajectory], residual_dim: int, key: Key
) -> ReplayState:
    """Cuts demonstrations into decisions, up to and including the first success.

    Args:
      base: the base policy.
      trajectories: with success flags; the reward of a decision is 1 where it succeeded, else 0.
      residual_dim: numbers in one residual action, see `train.residual_dim`.
      key: of the base policy's noise; consumed.

    Returns:
      A full ring of one environment, episode after episode. Its `residual_action` is the
      difference between demonstrated and base action, not divided by residual_scale.

    Raises:
      ConfigError: an episode without success flags.
    """
    episodes = [_decisions(base, trajectory) for trajectory in trajectories]
    longest = max(len(rows.reward) for rows, _, _ in episodes)
    histories = np.zeros((len(episodes), longest, base.obs_horizon, base.obs_dim), np.float32)
    for padded, (_, history, _) in zip(histories, episodes):
        padded[: len(history)] = history
    chosen = np.asarray(jax.jit(partial(_base_actions, base))(base.params, histories, key))
    finished = []
    for (rows, history, actions), chunks in zip(episodes, chosen):
        base_action = np.zeros_like(actions)
        base_action[: len(history)] = chunks[: len(history)]
        residual_action = np.asarray(hold(jnp.asarray(actions - base_action), residual_dim))
        finished.append(rows._replace(base_action=base_action, residual_action=residual_action))
    rows = jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)[:, None]), *finished)
    return ReplayState(rows, jnp.int32(0), jnp.int32(len(rows.reward)))


def _decisions(
    base: BasePolicy, trajectory: Trajectory
) -> tuple[Transition, np.ndarray, np.ndarray]:
    """One episode: rows (decisions + 1, ...) still without actions, the base policy's histories
    (decisions, obs_horizon, obs_dim), and the chunks (decisions + 1, chunk_dim) that were done."""
    if trajectory.success is None:
        raise ConfigError("train.demos has episodes without success flags; `pdjax data check` tells"
                          " which files have them")  # fmt: skip
    success = np.asarray(trajectory.success, bool)
    steps = int(np.argmax(success)) + 1 if success.any() else len(success)
    done = trajectory.actions if trajectory.executed is None else trajectory.executed
    begin = np.arange(0, steps, base.act_horizon)
    histories, chunks = training_windows(trajectory.obs, done[:steps], base.obs_horizon,
                                         base.act_horizon, from_now=True)  # fmt: skip
    count = len(begin)
    flat: Any = chunks[begin].reshape(count, -1).astype(np.float32)
    obs: Any = trajectory.obs[[*begin, steps]].astype(np.float32)
    is_last: Any = np.arange(count + 1) == count - 1
    rows = Transition(
        obs=obs,
        base_action=flat,
        residual_action=flat,
        reward=(is_last & success.any()).astype(np.float32),
        terminated=is_last & success.any(),
        truncated=is_last & ~success.any(),
        is_reset=np.roll(is_last, 1),
    )
    return rows, histories[begin], np.pad(flat, ((0, 1), (0, 0)))


def _base_actions(base: BasePolicy, params: Params, histories: Array, key: Key) -> Array:
    """(episodes, decisions, chunk_dim) of the base policy along every episode."""

    def play(histories: Array, key: Key) -> Array:
        carry_key, noise_key = jax.random.split(key)

        def decide(carry, inputs):
            history, key = inputs
            chunk, carry = base.apply(params, carry, history, key)
            return carry, chunk.ravel()

        inputs = (histories, jax.random.split(noise_key, len(histories)))
        return jax.lax.scan(decide, base.init_carry(carry_key), inputs)[1]

    return jax.vmap(play)(histories, jax.random.split(key, len(histories)))
