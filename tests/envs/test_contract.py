"""What every task keeps to, on every engine: one suite over all of them.

`pytest tests/envs/test_contract.py` tests the native engine; the environment variable
PDJAX_TEST_PHYSICS names another (in a process of its own: MJX needs XLA options before JAX starts),
as the slow test at the end does for each.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax_envs import names, registry
from pdjax_envs.physics import mjx_flags

PHYSICS = os.environ.get("PDJAX_TEST_PHYSICS", "native")
NUM_ENVS, STEPS = 4, 12
# Numbers in parts of observations that are the same in all episodes and steps here, and why.
CONSTANT = {
    ("PegInsertionSide", "base_pose"): range(7),  # the robot is bolted down
    ("StackCube", "base_pose"): range(7),
    ("TurnFaucet", "base_pose"): range(7),
    ("TurnFaucetHeldOut", "base_pose"): range(7),
    ("PegInsertionSide", "box_hole_pose"): (4, 5),  # the box stands upright
    **{
        (name, part): range(1, 25)  # padding: our chairs have one joint
        for name in ("PushChair", "PushChairHeldOut")
        for part in ("chair_qpos", "chair_qvel")
    },
    ("AdroitDoor", "door_is_open"): (0,),  # it is not
    ("AdroitHammer", "nail_depth"): (0,),  # nothing touches the nail
    ("AdroitHammer", "nail_force"): (0,),
    ("AdroitHammer", "nail_pos"): (0, 1),  # the board moves up and down only
}
# Between batch sizes: XLA orders sums differently; MJX's solver stops elsewhere.
ROUNDING = 1e-5 if PHYSICS == "native" else 1e-3

if PHYSICS != "native":
    mjx_flags.prepare()


class Played:
    """An environment, and what some random actions brought, all with leading (steps, envs)."""

    def __init__(self, name):
        self.env = registry.make(name, PHYSICS)
        self.task = self.env.task
        self.reset = jax.jit(jax.vmap(self.env.reset, (None, 0)))
        self.start_from = jax.jit(jax.vmap(self.env.start_from, (None, 0)))
        self.step = jax.jit(jax.vmap(self.env.step, (None, 0, 0)))
        rng = np.random.default_rng(0)
        shape = (STEPS, NUM_ENVS, self.task.act_dim)
        self.actions = rng.uniform(-1, 1, shape).astype(np.float32)
        self.state, self.outcomes = self.play(seed=0)
        self.obs = np.stack([outcome.obs for outcome in self.outcomes])

    def keys(self, seed):
        return jax.random.split(jax.random.key(seed), NUM_ENVS)

    def play(self, seed):
        state, _ = self.reset(self.env.model, self.keys(seed))
        outcomes = []
        for action in self.actions:
            state, outcome = self.step(self.env.model, state, action)
            outcomes.append(jax.device_get(outcome))
        return state, outcomes


@pytest.fixture(scope="module", params=registry.task_names())
def played(request):
    return Played(request.param)


def test_specs(played):
    task, scene = played.task, played.task.scene
    assert sum(size for _, size in task.observation) == task.obs_dim
    assert len(dict(task.observation)) == len(task.observation)
    assert set(task.meanings) == set(dict(task.observation))
    assert sum(size for _, size in task.action) == task.act_dim
    seconds = scene.model.opt.timestep * scene.n_substeps
    np.testing.assert_allclose(seconds * task.control_hz, 1)
    outcome = played.outcomes[-1]
    assert outcome.obs.shape == (NUM_ENVS, task.obs_dim)
    assert outcome.obs.dtype == outcome.reward.dtype == np.float32
    for name in ("terminated", "truncated", "success", "bad_action", "overflow"):
        flag = getattr(outcome, name)
        assert flag.dtype == bool and flag.shape == (NUM_ENVS,)
    assert np.isfinite(played.obs).all()
    assert not any(
        outcome.bad_action.any() or outcome.overflow.any() for outcome in played.outcomes
    )


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_rewards_are_named_terms(played, kind):
    terms = played.task.rewards.get(kind)
    if terms is None:
        with pytest.raises(names.UnknownName, match=f"no reward '{kind}'; choose one of"):
            registry.make(played.task.name, PHYSICS, reward=kind)
        return
    found = jax.vmap(terms)(played.state.episode, played.state.physics)
    assert all(np.isfinite(value).all() and value.shape == (NUM_ENVS,) for value in found.values())


def test_a_key_determines_the_episode(played):
    again, _ = played.play(seed=0)
    jax.tree.map(np.testing.assert_array_equal, again, played.state)
    _, others = played.play(seed=1)
    assert not np.array_equal(others[-1].obs, played.obs[-1])


def test_starts_are_random(played):
    state, obs = played.reset(played.env.model, played.keys(2))
    assert len(np.unique(obs, axis=0)) == NUM_ENVS
    drawn = jax.vmap(played.task.get_state)(state.episode, state.physics)
    assert any(len(np.unique(value, axis=0)) == NUM_ENVS for value in drawn.values())
    assert not np.any(state.steps)


def test_no_observation_is_constant(played):
    begin = 0
    for part, size in played.task.observation:
        values = played.obs[..., begin : begin + size].reshape(-1, size)
        begin += size
        found = np.flatnonzero(np.ptp(values, axis=0) == 0).tolist()
        allowed = list(CONSTANT.get((played.task.name, part), ()))
        if PHYSICS == "native":
            assert found == allowed, part
        else:  # what friction holds in C may creep elsewhere
            assert set(found) <= set(allowed), part


def test_an_episode_goes_on_from_its_state(played):
    get_state = jax.vmap(played.task.get_state)
    saved = get_state(played.state.episode, played.state.physics)
    start = jax.vmap(played.task.make_start)(jax.device_get(saved))
    restored, obs = played.start_from(played.env.model, start)
    found = get_state(restored.episode, restored.physics)
    assert set(found) == set(saved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, saved)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        restored.episode,
        played.state.episode,
    )
    # Derived fields may be a substep old, and positions move by centimetres in one.
    np.testing.assert_allclose(obs, played.obs[-1], atol=0.05)


@pytest.mark.parametrize(
    ("given", "taken"), [(np.nan, 0.0), (np.inf, 1.0), (-np.inf, -1.0), (1.5, 1.0), (-7.0, -1.0)]
)
def test_a_bad_action_is_clipped_and_reported(played, given, taken):
    state, _ = played.reset(played.env.model, played.keys(3))
    actions = np.full((NUM_ENVS, played.task.act_dim), taken, np.float32)
    expected, outcome = played.step(played.env.model, state, actions)
    assert not outcome.bad_action.any()
    actions[1, 0] = given
    found, outcome = played.step(played.env.model, state, actions)
    assert outcome.bad_action.tolist() == [False, True, False, False]
    jax.tree.map(np.testing.assert_array_equal, found.physics.qpos, expected.physics.qpos)


def test_vmap_equals_a_loop(played):
    env, action = played.env, jnp.asarray(played.actions[0])
    states, _ = played.reset(env.model, played.keys(4))
    together, outcomes = played.step(env.model, states, action)
    step = jax.jit(env.step)
    for index in range(NUM_ENVS):
        one = jax.tree.map(lambda x, index=index: x[index], states)
        alone, outcome = step(env.model, one, action[index])
        qpos = together.physics.qpos[index]
        np.testing.assert_allclose(alone.physics.qpos, qpos, atol=ROUNDING)
        np.testing.assert_allclose(outcome.obs, outcomes.obs[index], atol=ROUNDING)


def test_the_time_limit_truncates(played):
    state, _ = played.reset(played.env.model, played.keys(5))
    late = state._replace(steps=state.steps + played.task.episode_steps - 2)
    action = np.zeros((NUM_ENVS, played.task.act_dim), np.float32)
    state, before = played.step(played.env.model, late, action)
    _, at_limit = played.step(played.env.model, state, action)
    assert not (before.truncated | before.terminated).any()
    assert at_limit.truncated.all() and not at_limit.terminated.any()


@pytest.mark.slow
@pytest.mark.skipif(PHYSICS != "native", reason="starts the others")
@pytest.mark.parametrize("physics", [name for name in registry.ENGINES if name != "native"])
def test_the_other_engines_keep_to_it(physics):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-n", "0", str(Path(__file__))],
        env={**os.environ, "PDJAX_TEST_PHYSICS": physics, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
