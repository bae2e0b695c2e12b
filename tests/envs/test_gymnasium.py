"""Our environments as Gymnasium's: its own checks, and two routes to every number."""

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import pdjax_envs.gymnasium as ours
from pdjax_envs import registry
from pdjax_envs.names import UnknownName
from tests.probe import make_point_env

# Gymnasium's checks complain by warnings; what they warn of fails here, except that observations
# have no bounds.
pytestmark = pytest.mark.filterwarnings("error", "ignore:.*A Box observation space m")


def actions_of(seed, steps, num_envs):
    drawn = np.random.default_rng(seed).uniform(-0.3, 1.3, (steps, num_envs, 1))
    return drawn.astype(np.float32)


def play(env, actions, seed=7) -> list[Any]:
    obs, info = env.reset(seed=seed)
    return [(obs, info)] + [env.step(action) for action in actions]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            a, b = tuple(a.values()), tuple(b[name] for name in a)
            assert_equal(a, b)
        elif isinstance(a, tuple):
            assert_equal(a, b)
        else:
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_array_equal(a, b)


def test_a_vector_environment_equals_gymnasiums_own_around_single_ones():
    env = make_point_env(episode_steps=5, goal=0.3)
    vector = ours.VectorEnv(env, 3)
    looped = SyncVectorEnv([lambda: ours.SingleEnv(env)] * 3)
    actions = actions_of(0, 14, 3)
    found, expected = play(vector, actions), play(looped, actions)
    assert_equal(found, expected)
    # Both ways for an episode to end occurred, and bad actions too.
    assert any(step[2].any() for step in found[1:]) and any(step[3].any() for step in found[1:])
    assert any(step[4]["bad_action"].any() for step in found[1:])


def test_a_vector_environment_equals_stepping_ours_by_hand():
    env, num_envs, seed = make_point_env(episode_steps=4, goal=9.0, reward="dense"), 2, 40
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    actions = actions_of(1, 11, num_envs)
    found = play(ours.VectorEnv(env, num_envs), actions, seed)
    for index in range(num_envs):
        key, done = jax.random.key(seed + index), True
        state, episode = None, -1
        # The action before the first observation is ignored, as after every episode's end.
        for time, action in enumerate([None, *actions[:, index]]):
            if done:
                episode += 1
                state, obs = reset(env.model, jax.random.fold_in(key, episode))
                reward, done = 0.0, False
            else:
                state, out = step(env.model, state, action)
                obs, reward, done = out.obs, out.reward, bool(out.truncated)
            np.testing.assert_array_equal(found[time][0][index], obs)
            if time:
                assert found[time][1][index] == reward
                assert found[time][3][index] == done and not found[time][2][index]
        assert episode == 2  # at steps 0, 5 and 10: four control steps and a reset each


def test_the_vector_contract():
    env = make_point_env(episode_steps=4)
    vector = ours.VectorEnv(env, 3, seed=5)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert vector.single_observation_space.shape == (3,) and vector.action_space.shape == (3, 1)
    obs, info = vector.reset()
    assert obs in vector.observation_space
    assert not info["success"].any() and not info["bad_action"].any()
    obs[:] = 0  # the caller's own copy
    obs, reward, terminated, truncated, info = vector.step(vector.action_space.sample())
    assert obs in vector.observation_space
    assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)
    assert {array.shape for array in (reward, terminated, truncated, *info.values())} == {(3,)}


def test_a_step_after_the_end_starts_a_fresh_episode_and_ignores_the_action():
    vector = ours.VectorEnv(make_point_env(episode_steps=2, goal=9.0), 4)
    steps = play(vector, np.ones((8, 4, 1)))
    counts = [step[0][0, 2] for step in steps]  # steps taken, as the observation shows them
    assert counts == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    starts = np.stack([steps[index][0][:, 0] for index in (0, 3, 6)])
    assert len(np.unique(starts)) == 12 and np.abs(starts).max() <= 0.1
    for index in (3, 6):
        _, reward, terminated, truncated, info = steps[index]
        assert not (reward.any() or terminated.any() or truncated.any() or info["success"].any())
    assert steps[2][3].all()


def test_gymnasiums_own_wrappers_count_episodes():
    vector = ours.VectorEnv(make_point_env(episode_steps=2, goal=9.0, reward="dense"), 2)
    steps = play(gymnasium.wrappers.vector.RecordEpisodeStatistics(vector), np.ones((5, 2, 1)))
    for end in (2, 5):  # the reset at step 3 counts for nothing
        np.testing.assert_array_equal(steps[end][4]["episode"]["l"], 2)
        np.testing.assert_allclose(
            steps[end][4]["episode"]["r"], steps[end - 1][1] + steps[end][1], rtol=1e-6
        )


def test_seeds_reproduce_and_differ():
    vector = ours.VectorEnv(make_point_env(), 3)
    actions = actions_of(2, 12, 3)
    first = play(vector, actions, seed=1)
    assert_equal(first, play(vector, actions, seed=1))
    assert (first[0][0] != play(vector, actions, seed=10)[0][0])[:, 0].all()
    # Environment i has seed + i; a list names each; large seeds are taken too.
    np.testing.assert_array_equal(vector.reset(seed=2)[0][:2], first[0][0][1:])
    np.testing.assert_array_equal(vector.reset(seed=[3, 2, 1])[0], first[0][0][::-1])
    large: Any = np.int64(2**32 + 1)
    np.testing.assert_array_equal(vector.reset(seed=large)[0], first[0][0])


def test_a_reset_without_a_seed_goes_on_to_other_episodes():
    env = make_point_env()
    vector = ours.VectorEnv(env, 2)
    first, second = vector.reset(seed=3)[0], vector.reset()[0]
    assert (first[:, 0] != second[:, 0]).all()
    np.testing.assert_array_equal(vector.reset(seed=3)[0], first)
    np.testing.assert_array_equal(vector.reset()[0], second)
    np.testing.assert_array_equal(ours.VectorEnv(env, 2, seed=3).reset()[0], first)
    unseeded = [ours.VectorEnv(env, 2).reset()[0] for _ in range(2)]
    assert (unseeded[0][:, 0] != unseeded[1][:, 0]).all()


def test_mistakes_are_named():
    vector = ours.VectorEnv(make_point_env(), 2)
    with pytest.raises(gymnasium.error.ResetNeeded):
        vector.step(np.zeros((2, 1)))
    vector.reset()
    with pytest.raises(ValueError, match=r"actions \(3, 1\), expected \(2, 1\)"):
        vector.step(np.zeros((3, 1)))
    with pytest.raises(ValueError, match="got 3 seeds, expected num_envs=2"):
        vector.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="reset_mask"):
        vector.reset(options={"reset_mask": np.ones(2, bool)})
    with pytest.raises(ValueError, match="num_envs=0"):
        ours.VectorEnv(make_point_env(), 0)
    with pytest.raises(UnknownName, match="did you mean AdroitDoor"):
        ours.make_vec("AdroitDor", 2)


def test_gymnasiums_checker_passes_on_a_registered_task():
    assert {f"pdjax/{name}-v0" for name in registry.task_names()} <= set(gymnasium.registry)
    ours.register()  # again, without a warning
    env = gymnasium.make("pdjax_envs.gymnasium:pdjax/AdroitDoor-v0", physics="native")
    check_env(env.unwrapped)


def test_a_registered_task_is_made_as_one_vector_program():
    vector = gymnasium.make_vec("pdjax/AdroitDoor-v0", 2, physics="native", reward="dense")
    assert isinstance(vector, ours.VectorEnv)
    obs, _ = vector.reset(seed=0)
    env = registry.make("AdroitDoor", "native", "dense")
    keys = jax.vmap(jax.random.key)(jnp.arange(2, dtype=jnp.uint32))
    keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 0)
    _, starts = jax.vmap(env.reset, (None, 0))(env.model, keys)
    np.testing.assert_array_equal(obs, starts)
    _, reward, *_ = vector.step(vector.action_space.sample())
    assert (reward != 0).all()  # dense, as asked for


def test_stable_baselines_checker_passes():
    checker = pytest.importorskip(
        "stable_baselines3.common.env_checker",
        reason="needs Stable-Baselines3: pip install -e '.[interop]'",
    )
    checker.check_env(ours.make("AdroitDoor", "native"))
