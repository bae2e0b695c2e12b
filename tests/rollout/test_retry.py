"""Retries: episodes that go on from a random moment of the failed one before them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.config.schema import Config, TrainConfig
from pdjax.rollout.collect import make_rollout
from pdjax.rollout.decision import Frozen
from tests.probe import make_constant_policy, make_point_env


def collect(env, base, decisions, num_envs, share):
    """Returns the rows and the counts of collecting without residual."""
    rollout = make_rollout(env, base, Config(train=TrainConfig(retry_share=share)))
    frozen = Frozen(env.model, base.params, base.obs_mean, base.obs_std)

    def choose(obs, base_action, key, index):
        del obs, key, index
        return jnp.zeros_like(base_action), 1.0

    @jax.jit
    def play(key):
        start_key, keys_key = jax.random.split(key)
        state = rollout.init(frozen, start_key, num_envs)
        return rollout.collect(frozen, state, choose, jax.random.split(keys_key, decisions))

    state, rows, metrics = play(jax.random.key(0))
    return state, jax.device_get(rows), jax.device_get(metrics)


def pairs(rows):
    """Yields the observations of each episode and of the whole one after it, (decisions, 3)."""
    for env in range(rows.is_reset.shape[1]):
        # the row of a reset holds the last observation of the episode that it ends
        ends = np.flatnonzero(rows.is_reset[:, env])
        bounds = [0, *(ends + 1)]
        episodes = [rows.obs[a:b, env] for a, b in itertools.pairwise(bounds)]
        yield from itertools.pairwise(episodes)


def test_a_failed_episode_goes_on_from_one_of_its_own_moments_with_the_time_that_was_left():
    env, base = make_point_env(episode_steps=6, goal=9.0), make_constant_policy(0.1, act_horizon=1)
    _, rows, metrics = collect(env, base, decisions=40, num_envs=16, share=1.0)
    found = list(pairs(rows))
    assert len(found) > 50
    for before, after in found:
        moments = before[1:-1]  # between two decisions
        if len(moments):
            assert (moments == after[0]).all(axis=1).any()
        else:  # it was over after one decision: no moment is left, so a new one starts
            assert after[0, 2] == 0
        assert after[-1, 2] == 6  # control steps, as the observation shows them
        assert len(after) == 6 - after[0, 2] + 1
    # Only episodes from true starts are counted, and most of these have ended.
    is_start = np.roll(rows.is_reset, 1, axis=0) & (rows.obs[:, :, 2] == 0)
    begun = 16 + is_start[1:].sum()
    assert begun - 16 <= metrics["episodes"] <= begun


def test_every_moment_of_an_episode_is_equally_likely():
    env, base = make_point_env(episode_steps=6, goal=9.0), make_constant_policy(0.1, act_horizon=1)
    _, rows, _ = collect(env, base, decisions=8, num_envs=4_000, share=1.0)
    # Decisions 1 to 5 of the first episodes are followed by another one; row 6 is the reset.
    steps, counts = np.unique(rows.obs[7, :, 2], return_counts=True)
    np.testing.assert_array_equal(steps, [1, 2, 3, 4, 5])
    assert np.abs(counts - 800).max() < 4 * np.sqrt(800 * 0.8)


def test_only_the_given_share_is_tried_again_and_success_never():
    env, base = make_point_env(episode_steps=6, goal=9.0), make_constant_policy(0.1, act_horizon=1)
    _, rows, _ = collect(env, base, decisions=8, num_envs=4_000, share=0.25)
    retried = (rows.obs[7, :, 2] > 0).mean()
    assert abs(retried - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4_000)

    env, base = (
        make_point_env(episode_steps=50),
        make_constant_policy(1.0, act_horizon=1),
    )  # reaches its goal
    _, rows, metrics = collect(env, base, decisions=60, num_envs=16, share=1.0)
    assert metrics["successes"] == metrics["episodes"] > 50
    for before, after in pairs(rows):
        assert len(before) > 2 and after[0, 2] == 0


def test_what_was_cut_is_not_tried_again():
    env, plain = make_point_env(episode_steps=6, goal=9.0), make_constant_policy(0.1, act_horizon=1)

    def apply(params, carry, obs_history, key):
        chunk, carry = plain.apply(params, carry, obs_history, key)
        return jnp.where(obs_history[-1, 2] == 3, jnp.nan, chunk), carry

    state, rows, metrics = collect(env, plain._replace(apply=apply), 40, 16, share=1.0)
    assert metrics["cut_episodes"] > 50
    is_reset = rows.is_reset & ~rows.truncated  # both marks: a hole
    firsts = rows.obs[1:][is_reset[:-1]]
    assert len(firsts) > 50 and (firsts[:, 2] == 0).all()
    assert not state.retry.is_retry.any()
