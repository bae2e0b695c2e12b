"""The learner, compared with the NumPy reference and hand numbers, and trained on a bandit."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.config.schema import SWEEPABLE, Config, DecoratorConfig, SACConfig
from pdjax.learner import losses, sac
from pdjax.learner.replay import make_replay
from pdjax.types import Batch, Transition
from tests import reference

OBS_DIM, CHUNK_DIM, BATCH = 5, 3, 32
DECORATOR = DecoratorConfig(residual_scale=0.3)
QUICK = {"xla_backend_optimization_level": 0}  # compiles in two thirds of the time
SMALL = SACConfig(
    hidden=(16, 12),
    log_std_min=-5.0,
    actor_lr=1e-3,
    critic_lr=2e-3,
    temperature_lr=3e-3,
    tau=0.1,
    max_grad_norm=1.0,
)
SHALLOW = dataclasses.replace(SMALL, hidden=(8,))


def random_batch(rng, batch=BATCH):
    def uniform(*shape):
        return jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)

    return Batch(
        obs=uniform(batch, OBS_DIM),
        base_action=uniform(batch, CHUNK_DIM),
        residual_action=uniform(batch, CHUNK_DIM),
        reward=uniform(batch),
        discount=jnp.asarray(rng.choice(np.array([0, 0.97], np.float32), batch)),
        next_obs=uniform(batch, OBS_DIM),
        next_base_action=uniform(batch, CHUNK_DIM),
        weight=jnp.where(jnp.arange(batch) % 4 == 1, 0.0, 1.0),
    )


def random_state(rng, learner):
    """Draws a state without special values: random parameters, targets unlike the critics."""
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)

    def draw(x):
        return rng.normal(0, 0.4, x.shape).astype(np.float32)

    networks = {name: getattr(state, name) for name in ("actor", "critic", "target_critic")}
    return state._replace(log_temperature=np.float32(-1.5), **jax.tree.map(draw, networks))


def make(config=SMALL, decorator=DECORATOR):
    """Returns learner, hyperparameters and jitted update; equal configs give the same objects."""
    return make_once(config, decorator)


@functools.cache
def make_once(config, decorator):
    learner = sac.make_sac(config, decorator, OBS_DIM, CHUNK_DIM, CHUNK_DIM)
    hyperparams = sac.make_hyperparams(Config(sac=config, decorator=decorator), CHUNK_DIM)
    return learner, hyperparams, jax.jit(learner.update, compiler_options=QUICK)


def flat(params, member=None):
    """{"hidden/0/kernel": float64 array, ...} of one network, or of one ensemble member."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}
    return {n: np.asarray(x if member is None else x[member], float) for n, x in named.items()}


def members(params):
    return [flat(params, i) for i in range(len(params["value"]["bias"]))]


@pytest.mark.parametrize(
    ("critic_input", "actor_input", "layer_norm", "num_critics"),
    [
        ("sum", "obs", False, 2),
        ("res", "obs", False, 2),
        ("concat", "obs", False, 2),
        ("sum", "obs", True, 2),
        ("res", "obs_base_action", True, 2),
        ("concat", "obs_base_action", True, 3),
    ],
)
def test_updates_equal_reference(critic_input, actor_input, layer_norm, num_critics):
    config = dataclasses.replace(SMALL, critic_layer_norm=layer_norm, num_critics=num_critics)
    decorator = DecoratorConfig(0.3, critic_input=critic_input, actor_input=actor_input)
    settings = {"critic_input": critic_input, "actor_input": actor_input}
    compare_with_reference(config, decorator, settings)


def test_updates_equal_reference_with_every_penalty_limit_and_a_subset_of_critics():
    config = dataclasses.replace(
        SMALL,
        num_critics=4,
        min_of=2,
        residual_penalty=0.7,
        penalty_half_life=2.0,
        final_penalty=0.1,
        smoothness_penalty=30.0,
    )
    limits = (1.0, 0.5, 0.0625)
    settings = {
        "critic_input": "sum",
        "actor_input": "obs",
        "limits": np.array(limits),
        "residual_penalties": (0.7, 0.1 + 0.6 / 2**0.5, 0.4),
        "smoothness_penalty": 30.0,
        "follows_mean": True,
    }
    compare_with_reference(config, DecoratorConfig(0.3, residual_limits=limits), settings)


def compare_with_reference(config, decorator, settings):
    """Takes three updates with `sac` and the NumPy reference, from the same state and noise."""
    learner, hyperparams, update = make(config, decorator)
    rng = np.random.default_rng(0)
    state = random_state(rng, learner)
    expected = reference.Learner(
        flat(state.actor),
        members(state.critic),
        members(state.target_critic),
        state.log_temperature,
        reference.Settings(
            log_std_min=-5.0,
            log_std_max=2.0,
            max_grad_norm=1.0,
            tau=0.1,
            learning_rates={"actor": 1e-3, "critic": 2e-3, "temperature": 3e-3},
            target_entropy=-3.0,
            residual_scale=0.3,
            **settings,
        ),
    )
    for step in range(3):
        batch = random_batch(rng)
        *draws, subset_key = jax.random.split(jax.random.key(step), 3)
        subset = None
        if config.min_of:
            num, chosen = config.num_critics, (config.min_of,)
            subset = jax.random.choice(subset_key, num, chosen, replace=False)
            assert len(set(subset.tolist())) == config.min_of
        noise_next, noise_actor = (
            np.asarray(jax.random.normal(k, (BATCH, CHUNK_DIM)), float) for k in draws
        )
        state, metrics = update(state, batch, hyperparams, jax.random.key(step))
        rows = jax.tree.map(lambda leaf: np.asarray(leaf, float), batch)
        expected_metrics = expected.update(rows, noise_next, noise_actor, subset)
        assert metrics.keys() == expected_metrics.keys()
        for name, value in expected_metrics.items():
            np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)

    np.testing.assert_allclose(state.log_temperature, expected.log_temperature, rtol=1e-6)
    compared = [(flat(state.actor), expected.actor)]
    compared += zip(members(state.critic), expected.critics, strict=True)
    compared += zip(members(state.target_critic), expected.targets, strict=True)
    for got, wanted in compared:
        assert got.keys() == wanted.keys()
        for name in wanted:  # atol: a thousandth of what one Adam step moves
            np.testing.assert_allclose(got[name], wanted[name], 1e-4, 1e-6, err_msg=name)
    assert state.gradient_steps == 3


def test_soft_target_hand_numbers():
    target = losses.soft_target(
        reward=jnp.array([1.0, 1.0, -2.0]),
        discount=jnp.array([0.9, 0.0, 0.729]),
        next_values=jnp.array([[3.0, 9.0, 10.0], [5.0, 9.0, 8.0]]),
        temperature=jnp.array(0.5),
        next_log_prob=jnp.array([2.0, 7.0, -4.0]),
    )
    # truncated or running, n = 1: 1 + .9 (min(3, 5) - .5 * 2) = 2.8
    # terminated: 1 + 0 * (...) = 1
    # three steps, discount .9^3:  -2 + .729 (min(10, 8) - .5 * -4) = 5.29
    np.testing.assert_allclose(target, [2.8, 1.0, 5.29], rtol=1e-6)


def test_target_of_an_episode_hand_numbers(key):
    """Three-step targets from the ring: truncation bootstraps, termination does not."""
    # row          0   1   2   3(reset)  4   5   6(reset)  7   8   9
    rewards = [1.0, 2.0, 4.0, 0.0, 8.0, 16.0, 0.0, 32.0, 64.0, 0.0]
    flags = np.zeros((3, 10, 1), bool)
    terminated, truncated, is_reset = flags
    truncated[2], is_reset[3], terminated[5], is_reset[6] = True, True, True, True
    row = jnp.arange(10.0)[:, None, None]
    ends = map(jnp.asarray, (terminated, truncated, is_reset))
    rows = Transition(row, row, row, jnp.array(rewards)[:, None], *ends)
    replay = make_replay(10, 1, jax.tree.map(lambda x: x[0, 0], rows))
    sample = jax.jit(lambda k: replay.sample(replay.add(replay.init(), rows), k, 200, 3, 0.5, 0.0))
    batch = sample(key)
    # Q' = 100 * row, so the target also shows which row it bootstraps from; T log pi = .5 * 2 = 1
    target = losses.soft_target(
        batch.reward, batch.discount, 100 * batch.next_obs.T, jnp.array(0.5), jnp.full(200, 2.0)
    )
    expected = {
        0: 1 + 0.5 * 2 + 0.25 * 4 + 0.125 * (300 - 1),  # all three; row 3 is the final observation
        1: 2 + 0.5 * 4 + 0.25 * (300 - 1),  # truncated after two: bootstraps at gamma^2
        2: 4 + 0.5 * (300 - 1),  # truncated after one
        4: 8 + 0.5 * 16,  # terminated after two: no bootstrap
        5: 16,  # terminated at once
    }
    for start, got, weight in np.stack([batch.obs[:, 0], target, batch.weight], axis=1):
        if int(start) in expected:
            np.testing.assert_allclose(got, expected[int(start)], rtol=1e-6)
        assert weight == (int(start) not in (3, 6))
    assert set(np.unique(batch.obs)) == set(range(7))  # rows 7, 8, 9 have no three successors


def test_losses_hand_numbers():
    weight = jnp.array([1.0, 1.0, 0.0])
    values = jnp.array([[1.0, 2.0, 50.0], [3.0, 0.0, 50.0]])
    # mean over rows 0, 1: critic 0: ((1-2)^2 + (2-2)^2) / 2 = .5; critic 1: (1 + 4) / 2 = 2.5
    assert losses.critic_loss(values, jnp.array([2.0, 2.0, 0.0]), weight) == pytest.approx(3.0)
    # ((.5*4 - 1) + (.5*2 - 0)) / 2 = 1
    log_prob = jnp.array([4.0, 2.0, 99.0])
    assert losses.actor_loss(values, log_prob, jnp.array(0.5), weight) == pytest.approx(1.0)
    # -log T * mean(4 - 5, 2 - 5) = -(-.7) * -2 = -1.4; policy too random: T must fall (grad > 0)
    args = (jnp.array(-0.7), log_prob, jnp.array(-5.0), weight)
    assert losses.temperature_loss(*args) == pytest.approx(-1.4)
    assert jax.grad(losses.temperature_loss)(*args) == pytest.approx(2.0)


def test_weighted_mean_of_nothing_is_zero():
    assert losses.weighted_mean(jnp.array([3.0, 4.0]), jnp.zeros(2)) == 0


@pytest.mark.parametrize("critic_input", ["sum", "res", "concat"])
def test_target_entropy_is_the_same_for_every_critic_input(critic_input):
    config = Config(
        sac=SACConfig(target_entropy_scale=0.5),
        decorator=DecoratorConfig(critic_input=critic_input),
    )
    assert sac.make_hyperparams(config, residual_dim=28).target_entropy == -14.0


def test_hyperparameters_are_the_sweepable_numbers_of_the_config():
    config = Config()
    hyperparams = sac.make_hyperparams(config, residual_dim=4)._asdict()
    names = [name.split(".") for name in SWEEPABLE if name != "seed"]
    computed = {"target_entropy_scale": "target_entropy"}
    expected = {computed.get(key, key) for _, key in names} | {"exploration_limit"}
    assert hyperparams.keys() == expected
    for section, key in names:
        if key not in ("target_entropy_scale", "penalty_half_life"):
            value = np.float32(getattr(getattr(config, section), key))
            assert hyperparams[key] == value and hyperparams[key].dtype == jnp.float32
    assert hyperparams["target_entropy"] == -4 and hyperparams["penalty_half_life"] == np.inf
    half = Config(sac=SACConfig(penalty_half_life=8.0))
    assert sac.make_hyperparams(half, residual_dim=4).penalty_half_life == 8


def test_the_actor_may_move_less_often_than_the_critics():
    learner, hyperparams, update = make(dataclasses.replace(SHALLOW, actor_every=2))
    _, _, plain = make(SHALLOW)
    rng = np.random.default_rng(0)
    start, batch = random_state(rng, learner), random_batch(rng)
    first, metrics = update(start, batch, hyperparams, jax.random.key(0))
    expected, plain_metrics = plain(start, batch, hyperparams, jax.random.key(0))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5, 1e-7), first, expected)
    assert metrics["actor_loss"] == pytest.approx(2 * float(plain_metrics["actor_loss"]), rel=1e-5)
    second, metrics = update(first, batch, hyperparams, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, second.actor, first.actor)
    assert second.log_temperature == first.log_temperature and metrics["actor_loss"] == 0
    assert np.any(second.critic["value"]["kernel"] != first.critic["value"]["kernel"])
    assert second.gradient_steps == 2


def test_the_averaged_actor_follows_and_without_averaging_is_the_actor():
    rng = np.random.default_rng(0)
    for decay in (0.0, 0.75):
        learner, hyperparams, update = make(dataclasses.replace(SHALLOW, actor_average=decay))
        start, batch = random_state(rng, learner), random_batch(rng)
        state, _ = update(start, batch, hyperparams, jax.random.key(0))
        # random_state leaves the average at zero
        expected = jax.tree.map(lambda x, decay=decay: (1 - decay) * np.asarray(x), state.actor)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, 1e-6), state.mean_actor, expected
        )


def test_a_head_without_gain_starts_at_no_residual(key):
    learner, _, _ = make(dataclasses.replace(SHALLOW, head_gain=0.0))
    batch = random_batch(np.random.default_rng(0))
    actor = jax.jit(learner.init)(key).actor
    assert not np.any(learner.act_deterministic(actor, batch.obs, batch.base_action))


def test_limits_bound_each_number(key):
    limits = (1.0, 0.25, 0.0)
    learner, _, _ = make(SHALLOW, DecoratorConfig(residual_limits=limits))
    rng = np.random.default_rng(0)
    state = random_state(rng, learner)
    actor = jax.tree.map(lambda x: 100 * x, state.actor)  # saturates
    batch = random_batch(rng)
    noise = jax.random.normal(key, batch.residual_action.shape)
    drawn = learner.act(actor, batch.obs, batch.base_action, noise)
    np.testing.assert_allclose(np.abs(drawn).max(axis=0), limits, rtol=1e-5)


def test_rows_of_weight_zero_do_not_matter():
    learner, hyperparams, update = make(SHALLOW)
    rng = np.random.default_rng(0)
    state, batch = random_state(rng, learner), random_batch(rng)
    other = jax.tree.map(np.copy, batch)
    for leaf in other[:-1]:
        leaf[batch.weight == 0] = 7.0
    assert not np.array_equal(batch.obs, other.obs)
    one = update(state, batch, hyperparams, jax.random.key(0))
    two = update(state, other, hyperparams, jax.random.key(0))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), one, two)


def test_sweep_over_hyperparams_equals_single_updates():
    learner, hyperparams, update = make(SHALLOW)
    rng = np.random.default_rng(0)
    state, batch = random_state(rng, learner), random_batch(rng)
    other = hyperparams._replace(actor_lr=jnp.array(0.1), residual_scale=jnp.array(0.05))
    both = jax.tree.map(lambda *x: jnp.stack(x), hyperparams, other)
    sweep = jax.jit(jax.vmap(learner.update, (None, None, 0, None)), compiler_options=QUICK)
    swept, _ = sweep(state, batch, both, jax.random.key(0))
    single, _ = update(state, batch, other, jax.random.key(0))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y, 1e-4, 1e-6), swept, single)
    assert not np.allclose(swept.actor["mean"]["kernel"][0], swept.actor["mean"]["kernel"][1])


def test_second_update_compiles_nothing_and_takes_a_donated_state(key):
    learner, hyperparams, _ = make(SHALLOW)
    traces = []

    def counted(*args):
        traces.append(1)
        return learner.update(*args)

    update = jax.jit(counted, donate_argnums=0, compiler_options=QUICK)
    rng = np.random.default_rng(0)
    state = jax.tree.map(jnp.asarray, random_state(rng, learner))
    before = flat(state.actor)
    for step in range(3):
        changed = hyperparams._replace(tau=jnp.array(step / 100, jnp.float32))
        state, metrics = update(state, random_batch(rng), changed, jax.random.key(step))
    assert len(traces) == 1
    assert state.gradient_steps == 3
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(np.any(before[name] != value) for name, value in flat(state.actor).items())


def test_state_starts_as_configured(key):
    learner, _, _ = make(dataclasses.replace(SHALLOW, initial_temperature=0.25))
    state = jax.jit(learner.init)(key)
    assert np.exp(state.log_temperature) == pytest.approx(0.25)
    jax.tree.map(np.testing.assert_array_equal, state.critic, state.target_critic)
    assert state.gradient_steps == 0
    batch = random_batch(np.random.default_rng(0))
    mean = learner.act_deterministic(state.actor, batch.obs, batch.base_action)
    assert np.max(np.abs(mean)) < 0.02  # the last layer has gain .01


@pytest.mark.parametrize("actor_input", ["obs", "obs_base_action"])
def test_act_is_bounded_and_reads_what_it_should(key, actor_input):
    learner, _, _ = make(SHALLOW, DecoratorConfig(actor_input=actor_input))
    rng = np.random.default_rng(0)
    actor, batch = random_state(rng, learner).actor, random_batch(rng)
    noise = jax.random.normal(key, batch.residual_action.shape)
    drawn = learner.act(actor, batch.obs, batch.base_action, noise)
    mean = learner.act_deterministic(actor, batch.obs, batch.base_action)
    assert drawn.shape == mean.shape == (BATCH, CHUNK_DIM)
    assert np.max(np.abs(drawn)) <= 1
    assert not np.array_equal(drawn, mean)
    shifted = learner.act_deterministic(actor, batch.obs, batch.base_action + 1)
    assert np.array_equal(mean, shifted) == (actor_input == "obs")


def test_learns_to_correct_the_base_action(key):
    """Bandit: reward -sum (base + scale * residual - best)^2, one decision, best within reach."""
    config = dataclasses.replace(
        SMALL, hidden=(32, 32), actor_lr=3e-3, critic_lr=3e-3, initial_temperature=0.01
    )
    learner, hyperparams, _ = make(config, DecoratorConfig(0.5, actor_input="obs_base_action"))
    best = jnp.array([0.1, -0.2, 0.0])

    def step(state, step_key):
        key_base, key_residual, key_update = jax.random.split(step_key, 3)
        base = jax.random.uniform(key_base, (64, CHUNK_DIM), minval=-0.2, maxval=0.2)
        residual = jax.random.uniform(key_residual, (64, CHUNK_DIM), minval=-1.0)
        reward = -jnp.sum((base + 0.5 * residual - best) ** 2, axis=-1)
        obs, ones = jnp.zeros((64, OBS_DIM)), jnp.ones(64)
        batch = Batch(obs, base, residual, reward, 0 * ones, obs, base, ones)
        return learner.update(state, batch, hyperparams, key_update)

    train = jax.jit(lambda state, k: jax.lax.scan(step, state, jax.random.split(k, 1000)))
    rng = np.random.default_rng(0)
    start = random_state(rng, learner)._replace(log_temperature=jnp.log(0.01))
    state, _ = train(start, key)
    base = jnp.asarray(rng.uniform(-0.2, 0.2, (BATCH, CHUNK_DIM)), jnp.float32)
    obs = jnp.zeros((BATCH, OBS_DIM))

    def error(actor):
        return np.abs(base + 0.5 * learner.act_deterministic(actor, obs, base) - best).mean()

    assert error(state.actor) < 0.03 < 0.1 < error(start.actor)
