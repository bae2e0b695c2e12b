"""Our environments as Gymnasium's: its own checks, and two routes to every number."""

import os
import subprocess
import sys
import warnings
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
from pdjax_envs.drawing import RenderError
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
        if a is None or b is None:
            assert a is b
        elif isinstance(a, dict):
            assert a.keys() == b.keys()
            a, b = tuple(a.values()), tuple(b[name] for name in a)
            assert_equal(a, b)
        elif isinstance(a, tuple) or (a.dtype == b.dtype == object):
            assert_equal(a, b)
        else:
            assert a.dtype == b.dtype and a.shape == b.shape
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_vector_environment_equals_gymnasiums_own_around_single_ones(mode):
    env = make_point_env(episode_steps=5, goal=0.3)
    vector = ours.VectorEnv(env, 3, autoreset_mode=mode)
    looped = SyncVectorEnv([lambda: ours.SingleEnv(env)] * 3, autoreset_mode=mode)
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
    for number in (0, -1, 2.5, "2", None):
        with pytest.raises(ValueError, match=r"num_envs=.*, expected an integer of at least 1"):
            ours.VectorEnv(make_point_env(), number)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"num_envs=1000000000000 needs .* GiB of memory"):
        ours.VectorEnv(make_point_env(), 10**12)
    with pytest.raises(UnknownName, match="did you mean AdroitDoor"):
        ours.make_vec("AdroitDor", 2)


@pytest.mark.parametrize("seed", [-1, [0, -5], 1.5, [1, 2.0], "ab", ["1", "2"], [[1], [2]]])
def test_seeds_that_are_none_are_named(seed):
    vector = ours.VectorEnv(make_point_env(), 2)
    with pytest.raises(ValueError, match=r"seed .*, expected an integer of at least 0, or None"):
        vector.reset(seed=seed)


def test_a_seed_of_none_in_a_list_goes_on_with_that_environment():
    vector = ours.VectorEnv(make_point_env(), 2)
    # At the first reset it draws a random seed, as None for all does.
    starts = [ours.VectorEnv(make_point_env(), 2).reset(seed=[1, None])[0] for _ in range(2)]
    np.testing.assert_array_equal(starts[0][0], starts[1][0])
    assert starts[0][1, 0] != starts[1][1, 0]
    seeded, second = vector.reset(seed=[1, 2])[0], vector.reset()[0]
    vector.reset(seed=[1, 2])
    mixed = vector.reset(seed=[1, None])[0]
    np.testing.assert_array_equal(mixed, [seeded[0], second[1]])
    # As in Gymnasium's own.
    looped = SyncVectorEnv([lambda: ours.SingleEnv(make_point_env())] * 2)
    looped.reset(seed=[1, 2])
    np.testing.assert_array_equal(looped.reset(seed=[1, None])[0], mixed)


def test_a_single_environment_stays_at_its_end():
    env = ours.SingleEnv(make_point_env(episode_steps=2, goal=9.0))
    for _ in range(2):
        env.reset(seed=0)
        env.step(np.ones(1))
        assert env.step(np.ones(1))[3]
        for _ in range(2):
            with pytest.raises(gymnasium.error.ResetNeeded, match="the episode has ended"):
                env.step(np.ones(1))
    for wrong in (np.ones(3), 1.0, np.ones((1, 1))):
        env.reset()
        with pytest.raises(ValueError, match=r"action \(.*\), expected \(1,\)"):
            env.step(wrong)
    with pytest.raises(ValueError, match="options"):
        env.reset(options={"goal": 1})


def test_any_number_is_an_action():
    env = ours.SingleEnv(make_point_env())
    for number, moved in ((np.nan, 0.0), (np.inf, 0.1), (-1e300, -0.1), (3, 0.1)):
        start, _ = env.reset(seed=0)
        obs, reward, *_, info = env.step(np.array([number]))
        np.testing.assert_allclose(obs[0] - start[0], moved, atol=1e-6)
        assert info["bad_action"] and np.isfinite(reward)


def test_a_closed_environment_is_not_used():
    vector, single = ours.VectorEnv(make_point_env(), 2), ours.SingleEnv(make_point_env())
    for env, action in ((vector, np.ones((2, 1))), (single, np.ones(1))):
        env.reset()
        env.close()
        env.close()
        for use in (env.reset, lambda: env.step(action)):  # noqa: B023
            with pytest.raises(gymnasium.error.ClosedEnvironmentError, match="after close"):
                use()


@pytest.mark.parametrize(("given", "limit"), [({}, 200), ({"max_episode_steps": 3}, 3)])
def test_the_time_limit_is_declared_and_holds(given, limit):
    env = gymnasium.make("pdjax/AdroitDoor-v0", physics="native", **given)
    assert env.spec is not None and env.spec.max_episode_steps == limit
    assert gymnasium.spec("pdjax/AdroitDoor-v0").max_episode_steps == 200
    if limit == 3:
        env.reset(seed=0)
        still = np.zeros(28, np.float32)
        assert [env.step(still)[3] for _ in range(5)] == [False, False, True, True, True]


def test_a_time_limit_may_be_longer_than_the_tasks_or_none():
    env = make_point_env(episode_steps=3, goal=9.0)
    for steps, expected in ((None, 3), (2, 2), (5, 5), (-1, 0)):
        limited = ours.VectorEnv(ours._with_limit(env, steps), 1)
        found = [step[3][0] for step in play(limited, np.zeros((7, 1, 1)))[1:]]
        assert (found.index(True) + 1 if expected else any(found)) == expected
    for steps in (0, -2, 1.5, "3", 2**31):
        with pytest.raises(ValueError, match=r"max_episode_steps=.*expected 1 to 2147483647"):
            ours._with_limit(env, steps)  # pyright: ignore[reportArgumentType]


def test_a_broken_task_of_another_package_is_left_out(monkeypatch):
    def fail(name):
        raise ImportError("no module named nonsense")

    monkeypatch.setattr(registry, "task_names", lambda: ["Broken"])
    monkeypatch.setattr(registry, "make_task", fail)
    with pytest.warns(UserWarning, match="no task Broken: no module named nonsense"):
        ours.register()
    assert "pdjax/Broken-v0" not in gymnasium.registry


def can_draw():
    """Whether this machine has what drawing needs; if not, why."""
    env = ours.make("AdroitDoor", "native", render_mode="rgb_array")
    env.reset(seed=0)
    try:
        env.render()
    except RenderError as error:
        return str(error)
    finally:
        env.close()
    return ""


@pytest.fixture(scope="module")
def drawing():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if lack := can_draw():
            pytest.skip(lack)


def test_gymnasiums_checker_passes_on_a_registered_task(drawing):
    assert {f"pdjax/{name}-v0" for name in registry.task_names()} <= set(gymnasium.registry)
    ours.register()  # again, without a warning
    env = gymnasium.make("pdjax_envs.gymnasium:pdjax/AdroitDoor-v0", physics="native")
    check_env(env.unwrapped)


def test_pictures_show_the_state_and_the_values_of_the_episode(drawing):
    vector = gymnasium.make_vec(
        "pdjax/PegInsertionSide-v0",
        2,
        physics="native",
        render_mode="rgb_array",
        width=160,
        height=96,
    )
    assert vector.metadata["render_fps"] == 20.0
    with pytest.raises(gymnasium.error.ResetNeeded):
        vector.render()
    vector.reset(seed=0)
    first: Any = vector.render()
    assert [picture.shape for picture in first] == [(96, 160, 3)] * 2
    assert first[0].dtype == np.uint8 and first[0].std() > 20
    assert (first[0] != first[1]).any()  # other sizes, other places
    again: Any = vector.render()
    np.testing.assert_array_equal(first, again)
    single = gymnasium.make(
        "pdjax/PegInsertionSide-v0", physics="native", render_mode="rgb_array", width=160, height=96
    )
    single.reset(seed=1)
    np.testing.assert_array_equal(single.render(), first[1])
    for _ in range(10):
        single.step(np.ones(7, np.float32))
    assert (single.render() != first[1]).any()
    sky = first[0][:10].astype(float).mean((0, 1))
    assert sky[2] > sky[0]  # the sky is above, and bluish
    single.close()
    vector.close()


def test_gymnasium_records_a_video(drawing, tmp_path):
    pytest.importorskip("moviepy", reason="RecordVideo needs moviepy: pip install '.[interop]'")
    env: Any = gymnasium.make(
        "pdjax/AdroitDoor-v0", 3, physics="native", render_mode="rgb_array", width=64, height=48
    )
    env = gymnasium.wrappers.RecordVideo(env, str(tmp_path / "videos"))
    env.reset(seed=0)
    while not env.step(env.action_space.sample())[3]:
        pass
    env.close()
    assert [path.suffix for path in (tmp_path / "videos").iterdir()] == [".mp4"]


def test_drawing_is_asked_for_by_name():
    for mode in ("depth_array", "human", 3):
        with pytest.raises(ValueError, match=r"render_mode=.*, expected rgb_array or None"):
            ours.make("AdroitDoor", "native", render_mode=mode)  # pyright: ignore
    for size in ((0, 10), (10, 4097), (10.5, 10)):
        with pytest.raises(ValueError, match="expected 1 to 4096 pixels"):
            ours.VectorEnv(make_point_env(), 1, size=size)  # pyright: ignore
    env = ours.SingleEnv(make_point_env())
    env.reset()
    with pytest.warns(UserWarning, match="without render_mode"):
        assert env.render() is None
    env = ours.SingleEnv(make_point_env(), "rgb_array")
    env.reset()
    with pytest.raises(NotImplementedError, match="no model to draw"):
        env.render()


# What Gymnasium's workers do: both in a process of their own, with a limit of time.

WORKERS = """
import sys
import gymnasium
if __name__ == "__main__":
    env = gymnasium.make_vec(
        "pdjax_envs.gymnasium:pdjax/AdroitDoor-v0", 2, vectorization_mode="async",
        vector_kwargs={"context": sys.argv[1]}, physics=sys.argv[2],
    )
    obs, _ = env.reset(seed=0)
    obs, *_ = env.step(env.action_space.sample())
    print(obs.shape)
    env.close()
"""


def run_workers(tmp_path, context, physics="native"):
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    return subprocess.run(
        [sys.executable, str(script), context, physics],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_forked_workers_are_refused_instead_of_hanging(tmp_path):
    done = run_workers(tmp_path, "fork")
    assert done.returncode == 1 and not done.stdout
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("RuntimeError: JAX hangs in a process that was forked")
    assert "'spawn'" in last and "gymnasium.make_vec(ID, NUM_ENVS)" in last


@pytest.mark.slow
def test_spawned_workers_play(tmp_path):
    done = run_workers(tmp_path, "spawn")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "(2, 39)\n"


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
