"""Many environments in workers give the numbers of a plain loop around one, however divided."""

import ast
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

from pdjax_envs.reading import InputError
from pdjax_envs.workers import WorkerPool, describe, process, same_starts
from pdjax_envs.workers.spec import SUCCESS_KEYS
from tests.envs.workers.playing import ENV, FILE, descriptors, is_gone, pids, play, point
from tests.envs.workers.point_env import PointEnv
from tests.test_structure import imports


def plain(env, decisions, index, num_envs, chunk, seed=0, flatten=np.ravel):
    """One environment's part of `play`, stepped by a plain loop: rows of each control step."""
    draw, begin, rows = np.random.default_rng(seed), True, []
    low, high = (bound.astype(float) for bound in (env.action_space.low, env.action_space.high))
    for decision in range(decisions):
        actions = draw.uniform(-1, 1, (num_envs, chunk, len(low)))[index].astype(np.float32)
        if begin:
            obs, _ = env.reset(seed=1000 * decision + index)
            rows += [(flatten(obs), 0.0, False, False, False)] * chunk
            begin = False
            continue
        for action in actions:
            if begin:
                rows.append((rows[-1][0], 0.0, False, False, False))
                continue
            scaled = np.clip((high + low) / 2 + (high - low) / 2 * action, low, high)
            obs, reward, terminated, truncated, _ = env.step(scaled.astype(np.float32))
            rows.append((flatten(obs), reward, terminated, truncated, True))
            begin = terminated or truncated
    return [np.array(column, np.float32) for column in zip(*rows, strict=True)]


def columns(played, index):
    """The same columns of what a pool played."""
    names = ("obs", "reward", "terminated", "truncated", "executed")
    return [np.concatenate([getattr(p, name)[index] for p in played]) for name in names]


@pytest.mark.parametrize(("workers", "chunk"), [(1, 3), (2, 1), (3, 4), (5, 3)])
def test_a_pool_equals_a_plain_loop_however_it_is_divided(workers, chunk):
    with WorkerPool(point(), 5, workers, chunk=chunk) as pool:
        played = list(play(pool, 12))
        assert pool.restarts == 0 and not pool.new_reasons()
    for index in range(5):
        expected = plain(PointEnv(), 12, index, 5, chunk)
        for a, b in zip(columns(played, index), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert np.concatenate([p.truncated for p in played]).any()
    assert np.concatenate([p.terminated for p in played]).any()
    assert np.concatenate([p.success for p in played]).any()


@pytest.mark.parametrize("name", ["Pendulum-v1", "Hopper-v5"])
def test_a_registered_environment_equals_a_plain_loop(name):
    with WorkerPool({"env": name, "episode_steps": 8}, 3, 2, chunk=3) as pool:
        played = list(play(pool, 10))
        assert pool.description.episode_steps == 8
    for index in range(3):
        env = gymnasium.make(name, max_episode_steps=8)
        for a, b in zip(columns(played, index), plain(env, 10, index, 3, 3), strict=True):
            np.testing.assert_array_equal(a, b)


def test_nested_observations_are_flattened_in_sorted_order():
    with WorkerPool(point(space="dict"), 1, chunk=2) as pool:
        assert pool.description.names() == [
            "goal.a[0]",
            "goal.z[0]",
            "pos.0[0]",
            "pos.0[1]",
            "pos.1[0]",
        ]
        played = list(play(pool, 2))
    np.testing.assert_array_equal(played[1].obs[0, :, :2], [[5, 7], [5, 7]])
    np.testing.assert_array_equal(played[1].obs[0, :, 4], [1, 2])  # control steps


def test_a_description_says_what_there_is():
    found = describe({"env": ENV, "options": {"limit": 4}})
    assert found.names() == [f"observation[{i}]" for i in range(4)] and found.obs_dim == 4
    assert found.low == (-1, 0) and found.high == (3, 2) and found.act_dim == 2
    assert found.control_hz == 20 and found.episode_steps == 0  # its limit is its own affair
    assert found.success == "is_success" and found.info == ("energy", "is_success")
    assert found.versions["gymnasium"] == gymnasium.__version__
    assert describe({"env": "Pendulum-v1"}).control_hz == 20  # of dt, not of its pictures
    assert describe({"env": "Pendulum-v1"}).episode_steps == 200
    assert describe({"env": "Pendulum-v1"}).success == ""


SUCCESS = {
    "auto": lambda x, reward, terminated: abs(x) < 0.1,
    "absent": lambda x, reward, terminated: False,
    "terminated": lambda x, reward, terminated: terminated,
    "reward>=-0.5": lambda x, reward, terminated: reward >= -0.5,
    f"{FILE}:is_left": lambda x, reward, terminated: x < 0,
}


@pytest.mark.parametrize("rule", SUCCESS, ids=lambda rule: rule.rpartition(":")[2])
def test_success_is_what_the_rule_says(rule):
    with WorkerPool({"env": ENV, "success": rule}, 3, chunk=2) as pool:
        for played in play(pool, 8):
            for i, t in np.argwhere(played.executed):
                row = (played.obs[i, t, 0], played.reward[i, t], played.terminated[i, t])
                assert played.success[i, t] == SUCCESS[rule](*row)


def test_an_own_time_limit_truncates():
    with WorkerPool({"env": ENV, "episode_steps": 3}, 1, chunk=5) as pool:
        _, played = play(pool, 2)
    assert played.executed[0].tolist() == [True] * 3 + [False] * 2
    assert played.truncated[0].tolist() == [False, False, True, False, False]


def test_the_classic_interface_equals_the_new_one():
    with (
        WorkerPool({"env": f"{FILE}:make_classic"}, 2, chunk=3) as classic,
        WorkerPool(point(), 2, chunk=3) as new,
    ):
        for a, b in zip(play(classic, 10), play(new, 10), strict=True):
            for found, expected in zip(a, b, strict=True):
                np.testing.assert_array_equal(found, expected)


def test_actions_are_scaled_from_their_bounds_and_clipped():
    with WorkerPool({"env": ENV}, 1, chunk=3) as pool:
        pool.send(np.zeros((1, 3, 2)), [True], [0])
        x = pool.receive().obs[0, 0, :2]
        pool.send([[[1, 1], [-1, -1], [9, -9]]], [False], [0])
        obs = pool.receive().obs[0, :, :2]
    steps = np.diff([x, *obs], axis=0) / 0.3
    np.testing.assert_allclose(steps, [[3, 2], [-1, 0], [3, 0]], atol=0.15)  # noise of 0.01 / 0.3


def test_equal_starts_are_noticed():
    with WorkerPool(point(), 3, 2, chunk=2) as pool:
        assert same_starts(pool)
        with pytest.raises(ValueError, match="has ended; begin another"):
            pool.send(np.zeros((3, 2, 2)), np.zeros(3, bool), np.zeros(3, int))
    with WorkerPool(point(trouble="unseeded"), 3) as pool:
        assert not same_starts(pool)


def test_pictures_are_drawn():
    with WorkerPool({"env": ENV, "render": True}, 3, 2) as pool:
        for _ in play(pool, 3):
            pass
        picture = pool.render(2)
        assert picture.shape == (4, 6, 3) and picture.dtype == np.uint8 and (picture == 2).all()
        with pytest.raises(IndexError, match="expected 0 to 2"):
            pool.render(3)
        assert [p.executed.all() for p in play(pool, 3)] == [False, True, True]


def test_calls_in_the_wrong_order_or_of_wrong_shapes_are_refused():
    zeros, no, seeds = np.zeros((2, 1, 2)), np.zeros(2, bool), np.zeros(2, int)
    with WorkerPool(point(), 2) as pool:
        with pytest.raises(RuntimeError, match="call send before"):
            pool.receive()
        with pytest.raises(ValueError, match="environment 0 has ended"):
            pool.send(zeros, no, seeds)
        with pytest.raises(ValueError, match="expected"):
            pool.send(zeros[:, 0], ~no, seeds)
        with pytest.raises(ValueError, match="uint32"):
            pool.send(zeros, ~no, seeds - 1)
        pool.send(zeros + np.nan, ~no, seeds)  # not used
        with pytest.raises(RuntimeError, match="call receive before"):
            pool.send(zeros, no, seeds)
        pool.receive()
        with pytest.raises(ValueError, match="not finite"):
            pool.send(zeros + np.nan, no, seeds)
    with pytest.raises(InputError, match="after the pool was closed"):
        pool.send(zeros, ~no, seeds)


@pytest.mark.parametrize(
    ("spec", "sizes", "words"),
    [
        ({}, {}, "is empty"),
        ({"env": ENV, "sucess": "x"}, {}, "did you mean success?"),
        ({"env": ENV, "success": "reward>=high"}, {}, "expected a number after"),
        ({"env": ENV, "options": {"a": object()}}, {}, "JSON"),
        ({"env": ENV, "episode_steps": "7"}, {}, "expected int"),
        (point(), {"workers": 3}, "more than num_envs=2"),
        (point(), {"chunk": 0}, "at least 1"),
        (point(), {"step_timeout": 0}, "expected seconds"),
    ],
)
def test_bad_arguments_are_refused_before_a_process_starts(spec, sizes, words):
    before = descriptors()
    with pytest.raises(InputError) as error:
        WorkerPool(spec, 2, **sizes)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert descriptors() == before


def test_closing_and_forgetting_end_all_processes_and_free_all():
    before = descriptors()
    pool = WorkerPool(point(), 3, 3)
    started = pids(pool)
    pool.close()
    pool.close()
    assert all(map(is_gone, started)) and descriptors() == before
    pool = WorkerPool(point(), 3, 3)
    started = pids(pool)
    del pool
    assert all(map(is_gone, started)) and descriptors() == before


def test_the_script_needs_only_python_3_8_numpy_and_gymnasium():
    source = process.SCRIPT.read_text()
    ast.parse(source, feature_version=(3, 8))
    found = {name.split(".")[0] for name in imports(source)}
    assert found - sys.stdlib_module_names - {"__future__"} == {"numpy", "gymnasium", "gym"}
    assert f"SUCCESS_KEYS = {SUCCESS_KEYS}".replace("'", '"') in source


def test_nothing_here_imports_jax():
    source = "import sys, pdjax_envs.workers; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source]).returncode == 0
