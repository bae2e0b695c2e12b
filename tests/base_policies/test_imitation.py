"""Imitation: windows and noise schedule by hand, exact denoising, a toy task from data to disk."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.base_policies import imitation, load
from pdjax.base_policies.chunking import (
    executed_part,
    push_history,
    start_history,
    training_windows,
)
from pdjax.base_policies.kinds import diffusion
from pdjax.base_policies.kinds.diffusion import Denoiser
from pdjax.base_policies.settings import DiffusionConfig, ImitationConfig
from pdjax.config.options import ConfigError
from pdjax.output import checkpoint


def test_training_windows_by_hand():
    # each entry is its own index; beyond the ends, the first or last entry repeats
    obs, actions = np.arange(5.0)[:, None], 10 * np.arange(4.0)[:, None]
    cond, chunks = training_windows(obs, actions, obs_horizon=2, pred_horizon=4)
    assert cond[..., 0].tolist() == [[0, 0], [0, 1], [1, 2], [2, 3]]
    assert chunks[..., 0].tolist() == [
        [0, 0, 10, 20],
        [0, 10, 20, 30],
        [10, 20, 30, 30],
        [20, 30, 30, 30],
    ]
    # the executed part of the window at step t starts with action t
    for step, chunk in enumerate(chunks):
        assert executed_part(chunk, 2, 2)[0, 0] == 10 * step


def test_windows_from_now_begin_with_the_action_to_execute():
    obs, actions = np.arange(5.0)[:, None], 10 * np.arange(4.0)[:, None]
    cond, chunks = training_windows(obs, actions, obs_horizon=2, pred_horizon=3, from_now=True)
    assert cond[..., 0].tolist() == [[0, 0], [0, 1], [1, 2], [2, 3]]
    assert chunks[..., 0].tolist() == [[0, 10, 20], [10, 20, 30], [20, 30, 30], [30, 30, 30]]


def test_a_history_starts_repeated_and_forgets_the_oldest():
    history = start_history(jnp.array([1.0]), 3)
    assert history[:, 0].tolist() == [1, 1, 1]
    assert push_history(history, jnp.array([2.0]))[:, 0].tolist() == [1, 1, 2]


def test_the_noise_schedule_by_hand():
    alphas = diffusion.alphas_cumprod()
    assert alphas.shape == (100,)
    assert (np.diff(alphas) < 0).all()
    # cos^2(0.018 / 1.008 pi/2) / cos^2(0.008 / 1.008 pi/2) = 0.9992133 / 0.9998446
    assert alphas[0] == pytest.approx(0.9993686, abs=1e-6)
    # the last beta is capped at 0.999: cos^2(0.998 / 1.008 pi/2) / 0.9998446 / 1000
    assert alphas[-1] == pytest.approx(2.4287e-7, rel=1e-3)


def exact_denoiser(clean, prediction):
    """A denoiser that knows the clean chunk, so it predicts without error."""

    def apply(params, noisy, step, cond):
        del params, cond
        alpha = jnp.asarray(diffusion.alphas_cumprod())[step][:, None]
        noise = (noisy - jnp.sqrt(alpha) * clean) / jnp.sqrt(1 - alpha)
        return noise if prediction == "epsilon" else jnp.broadcast_to(clean, noisy.shape)

    return Denoiser(lambda key: {}, apply, prediction)


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
@pytest.mark.parametrize("steps", [1, 4, 100])
def test_exact_predictions_are_denoised_to_the_clean_chunk(key, prediction, steps):
    clean = jnp.linspace(-0.9, 0.9, 6)[None]
    noise = jax.random.normal(key, (3, 6))
    denoiser = exact_denoiser(clean, prediction)
    chunks = diffusion.ddim_sample(denoiser, {}, jnp.zeros((3, 2)), noise, steps)
    np.testing.assert_allclose(chunks, jnp.broadcast_to(clean, (3, 6)), atol=1e-4)


def test_samples_stay_in_the_range_of_actions(key):
    denoiser = exact_denoiser(jnp.full((1, 6), 3.0), "sample")
    chunks = diffusion.ddim_sample(
        denoiser, {}, jnp.zeros((3, 2)), jax.random.normal(key, (3, 6)), 4
    )
    np.testing.assert_array_equal(chunks, jnp.ones((3, 6)))


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_the_loss_is_nothing_for_exact_predictions_and_the_target_s_square_for_none(
    key, prediction
):
    clean = jnp.full((4096, 6), 0.5)
    exact = exact_denoiser(clean, prediction)
    silent = exact._replace(apply=lambda params, noisy, step, cond: jnp.zeros_like(noisy))
    first, second = jax.random.split(key)
    batch = (jnp.zeros((4096, 2)), clean)
    assert diffusion.loss(exact, {}, batch, first) < 1e-6
    # 0.5^2 for samples, or the variance of standard noise
    expected = 0.25 if prediction == "sample" else 1.0
    assert diffusion.loss(silent, {}, batch, second) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_horizon": 8}, r"pred_horizon=8 must be >= obs_horizon - 1 \+ act_horizon = 9"),
        ({"act_horizon": 0}, r"act_horizon got 0, expected integer 1 to 1000"),
        ({"ddim_steps": 101}, r"ddim_steps got 101, expected integer 1 to 100"),
        ({"ddim_steps": 0}, r"ddim_steps got 0, expected integer 1 to 100"),
        ({"prediction": "noise"}, r"prediction got 'noise', expected sample \| epsilon"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        DiffusionConfig(**change).validate()


def test_the_longest_possible_chunk_is_accepted():
    DiffusionConfig(act_horizon=7).validate()


# A toy task: the action is half the latest observation.

TOY = ImitationConfig(
    diffusion=DiffusionConfig(pred_horizon=4, act_horizon=2, hidden=32, blocks=1),
    steps=400,
    batch_size=64,
    validation=0.1,
)


@pytest.fixture(scope="module")
def toy():
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(30):
        # constant within an episode, so that an observation determines the whole chunk
        obs = np.repeat(rng.uniform(-1, 1, (1, 2)), 9, axis=0).astype(np.float32)
        episodes.append((obs, 0.5 * obs[:-1]))
    history = []
    policy = imitation.train(episodes, TOY, lambda step, losses: history.append((step, losses)))
    return policy, history


def act(policy, obs, seed=0):
    history = jnp.repeat(jnp.asarray(obs, jnp.float32)[None], policy.obs_horizon, axis=0)
    return policy.apply(policy.params, (), history, jax.random.key(seed))[0]


def test_imitation_learns(toy):
    policy, history = toy
    assert history[-1][0] == TOY.steps
    for name in ("train_loss", "validation_loss"):
        assert history[-1][1][name] < 0.1 * history[0][1][name]
    for obs in ([0.8, -0.4], [-0.6, 0.2]):
        np.testing.assert_allclose(act(policy, obs), np.tile(obs, (2, 1)) / 2, atol=0.1)


def test_a_policy_carries_the_statistics_of_its_data(toy):
    policy, _ = toy
    assert (policy.obs_dim, policy.act_dim) == (2, 2)
    assert (policy.obs_horizon, policy.act_horizon) == (2, 2)
    np.testing.assert_allclose(policy.obs_std, [0.58, 0.58], atol=0.12)  # uniform: 1 / sqrt(3)


def test_constant_observations_are_not_blown_up():
    episodes = [(np.full((4, 2), 7.0), np.zeros((3, 1)))] * 2
    mean, std = imitation.statistics(episodes)
    assert mean.tolist() == [7, 7]
    assert std.tolist() == [imitation.STD_FLOOR] * 2


@pytest.fixture
def policy_directory(toy, tmp_path):
    policy, _ = toy
    directory = tmp_path / "policy"
    directory.mkdir()
    imitation.save(directory, policy, TOY, "Toy")
    return directory


def test_a_policy_read_back_acts_bitwise_the_same(toy, policy_directory):
    policy, _ = toy
    loaded, task = imitation.load(policy_directory)
    assert task == "Toy"
    for seed, obs in enumerate(([0.3, 0.1], [-0.9, 0.5])):
        np.testing.assert_array_equal(act(policy, obs, seed), act(loaded, obs, seed))
    np.testing.assert_array_equal(policy.obs_mean, loaded.obs_mean)


def test_another_act_horizon_executes_more_of_the_same_prediction(toy, policy_directory):
    longer, _ = imitation.load(policy_directory, act_horizon=3)
    assert longer.act_horizon == 3
    chunk = act(longer, [0.3, 0.1])
    assert chunk.shape == (3, 2)
    np.testing.assert_array_equal(chunk[:2], act(toy[0], [0.3, 0.1]))


def test_an_act_horizon_beyond_the_prediction_is_refused(policy_directory):
    with pytest.raises(ConfigError, match=r"pred_horizon=4 must be >= .* = 5; raise pred_horizon"):
        imitation.load(policy_directory, act_horizon=4)


def test_a_directory_without_a_policy_is_refused(tmp_path):
    with pytest.raises(
        checkpoint.CheckpointError, match=r"no usable base policy in .*pdjax imitate"
    ):
        imitation.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"obs_dim": 2}'])
def test_a_broken_description_is_refused(policy_directory, text):
    (policy_directory / "policy.json").write_text(text)
    with pytest.raises(checkpoint.CheckpointError, match="no usable base policy"):
        imitation.load(policy_directory)


def test_a_directory_from_before_there_were_kinds_is_read(toy, policy_directory):
    path = policy_directory / "policy.json"
    description = json.loads(path.read_text())
    known = {
        "obs_horizon",
        "act_horizon",
        "pred_horizon",
        "hidden",
        "blocks",
        "ddim_steps",
        "prediction",
    }
    shape = description["imitation"]["policy"]
    description["imitation"]["policy"] = {name: shape[name] for name in known}
    del description["imitation"]["eval_every"], description["imitation"]["interim_episodes"]
    path.write_text(json.dumps(description))
    loaded, _ = imitation.load(policy_directory)
    np.testing.assert_array_equal(act(toy[0], [0.3, 0.1]), act(loaded, [0.3, 0.1]))


def test_parameters_of_another_shape_are_refused_by_name(policy_directory):
    path = policy_directory / "policy.json"
    description = json.loads(path.read_text())
    description["imitation"]["policy"]["hidden"] = 16
    path.write_text(json.dumps(description))
    # 2 * 32 is saved, 2 * 16 is expected
    message = r"denoiser/blocks/0/inner/bias is float32\(64,\), expected float32\(32,\)"
    with pytest.raises(checkpoint.CheckpointError, match=message):
        imitation.load(policy_directory)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"ema got 1.5, expected number 0 to 1"):
        dataclasses.replace(TOY, ema=1.5).validate()
    with pytest.raises(ConfigError, match=r"diffusion.hidden got 0, expected integer 1 to 65536"):
        dataclasses.replace(TOY, diffusion=DiffusionConfig(hidden=0)).validate()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"obs_dim": 0}, "obs_dim is 0, expected a count"),
        ({"act_dim": -28}, "act_dim is -28, expected a count"),
        ({"act_dim": 2.5}, "act_dim is 2.5, expected a count"),
        ({"obs_dim": 10**12}, "expected a count of at most"),
        ({"imitation": "x"}, "expected policy.json"),
        ({"kind": ["mlp"]}, "expected policy.json"),
    ],
)
def test_a_description_with_wrong_values_is_refused(policy_directory, change, why):
    path = policy_directory / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(checkpoint.CheckpointError, match=why):
        imitation.load(policy_directory)
    kind, act_horizon = load.kind_of(policy_directory)  # only told, never trusted
    assert isinstance(kind, str) and isinstance(act_horizon, int)
    assert not load.is_foreign(policy_directory)


def test_a_description_nested_too_deeply_is_refused(policy_directory):
    (policy_directory / "policy.json").write_text("[" * 100_000)
    with pytest.raises(checkpoint.CheckpointError, match="levels deep"):
        imitation.load(policy_directory)
