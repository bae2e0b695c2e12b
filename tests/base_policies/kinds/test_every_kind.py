"""Every kind of base policy must learn, act in a rollout, and be saved and loaded unchanged."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.base_policies import imitation, settings
from pdjax.config.options import ConfigError
from pdjax.rollout.collect import make_rollout
from pdjax.rollout.decision import Frozen
from tests.probe import SPEED, make_point_env

GOAL, STEPS = 0.5, 8
TRAINING = {"steps": 300, "batch_size": 64, "learning_rate": 3e-3, "validation": 0.1}

# Recipe -> a small shape, and an upper limit of the validation loss.
SMALL = {
    "diffusion": (
        {"diffusion": {"pred_horizon": 4, "act_horizon": 2, "hidden": 32, "blocks": 1}},
        0.05,
    ),
    "diffusion_unet": (
        {
            "diffusion": {
                "pred_horizon": 4,
                "act_horizon": 2,
                "unet_dims": [8, 16],
                "unet_kernel": 3,
                "unet_groups": 4,
                "unet_step_dim": 8,
            }
        },
        0.05,
    ),
    "bet": (
        {
            "bet": {
                "obs_horizon": 3,
                "bins": 3,
                "layers": 1,
                "heads": 2,
                "width": 16,
                "readout": 16,
                "dropout": 0.0,
            }
        },
        5.0,
    ),
    "act": (
        {
            "act": {
                "pred_horizon": 4,
                "act_horizon": 2,
                "encoder_layers": 1,
                "heads": 2,
                "width": 16,
                "feedforward": 32,
                "latent_dim": 4,
                "dropout": 0.0,
            }
        },
        0.2,
    ),
    "mlp": ({"mlp": {"hidden": [32], "act_horizon": 2}}, -0.5),
}


def demonstrations(episodes=60):
    """Demonstrations of the point of `probe`: full speed to the goal, then stay, with noise."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(episodes):
        position, obs, actions = rng.uniform(-0.1, 0.1), [], []
        for step in range(STEPS):
            obs.append([position, GOAL, step])
            actions.append([np.clip((GOAL - position) / SPEED, -1, 1)])
            position += SPEED * (actions[-1][0] + 0.3 * rng.normal())
        found.append((np.array([*obs, [position, GOAL, STEPS]], np.float32), np.array(actions)))
    return found


@pytest.fixture(scope="module", params=SMALL)
def trained(request):
    shape, bound = SMALL[request.param]
    config = settings.recipe(request.param, shape | TRAINING)
    history = []
    policy = imitation.train(demonstrations(), config, lambda step, found: history.append(found))
    return config, policy, history, bound


def act(policy, position, seed=0, step=2):
    """Returns the chunk (act_horizon, 1) at the start of an episode."""
    obs = jnp.array([position, GOAL, step], jnp.float32)
    carry = policy.init_carry(jax.random.key(9))
    history = jnp.repeat(obs[None], policy.obs_horizon, axis=0)
    return np.asarray(jax.jit(policy.apply)(policy.params, carry, history, jax.random.key(seed))[0])


def test_it_learns(trained):
    _, _, history, bound = trained
    assert history[-1]["validation_loss"] < bound < history[0]["validation_loss"]


def test_it_solves_what_it_was_shown(trained):
    config, policy, _, _ = trained
    env = make_point_env(episode_steps=STEPS)
    rollout = make_rollout(env, policy)
    frozen = Frozen(env.model, policy.params, policy.obs_mean, policy.obs_std)

    def nothing(obs, base_action):
        del obs
        return jnp.zeros_like(base_action)

    found = rollout.evaluate(frozen, nothing, 0.0, jax.random.key(1), 32)
    assert found.success_once.mean() > 0.9, config.kind


def test_it_acts_in_collection_and_is_left_as_it_was(trained):
    _, policy, _, _ = trained
    env = make_point_env(episode_steps=STEPS)
    rollout = make_rollout(env, policy)
    frozen = Frozen(env.model, policy.params, policy.obs_mean, policy.obs_std)
    before = jax.device_get(policy.params)

    def nothing(obs, base_action, key, index):
        del obs, key, index
        return jnp.zeros_like(base_action), 1.0

    start_key, keys_key = jax.random.split(jax.random.key(0))
    state = rollout.init(frozen, start_key, 3)
    _, rows, _ = rollout.collect(frozen, state, nothing, jax.random.split(keys_key, 3))
    assert rows.base_action.shape == (3, 3, policy.act_horizon)
    assert (np.abs(rows.base_action) <= 1).all()
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(policy.params))


def test_read_back_it_acts_bitwise_the_same(trained, tmp_path):
    config, policy, _, _ = trained
    imitation.save(tmp_path, policy, config, "Point")
    loaded, task = imitation.load(tmp_path)
    assert task == "Point"
    assert (loaded.obs_horizon, loaded.act_horizon) == (policy.obs_horizon, policy.act_horizon)
    for seed, position in enumerate((0.0, 0.3, 0.6)):
        np.testing.assert_array_equal(act(policy, position, seed), act(loaded, position, seed))


def test_another_act_horizon_is_executed_or_refused(trained, tmp_path):
    config, policy, _, _ = trained
    imitation.save(tmp_path, policy, config, "Point")
    if config.kind in ("bet", "mlp"):
        exactly = f"this {config.kind} policy predicts exactly {policy.act_horizon} control steps"
        match = f"act_horizon=3 .* {exactly} at once"
        with pytest.raises(ConfigError, match=match):
            imitation.load(tmp_path, act_horizon=3)
        return
    longer, _ = imitation.load(tmp_path, act_horizon=3)
    np.testing.assert_array_equal(act(longer, 0.1)[:2], act(policy, 0.1))
    assert act(longer, 0.1).shape == (3, 1)


def test_only_the_chosen_kind_is_kept_on_disk(trained, tmp_path):
    config, policy, _, _ = trained
    imitation.save(tmp_path, policy, config, "Point")
    description = json.loads((tmp_path / "policy.json").read_text())
    assert description["kind"] == config.kind
    assert not set(description["imitation"]) & set(settings.KINDS)
    shape = description["imitation"]["policy"]
    assert shape["act_horizon"] == 2 if config.kind != "bet" else shape["bins"] == 3


# Two modes: the demonstrator goes left or right, which no observation reveals.


def two_modes():
    rng = np.random.default_rng(1)
    episodes = []
    for index in range(40):
        obs = rng.uniform(-1, 1, (9, 1)).astype(np.float32)
        episodes.append((obs, np.full((8, 1), 0.6 if index % 2 else -0.6)))
    return episodes


def actions_of(recipe, shape):
    config = settings.recipe(recipe, shape | TRAINING)
    policy = imitation.train(two_modes(), config)
    obs = jnp.linspace(-0.9, 0.9, 32)[:, None, None].repeat(policy.obs_horizon, axis=1)
    keys = jax.random.split(jax.random.key(3), 32)
    chunks, _ = jax.vmap(policy.apply, (None, None, 0, 0))(policy.params, (), obs, keys)
    return np.asarray(chunks)


def test_a_gaussian_averages_modes():
    assert np.abs(actions_of("mlp", {"mlp": {"hidden": [32], "components": 1}})).mean() < 0.3


@pytest.mark.parametrize(
    ("recipe", "shape"),
    [
        ("mlp", {"mlp": {"hidden": [32], "components": 4, "rollout": "sampled"}}),
        ("bet", {"bet": {**SMALL["bet"][0]["bet"], "bins": 2, "rollout": "sampled"}}),
        ("diffusion", {"diffusion": {"hidden": 32, "blocks": 2, "ddim_steps": 20}}),
    ],
    ids=["mixture", "bet", "diffusion"],
)
def test_others_keep_modes_apart(recipe, shape):
    chunks = actions_of(recipe, shape)
    means = chunks.mean(axis=(1, 2))  # over each chunk, because the mixture also draws noise
    assert (np.abs(np.abs(means) - 0.6) < 0.3).mean() > 0.8
    right = (means > 0).mean()
    assert 0.2 < right < 0.8  # both modes occur
