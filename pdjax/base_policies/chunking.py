"""Observation histories and action chunks: what a chunked policy reads and what it executes.

Pure functions, used both to cut training windows from demonstrations and in rollouts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.types import Array, BasePolicy, Params


def start_history(obs: Array, obs_horizon: int) -> Array:
    """Returns the history at the start of an episode: the first observation, repeated.

    Args:
      obs: (obs_dim,).
      obs_horizon: observations to keep.

    Returns:
      (obs_horizon, obs_dim), oldest first.
    """
    return jnp.repeat(obs[None], obs_horizon, axis=0)


def push_history(history: Array, obs: Array) -> Array:
    """Drops the oldest observation of a (obs_horizon, obs_dim) history and appends `obs`."""
    return jnp.concatenate([history[1:], obs[None]], axis=0)


def training_windows(
    obs: np.ndarray,
    actions: np.ndarray,
    obs_horizon: int,
    pred_horizon: int,
    from_now: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts all windows out of one episode; beyond its ends, the first or last entry repeats.

    The window at step t pairs the observations t - obs_horizon + 1 ... t with the actions from
    t - obs_horizon + 1 on, aligned as in Diffusion Policy: the action with index obs_horizon - 1 is
    executed at step t. With `from_now`, the actions begin at step t.

    Args:
      obs: (steps or steps + 1, obs_dim), the episode's observations.
      actions: (steps, act_dim), the episode's actions.
      obs_horizon: observations per window.
      pred_horizon: actions per window.
      from_now: whether a window's actions begin at step t, see above.

    Returns:
      (steps, obs_horizon, obs_dim) and (steps, pred_horizon, act_dim).
    """
    steps = len(actions)
    first = np.arange(steps)[:, None] - obs_horizon + 1
    obs_index = np.clip(first + np.arange(obs_horizon), 0, steps - 1)
    begin = first + obs_horizon - 1 if from_now else first
    action_index = np.clip(begin + np.arange(pred_horizon), 0, steps - 1)
    return obs[obs_index], actions[action_index]


def executed_part(prediction: Array, obs_horizon: int, act_horizon: int) -> Array:
    """Returns the executed part (act_horizon, act_dim) of a prediction (pred_horizon, act_dim)."""
    return prediction[obs_horizon - 1 : obs_horizon - 1 + act_horizon]


def step_by_step(base: BasePolicy) -> BasePolicy:
    """Turns a policy that acts in chunks into one that acts one control step at a time.

    The rest of a chunk waits in the carry, so a residual policy can respond to every observation
    while the base policy still plans chunks. This has a cost: environments reach the end of their
    chunks at different times, so the base policy is called for all of them at every control step.

    Args:
      base: a policy with any act_horizon.

    Returns:
      A policy with act_horizon 1. It executes exactly the actions of `base` if it gets the same
      keys at the decisions where a chunk begins.
    """
    end = base.act_horizon

    def init_carry(key: Array) -> Any:
        return base.init_carry(key), jnp.zeros((end, base.act_dim)), jnp.int32(end)

    def apply(params: Params, carry: Any, obs_history: Array, key: Array) -> tuple[Array, Any]:
        kept, chunk, index = carry
        new_chunk, new_kept = base.apply(params, kept, obs_history, key)
        is_over = index == end
        chunk = jnp.where(is_over, new_chunk, chunk)
        index = jnp.where(is_over, 0, index)
        kept = jax.tree.map(lambda new, old: jnp.where(is_over, new, old), new_kept, kept)
        return chunk[index][None], (kept, chunk, index + 1)

    return base._replace(init_carry=init_carry, apply=apply, act_horizon=1)
