"""Our environments as Brax's and Playground's, and theirs as ours: two routes to every number."""

import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax import envs as brax_envs
from flax import struct

import pdjax_envs.brax as ours
from pdjax.learner.sac import make_hyperparams, make_sac, residual_dim
from pdjax.rollout.collect import make_rollout
from pdjax.rollout.decision import Frozen
from pdjax.training.epoch import make_trainer
from pdjax_envs import registry
from pdjax_envs.from_brax import from_brax
from pdjax_envs.names import UnknownName
from tests.probe import make_constant_policy, make_point_env
from tests.training.test_epoch import copy, small_config


def actions_of(seed, *shape):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


# Ours for Brax.


def test_our_environment_under_braxs_wrappers_equals_stepping_ours():
    limit, num_envs = 4, 3
    env = make_point_env(episode_steps=100, goal=0.3, reward="dense")
    wrapped = brax_envs.training.wrap(ours.BraxEnv(env), episode_length=limit)
    keys = jax.random.split(jax.random.PRNGKey(0), num_envs)
    actions = actions_of(0, 9, num_envs, 1) * 0.2 + 0.8
    state, step = jax.jit(wrapped.reset)(keys), jax.jit(wrapped.step)
    found = [state] + [state := step(state, action) for action in actions]
    ended = np.zeros(2, int)
    for index in range(num_envs):
        start = jax.jit(env.reset)(env.model, keys[index])
        ours_now, steps = start[0], 0
        np.testing.assert_array_equal(found[0].obs[index], start[1])
        for state, action in zip(found[1:], actions[:, index], strict=True):
            ours_now, out = jax.jit(env.step)(env.model, ours_now, action)
            steps += 1
            over = steps >= limit and not out.terminated
            assert state.reward[index] == out.reward
            assert state.metrics["success"][index] == out.success
            assert state.info["truncation"][index] == over
            assert bool(state.done[index]) == (bool(out.terminated) or over)
            ended += [bool(out.terminated), over]
            if out.terminated or over:  # Brax returns to the first start
                (ours_now, obs), steps = start, 0
            else:
                obs = out.obs
            np.testing.assert_array_equal(state.obs[index], obs)
    assert (ended > 0).all()


def test_sizes_names_and_keys():
    env = make_point_env()
    bridged = ours.BraxEnv(env)
    assert isinstance(bridged, brax_envs.Env) and bridged.unwrapped is bridged
    assert (bridged.observation_size, bridged.action_size) == (3, 1)
    assert (bridged.backend, bridged.dt, bridged.mj_model) == ("probe", 0.1, None)
    # Raw and typed keys draw the same.
    raw = bridged.reset(jax.random.PRNGKey(3)).obs
    np.testing.assert_array_equal(raw, bridged.reset(jax.random.key(3)).obs)
    with pytest.raises(UnknownName, match="did you mean AdroitDoor"):
        ours.make("AdroitDor")


def test_the_state_serves_both_protocols():
    state = ours.BraxEnv(make_point_env()).reset(jax.random.key(0))
    other = ours.BraxEnv(make_point_env()).reset(jax.random.key(1)).data
    assert state.data is state.pipeline_state
    for name in ("data", "pipeline_state"):
        changed = state.replace(**{name: other, "reward": jnp.ones(())})
        assert changed.data is changed.pipeline_state is other and changed.reward == 1
    assert jax.tree.structure(state) == jax.tree.structure(changed)


def test_our_environment_under_playgrounds_own_wrappers():
    wrapper = pytest.importorskip("mujoco_playground", reason="needs playground").wrapper
    env = make_point_env(episode_steps=100, goal=9.0)
    wrapped = wrapper.wrap_for_brax_training(ours.BraxEnv(env), episode_length=3)
    state = wrapped.reset(jax.random.split(jax.random.PRNGKey(0), 2))
    first = state.obs
    for count in (1, 2, 0, 1):
        state = wrapped.step(state, jnp.ones((2, 1)))
        np.testing.assert_array_equal(state.obs[:, 2], count)
        np.testing.assert_allclose(state.obs[:, 0], first[:, 0] + 0.1 * count, atol=1e-6)
    # Playground can draw fresh starts too.
    wrapped = wrapper.wrap_for_brax_training(ours.BraxEnv(env), episode_length=1, full_reset=True)
    state = wrapped.reset(jax.random.split(jax.random.PRNGKey(0), 2))
    starts = [state.obs] + [(state := wrapped.step(state, jnp.ones((2, 1)))).obs for _ in range(3)]
    assert len(np.unique(np.stack(starts)[:, :, 0])) == 8 and not np.stack(starts)[:, :, 2].any()


def test_there_and_back_is_the_same_environment():
    env = make_point_env(episode_steps=6, goal=0.3, reward="dense")
    back = from_brax(ours.BraxEnv(env), "back", episode_steps=6)
    ended = 0
    for seed in range(4):
        key = jax.random.key(seed)
        state, obs = jax.jit(env.reset)(env.model, key)
        twin, twin_obs = jax.jit(back.reset)(back.model, jax.random.clone(key))
        np.testing.assert_array_equal(obs, twin_obs)
        for action in actions_of(seed, 6, 1) * 0.7 + 0.5:
            state, out = jax.jit(env.step)(env.model, state, action)
            twin, twin_out = jax.jit(back.step)(back.model, twin, action)
            jax.tree.map(np.testing.assert_array_equal, out, twin_out)
            if out.terminated | out.truncated:
                ended += 1
                break
    assert ended == 4


# Brax's and Playground's as ours.


def test_a_brax_environment_equals_stepping_brax_itself():
    env = registry.make("brax:inverted_pendulum", reward="dense")
    theirs = brax_envs.get_environment("inverted_pendulum")
    assert (env.task.obs_dim, env.task.act_dim, env.task.episode_steps) == (4, 1, 1000)
    assert env.engine == theirs.backend and np.isclose(env.task.control_hz, 25.0)  # 2 x 20 ms
    key = jax.random.key(5)
    state, obs = jax.jit(env.reset)(env.model, key)
    twin = jax.jit(theirs.reset)(jax.random.key_data(key))
    np.testing.assert_array_equal(obs, twin.obs)
    step, twin_step = jax.jit(env.step), jax.jit(theirs.step)
    push = jnp.full(1, 0.1)
    for time in range(1, 40):
        state, out = step(env.model, state, push)
        twin = twin_step(twin, push)
        np.testing.assert_allclose(out.obs, twin.obs, atol=1e-6)
        assert out.reward == twin.reward and out.terminated == (twin.done > 0)
        assert not out.truncated and not out.success and state.steps == time
        if out.terminated:
            break
    assert 2 < time < 39, "it falls over under a constant push"
    # What has ended stays as it ended, though the physics would go on.
    _, after = step(env.model, state, jnp.zeros(1))
    np.testing.assert_array_equal(after.obs, out.obs)
    assert after.terminated


@struct.dataclass
class PlaygroundState:
    data: dict
    obs: dict
    reward: jax.Array | float
    done: jax.Array
    metrics: dict
    info: dict


class Playground:
    """A small environment in Playground's protocol: it counts, sees more than it tells the actor,
    and writes into the dicts that it is given, as Playground's do."""

    action_size = 2
    dt = 0.5

    def reset(self, rng):
        x = jax.random.uniform(rng, (3,))
        obs = {"state": x, "privileged_state": jnp.zeros(7)}
        return PlaygroundState({"x": x}, obs, 0.0, jnp.zeros(()), {"success": 0.0}, {"count": 0})

    def step(self, state, action):
        x = state.data["x"] + action.sum()
        state.info["count"] += 1
        state.metrics["success"] = (x[0] > 2.0).astype(float)
        obs = {"state": x, "privileged_state": jnp.ones(7)}
        return state.replace(data={"x": x}, obs=obs, reward=x[0], done=(x[0] < -1.0).astype(float))


def test_playgrounds_protocol():
    env = from_brax(Playground(), "count", episode_steps=5)
    assert (env.task.obs_dim, env.task.act_dim, env.task.control_hz) == (3, 2, 2.0)

    @jax.jit
    def play(key, action):
        state, first = env.reset(env.model, key)

        def step(before, _):
            state, out = env.step(env.model, before, action)
            return state, (out, before.physics.raw.info["count"], state.physics.raw.info["count"])

        return first, jax.lax.scan(step, state, length=6)[1]

    first, (out, before, after) = play(jax.random.key(0), jnp.array([0.25, 0.25]))
    np.testing.assert_allclose(out.obs[:, 0], first[0] + 0.5 * np.arange(1, 7), rtol=1e-6)
    np.testing.assert_array_equal(out.reward, out.obs[:, 0])
    np.testing.assert_array_equal(out.success, out.obs[:, 0] > 2.0)
    assert out.success.any()
    np.testing.assert_array_equal(out.terminated, out.success)
    np.testing.assert_array_equal(out.truncated, (np.arange(1, 7) >= 5) & ~out.success)
    # The state before a step is untouched, though the environment wrote into its dict.
    np.testing.assert_array_equal(before, np.arange(6))
    np.testing.assert_array_equal(after, np.arange(1, 7))

    _, (out, _, after) = play(jax.random.key(0), jnp.array([-1.0, -jnp.inf]))
    assert out.bad_action.all() and out.terminated.all()  # -2 at once: below -1, for good
    np.testing.assert_array_equal(after, 1)


def test_success_as_reward_and_playing_on():
    reward = from_brax(Playground(), "count", reward="success", terminate_on_success=False)
    state, _ = reward.reset(reward.model, jax.random.key(0))
    for _ in range(3):
        state, out = reward.step(reward.model, state, jnp.ones(2))
    assert out.reward == 1 and out.success and not out.terminated


def test_an_episode_starts_from_any_state():
    env = registry.make("brax:fast", reward="dense")
    state, _ = env.reset(env.model, jax.random.key(0))
    state, _ = env.step(env.model, state, jnp.ones(1))
    stored = jax.device_get(env.task.get_state(state.episode, state.physics))
    assert {"qpos", "qvel"} <= set(stored)
    again, obs = env.start_from(env.model, env.task.make_start(stored))
    np.testing.assert_array_equal(obs, env.task.observe(state.episode, state.physics))
    _, out = env.step(env.model, state, jnp.ones(1))
    _, twin = env.step(env.model, again, jnp.ones(1))
    jax.tree.map(np.testing.assert_array_equal, out, twin)
    with pytest.raises(NotImplementedError, match="its own library's renderer"):
        env.task.make_visual_model()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("brax:fats",), "unknown environment of Brax 'fats'; did you mean fast"),
        (("brax:fast", "native"), "brings its own physics, got 'native'; choose auto"),
        (("brax:fast", "auto", "sparse"), "no reward 'sparse'; choose one of: success, dense"),
    ],
)
def test_mistakes_are_named(arguments, words):
    with pytest.raises(UnknownName, match=words):
        registry.make(*arguments)


def test_a_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco_playground", None)
    monkeypatch.setattr("pdjax_envs.physics.mjx_flags.prepare", lambda: None)
    with pytest.raises(UnknownName, match="playground:X needs the package playground"):
        registry.make("playground:X")


def test_observations_that_are_no_vector_are_refused():
    class Seeing(Playground):
        def reset(self, rng):
            return super().reset(rng).replace(obs={"pixels": jnp.zeros((4, 4, 3))})

    with pytest.raises(UnknownName, match="observes \\['pixels'\\], expected `state`"):
        from_brax(Seeing(), "seeing")


def _child_playground():
    """A real one of Playground, through the registry, against Playground itself."""
    env = registry.make("playground:CartpoleBalance", reward="dense")
    with pytest.raises(UnknownName, match="'CartpoleBalanc'; did you mean CartpoleBalance"):
        registry.make("playground:CartpoleBalanc")
    from mujoco_playground import registry as playground  # pyright: ignore[reportMissingImports]

    theirs = playground.load("CartpoleBalance", config_overrides={"impl": "jax"})
    assert (env.task.obs_dim, env.task.act_dim, env.task.control_hz) == (5, 1, 100.0)
    key = jax.random.key(2)
    state, obs = jax.jit(env.reset)(env.model, key)
    twin = jax.jit(theirs.reset)(jax.random.key_data(key))
    np.testing.assert_array_equal(obs, twin.obs)
    for _ in range(3):
        state, out = jax.jit(env.step)(env.model, state, jnp.ones(1))
        twin = jax.jit(theirs.step)(twin, jnp.ones(1))
        np.testing.assert_allclose(out.obs, twin.obs, atol=1e-6)
        np.testing.assert_allclose(out.reward, twin.reward, atol=1e-6)
    np.testing.assert_allclose(state.physics.qpos, twin.data.qpos, atol=1e-6)
    # Every array has a row for each environment, though Playground's default, Warp, shares some;
    # training replaces the rows of environments whose episode is over.
    keys = jax.random.split(jax.random.key(3), 4)
    states, _ = jax.eval_shape(lambda keys: jax.vmap(env.reset, (None, 0))(env.model, keys), keys)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(states)} == {4}


def test_a_playground_environment_equals_stepping_playground_itself():
    pytest.importorskip("mujoco_playground", reason="needs playground: pip install playground")
    path = os.pathsep.join(path for path in sys.path if path)
    # In a process of its own, where XLA's options can still be set, with a time limit.
    done = subprocess.run(
        [sys.executable, str(Path(__file__))],
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


# Training.


def test_our_trainer_refines_a_policy_on_a_brax_environment():
    env = from_brax(brax_envs.get_environment("fast"), "fast", episode_steps=12)
    base = make_constant_policy(-0.2)._replace(
        obs_dim=2, obs_mean=jnp.zeros(2), obs_std=jnp.ones(2)
    )
    config = small_config(decisions_per_epoch=128)
    rollout = make_rollout(env, base)
    size = residual_dim(config.decorator, base)
    sac = make_sac(config.sac, config.decorator, rollout.view_dim, 2, size)
    frozen = Frozen(env.model, base.params, base.obs_mean, base.obs_std)
    trainer = make_trainer(config, base, rollout, sac)
    state = trainer.init(frozen, make_hyperparams(config, size), jax.random.key(0))
    base_before, actor_before = copy(frozen.base_params), copy(state.sac.actor)
    epoch = jax.jit(trainer.train_epoch, donate_argnums=1)
    for _ in range(3):
        state, metrics = epoch(frozen, state)
    assert metrics["gradient_steps"] > 0 and metrics["decision_steps"] == 3 * 128
    assert metrics["episodes"] > 0 and metrics["bad_actions"] == 0
    assert all(np.isfinite(value) for value in jax.device_get(metrics).values())
    jax.tree.map(np.testing.assert_array_equal, base_before, copy(frozen.base_params))
    changed = jax.tree.map(lambda a, b: (a != b).any(), actor_before, copy(state.sac.actor))
    assert all(jax.tree.leaves(changed))
    # Their reward, position, is in the replay: positive where a residual pushed forward.
    assert (np.asarray(state.replay.storage.reward) > 0).any()


def test_braxs_trainers_call_only_what_jax_has():
    for agent in ("ppo", "sac"):
        module = importlib.import_module(f"brax.training.agents.{agent}.train")
        named = set(re.findall(r"\bjax(?:\.\w+)+", inspect.getsource(module)))
        assert len(named) > 10
        for name in named:
            assert functools.reduce(getattr, name.split(".")[1:], jax) is not None, name
    # Once Brax no longer calls it, `pdjax_envs.brax` need not define it.
    assert "jax.device_put_replicated" in named


def test_what_jax_took_away_from_brax_is_given_back():
    devices = jax.local_devices()
    tree = {"a": jnp.arange(3.0), "b": jnp.int32(4)}
    found: Any = jax.device_put_replicated(tree, devices)
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, np.stack([y] * len(devices))), found, tree
    )
    assert found["a"].sharding.device_set == set(devices)
    assert jax.pmap(lambda x: 2 * x)(found["a"]).shape == (len(devices), 3)


@pytest.mark.slow
def test_braxs_own_ppo_trains_on_an_adroit_task():
    from brax.training.agents.ppo import train

    seen = []
    train.train(
        ours.make("AdroitDoor", "native", "dense"),
        num_timesteps=8_000,
        episode_length=200,
        num_envs=32,
        num_eval_envs=16,
        batch_size=32,
        num_minibatches=4,
        unroll_length=10,
        num_evals=2,
        progress_fn=lambda steps, metrics: seen.append((steps, metrics)),
    )
    steps, metrics = seen[-1]
    assert len(seen) == 2 and steps >= 8_000
    assert all(np.isfinite(float(value)) for value in metrics.values())


@pytest.mark.slow
def test_braxs_own_sac_trains_on_an_adroit_task():
    from brax.training.agents.sac import networks, train

    seen = []
    network_factory: Any = functools.partial(
        networks.make_sac_networks, hidden_layer_sizes=(64, 64)
    )
    env = ours.make("AdroitDoor", "native", "dense")
    train.train(
        env,
        num_timesteps=10_000,
        episode_length=200,
        num_envs=16,
        num_eval_envs=16,
        batch_size=64,
        min_replay_size=512,
        normalize_observations=True,
        num_evals=2,
        progress_fn=lambda steps, metrics: seen.append((steps, metrics)),
        network_factory=network_factory,
    )
    steps, metrics = seen[-1]
    assert len(seen) == 2 and steps >= 10_000
    assert {"training/critic_loss", "training/actor_loss", "eval/episode_reward"} <= set(metrics)
    assert all(np.isfinite(float(value)) for value in metrics.values())
    assert metrics["eval/episode_bad_action"] == 0 and metrics["eval/avg_episode_length"] == 200


if __name__ == "__main__":
    _child_playground()
