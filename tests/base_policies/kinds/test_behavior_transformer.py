"""Behavior Transformer: bins, focal loss and offsets by hand; causality."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.base_policies import imitation, settings
from pdjax.base_policies.kinds import behavior_transformer
from pdjax.base_policies.kinds.attention import Keys, attend
from pdjax.base_policies.kinds.trainable import Windows
from pdjax.base_policies.settings import BehaviorTransformerConfig

CENTERS = jnp.array([[0.0, 0.0], [1.0, 0.0]])


def test_bins_are_the_means_of_separate_clusters(key):
    rng = np.random.default_rng(0)
    means = np.array([[-0.8, 0.0], [0.0, 0.7], [0.8, -0.2]])
    actions = (means[:, None] + 0.02 * rng.normal(size=(3, 50, 2))).reshape(-1, 2)
    found = np.asarray(behavior_transformer.fit_bins(jnp.asarray(actions), 3, key))
    order = np.argsort(found[:, 0])
    expected = actions.reshape(3, 50, 2).mean(axis=1)
    np.testing.assert_allclose(found[order], expected, atol=1e-5)


def test_more_bins_than_different_actions_stay_finite(key):
    centers = behavior_transformer.fit_bins(jnp.array([[0.5], [0.5], [-0.5]]), 4, key)
    assert set(np.asarray(centers)[:, 0].tolist()) == {0.5, -0.5}


def test_the_nearest_centre():
    assert behavior_transformer.nearest(jnp.array([[0.4, 5.0], [0.6, 5.0]]), CENTERS).tolist() == [
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        (0.0, 1.0986123),  # log 3: the cross-entropy at probability 1/3
        (2.0, 0.4882721),  # (2/3)^2 log 3
    ],
)
def test_the_focal_loss_by_hand(gamma, expected):
    logits = jnp.zeros((1, 3))
    assert behavior_transformer.focal_loss(logits, jnp.array([1]), gamma)[0] == pytest.approx(
        expected, rel=1e-6
    )


def test_the_loss_by_hand():
    # Bin 1 is nearest to (0.8, 0.1); its true offset is (-0.2, 0.1). Offset (0, 0) is predicted
    # there: mean squared error (0.04 + 0.01) / 2 = 0.025, times 1000; the offset predicted for
    # bin 0 does not count. Probability of bin 1 is 1/2: focal loss 0.25 log 2 = 0.1732868.
    prediction = behavior_transformer.Prediction(
        jnp.zeros((1, 1, 2)), jnp.array([[[[9.0, 9.0], [0.0, 0.0]]]])
    )
    found = behavior_transformer.loss(
        prediction, jnp.array([[[0.8, 0.1]]]), CENTERS, BehaviorTransformerConfig()
    )
    assert found == pytest.approx(25.1732868, rel=1e-6)


def test_greedy_takes_the_likeliest_bin_and_sampled_draws(key):
    # probabilities 3/4 and 1/4
    prediction = behavior_transformer.Prediction(
        jnp.log(jnp.array([0.25, 0.75])), jnp.array([[0.1, 0], [0, 0.2]])
    )
    assert behavior_transformer.choose(
        prediction, CENTERS, "greedy", key
    ).tolist() == pytest.approx([1.0, 0.2])
    keys = jax.random.split(key, 4000)
    drawn = jax.vmap(lambda k: behavior_transformer.choose(prediction, CENTERS, "sampled", k))(keys)
    assert (drawn[:, 0] > 0.5).mean() == pytest.approx(0.75, abs=0.03)
    first = drawn[drawn[:, 0] < 0.5]
    np.testing.assert_allclose(first, jnp.broadcast_to(jnp.array([0.1, 0]), first.shape), rtol=1e-6)


def test_attention_by_hand(key):
    # one head of width 1: scores 0 and log 3, so weights 1/4 and 3/4 of the values 0 and 4
    query, value = jnp.array([[1.0], [1.0]]), jnp.array([[0.0], [4.0]])
    scores = jnp.array([[0.0], [jnp.log(3.0)]])
    found = attend(query, scores, value, 1, False, Keys(None, 0)).ravel()
    assert found.tolist() == pytest.approx([3, 3])
    found = attend(query, scores, value, 1, True, Keys(None, 0)).ravel()
    assert found.tolist() == pytest.approx([0, 3])


def test_dropout_keeps_the_mean_and_is_off_without_a_key(key):
    x = jnp.ones(20_000)
    dropped = Keys(key, 0.25).drop(x)
    assert set(np.unique(dropped).tolist()) == {0.0, np.float32(1 / 0.75)}
    assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(Keys(None, 0.25).drop(x), x)
    twice = Keys(key, 0.25)
    assert (twice.drop(x) != twice.drop(x)).any()


CONFIG = BehaviorTransformerConfig(obs_horizon=4, bins=3, layers=2, heads=2, width=16, readout=8)


def network(config=CONFIG):
    graph, start = behavior_transformer.functional(
        lambda rngs: behavior_transformer._Transformer(config, 5, 2, rngs)
    )
    params = behavior_transformer.nnx.State(jax.jit(start)(jax.random.key(0)))
    return jax.jit(lambda obs: behavior_transformer.nnx.merge(graph, params)(obs, Keys(None, 0)))


def test_a_later_observation_changes_no_earlier_output(key):
    predict = network()
    obs = jax.random.normal(key, (1, 4, 5))
    before, after = predict(obs), predict(obs.at[:, 2].add(1.0))
    for one, other in zip(before, after):
        np.testing.assert_array_equal(one[:, :2], other[:, :2])
        assert (one[:, 2] != other[:, 2]).any() and (one[:, 3] != other[:, 3]).any()


def test_bins_are_not_trained_and_biases_do_not_decay():
    rng = np.random.default_rng(0)
    episodes = [(rng.normal(size=(9, 5)), rng.uniform(-1, 1, (8, 2))) for _ in range(6)]
    small = dataclasses.replace(CONFIG, layers=1)
    config = settings.ImitationConfig(kind="bet", bet=small, steps=20, validation=0)
    trainer = imitation.make_trainer(episodes, config)
    state = trainer.init()
    bins = np.asarray(state.fixed["bins"])
    trained = jax.device_get(state.params)
    for _ in range(3):
        state, _ = trainer.advance(state)
    np.testing.assert_array_equal(bins, trainer.make_policy(state).params["bins"])
    moved = jax.tree.map(lambda a, b: (a != b).any(), trained, jax.device_get(state.params))
    assert all(jax.tree.leaves(moved))
    kind = behavior_transformer.make_trainable(small, 5, 2)
    assert kind.decays is not None
    decays = kind.decays(state.params)["transformer"]
    assert decays["embed"] == {"kernel": True, "bias": False}
    assert decays["positions"] is False and decays["norm"]["scale"] is False


def test_a_bin_spans_a_chunk_that_begins_now():
    rising = 0.1 * np.arange(8)[:, None]
    shape = dataclasses.replace(CONFIG, layers=1, bins=8, act_horizon=2)
    config = settings.ImitationConfig(kind="bet", bet=shape, steps=20, validation=0)
    trainer = imitation.make_trainer([(np.ones((9, 5)), rising)], config)
    policy = trainer.make_policy(trainer.init())
    expected = np.concatenate([rising, rising[[1, 2, 3, 4, 5, 6, 7, 7]]], axis=1)
    bins = np.asarray(policy.params["bins"])
    np.testing.assert_allclose(bins[np.argsort(bins[:, 0])], expected, atol=1e-6)
    chunk, _ = policy.apply(policy.params, (), jnp.ones((shape.obs_horizon, 5)), jax.random.key(0))
    assert chunk.shape == (policy.act_horizon, 1) == (2, 1)


def test_size_is_the_reference_s():
    # policy_decorator: 4 blocks of 12 width^2 + 13 width, input, 10 positions, last norm, readout
    # of 256 without bias, head of 8 bins with 1 + 7 numbers
    kind = behavior_transformer.make_trainable(BehaviorTransformerConfig(), 50, 7)
    blank = Windows(jnp.zeros((1, 10, 50)), jnp.zeros((1, 10, 7)))
    shapes, fixed = jax.eval_shape(kind.init, jax.random.key(0), blank)
    blocks = 4 * (12 * 128**2 + 13 * 128)
    rest = 51 * 128 + 10 * 128 + 2 * 128 + 128 * 256 + 257 * 64
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == blocks + rest
    assert fixed["bins"].shape == (8, 7)
