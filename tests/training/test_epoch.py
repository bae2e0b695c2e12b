"""Training: one jitted epoch learns, leaves the base policy unchanged and compiles once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.config.files import preset
from pdjax.config.schema import Config, ConfigError, DecoratorConfig
from pdjax.learner.sac import make_hyperparams, make_sac, residual_dim
from pdjax.rollout.collect import make_rollout
from pdjax.rollout.decision import Frozen
from pdjax.training.epoch import make_trainer
from pdjax.training.schedule import make_schedule
from tests.probe import make_constant_policy, make_point_env


def small_config(**train):
    config = preset("fast")
    settings = {
        "num_envs": 8,
        "decisions_per_round": 16,
        "decisions_per_epoch": 64,
        "learning_starts": 64,
        "updates_per_decision": 0.25,
        "replay_capacity": 4096,
        "retry_share": 0.5,
    }
    return dataclasses.replace(
        config,
        sac=dataclasses.replace(
            config.sac,
            batch_size=64,
            hidden=(32, 32),
            gamma=0.9,
            residual_penalty=0.0,
            initial_temperature=0.01,
            log_std_min=-5.0,
            log_std_max=2.0,
            noise_correlation=0.5,
        ),
        decorator=dataclasses.replace(config.decorator, residual_scale=0.5, exploration_steps=0),
        train=dataclasses.replace(config.train, **(settings | train)),
    )


def build(config, velocity=0.2, episode_steps=12, base=None, mesh=None):
    env, base = make_point_env(episode_steps=episode_steps), base or make_constant_policy(velocity)
    rollout = make_rollout(env, base, config, mesh)
    size = residual_dim(config.decorator, base)
    chunk_dim = base.act_horizon * base.act_dim
    sac = make_sac(config.sac, config.decorator, rollout.view_dim, chunk_dim, size)
    frozen = Frozen(env.model, base.params, base.obs_mean, base.obs_std)
    trainer = make_trainer(config, base, rollout, sac, mesh)
    hyperparams = make_hyperparams(config, size)
    state = jax.jit(trainer.init)(frozen, hyperparams, jax.random.key(config.seed))
    return rollout, sac, frozen, trainer, state


@functools.cache
def built():
    """Builds the usual config and its epoch once, so that several tests share one compilation."""
    rollout, sac, frozen, trainer, state = build(small_config())
    return rollout, sac, frozen, jax.jit(trainer.train_epoch), state


def fresh(state):
    """Copies a state with a fresh clone of its key, so that it can be consumed again."""
    return state._replace(key=jax.random.clone(state.key))


def copy(tree):
    return jax.tree.map(lambda x: np.array(x) if not _is_key(x) else x, jax.device_get(tree))


def _is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def test_an_epoch_learns_and_the_base_policy_stays_bitwise_the_same():
    _, _, frozen, epoch, state = built()
    base_before, actor_before = copy(frozen.base_params), copy(state.sac.actor)
    state = fresh(state)
    for _ in range(3):
        state, metrics = epoch(frozen, state)
    assert metrics["gradient_steps"] == state.sac.gradient_steps > 0
    jax.tree.map(np.testing.assert_array_equal, base_before, copy(frozen.base_params))
    changed = jax.tree.map(lambda a, b: (a != b).any(), actor_before, copy(state.sac.actor))
    assert all(jax.tree.leaves(changed))
    assert all(np.isfinite(value) for value in jax.device_get(metrics).values())


def test_the_second_epoch_compiles_nothing():
    _, _, frozen, epoch, state = built()
    state = fresh(state)
    for _ in range(3):
        state, _ = epoch(frozen, state)
    assert epoch._cache_size() == 1


def test_a_bfloat16_replay_trains_compiles_once_and_collects_the_same_at_first():
    rings = {}
    for dtype in ("float32", "bfloat16"):
        base = make_constant_policy(0.2)._replace(obs_mean=jnp.float32([0.1, 0.5, 6.0]))
        _, _, frozen, trainer, state = build(small_config(replay_dtype=dtype), base=base)
        epoch = jax.jit(trainer.train_epoch, donate_argnums=1)
        state, _ = epoch(frozen, state)
        rings[dtype] = copy(jax.tree.map(lambda leaf: leaf[:8], state.replay.storage))
        actor_before = copy(state.sac.actor)
        for _ in range(2):
            state, metrics = epoch(frozen, state)
        assert state.replay.storage.obs.dtype.itemsize == (4 if dtype == "float32" else 2)
        assert metrics["gradient_steps"] > 0 and np.isfinite(metrics["critic_loss"])
        changed = jax.tree.map(lambda a, b: (a != b).any(), actor_before, copy(state.sac.actor))
        assert all(jax.tree.leaves(changed))
        assert epoch._cache_size() == 1
    exact, rounded = rings["float32"], rings["bfloat16"]
    np.testing.assert_array_equal(exact.reward, rounded.reward)
    centred = exact.obs - base.obs_mean
    error = np.abs(rounded.obs.view(jnp.bfloat16).astype(np.float32) - centred)
    assert np.all(error <= 2.0**-8 * np.abs(centred) + 1e-6) and error.max() > 1e-4


def test_counters_and_update_ratio():
    _, _, frozen, epoch, state = built()
    state = fresh(state)
    for count in range(1, 4):
        state, _ = epoch(frozen, state)
        assert state.decision_steps == 64 * count
    # Rounds of 16 decisions; learning starts at 64 decisions, so with the fourth round:
    # 1 + 4 + 4 rounds of 16 * 0.25 = 4 updates.
    assert state.sac.gradient_steps == 9 * 4
    # Each decision plays at most a chunk of 2 control steps.
    assert 64 * 3 < state.control_steps <= 2 * 64 * 3


def test_prefill_with_the_base_alone_stores_no_residual_and_uniform_stores_some():
    for prefill, expect in (("base", False), ("uniform", True)):
        config = small_config(prefill=prefill, learning_starts=10_000)
        _, _, frozen, trainer, state = build(config)
        state, metrics = jax.jit(trainer.train_epoch)(frozen, state)
        stored = np.asarray(state.replay.storage.residual_action)
        assert bool((stored != 0).any()) is expect
        assert metrics["gradient_steps"] == 0


def test_the_gate_lets_in_the_share_that_the_schedule_says():
    config = small_config(prefill="uniform", learning_starts=10**6, decisions_per_epoch=1024)
    config = dataclasses.replace(
        config, decorator=dataclasses.replace(config.decorator, exploration_steps=2048)
    )
    _, _, frozen, trainer, state = build(config)
    state, metrics = jax.jit(trainer.train_epoch)(frozen, state)
    rows = 1024 // 8
    let_in = (np.asarray(state.replay.storage.residual_action[:rows]) != 0).any(-1).mean()
    # From 0 to 1024 / 2048: 0.25 on average, over 1024 draws.
    assert abs(let_in - 0.25) < 0.05
    np.testing.assert_allclose(metrics["exploration_prob"], 0.5)


def test_same_seed_same_run_other_seed_other_run():
    _, _, frozen, epoch, _ = built()

    def actor_of(seed):
        *_, state = build(dataclasses.replace(small_config(), seed=seed))
        for _ in range(2):
            state, _ = epoch(frozen, state)
        return jax.tree.leaves(copy(state.sac.actor))

    first, again, other = actor_of(1), actor_of(1), actor_of(2)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@jax.debug_key_reuse(False)  # the check stumbles over a scan whose keys are one for each seed
def test_seeds_in_one_program_are_the_runs_that_they_are_alone():
    config = small_config()
    (_, _, frozen, trainer, _), (_, _, _, epoch, _) = build(config), built()
    hyperparams, keys = make_hyperparams(config, 1), jax.random.split(jax.random.key(3), 3)
    init = jax.jit(trainer.init)
    states = jax.jit(jax.vmap(trainer.init, (None, None, 0)))(frozen, hyperparams, keys)
    together = jax.jit(trainer.train_members)
    for _ in range(2):
        states, metrics = together(frozen, states)
    assert (metrics["gradient_steps"] > 0).all()
    for index in range(3):
        state = init(frozen, hyperparams, keys[index])
        for _ in range(2):
            state, _ = epoch(frozen, state)
        of_all, alone = copy((states.sac, states.replay)), copy((state.sac, state.replay))
        for leaf, expected in zip(*map(jax.tree.leaves, (of_all, alone)), strict=True):
            np.testing.assert_allclose(leaf[index], expected, rtol=1e-3, atol=1e-4)
    first, second = (states.replay.storage.obs[index] for index in range(2))
    assert (first != second).any()


def test_evaluation_between_epochs_changes_nothing():
    rollout, sac, frozen, epoch, state = built()
    plain = epoch(frozen, epoch(frozen, fresh(state))[0])[0]
    middle = epoch(frozen, fresh(state))[0]
    choose = lambda obs, a: sac.act_deterministic(middle.sac.actor, obs, a)  # noqa: E731
    rollout.evaluate(frozen, choose, 0.5, jax.random.key(0), 4)
    evaluated = epoch(frozen, middle)[0]
    jax.tree.map(np.testing.assert_array_equal, copy(plain.sac), copy(evaluated.sac))


def test_a_point_that_stops_short_learns_to_reach_its_goal():
    # At 0.2 * 0.1 * 12 = 0.24 the base never reaches 0.5; with a residual of up to 0.5 it can.
    config = small_config(decisions_per_epoch=1024, updates_per_decision=0.5)
    rollout, sac, frozen, trainer, state = build(config)
    epoch = jax.jit(trainer.train_epoch, donate_argnums=1)

    @jax.jit
    def success(actor, scale):
        choose = lambda obs, a: sac.act_deterministic(actor, obs, a)  # noqa: E731
        return rollout.evaluate(frozen, choose, scale, jax.random.key(1), 64).success_once.mean()

    assert success(state.sac.actor, 0.0) == 0.0
    for _ in range(4):
        state, _ = epoch(frozen, state)
    assert success(state.sac.actor, config.decorator.residual_scale) > 0.9


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decisions_per_round": 20}, "multiple of train.num_envs=8"),
        ({"decisions_per_epoch": 100}, "multiple of train.decisions_per_round=16"),
        ({"updates_per_decision": 0.03}, "0.48 updates per round"),
    ],
)
def test_a_schedule_that_does_not_come_out_whole_is_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        make_schedule(small_config(**change))


def test_the_paper_preset_has_the_papers_schedule():
    # policy_decorator: 64 decisions, then 16 updates
    schedule = make_schedule(Config())
    assert schedule.decisions * 16 == 64 and schedule.updates == 16


def test_the_uncertain_gate_lets_in_the_same_share_where_the_base_is_noisy():
    config = small_config(prefill="uniform", learning_starts=10**6, decisions_per_epoch=512)
    changes = {"exploration_steps": 1024, "gate": "uncertain"}
    config = dataclasses.replace(config, decorator=dataclasses.replace(config.decorator, **changes))
    noisy = make_constant_policy(0.0)

    def apply(params, carry, obs_history, key):  # noisy to the right of the middle
        del params
        return 0.1 * jax.random.normal(key, (2, 1)) * (obs_history[-1, 0] > 0), carry

    _, _, frozen, trainer, state = build(config, base=noisy._replace(apply=apply))
    state, _ = jax.jit(trainer.train_epoch)(frozen, state)
    rows = jax.tree.map(lambda x: np.asarray(x[: 512 // 8]), state.replay.storage)
    let_in = (rows.residual_action != 0).any(-1)
    assert abs(let_in.mean() - 0.25) < 0.05  # from 0 to 512 / 1024
    noisy_rows = rows.obs[..., 0] > 0
    assert let_in[noisy_rows].mean() > let_in[~noisy_rows].mean() + 0.1
    first = (let_in & noisy_rows).sum(-1)
    np.testing.assert_array_equal(first, np.minimum(let_in.sum(-1), noisy_rows.sum(-1)))


def test_limits_must_be_one_for_each_number_of_an_action():
    config = DecoratorConfig(residual_limits=(0.5, 0.5))
    with pytest.raises(ConfigError, match="has 2 numbers, expected one for each of an action's 1"):
        residual_dim(config, make_constant_policy())
