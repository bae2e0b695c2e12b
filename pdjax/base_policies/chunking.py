"""Observation histories and action chunks: what a chunked policy reads and what it executes.

Pure functions, used both to cut training windows from demonstrations and in rollouts.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def start_history(obs: Array, obs_horizon: int) -> Array:
    """The history at an episode's start: the first observation repeated.

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
    obs: np.ndarray, actions: np.ndarray, obs_horizon: int, pred_horizon: int,
    from_now: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """All windows of one episode; beyond its ends the first or last entry repeats.

    A window at step t pairs the observations t - obs_horizon + 1 ... t with the actions from
    t - obs_horizon + 1 on, as Diffusion Policy aligns them: action index obs_horizon - 1 is the
    one to execute at t. With `from_now` the actions begin at t.

    Args:
      obs: (steps or steps + 1, obs_dim) of one episode.
      actions: (steps, act_dim).
      obs_horizon: observations per window.
      pred_horizon: actions per window.
      from_now: see above.

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
    """The actions that are executed of a (pred_horizon, act_dim) prediction."""
    return prediction[obs_horizon - 1 : obs_horizon - 1 + act_horizon]
