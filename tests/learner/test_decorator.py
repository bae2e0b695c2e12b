"""The decorator: zero change at zero, bounded change, gate, inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.learner import decorator

BASE = jnp.array([[-0.0, 0.0, 1.0, -1.0, 0.3, 1e-30]], jnp.float32)


def bits(x):
    return np.asarray(x).view(np.uint32)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("residual", "scale"), [(0.7, 0.0), (-0.7, 0.0), (0.0, 0.3), (-0.0, 0.3), (-0.0, 0.0)]
)
def test_no_change_is_the_base_action_bitwise(residual, scale, jit):
    decorate = jax.jit(decorator.decorate) if jit else decorator.decorate
    result = decorate(BASE, jnp.full_like(BASE, residual), jnp.float32(scale))
    np.testing.assert_array_equal(bits(result), bits(BASE))


def test_decorate_adds_the_scaled_residual_unclipped():
    base = jnp.array([[0.5, -0.9, 1.0]])
    residual = jnp.array([[1.0, -1.0, 0.5]])
    # .5 + .2, -.9 - .2, 1 + .1
    np.testing.assert_allclose(decorator.decorate(base, residual, 0.2), [[0.7, -1.1, 1.1]])


def test_change_is_at_most_the_scale():
    rng = np.random.default_rng(0)
    base, residual = rng.uniform(-1, 1, (2, 500, 8)).astype(np.float32)
    residual[:250] = np.sign(residual[:250])  # extremes
    for scale in (0.03, 0.3, 1.0):
        acted = decorator.decorate(jnp.asarray(base), jnp.asarray(residual), scale)
        change = np.asarray(acted, float) - base
        # two numbers below 2 in size: one rounding of at most 2^-24 * 2
        assert np.max(np.abs(change)) <= scale + 2e-7
        assert np.max(np.abs(change)) > 0.99 * scale


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="residual_action has 2 numbers, expected a divisor"):
        decorator.decorate(jnp.zeros((4, 3)), jnp.zeros((4, 2)), 0.1)
    with pytest.raises(ValueError, match="residual_action has 2 numbers, expected a divisor"):
        decorator.critic_action(jnp.zeros((4, 3)), jnp.zeros((4, 2)), 0.1, "sum")


def test_a_held_residual_changes_every_control_step_of_the_chunk_alike():
    base = jnp.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])  # 3 control steps of 2 numbers
    held = jnp.array([[1.0, -0.5]])
    expected = [[0.2, 0.15, 0.4, 0.35, 0.6, 0.55]]
    np.testing.assert_allclose(decorator.decorate(base, held, 0.1), expected, rtol=1e-6)
    for kind, size in (("sum", 6), ("res", 2), ("concat", 8)):
        assert decorator.critic_action(base, held, 0.1, kind).shape == (1, size)
    np.testing.assert_allclose(decorator.critic_action(base, held, 0.1, "sum"), expected, rtol=1e-6)


def test_clip_action():
    clipped = decorator.clip_action(jnp.array([-1.2, -1.0, 0.4, 1.0, 1.3]))
    np.testing.assert_array_equal(clipped, np.array([-1.0, -1.0, 0.4, 1.0, 1.0], np.float32))


@pytest.mark.parametrize(
    ("steps", "horizon", "expected"),
    [
        (0, 1000, 0.0),
        (500, 1000, 0.5),
        (1000, 1000, 1.0),
        (2000, 1000, 1.0),
        (0, 0, 1.0),
        (7, 0, 1.0),
        (0, -5, 1.0),
    ],
)
def test_exploration_prob(steps, horizon, expected):
    assert decorator.exploration_prob(steps, horizon) == expected
    traced = jax.jit(decorator.exploration_prob)(jnp.int32(steps), jnp.float32(horizon))
    assert traced == expected


@pytest.mark.parametrize("prob", [0.0, 0.25, 1.0])
def test_gate_opens_with_the_given_probability(key, prob):
    opened = decorator.gate(key, prob, 10_000)
    assert opened.shape == (10_000,)
    assert opened.dtype == bool
    # standard deviation of the mean is at most .005; exact at 0 and 1
    assert abs(opened.mean() - prob) <= (0.02 if 0 < prob < 1 else 0)


def test_actor_input():
    obs, base = jnp.array([[1.0, 2.0]]), jnp.array([[3.0]])
    np.testing.assert_array_equal(decorator.actor_input(obs, base, "obs"), [[1, 2]])
    both = decorator.actor_input(obs, base, "obs_base_action")
    np.testing.assert_array_equal(both, [[1, 2, 3]])
    with pytest.raises(ValueError, match="actor_input='nothing'"):
        decorator.actor_input(obs, base, "nothing")


def test_critic_action():
    base, residual = jnp.array([[1.0, 0.5]]), jnp.array([[0.5, -1.0]])
    expected = {
        "sum": [[1.125, 0.25]],  # 1 + .25 * .5 (not clipped), .5 - .25
        "res": [[0.5, -1.0]],
        "concat": [[0.5, -1.0, 1.0, 0.5]],
    }
    for kind, value in expected.items():
        np.testing.assert_array_equal(decorator.critic_action(base, residual, 0.25, kind), value)
    with pytest.raises(ValueError, match="critic_input='product'"):
        decorator.critic_action(base, residual, 0.25, "product")


def test_critic_action_has_a_gradient_at_residual_zero():
    def total(residual):
        return decorator.critic_action(jnp.ones(3), residual, 0.25, "sum").sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.zeros(3)), np.full(3, 0.25))


def test_normalize_whitens_and_clips():
    mean, std = jnp.array([1.0, 0.0, 0.0]), jnp.array([2.0, 0.001, 0.001])
    result = decorator.normalize(jnp.array([[5.0, 1.0, -1.0]]), mean, std)
    np.testing.assert_allclose(result, [[2.0, 10.0, -10.0]])


def test_the_uncertain_gate_opens_where_draws_differ_most_in_the_right_share(key):
    uncertainty = jnp.array([0.1, 0.7, 0.0, 0.4])
    gate = jax.jit(jax.vmap(decorator.gate_uncertain, (0, None, None)))

    def draw(prob, uncertainty=uncertainty):
        return gate(jax.random.split(jax.random.clone(key), 2000), prob, uncertainty)

    assert (draw(0.5) == jnp.array([False, True, False, True])).all()
    most = draw(0.65)  # 2.6 of 4: the third most uncertain at times
    assert most[:, [1, 3]].all() and not most[:, 2].any()
    assert abs(most[:, 0].mean() - 0.6) < 0.05
    assert not draw(0.0).any() and draw(1.0).all()
    equals = draw(0.25, jnp.zeros(4)).mean(axis=0)  # a base policy without noise: by chance
    np.testing.assert_allclose(equals, 0.25, atol=0.05)


def test_hold_undoes_spread():
    residual = jax.random.uniform(jax.random.key(0), (5, 3), minval=-1.0)
    np.testing.assert_allclose(decorator.hold(decorator.spread(residual, 12), 3), residual, 1e-6)
    chunk = jnp.array([[1.0, 0.0, 3.0, 2.0]])  # two steps of two numbers
    np.testing.assert_allclose(decorator.hold(chunk, 2), [[2.0, 1.0]])
