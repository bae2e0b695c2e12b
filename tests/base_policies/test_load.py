"""The one door to base policies: directories of every kind, and policies in memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.base_policies import load
from pdjax.base_policies.foreign import exported
from pdjax.config.options import ConfigError
from pdjax.config.schema import BasePolicyConfig
from tests.probe import make_constant_policy, make_point_env

OBS, ACT, HORIZON, CHUNK = 3, 1, 2, 2  # of the point on a line
WEIGHT = np.array([[0.3], [-0.2], [0.01]], np.float32)


def jax_function(obs_history):
    action = jnp.tanh(obs_history[-1] @ WEIGHT)
    return jnp.stack([action, action / 2])


def jax_function_of_all(obs_history):
    action = jnp.tanh(obs_history[:, -1] @ WEIGHT)
    return jnp.stack([action, action / 2], axis=1)


def numpy_function(obs_history):
    action = np.tanh(obs_history[:, -1] @ WEIGHT)
    return np.stack([action, action / 2], axis=1)


class JaxObject:
    obs_horizon, params = HORIZON, {"w": WEIGHT}

    @staticmethod
    def init_carry(key):
        return ()

    @staticmethod
    def apply(params, carry, obs_history, key):
        action = jnp.tanh(obs_history[-1] @ params["w"])
        return jnp.stack([action, action / 2]), carry


class NumpyObject:
    @staticmethod
    def init_carry():
        return ()

    @staticmethod
    def act(carry, obs_history, seed):
        return numpy_function(obs_history), carry


def from_memory(policy, **changes):
    sizes: dict[str, Any] = {
        "obs_dim": OBS,
        "act_dim": ACT,
        "act_horizon": CHUNK,
        "obs_horizon": HORIZON,
    }
    return load.from_memory(policy, **sizes | changes)


def play_once(base, obs_history, seed=0):
    """Returns (chunk, carry) of all environments for the first decision of an episode."""
    start_key, key = jax.random.split(jax.random.key(seed))
    carry = jax.vmap(base.init_carry)(jax.random.split(start_key, len(obs_history)))
    keys = jax.random.split(key, len(obs_history))
    call = jax.jit(jax.vmap(base.apply, (None, 0, 0, 0)))
    return call(base.params, carry, jnp.asarray(obs_history), keys)


def histories(num_envs=5, shape=(HORIZON, OBS)):
    return np.random.default_rng(0).normal(size=(num_envs, *shape)).astype(np.float32)


POLICIES = {
    "jax_function": (jax_function, False),
    "jax_function_of_all": (jax_function_of_all, False),
    "jitted": (jax.jit(jax_function), False),
    "numpy_function": (numpy_function, True),
    "jax_object": (JaxObject, False),
    "numpy_object": (NumpyObject(), True),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("num_envs", [1, 5])
def test_every_policy_in_memory_gives_the_hand_computed_actions(name, num_envs):
    policy, is_host = POLICIES[name]
    base = from_memory(policy)
    obs_history = histories(num_envs)
    chunk, _ = play_once(base, obs_history)
    action = np.tanh(obs_history[:, -1] @ WEIGHT)
    np.testing.assert_allclose(chunk, np.stack([action, action / 2], axis=1), atol=1e-6)
    assert load.through_host(base) is is_host
    assert (base.obs_dim, base.act_dim, base.obs_horizon, base.act_horizon) == (3, 1, 2, 2)
    np.testing.assert_array_equal(base.obs_mean, np.zeros(3, np.float32))
    np.testing.assert_array_equal(base.obs_std, np.ones(3, np.float32))


@pytest.mark.parametrize(
    "function",
    [
        lambda history: jnp.tanh(history[-1] @ WEIGHT),  # (act_dim,)
        lambda history: jnp.tanh(history[-1] @ WEIGHT)[None],  # (1, act_dim)
        lambda history: jnp.tanh(history[..., -1, :] @ WEIGHT),  # of one environment or of all
        lambda history: jnp.tanh(history[:, -1] @ WEIGHT),  # of all
    ],
)
def test_a_chunk_of_one_step_may_come_without_its_axis(function):
    base = load.from_memory(function, obs_dim=OBS, act_dim=ACT)
    obs_history = histories(4, (1, OBS))
    chunk, _ = play_once(base, obs_history)
    np.testing.assert_allclose(chunk, np.tanh(obs_history @ WEIGHT), atol=1e-6)
    assert not load.through_host(base) and base.obs_horizon == 1


def test_a_torch_module_in_memory():
    torch = pytest.importorskip("torch")

    class Module(torch.nn.Module):
        def forward(self, obs_history):
            action = torch.tanh(obs_history[:, -1] @ torch.from_numpy(WEIGHT))
            return torch.stack([action, action / 2], dim=1)

    base = from_memory(Module())
    expected = numpy_function(histories())
    np.testing.assert_allclose(play_once(base, histories())[0], expected, atol=1e-6)


def test_the_policy_is_frozen_when_it_is_built():
    weight = WEIGHT.copy()
    base = from_memory(lambda history: jnp.tanh(history @ weight))
    before = play_once(base, histories())[0]
    weight[:] = 0.0
    np.testing.assert_array_equal(play_once(base, histories())[0], before)
    assert jax.tree.leaves(base.params)[0].shape == (3, 1)  # parameters, not constants


def test_in_program_decides_where_a_function_computes():
    def plain(obs_history):  # NumPy and JAX read it alike
        return obs_history @ WEIGHT

    assert not load.through_host(from_memory(plain))
    assert not load.through_host(from_memory(plain, in_program=True))
    hosted = from_memory(plain, in_program=False)
    assert load.through_host(hosted)
    expected = np.clip(histories() @ WEIGHT, -1, 1)
    np.testing.assert_allclose(play_once(hosted, histories())[0], expected, atol=1e-6)


def test_statistics_and_ranges_are_taken():
    base = from_memory(
        lambda history: jnp.stack([history[-1, :1], history[-1, :1] + 10]),
        obs_mean=[1, 2, 3],
        obs_std=np.array([0.1, 1, 10]),
        action_low=0,
        action_high=[20.0],
    )
    np.testing.assert_array_equal(base.obs_mean, np.array([1, 2, 3], np.float32))
    np.testing.assert_array_equal(base.obs_std, np.array([0.1, 1, 10], np.float32))
    # [0, 20] -> [-1, 1]: 15 -> 0.5; 25 -> 1.5, clipped
    chunk, _ = play_once(base, np.full((1, HORIZON, OBS), 15.0, np.float32))
    np.testing.assert_allclose(chunk[0, :, 0], [0.5, 1.0])


def noisy():
    rng = np.random.default_rng(0)
    return lambda history: history @ WEIGHT + rng.normal(size=(HORIZON, ACT))


def counting():
    calls = []

    def function(history):
        calls.append(0)
        return history @ WEIGHT + 0.01 * len(calls)

    return function


@pytest.mark.parametrize(
    ("policy", "changes", "words"),
    [
        (3, {}, "the policy is a int, expected a function, a torch.nn.Module or an object"),
        (jax_function, {"obs_dim": 0}, "obs_dim got 0, expected integer >= 1"),
        (jax_function, {"obs_dim": "three"}, "obs_dim got 'three', expected integer >= 1"),
        (jax_function, {"obs_mean": [0.0]}, "obs_mean has 1 numbers, expected 3"),
        (jax_function, {"obs_std": [0.0, 1, 1]}, "obs_std got (0.0, 1.0, 1.0), expected [number"),
        (jax_function, {"obs_mean": "none"}, "obs_mean got 'none', expected numbers"),
        (jax_function, {"obs_mean": np.eye(3)}, "obs_mean has the shape (3, 3), expected one num"),
        (jax_function, {"action_low": 2}, "action_low=[2.0] must lie below action_high=[1.0]"),
        (jax_function, {"device": "gpu"}, "device got 'gpu', expected cpu | cuda"),
        (
            jax_function,
            {"act_dim": 2},
            "the policy's function returns shape (2, 1) for one observation history (2, 3) and",
        ),
        (
            lambda history: {"action": history @ WEIGHT, "value": history},
            {},
            "returns 2 arrays for one observation history (2, 3) and 2 arrays for a batch",
        ),
        (
            JaxObject,
            {"act_horizon": 3},
            "returns chunks (2, 1) (act_horizon, act_dim), expected (3,",
        ),
        (JaxObject, {"in_program": False}, "in_program=False, but the policy is a JAX object"),
        (NumpyObject, {"in_program": True}, "in_program=True, but the policy is a NumPy object"),
        (
            numpy_function,
            {"in_program": True},
            "JAX cannot trace the policy's function: on one observation history (2, 3): ",
        ),
        (
            numpy_function,
            {"act_dim": 4},
            "returns chunks (2, 1) (act_horizon, act_dim), expected (2",
        ),
        (
            noisy(),
            {},
            "two traces of the policy's function differ: it has memory or draws its own random",
        ),
        (
            counting(),
            {},
            "two traces of the policy's function differ: it has memory or draws its own random",
        ),
        (
            jax_function_of_all,
            {"in_program": False},
            "the policy is called through the host but computes with JAX",
        ),
        (
            lambda history: history[:, -1],
            {"obs_dim": 2, "act_dim": 2, "act_horizon": 1},
            "with different results, so pdjax cannot tell which it is written for",
        ),
    ],
)
def test_policies_in_memory_that_cannot_be(policy, changes, words):
    with pytest.raises(ConfigError) as caught:
        from_memory(policy, **changes)
    assert words in str(caught.value) and "\n" not in str(caught.value)


# A policy in memory becomes a directory, and the directory the same policy.


class Remembering:
    """Acts on its memory, its parameters, of several types, and its key."""

    params = (np.float32(0.7), [np.full(ACT, 0.1, np.float32), np.int32(1)])

    @staticmethod
    def init_carry(key):
        return {"last": jnp.zeros(OBS), "n": jax.random.normal(key)}

    @staticmethod
    def apply(params, carry, obs_history, key):
        noise = jax.random.normal(key, (CHUNK, ACT))
        chunk = jnp.tanh(params[0] * noise + obs_history[-1, :1] + carry["n"])
        return chunk + params[1][0] * params[1][1], {"last": obs_history[-1], "n": carry["n"] + 1}


@pytest.mark.parametrize("policy", [jax_function, jax_function_of_all, JaxObject, Remembering])
def test_a_directory_of_a_policy_in_memory_is_the_same_policy(policy, tmp_path):
    task = make_point_env().task
    statistics = {"obs_mean": [0.1, -0.2, 1 / 3], "obs_std": [0.1, 1, 7.7]}
    original = from_memory(policy, **statistics, action_low=-2, task=task.name)
    exported.export_policy(original, tmp_path / "base", task.name)
    read = load.load_base(BasePolicyConfig(str(tmp_path / "base")), task)

    same = ("obs_dim", "act_dim", "obs_horizon", "act_horizon")
    assert [getattr(read, name) for name in same] == [getattr(original, name) for name in same]
    np.testing.assert_array_equal(read.obs_mean, original.obs_mean)
    np.testing.assert_array_equal(read.obs_std, original.obs_std)
    leaves = [jax.tree.leaves(play_once(base, histories())) for base in (original, read)]
    for one, other in zip(*leaves, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_base_policy_made_by_hand_is_exported_with_numbers_as_parameters(tmp_path):
    task = make_point_env().task
    base = make_constant_policy()._replace(params={"velocity": 0.25})  # a Python number
    exported.export_policy(base, tmp_path / "base", task.name)
    read = load.load_base(BasePolicyConfig(str(tmp_path / "base")), task)
    np.testing.assert_array_equal(play_once(read, histories())[0], np.full((5, 2, 1), 0.25))


@pytest.mark.parametrize("policy", [numpy_function, NumpyObject])
def test_a_policy_called_through_the_host_cannot_be_exported(policy, tmp_path):
    with pytest.raises(ConfigError, match="the policy is called through the host"):
        exported.export_policy(from_memory(policy), tmp_path / "base", "Point")
    assert not (tmp_path / "base").exists()


def test_a_name_does_not_make_a_function_one_that_calls_the_host(tmp_path):
    def callback(obs_history):
        return jax_function(obs_history)

    base = from_memory(jax.jit(callback))
    assert not load.through_host(base)
    exported.export_policy(base, tmp_path / "base", "Point")


def test_a_policy_of_another_size_is_refused(tmp_path):
    task = make_point_env().task
    base = load.from_memory(lambda history: history[-1, :2], obs_dim=3, act_dim=2)
    exported.export_policy(base, tmp_path / "base", task.name)
    with pytest.raises(ConfigError, match="change base_policy"):
        load.load_base(BasePolicyConfig(str(tmp_path / "base")), task)
    with pytest.raises(ConfigError, match="path is empty"):
        load.load_base(BasePolicyConfig(""), task)
