"""Success that must last before training pays it."""

import jax.numpy as jnp
import numpy as np
import pytest

from pdjax_envs import registry
from pdjax_envs.lasting import hold_success
from pdjax_envs.names import UnknownName
from tests.probe import make_point_env, make_point_task, registered

ACTIONS = (1, 1, 1, -1, 0, 0, 0, 0)  # from 0.3: 0.4, 0.5, 0.6, 0.5 and there it stays; goal 0.5
SOLVED = (0, 1, 0, 1, 1, 1, 1, 1)


def play(env):
    """Returns what each control step of ACTIONS says: success, reward, terminated, truncated."""
    start = env.task.make_start({"qpos": jnp.array([0.3]), "qvel": jnp.zeros(1)})
    state, _ = env.start_from(env.model, start)
    said = []
    for action in ACTIONS:
        state, out = env.step(env.model, state, jnp.array([float(action)]))
        said.append((out.success, out.reward, out.terminated, out.truncated))
    return np.array(said, float).T


@pytest.mark.parametrize("terminate", [True, False])
def test_success_pays_and_ends_once_it_has_lasted(terminate):
    env = hold_success(make_point_env(terminate_on_success=False), 3, "success", terminate)
    success, reward, terminated, truncated = play(env)
    np.testing.assert_array_equal(success, SOLVED)
    np.testing.assert_array_equal(reward, [0, 0, 0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(terminated, reward if terminate else np.zeros(8))
    # The time limit is 8 steps; what success ends is not truncated.
    np.testing.assert_array_equal(truncated, [0] * 7 + [not terminate])


def test_one_step_is_the_published_success():
    held = play(hold_success(make_point_env(terminate_on_success=False), 1, "success", True))
    np.testing.assert_array_equal(held, play(make_point_env()))


def test_other_rewards_stay():
    kinds = {"reward": "dense", "terminate_on_success": False}
    held = play(hold_success(make_point_env(**kinds), 3, "dense", True))
    np.testing.assert_array_equal(held[1], play(make_point_env(**kinds))[1])
    np.testing.assert_array_equal(held[2], [0, 0, 0, 0, 0, 1, 1, 1])


def test_by_name_and_over_a_shift():
    with registered(make_point_task()):
        for shift in ("", "sensor_noise"):
            env = registry.make("Point", shift=shift, hold_steps=3)
            said = play(env)
            first = np.argmax(said[2])
            assert first == 5 and said[1, first] == 1


def test_an_environment_of_workers_refuses():
    with pytest.raises(UnknownName, match="CartPole-v1 takes no hold_steps, got 2"):
        registry.make("gymnasium:CartPole-v1", hold_steps=2)
