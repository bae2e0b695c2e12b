"""Gaussian and mixture MLP: likelihood and actions by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.base_policies.kinds import mlp
from pdjax.base_policies.kinds.mlp import Mixture
from pdjax.base_policies.kinds.trainable import Windows
from pdjax.base_policies.settings import MLPConfig

# weights 3/4 and 1/4, means 0 and 1, deviations 1 and 1/2
MIXTURE = Mixture(
    jnp.log(jnp.array([3.0, 1.0])), jnp.array([[0.0], [1.0]]), jnp.array([[1.0], [0.5]])
)


def test_the_likelihood_by_hand():
    # at 1: 3/4 * 0.2419707 + 1/4 * 0.7978846 = 0.3809492
    found = mlp.log_likelihood(MIXTURE, jnp.array([1.0]))
    assert found == pytest.approx(np.log(0.3809492), rel=1e-5)


def test_the_likelihood_of_a_chunk_is_a_product():
    one = Mixture(jnp.zeros(1), jnp.zeros((1, 3)), jnp.full((1, 3), 0.5))
    # each: log(0.7978846) - 2 x^2
    x = np.array([0.0, 0.5, -1.0])
    expected = np.sum(np.log(0.7978846) - 2 * x**2)
    assert mlp.log_likelihood(one, jnp.asarray(x)) == pytest.approx(expected, rel=1e-5)


def test_greedy_takes_the_likeliest_component_and_sampled_draws(key):
    assert mlp.choose(MIXTURE, "greedy", key).tolist() == [0.0]
    keys = jax.random.split(key, 20_000)
    drawn = jax.vmap(lambda k: mlp.choose(MIXTURE, "sampled", k))(keys)
    assert drawn.mean() == pytest.approx(0.25, abs=0.03)
    # variance within the components 3/4 * 1 + 1/4 * 1/4, plus 3/16 between their means
    assert drawn.var() == pytest.approx(1.0, abs=0.05)


def test_deviations_stay_above_the_floor_and_earn_nothing_below():
    config = MLPConfig(hidden=(8,), act_horizon=1, std_floor=0.1)
    kind = mlp.make_trainable(config, 1, 1)
    windows = Windows(jnp.zeros((4, 1, 1)), jnp.zeros((4, 1, 1)))
    params, _ = kind.init(jax.random.key(0), windows)
    params = jax.tree.map(jnp.zeros_like, params)
    params["mlp"]["std"]["bias"] -= 50.0  # softplus gives 0
    # mean 0, std 0.1 at 0: log density log(10 / sqrt(2 pi)) = 1.3836466
    found = kind.loss(params, windows, jax.random.key(1))
    assert found == pytest.approx(-1.3836466, rel=1e-5)
