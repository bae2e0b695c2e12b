"""Environments in worker processes: rows and figures against a plain loop over the same ones."""

import importlib.util
import os
import signal
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.rollout import worker_rollout
from pdjax.rollout.collect import Exploring, choose
from pdjax.rollout.decision import Frozen, base_actions
from pdjax.rollout.playing import make_play, make_playing, no_residual
from pdjax.rollout.worker_play import SLOTS, Games, episode_seed
from pdjax.rollout.worker_rollout import Worlds
from pdjax.types import BasePolicy
from pdjax_envs import from_gymnasium, registry

CODE = '''
import gymnasium
import numpy as np
from gymnasium.spaces import Box


class Walk(gymnasium.Env):
    """A walk on a line: x += action + noise of the seed. Solved near 1, over beyond 1.5 or -1.5."""

    observation_space = Box(-9, 9, (2,), np.float64)
    action_space = Box(-0.2, 0.6, (1,), np.float32)
    metadata = {"render_fps": 10}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps = self.np_random.uniform(-0.5, 0.5), 0
        return self.observe(), {}

    def step(self, action):
        self.x += float(action[0]) + self.np_random.normal(scale=0.05)
        self.steps += 1
        info = {"success": bool(abs(self.x - 1) < 0.1)}
        return self.observe(), self.x, bool(abs(self.x) > 1.5), False, info

    def observe(self):
        return np.array([self.x, self.steps])

    def render(self):
        return np.full((40, 60, 3), 10 * self.steps, np.uint8)


def make_env():
    return gymnasium.wrappers.TimeLimit(Walk(), 7)
'''
HORIZON, READS, NUM_ENVS = 2, 2, 5


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    path = tmp_path_factory.mktemp("walk") / "walk.py"
    path.write_text(CODE)
    return f"{path}:make_env"


@pytest.fixture(scope="module")
def module(name):
    spec = importlib.util.spec_from_file_location("walk", name.partition(":")[0])
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def act(history):
    """A chunk of two actions from the two latest observations; NumPy or JAX."""
    first = 0.3 * history[-1, 0] - 0.1 * history[-2, 0] + 0.05
    return [[first], [first - 0.02 * history[-1, 1]]]


def make_base():
    def apply(params, carry, history, key):
        del params, key
        chunk = act(history)
        return jnp.array([[jnp.clip(x, -1, 1) for x in row] for row in chunk]), carry + 1

    mean, std = jnp.zeros(2), jnp.ones(2)
    return BasePolicy(lambda key: jnp.zeros(()), apply, (), 2, 1, READS, HORIZON, mean, std)


def collector(env, base, num_envs=NUM_ENVS):
    """Worlds, and their `decide` without residuals."""
    frozen = Frozen((), (), base.obs_mean, base.obs_std)

    def explore(obs, base_action, key, index):
        del key, index
        return 0 * base_action, jnp.float32(0.1)

    choosing = jax.jit(partial(choose, partial(base_actions, base), frozen, explore, Exploring()))
    return Worlds(env, base, num_envs), choosing, frozen


def no_noise(num_envs):
    del num_envs
    return ()


def collect(worlds, decide, state, decisions, seed=0):
    return worlds.collect(decide, state, jax.random.split(jax.random.key(seed), decisions))


class Plain:
    """One environment as the ring should see it, by hand."""

    def __init__(self, module, reward, terminate_on_success):
        self.env, self.reward, self.ends = module.make_env(), reward, terminate_on_success
        self.done, self.history = True, [np.zeros(2), np.zeros(2)]

    def decide(self, seed):
        row = {"obs": self.history[-1], "is_reset": self.done, "reward": 0.0}
        row |= {"terminated": False, "truncated": False, "steps": 0}
        if self.done:
            first, _ = self.env.reset(seed=int(seed))
            self.done, self.history = False, [np.float32(first)] * 2
            return row
        for action in act(np.array(self.history)):
            scaled = np.float32(-0.2 + (np.clip(action, -1, 1) + 1) / 2 * 0.8)
            obs, reward, terminated, truncated, info = self.env.step(scaled)
            terminated = terminated or (self.ends and info["success"])
            row["reward"] += info["success"] if self.reward == "success" else reward
            row["terminated"], row["truncated"] = terminated, truncated and not terminated
            row["steps"] += 1
            self.history = [self.history[-1], np.float32(obs)]
            if terminated or truncated:
                self.done = True
                break
        return row


@pytest.mark.parametrize("reward", ["success", "dense"])
@pytest.mark.parametrize("terminate_on_success", [True, False])
def test_rows_are_those_of_a_plain_loop(name, module, reward, terminate_on_success):
    base = make_base()
    workers = from_gymnasium.Workers(count=2)
    env = from_gymnasium.make(name, workers, reward, terminate_on_success)
    worlds, decide, frozen = collector(env, base)
    used = []
    seeds = worlds._seeds
    worlds._seeds = lambda key: used.append(seeds(key)) or used[-1]
    state = worker_rollout.init(base, no_noise, frozen, jax.random.key(0), NUM_ENVS)
    state, rows, counts = collect(worlds, decide, state, 40)
    worlds.close()
    plain = [Plain(module, reward, terminate_on_success) for _ in range(NUM_ENVS)]
    steps = ended = 0
    for decision in range(40):
        for index, one in enumerate(plain):
            row = one.decide(used[decision][0][index])
            steps, ended = steps + row.pop("steps"), ended + (row["terminated"] + row["truncated"])
            for field, value in row.items():
                found = np.asarray(getattr(rows, field))[decision, index]
                np.testing.assert_allclose(found, value, atol=1e-5, err_msg=f"{field} {decision}")
    assert counts["control_steps"] == steps and counts["episodes"] == ended > 20
    assert {bool(x) for x in np.asarray(rows.terminated).ravel()} == {True, False}
    assert np.asarray(rows.truncated).any() and not counts["cut_episodes"]
    carries = np.asarray(state.carry)  # decisions in the episode so far
    assert carries.min() >= 0 and carries.max() <= 4


def test_episodes_that_a_worker_lost_become_holes(name):
    base = make_base()
    env = from_gymnasium.make(name, from_gymnasium.Workers(count=2, restarts=3))
    worlds, decide, frozen = collector(env, base, 4)
    state = worker_rollout.init(base, no_noise, frozen, jax.random.key(0), 4)
    state, _, _ = collect(worlds, decide, state, 2)
    before = np.asarray(state.done)
    assert worlds.pool is not None
    os.kill(worlds.pool._processes[0]._process.pid, signal.SIGKILL)
    state, rows, counts = collect(worlds, decide, state, 2, seed=1)
    worlds.close()
    holes = np.asarray(rows.is_reset & rows.truncated)
    assert holes[0, :2][~before[:2]].all() and not holes[:, 2:].any() and not holes[1].any()
    assert not np.asarray(rows.terminated)[0, :2].any()
    assert counts["cut_episodes"] == holes.sum() > 0
    assert worlds.pool is None


def test_after_resuming_lost_episodes_are_holes_and_others_begin(name):
    base = make_base()
    env = from_gymnasium.make(name, from_gymnasium.Workers(count=1))
    worlds, decide, frozen = collector(env, base)
    state = worker_rollout.init(base, no_noise, frozen, jax.random.key(0), NUM_ENVS)
    state, _, _ = collect(worlds, decide, state, 3)
    worlds.close()
    was_done = np.asarray(state.done)
    worlds, decide, _ = collector(env, base)  # another process
    state, rows, _ = collect(worlds, decide, state, 2, seed=1)
    worlds.close()
    holes = np.asarray(rows.is_reset & rows.truncated)
    np.testing.assert_array_equal(holes[0], ~was_done)
    np.testing.assert_array_equal(np.asarray(rows.is_reset)[1], ~was_done)  # begins only now
    assert not holes[1].any()


def test_evaluations_are_paired_and_those_of_a_plain_loop(name, module):
    base = make_base()
    env = registry.make(name, terminate_on_success=False)
    play = make_play(make_playing(env, base))
    episodes = SLOTS + 5
    found = play(3, episodes)
    again = play(3, episodes)
    for one, other in zip(found, again, strict=True):
        if one is not None:
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(play(4, episodes).returns, found.returns)
    for episode in range(episodes):
        one = Plain(module, "dense", terminate_on_success=False)
        one.decide(episode_seed(3, episode))
        total, successes, steps = 0.0, [], 0
        while not one.done:
            for action in act(np.array(one.history)):
                scaled = np.float32(-0.2 + (np.clip(action, -1, 1) + 1) / 2 * 0.8)
                obs, reward, terminated, truncated, info = one.env.step(scaled)
                total, steps = total + reward, steps + 1
                successes.append(info["success"])
                one.history = [one.history[-1], np.float32(obs)]
                one.done = terminated or truncated
                if one.done:
                    break
        np.testing.assert_allclose(found.returns[episode], total, atol=1e-4)
        assert found.success_once[episode] == any(successes)
        assert found.success_at_end[episode] == successes[-1]
        expected = successes.index(True) + 1 if any(successes) else 7
        assert found.steps_to_success[episode] == expected
    assert 0 < found.success_once.mean() < 1


def test_films_show_each_control_step_of_the_same_episodes(name):
    base = make_base()
    env = registry.make(name, terminate_on_success=False)
    playing = make_playing(env, base)
    actor = no_residual(jax.eval_shape(playing.sac.init, jax.random.key(0)).actor)
    episodes, pictures = 5, {}

    def keep(episode, step, picture):
        assert picture.shape == (40, 60, 3) and (episode, step) not in pictures
        pictures[episode, step] = picture[0, 0, 0]

    with closing(Games(playing)) as games:
        filmed = games.play(3, episodes, actor, 0.5, keep=keep)
        played = games.play(3, episodes, actor, 0.5)
    for one, other in zip(filmed, played, strict=True):
        if one is not None:
            np.testing.assert_array_equal(one, other)
    for episode in range(episodes):
        steps = sorted(step for number, step in pictures if number == episode)
        assert steps == list(range(len(steps))) and 0 < len(steps) <= 7
        assert [pictures[episode, step] for step in steps] == [10 * (s + 1) for s in steps]
    lengths = [sum(number == episode for number, _ in pictures) for episode in range(episodes)]
    assert len(set(lengths)) > 1  # some ended early, within a decision of two control steps


def test_the_task_says_what_its_numbers_are(name):
    task = registry.make_task(name)
    assert task.name == "walk.py:make_env" and task.observation == (("observation", 2),)
    assert (task.obs_dim, task.act_dim, task.episode_steps) == (2, 1, 7)
    assert task.has_success and Path(name.partition(":")[0]).is_file()
    with pytest.raises(NotImplementedError, match="open its workers with"):
        task.sample_start(jax.random.key(0))
