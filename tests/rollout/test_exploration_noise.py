"""Exploration noise that is correlated from decision to decision."""

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.config.schema import Config, SACConfig
from pdjax.rollout.collect import make_rollout
from pdjax.rollout.decision import Frozen
from tests.probe import make_constant_policy, make_point_env

ENVS, DECISIONS, WARM = 64, 400, 50


def noise_of(correlation):
    """Returns the noise (decisions, environments) that an `Explore` gets, as the rows keep it."""
    env, base = make_point_env(episode_steps=7, goal=9.0), make_constant_policy(0.0, act_horizon=1)
    rollout = make_rollout(env, base, Config(sac=SACConfig(noise_correlation=correlation)))
    frozen = Frozen(env.model, base.params, base.obs_mean, base.obs_std)

    def explore(obs, base_action, key, index, noise):
        del obs, base_action, key, index
        return noise, 0.0

    @jax.jit
    def play(key):
        state = rollout.init(frozen, key, ENVS)
        keys = jax.random.split(jax.random.fold_in(key, 1), DECISIONS)
        return rollout.collect(frozen, state, explore, keys)[1]

    return np.asarray(play(jax.random.key(0)).residual_action)[WARM:, :, 0]


def test_noise_stays_standard_normal_and_its_correlation_falls_by_the_same_factor_each_decision():
    rho = 0.8
    noise = noise_of(rho)
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.03
    for lag in (1, 2, 5):  # across episodes too, which end every eighth decision
        found = np.mean(noise[lag:] * noise[:-lag])
        assert abs(found - rho**lag) < 0.04
    other = np.mean(noise[:, 1:] * noise[:, :-1])
    assert abs(other) < 0.04  # no environment knows another's


def test_without_correlation_no_noise_is_kept():
    env, base = make_point_env(), make_constant_policy(0.0)
    state = make_rollout(env, base).init(
        Frozen(env.model, base.params, base.obs_mean, base.obs_std), jax.random.key(0), 3
    )
    assert state.noise == () and state.retry == ()
    assert jnp.shape(state.done) == (3,)
