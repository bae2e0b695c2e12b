"""Plays a base policy alone, without any residual."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.rollout.collect import make_rollout
from pdjax.rollout.decision import Frozen
from pdjax.rollout.evaluate import Evaluation
from pdjax.types import BasePolicy, Key, Params
from pdjax_envs.task import Env


def make_base_success(env: Env, policy: BasePolicy) -> Callable[[Params, int, int], np.ndarray]:
    """(params, episodes, seed) -> (episodes,) bool, success_once of a base policy alone; compiled
    once for each number of episodes."""
    play = make_base_play(env, policy)
    return lambda params, episodes, seed: np.asarray(play(params, seed, episodes).success_once)


def base_success(env: Env, policy: BasePolicy, episodes: int, seed: int = 30_000) -> np.ndarray:
    """(episodes,) bool, success_once of a base policy alone."""
    return make_base_success(env, policy)(policy.params, episodes, seed)


def make_base_play(env: Env, base: BasePolicy) -> Callable[..., Evaluation]:
    """(params, seed, episodes, record=False) -> Evaluation of a base policy alone, on the host.

    Compiled once for each number of episodes; params are of the base policy.
    """
    rollout = make_rollout(env, base)

    @partial(jax.jit, static_argnums=(2, 3))
    def play(frozen: Frozen, key: Key, episodes: int, record: bool) -> Evaluation:
        nothing = lambda obs, base_action: jnp.zeros_like(base_action)  # noqa: E731
        return rollout.evaluate(frozen, nothing, 0.0, key, episodes, record)

    def on_host(params: Params, seed: int, episodes: int, record: bool = False) -> Evaluation:
        frozen = Frozen(env.model, params, base.obs_mean, base.obs_std)
        return jax.device_get(play(frozen, jax.random.key(seed), episodes, record))

    return on_host


def try_policy(env: Env, base: BasePolicy, episodes: int, seed: int):
    """Plays whole episodes to the time limit.

    Args:
      env: whose episodes do not end at success.
      base: the policy.
      episodes: played side by side.
      seed: of the episodes.

    Returns:
      Observations (n, obs_dim) and base actions (n, chunk_dim) of all decisions, and the number
      of episodes with success.
    """
    rollout = make_rollout(env, base)
    frozen = Frozen(env.model, base.params, base.obs_mean, base.obs_std)
    decisions = -(-env.task.episode_steps // base.act_horizon)

    def nothing(obs, base_action, key, index):
        del obs, key, index
        return jnp.zeros_like(base_action), 0.0

    def play(frozen, key):
        start_key, keys_key = jax.random.split(key)
        state = rollout.init(frozen, start_key, episodes)
        return rollout.collect(frozen, state, nothing, jax.random.split(keys_key, decisions))[1:]

    rows, counts = jax.device_get(jax.jit(play)(frozen, jax.random.key(seed)))
    flat = lambda x: x.reshape(-1, x.shape[-1])  # noqa: E731
    return flat(rows.obs), flat(rows.base_action), int(counts["successes"])
