"""Demonstrations in worker processes: experts beside their simulators, replays, Minari."""

import json

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax_envs import from_gymnasium
from pdjax_envs.demonstrations import layouts, store, through_workers
from pdjax_envs.demonstrations.trajectory import DataError
from pdjax_envs.from_gymnasium import Workers
from pdjax_envs.task import Expert
from pdjax_envs.workers import WorkerError, WorkerPool
from tests.envs.workers.playing import ENV, point

EXPERT = '''
"""Experts of the point: both of its numbers shall become 0."""

import numpy as np


def expert(env, observation):
    x = env.unwrapped.x  # an expert may look into the simulator
    assert (x == observation[0]).all()
    return np.clip(-x / 0.3, [-1, 0], [3, 2])


class Hesitating:
    """Waits for two control steps, in each episode anew."""

    def __init__(self):
        self.calls = 0

    def __call__(self, env, observation):
        self.calls += 1
        return expert(env, observation) if self.calls > 2 else np.zeros(2)


def away(env, observation):
    return np.array([3.0 if observation[0, 0] > 0 else -1.0, 0.0])


def wrong(env, observation):
    return np.zeros(3)


def failing(env, observation):
    return 1 / 0
'''


def make(count=0, **more):
    return from_gymnasium.make(ENV, Workers(count, episode_steps=7, **more))


@pytest.fixture
def env():
    return make()


@pytest.fixture
def expert(tmp_path):
    path = tmp_path / "experts.py"
    path.write_text(EXPERT)
    return lambda name: f"{path}:{name}"


def test_an_expert_is_asked_in_the_units_of_its_environment(expert):
    """The bounds are [-1, 3] and [0, 2]: their middle (1, 1) is our 0."""
    with WorkerPool({**point(), "expert": expert("expert")}, 3, 2) as pool:
        pool.send(np.zeros((3, 1, 2)), np.ones(3, bool), np.arange(3))
        x = pool.receive().obs[:, 0, :2]
        wanted = np.clip(-x / 0.3, [-1, 0], [3, 2])
        np.testing.assert_allclose(pool.advise(), (wanted - [1, 1]) / [2, 1], atol=1e-6)


def test_successful_episodes_are_recorded_and_replayed_bit_for_bit(env, expert, tmp_path):
    seen = []
    found, rate = through_workers.record(
        env, expert("expert"), 20, seed=5, noise=0.2, progress=seen.append
    )
    assert len(found) == 20 and 0 < rate <= 1 and seen[-1] == 20
    for trajectory in found:
        success = np.asarray(trajectory.success).tolist()
        assert success == [False] * (len(success) - 1) + [True]
        assert len(trajectory.obs) == len(trajectory.actions) + 1
    disturbed = [t for t in found if t.executed is not None]
    assert len(disturbed) > 15  # at the bounds, a disturbance may have no effect
    assert len({trajectory.seed for trajectory in found}) == 20
    store.write(tmp_path / "demos.h5", env.task, found)
    read = store.read(tmp_path / "demos.h5", env.task)
    for trajectory, replayed in zip(read, through_workers.replay(env, read), strict=True):
        np.testing.assert_array_equal(replayed.obs, trajectory.obs)
        np.testing.assert_array_equal(replayed.success, trajectory.success)


def test_recording_does_not_depend_on_the_number_of_workers(expert):
    one, three = (
        through_workers.record(make(count), expert("expert"), 7, 1, 0.3) for count in (1, 3)
    )
    assert one[1] == three[1]
    for a, b in zip(one[0], three[0], strict=True):
        np.testing.assert_array_equal(a.obs, b.obs)
        np.testing.assert_array_equal(a.executed, b.executed)


def test_a_class_of_experts_begins_each_episode_anew(env, expert):
    found, _ = through_workers.record(env, expert("Hesitating"), 20)
    waiting = (np.zeros(2) - [1, 1]) / [2, 1]  # of the environment's own 0
    for trajectory in found:
        np.testing.assert_allclose(trajectory.actions[:2], [waiting] * len(trajectory.actions[:2]))
        assert trajectory.executed is None  # without noise


def test_an_expert_of_our_own_leads_as_one_beside_the_simulator_does(env, expert):
    """Without noise; its carry, which each episode begins anew, counts the control steps."""

    def act(carry, obs, key):
        del key
        wanted = jnp.clip(-obs[:2] / 0.3, jnp.array([-1, 0]), jnp.array([3, 2]))
        wanted = (wanted - 1) / jnp.array([2, 1])
        return jnp.where(carry == obs[2], wanted, jnp.nan), carry + 1  # obs[2] counts them too

    def disturb(action, obs, key, noise):
        del obs
        return jnp.clip(action + noise * jax.random.normal(key, action.shape), -1, 1)

    ours = Expert(lambda key: jnp.zeros(()), act, disturb)
    found, rate = through_workers.record(env, ours, 20, seed=3)
    expected, their_rate = through_workers.record(env, expert("expert"), 20, seed=3)
    assert rate == their_rate
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.obs, other.obs, atol=1e-5)
        assert one.seed == other.seed and one.executed is None
    disturbed, _ = through_workers.record(env, ours, 20, seed=3, noise=0.2)
    assert sum(one.executed is not None for one in disturbed) > 15


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("away", "failed in all of"),
        ("wrong", r"wrong returned .* expected finite numbers \(shape \(2,\)\)"),
        ("failing", r"ZeroDivisionError: division by zero \(experts.py:"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_experts_that_are_no_use_are_one_line(env, expert, name, said):
    with pytest.raises((DataError, WorkerError), match=said) as error:
        through_workers.record(env, expert(name), 3)
    assert "\n" not in str(error.value)


def test_without_success_nothing_can_be_recorded(expert):
    env = make(success="absent_key")
    with pytest.raises(DataError, match="failed in all"):
        through_workers.record(env, expert("expert"), 3)
    env = env._replace(task=env.task.__class__(**{**vars(env.task), "has_success": False}))
    with pytest.raises(DataError, match=r"set task\.success"):
        through_workers.record(env, expert("expert"), 3)


def write_minari(path, env_id, low, high, observations):
    """A dataset of two episodes with what Minari 0.5 writes beside it."""
    path.mkdir()
    with h5py.File(path / "main_data.hdf5", "w") as file:
        for index in range(2):
            group = file.create_group(f"episode_{index}")
            group.attrs["seed"] = np.int64(100 + index)
            group["actions"] = np.array([low, high, low], np.float32)
            group["rewards"] = np.zeros(3)
            group["infos/is_success"] = np.array([0.0, 0.0, 0.0, 1.0])
            for name, values in observations.items():
                group[f"observations{name}"] = values
    metadata = {
        "env_spec": json.dumps({"id": env_id}),
        "action_space": json.dumps(
            {"type": "Box", "dtype": "float32", "shape": [2], "low": low, "high": high}
        ),
    }
    (path / "metadata.json").write_text(json.dumps(metadata))
    return path


NESTED = {
    "/pos/_index_0": np.arange(8.0).reshape(4, 2),
    "/pos/_index_1": np.full((4, 1), 9.0),
    "/goal/z": np.full(4, 7.0),
    "/goal/a": np.full((4, 1), 5),
}


def test_minari_of_nested_observations_fits_the_environment_that_has_them(tmp_path):
    path = write_minari(tmp_path / "data", "Point-v3", [-1, 0], [3, 2], NESTED)
    env = make(options={"space": "dict"})
    first, second = store.judge(path, layouts.load(path), env.task)
    # sorted keys: goal.a, goal.z, pos.0, pos.1, as the workers flatten them
    np.testing.assert_array_equal(first.obs[1], [5, 7, 2, 3, 9])
    np.testing.assert_array_equal(first.actions, [[-1, -1], [1, 1], [-1, -1]])  # of their bounds
    assert np.asarray(first.success).tolist() == [False, False, True]
    assert (first.seed, second.seed) == (100, 101)
    assert layouts.load(path).tasks == {"gymnasium:Point-v3"}


def test_minari_of_another_environment_is_refused(tmp_path):
    other = {**NESTED, "/pos/_index_1": np.zeros((4, 2)), "/goal/a": np.zeros((4, 0))}
    path = write_minari(tmp_path / "data", "Point-v3", [-1, 0], [3, 2], other)
    env = make(options={"space": "dict"})
    with pytest.raises(DataError, match=r"pos\.1 \(2\).*expected .*pos\.1 \(1\)"):
        store.judge(path, layouts.load(path), env.task)
    task = from_gymnasium.make("gymnasium:Pendulum-v1").task
    with pytest.raises(DataError, match=r"of gymnasium:Point-v3, expected gymnasium:Pendulum-v1"):
        store.judge(path, layouts.load(path), task)
