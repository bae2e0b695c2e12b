"""ACT: temporal ensembling and divergence by hand; style is used in training only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.base_policies.kinds import act
from pdjax.base_policies.kinds.trainable import Windows
from pdjax.base_policies.settings import ActConfig
from pdjax.config.options import ConfigError

SMALL = ActConfig(
    pred_horizon=4, act_horizon=2, encoder_layers=1, heads=2, width=16, feedforward=32, latent_dim=4
)


def test_temporal_ensembling_by_hand():
    # chunks predicted at steps 0, 1 and 2; the oldest has weight 1, the next 1/2, then 1/4
    decay = float(np.log(2))
    ensemble = act.empty_ensemble(3, 1)
    action, ensemble = act.blend(ensemble, jnp.array([[1.0], [2.0], [3.0]]), decay)
    assert action.tolist() == [1]
    action, ensemble = act.blend(ensemble, jnp.array([[5.0], [6.0], [7.0]]), decay)
    assert action[0] == pytest.approx((2 + 5 / 2) / 1.5)
    action, ensemble = act.blend(ensemble, jnp.array([[9.0], [0.0], [0.0]]), decay)
    assert action[0] == pytest.approx((3 + 6 / 2 + 9 / 4) / 1.75)
    # all actions of the chunk of step 0 have been executed
    action, _ = act.blend(ensemble, jnp.array([[8.0], [0.0], [0.0]]), decay)
    assert action[0] == pytest.approx((7 + 0 / 2 + 8 / 4) / 1.75)


def test_the_divergence_by_hand():
    # KL(N(1, 2) || N(0, 1)) = (2 + 1 - 1 - log 2) / 2 = 0.6534264; KL(N(0, 1) || N(0, 1)) = 0
    mean, log_variance = jnp.array([[1.0, 0.0]]), jnp.array([[jnp.log(2.0), 0.0]])
    assert act.divergence(mean, log_variance)[0] == pytest.approx(0.6534264, rel=1e-6)


def make(config=SMALL):
    kind = act.make_trainable(config, 3, 2)
    blank = Windows(jnp.zeros((1, 1, 3)), jnp.zeros((1, config.pred_horizon, 2)))
    params, _ = jax.jit(kind.init)(jax.random.key(0), blank)
    return kind, params


def test_the_loss_counts_divergence_by_its_weight(key):
    windows = Windows(jnp.ones((8, 1, 3)), jnp.full((8, 4, 2), 0.5))
    _, params = make()
    losses = []
    for weight in (0.0, 1.0, 3.0):
        kind = act.make_trainable(dataclasses.replace(SMALL, kl_weight=weight), 3, 2)
        losses.append(float(jax.jit(kind.loss)(params, windows, jax.random.clone(key))))
    assert losses[0] < losses[1]
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)


def policy_of(config):
    kind, params = make(config)
    return kind.make_policy(params | {"obs_mean": jnp.zeros(3), "obs_std": jnp.ones(3)})


def test_a_rollout_needs_no_noise():
    policy = policy_of(SMALL)
    apply, obs = jax.jit(policy.apply), jnp.ones((1, 3))
    first, _ = apply(policy.params, (), obs, jax.random.key(0))
    second, _ = apply(policy.params, (), obs, jax.random.key(1))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (2, 2)


def test_an_ensembled_rollout_blends_the_same_predictions():
    plain = policy_of(dataclasses.replace(SMALL, act_horizon=4))
    blended = policy_of(dataclasses.replace(SMALL, act_horizon=1, temporal_ensemble=True))
    carry = blended.init_carry(jax.random.key(0))
    plainly, blending = jax.jit(plain.apply), jax.jit(blended.apply)
    chunks, actions = [], []
    for step in range(3):
        obs = jnp.full((1, 3), float(step))
        chunks.append(plainly(plain.params, (), obs, jax.random.key(0))[0])
        action, carry = blending(blended.params, carry, obs, jax.random.key(0))
        actions.append(action)
    assert actions[0].shape == (1, 2)
    weights = np.exp(-0.01 * np.arange(3))
    expected = sum(w * chunks[i][2 - i] for i, w in enumerate(weights)) / weights.sum()
    np.testing.assert_allclose(actions[2][0], expected, rtol=1e-5)


def test_ensembling_with_longer_chunks_is_refused():
    with pytest.raises(ConfigError, match="act_horizon=4 must be 1 with temporal_ensemble"):
        ActConfig(temporal_ensemble=True).validate()
    with pytest.raises(ConfigError, match="pred_horizon=8 must be >= act_horizon=9"):
        ActConfig(act_horizon=9).validate()
    with pytest.raises(ConfigError, match="width got 128, expected a multiple of 3"):
        ActConfig(heads=3).validate()


def test_without_style_the_loss_is_the_distance_from_what_a_rollout_predicts():
    config = dataclasses.replace(
        SMALL, act_horizon=4, obs_horizon=2, obs_tokens=2, style=False, decoder_norm=True
    )
    kind = act.make_trainable(config, 3, 2)
    rng = np.random.default_rng(0)
    obs = jnp.asarray(rng.normal(size=(5, 2, 3)), jnp.float32)
    actions = jnp.asarray(rng.uniform(-1, 1, size=(5, 4, 2)), jnp.float32)
    params, _ = jax.jit(kind.init)(jax.random.key(0), Windows(obs, actions))
    assert not [name for name in params["act"] if name.startswith(("style", "summary"))]
    assert params["act"]["places"].shape == (1 + 2 * 2, 16)  # z, and two tokens per observation
    params["act"]["out"]["kernel"] *= 0.1  # so that nothing is clipped
    base = kind.make_policy(params | {"obs_mean": jnp.zeros(3), "obs_std": jnp.ones(3)})
    apply = jax.jit(base.apply)
    chunks = [apply(base.params, (), seen, jax.random.key(1))[0] for seen in obs]
    expected = np.abs(np.stack(chunks) - actions).mean()
    loss = jax.jit(kind.loss)(params, Windows(obs, actions), jax.random.key(2))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
