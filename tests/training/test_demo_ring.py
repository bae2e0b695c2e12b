"""Demonstrations as a ring: compared with decisions cut by hand, and used for learning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.config.schema import ConfigError
from pdjax.learner.replay import make_packing, sample
from pdjax.training.demo_ring import make_demo_replay
from pdjax_envs.demonstrations.trajectory import Trajectory
from tests.probe import make_constant_policy
from tests.training.test_epoch import build, small_config

OBS = np.arange(18, dtype=np.float32).reshape(6, 3)  # five control steps
ACTIONS = np.array([[0.5], [0.4], [0.3], [0.1], [0.2]], np.float32)
NOTHING = np.zeros((6, 0), np.float32)


def episode(success, **more):
    return Trajectory(OBS, ACTIONS, success, NOTHING, **more)


def test_decisions_of_hand_made_episodes(key):
    base = make_constant_policy(0.2)  # chunks of 2
    won, lost = np.arange(5) == 2, np.zeros(5, bool)
    # what was executed counts, not what was wanted
    other = episode(lost, executed=ACTIONS + 0.1)
    ring = make_demo_replay(base, [episode(won), other], 2, key)
    rows = jax.tree.map(lambda x: np.asarray(x[:, 0]), ring.storage)
    # solved at the third control step: two decisions, the second half played; then the other's
    # three, of which the last has one step; each ends with a row that starts nothing
    np.testing.assert_array_equal(rows.obs[:, 0], [0, 6, 9, 0, 6, 12, 15])
    np.testing.assert_array_equal(rows.reward, [0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(rows.terminated, [0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(rows.truncated, [0, 0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(rows.is_reset, [0, 0, 1, 0, 0, 0, 1])
    np.testing.assert_allclose(rows.base_action[[0, 1, 3, 4, 5]], 0.2)
    expected = [[0.3, 0.2], [0.1, 0.1], [0, 0], [0.4, 0.3], [0.2, 0.0], [0.1, 0.1], [0, 0]]
    np.testing.assert_allclose(rows.residual_action, expected, atol=1e-6)
    assert ring.size == 7
    held = make_demo_replay(base, [episode(won)], 1, jax.random.clone(key)).storage.residual_action[
        :, 0
    ]
    np.testing.assert_allclose(held, [[0.25], [0.1], [0.0]], atol=1e-6)
    # two-step return of the first decision: 0 + .5 * 1, then no bootstrap
    batch = sample(ring, jax.random.clone(key), 64, 2, 0.5, 0.0)
    first = np.asarray(batch.obs[:, 0] == 0) & np.asarray(batch.reward > 0)
    assert first.any()
    np.testing.assert_allclose(batch.reward[first], 0.5)
    assert not batch.discount[first].any()


def test_success_that_must_last_ends_a_demonstration_once_it_has(key):
    base, solved = make_constant_policy(0.2), np.array([1, 0, 1, 1, 1], bool)

    def of(hold_steps):
        ring = make_demo_replay(base, [episode(solved)], 1, jax.random.clone(key), hold_steps)
        return jax.tree.map(lambda x: np.asarray(x[:, 0]), ring.storage)

    once, twice, never = of(1), of(2), of(4)
    np.testing.assert_array_equal(once.obs[:, 0], [0, 3])  # one decision, then the last row
    np.testing.assert_array_equal(once.reward, [1, 0])
    np.testing.assert_array_equal(twice.obs[:, 0], [0, 6, 12])  # solved twice at step 4
    np.testing.assert_array_equal(twice.reward, [0, 1, 0])
    np.testing.assert_array_equal(twice.terminated, [False, True, False])
    assert not never.reward.any() and not never.terminated.any()
    np.testing.assert_array_equal(never.truncated, [False, False, True, False])


def test_flags_are_needed(key):
    with pytest.raises(ConfigError, match="success flags"):
        make_demo_replay(make_constant_policy(0.2), [episode(None)], 2, key)


def test_a_share_of_each_batch_comes_from_the_demonstrations(key):
    """With a replay that never saw success, only demonstrations can teach the critics of it."""
    means = {}
    for share in (0.0, 0.5):
        config = small_config(prefill="base", demo_share=share, learning_starts=64)
        config = dataclasses.replace(
            config, sac=dataclasses.replace(config.sac, n_step=1, gamma=0.5, critic_lr=3e-3)
        )
        _, _, frozen, trainer, state = build(config, velocity=0.0)
        demos = make_demo_replay(
            make_constant_policy(0.0), [episode(np.arange(5) == 4)], 1, jax.random.clone(key)
        )
        frozen = frozen._replace(demos=demos)
        epoch = jax.jit(trainer.train_epoch)
        for _ in range(4):
            state, metrics = epoch(frozen, state)
        assert metrics["gradient_steps"] > 0 and jnp.isfinite(metrics["critic_loss"])
        means[share] = float(metrics["target_mean"])
    # of the three decisions, one is worth 1, those before .5 and .25: .58 on average, in half of
    # each batch
    assert abs(means[0.0]) < 0.1 < means[0.5]


def test_demonstrations_are_kept_in_the_replays_dtype(key):
    """Half of each batch from a bfloat16 ring of demonstrations: the same lesson."""
    config = small_config(prefill="base", demo_share=0.5, replay_dtype="bfloat16")
    config = dataclasses.replace(
        config, sac=dataclasses.replace(config.sac, n_step=1, gamma=0.5, critic_lr=3e-3)
    )
    base = make_constant_policy(0.0)
    _, _, frozen, trainer, state = build(config, velocity=0.0)
    demos = make_demo_replay(base, [episode(np.arange(5) == 4)], 1, key)
    packing = make_packing("bfloat16", base.obs_mean, base.obs_std)
    demos = demos._replace(storage=packing.pack(demos.storage))
    assert demos.storage.obs.dtype == demos.storage.residual_action.dtype == jnp.uint16
    frozen, epoch = frozen._replace(demos=demos), jax.jit(trainer.train_epoch)
    for _ in range(4):
        state, metrics = epoch(frozen, state)
    assert metrics["gradient_steps"] > 0
    assert metrics["target_mean"] > 0.1
