"""Networks: start values as PyTorch's, bounds, a density that integrates to one, layout."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.config.schema import SACConfig
from pdjax.learner.networks import make_critics, make_residual_policy, sample

CONFIG = SACConfig(hidden=(64, 32), log_std_min=-5.0, log_std_max=1.0)


@pytest.fixture(scope="module")
def policy_and_params():
    policy = make_residual_policy(20, 6, CONFIG)
    return policy, jax.jit(policy.init)(jax.random.key(0))


def test_hidden_layers_start_as_torch_linear(policy_and_params):
    _, params = policy_and_params
    for layer, fan_in in zip(params["hidden"].values(), (20, 64)):
        bound = fan_in**-0.5
        for entries in layer.values():
            assert np.max(np.abs(entries)) <= bound
            assert np.max(np.abs(entries)) > 0.9 * bound
        # uniform in +-bound has standard deviation bound / sqrt(3)
        assert np.std(layer["kernel"]) == pytest.approx(bound / 3**0.5, rel=0.1)
    first, second = params["hidden"].values()
    assert not np.array_equal(first["kernel"].ravel()[:32], second["kernel"].ravel()[:32])


def test_heads_start_orthogonal_with_a_small_gain(policy_and_params):
    _, params = policy_and_params
    for head in ("mean", "log_std"):
        kernel = np.asarray(params[head]["kernel"])  # (32, 6)
        np.testing.assert_allclose(kernel.T @ kernel, 1e-4 * np.eye(6), atol=1e-9)
        assert not np.any(params[head]["bias"])
    assert not np.allclose(params["mean"]["kernel"], params["log_std"]["kernel"])


def test_log_std_stays_within_its_bounds(policy_and_params):
    policy, params = policy_and_params
    huge = jax.tree.map(lambda x: 1000 * x, params)
    inputs = jax.random.normal(jax.random.key(0), (50, 20))
    _, log_std = policy.apply(huge, inputs)
    np.testing.assert_allclose([log_std.min(), log_std.max()], [-5.0, 1.0], atol=1e-5)
    _, log_std = policy.apply(params, inputs)
    np.testing.assert_allclose(log_std, -2.0, atol=0.1)  # the middle, at the start


def test_sample_is_tanh_of_the_gaussian_draw(key):
    mean, log_std = jnp.array([0.3, -2.0]), jnp.array([-1.0, 0.5])
    noise = jax.random.normal(jax.random.clone(key), (2,))
    action, _ = sample(mean, log_std, jax.random.normal(key, mean.shape))
    np.testing.assert_allclose(action, np.tanh(mean + np.exp(log_std) * noise), rtol=1e-6)


def test_log_prob_is_the_density_of_the_action(key):
    """For one dimension the density of the action is d/da of the Gaussian's distribution function.

    P(action < a) = Phi((atanh(a) - mean) / std); compared by central differences.
    """
    mean, log_std = jnp.full((200, 1), 0.4), jnp.full((200, 1), -0.5)
    action, log_prob = sample(mean, log_std, jax.random.normal(key, mean.shape))
    a, step = np.asarray(action[:, 0], float), 1e-5

    def below(value):
        z = (np.arctanh(value) - 0.4) / np.exp(-0.5)
        return np.array([0.5 * (1 + math.erf(x / 2**0.5)) for x in z])

    density = (below(a + step) - below(a - step)) / (2 * step)
    inner = np.abs(a) < 0.9
    np.testing.assert_allclose(np.exp(log_prob)[inner], density[inner], rtol=1e-3)
    assert inner.sum() > 100


def test_log_prob_sums_over_the_last_axis(key):
    mean, log_std = jnp.zeros((2, 3)), jnp.full((2, 3), -1.0)
    action, log_prob = sample(mean, log_std, jax.random.normal(key, mean.shape))
    noise = np.arctanh(np.asarray(action, float)) / np.exp(-1.0)
    normal = -(noise**2) / 2 + 1.0 - np.log(2 * np.pi) / 2
    expected = (normal - np.log(1 - np.asarray(action, float) ** 2)).sum(axis=-1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4)


@pytest.mark.parametrize("mean", [-30.0, 12.0, 30.0])
def test_log_prob_and_gradient_are_exact_where_tanh_saturates(key, mean):
    def log_prob_of(mean):
        action, log_prob = sample(mean[None], jnp.array([-20.0]), jax.random.normal(key, (1,)))
        return log_prob, action

    as_users_run = {"xla_backend_optimization_level": 3}  # without it tanh ends at 0.9999998
    both = jax.jit(jax.value_and_grad(log_prob_of, has_aux=True), compiler_options=as_users_run)
    (log_prob, action), grad = both(jnp.array(mean))
    assert np.abs(action) == 1
    # width e^-20, so x = mean; log(1 - tanh^2 x) = 2 (log 2 - |x|) up to e^-2|x|
    noise = jax.random.normal(jax.random.clone(key), (1,))[0]
    expected = -(noise**2) / 2 + 20 - np.log(2 * np.pi) / 2 - 2 * (np.log(2) - abs(mean))
    assert log_prob == pytest.approx(float(expected), rel=1e-5)
    assert grad == pytest.approx(2 * np.sign(mean))


@pytest.mark.parametrize("layer_norm", [False, True])
def test_critics_are_independent_and_stacked(layer_norm):
    config = SACConfig(hidden=(16, 8), num_critics=3, critic_layer_norm=layer_norm)
    critics = make_critics(4, 3, config)
    params = jax.jit(critics.init)(jax.random.key(0))
    apply = jax.jit(critics.apply)
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(params))
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(5, 4)), rng.normal(size=(5, 3))
    values = apply(params, obs, action)
    assert values.shape == (3, 5)
    assert np.unique(values).size == 15

    only_second = jax.tree.map(np.array, params)
    for leaf in jax.tree.leaves(only_second):
        leaf[1] *= 2
    changed = np.any(apply(only_second, obs, action) != values, axis=1)
    np.testing.assert_array_equal(changed, [False, True, False])

    # whitened features have norm <= sqrt(8) and the last kernel .01, however far the input is
    far = np.abs(apply(params, 1e4 * np.ones((5, 4)), action))
    assert np.all(far <= 0.01 * 8**0.5) == layer_norm
