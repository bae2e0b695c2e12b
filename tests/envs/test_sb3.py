"""Our environments as Stable-Baselines3's: its own vector environment around single ones agrees."""

from typing import Any

import numpy as np
import pytest

import pdjax_envs.gymnasium as gymnasium_envs
from tests.probe import make_point_env

pytest.importorskip("stable_baselines3", reason="needs Stable-Baselines3: pip install '.[interop]'")

from stable_baselines3.common.vec_env import DummyVecEnv  # pyright: ignore

from pdjax_envs import sb3


def make_pair(num_envs=3, **kwargs):
    """Ours, and Stable-Baselines3's own around as many single environments."""
    env = make_point_env(**kwargs)
    vector = gymnasium_envs.VectorEnv(env, num_envs, autoreset_mode="SameStep")
    single = [lambda: gymnasium_envs.SingleEnv(env)] * num_envs
    return sb3.StableVecEnv(vector), DummyVecEnv(single)  # pyright: ignore


def test_it_equals_stable_baselines_own_around_single_environments():
    found, expected = make_pair(episode_steps=5, goal=0.3)
    for env in (found, expected):
        env.seed(7)
    np.testing.assert_array_equal(found.reset(), expected.reset())
    draw = np.random.default_rng(0)
    ended = np.zeros(2, int)
    for _ in range(14):
        actions = draw.uniform(-0.3, 1.3, (3, 1)).astype(np.float32)
        (obs, rewards, dones, infos), theirs = found.step(actions), expected.step(actions)
        for a, b in zip((obs, rewards, dones), theirs[:3], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        for info, other in zip(infos, theirs[3], strict=True):
            assert info.pop("is_success") == info["success"]
            assert info.keys() == other.keys()
            for name in info:
                np.testing.assert_array_equal(info[name], other[name])
            ended += [bool(info["success"]), info["TimeLimit.truncated"]]
    assert (ended > 0).all()  # both ways to end occurred


def test_what_one_program_cannot_do_is_said():
    env = make_pair()[0]
    assert env.get_attr("render_mode") == [None] * 3 and env.get_attr("num_envs", 1) == [3]
    assert env.env_is_wrapped(object, [0, 2]) == [False, False]  # pyright: ignore
    with pytest.raises(AttributeError, match="one program"):
        env.set_attr("gravity", 0)
    with pytest.raises(AttributeError, match="one program"):
        env.env_method("compute_reward")
    env.set_options({"goal": 1})
    with pytest.raises(ValueError, match="expected none"):
        env.reset()
    with pytest.raises(ValueError, match="autoreset_mode='SameStep'"):
        sb3.StableVecEnv(gymnasium_envs.VectorEnv(make_point_env(), 2))
    env.close()
    env.close()


def test_stable_baselines_checker_passes():
    from stable_baselines3.common.env_checker import check_env  # pyright: ignore

    check_env(gymnasium_envs.make("AdroitDoor", "native"))


@pytest.mark.slow
@pytest.mark.parametrize("library", ["stable_baselines3", "sbx"])
def test_sac_trains_for_2000_steps(library):
    torch = pytest.importorskip("torch", reason="needs torch")
    sac = pytest.importorskip(library, reason=f"needs {library}: pip install '.[interop]'").SAC
    torch.set_num_threads(1)
    env = sb3.make("AdroitDoor", 4, physics="native", reward="dense")
    options: dict[str, Any] = {"learning_starts": 400, "policy_kwargs": {"net_arch": [64, 64]}}
    model = sac("MlpPolicy", env, seed=0, **options)
    model.learn(2_000)
    assert model.num_timesteps == 2_000 and model._n_updates == 400
    assert len(model.ep_info_buffer) == 8  # two episodes of 200 steps in each environment
    assert all(np.isfinite(info["r"]) and info["l"] == 200 for info in model.ep_info_buffer)
    action, _ = model.predict(env.reset(), deterministic=True)
    assert action.shape == (4, 28) and np.isfinite(action).all()
