"""Perturbations: each changes what it says and nothing else."""

import copy

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pdjax_envs import registry, shifts
from pdjax_envs.physics.engine import apply_overrides, row_ids
from pdjax_envs.registry import UnknownName

NUM = 48
TASKS = ("PegInsertionSide", "PushChair", "StackCube", "AdroitRelocate")


def make(name, shift=""):
    return registry.make(name, "native", shift=shift)


def resets(env, count=NUM, seed=0):
    reset = jax.jit(jax.vmap(env.reset, (None, 0)))
    return reset(env.model, jax.random.split(jax.random.key(seed), count))


def play(env, actions, count=4):
    """Observations and positions (steps + 1, count, ...) under actions (steps, act_dim)."""
    state, obs = resets(env, count)
    step = jax.jit(jax.vmap(env.step, (None, 0, None)))
    seen, positions = [obs], [state.physics.qpos]
    for action in actions:
        state, out = step(env.model, state, action)
        seen.append(out.obs)
        positions.append(state.physics.qpos)
    return np.stack(seen), np.stack(positions)


def some_actions(env, steps=5):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (steps, env.task.act_dim)).astype(np.float32)


@pytest.mark.parametrize("shift", shifts.SHIFTS)
@pytest.mark.parametrize("name", TASKS)
def test_the_episode_itself_stays_the_same(name, shift):
    plain, shifted = resets(make(name), 4)[0], resets(make(name, shift), 4)[0]
    np.testing.assert_array_equal(plain.physics.qpos, shifted.physics.qpos)
    moved = {"mass": shifts._MASS_POWERS, "friction": ["geom_friction"]}.get(shift, ())
    for field, value in plain.episode.overrides.items():
        if field not in moved:
            found = np.asarray(shifted.episode.overrides[field])
            np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("name", TASKS)
def test_masses_are_what_mujoco_derives(name):
    env = make(name, "mass")
    scene, state = env.task.scene, resets(env)[0]
    factors = []
    for index in range(NUM):
        ours = copy.copy(scene.model)
        overrides = {k: np.asarray(v[index]) for k, v in state.episode.overrides.items()}
        apply_overrides(ours, scene, overrides)
        theirs = copy.copy(ours)
        data = mujoco.MjData(theirs)
        mujoco.mj_setConst(theirs, data)
        bodies = [theirs.body(body).id for body in env.task.objects]
        rows = row_ids(theirs, "dof_M0", scene.override_rows["dof_M0"])
        np.testing.assert_allclose(ours.body_subtreemass[bodies], theirs.body_subtreemass[bodies],
                                   rtol=1e-4)  # fmt: skip
        np.testing.assert_allclose(ours.dof_M0[rows], theirs.dof_M0[rows], rtol=1e-4)
        # The solver's softness: nearly, where an object's joints have rotors beside its inertia.
        tolerance = 0.02 if name.startswith("Adroit") else 1e-4
        for field, where in (("body_invweight0", (bodies, 0)), ("dof_invweight0", rows)):
            found, expected = getattr(ours, field)[where], getattr(theirs, field)[where]
            np.testing.assert_allclose(found, expected, rtol=tolerance)
        factors.append(ours.body_mass[bodies[0]])
    if name not in ("PegInsertionSide", "PushChair"):  # whose objects differ in size as well
        factors = np.array(factors) / scene.model.body_mass[bodies[0]]
        assert 0.5 <= factors.min() < 0.6 and 1.7 < factors.max() <= 2.0
        assert abs(np.log(factors).mean()) < 0.2  # evenly on a logarithmic scale


def test_everything_is_rougher_or_smoother_together():
    env = make("StackCube", "friction")
    found = np.asarray(resets(env)[0].episode.overrides["geom_friction"])  # (NUM, geoms, 3)
    names = env.task.scene.override_rows["geom_friction"]
    assert {"floor", "cube_a", "cube_b", "panda_leftfinger_pad"} <= set(names)
    nominal = env.task.scene.model.geom_friction[row_ids(env.task.scene.model, "geom_size", names)]
    factors = found[..., 0] / nominal[:, 0]
    np.testing.assert_allclose(factors, factors[:, :1] * np.ones(len(names)), rtol=1e-6)
    assert 0.4 <= factors.min() < 0.5 and 1.1 < factors.max() <= 1.2
    same = np.broadcast_to(nominal[:, 1:], found[..., 1:].shape)
    np.testing.assert_allclose(found[..., 1:], same, rtol=1e-6)


def test_sensor_noise_is_fresh_each_step_and_leaves_the_world_alone():
    plain, noisy = make("StackCube"), make("StackCube", "sensor_noise")
    actions = some_actions(plain, steps=20)
    (obs, qpos), (seen, same) = play(plain, actions), play(noisy, actions)
    np.testing.assert_array_equal(qpos, same)
    noise = seen - obs
    np.testing.assert_allclose(noise.std(), shifts.SENSOR_NOISE, rtol=0.05)
    np.testing.assert_allclose(noise.mean(), 0, atol=2e-4)
    assert abs(np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]) < 0.05


def test_a_camera_error_moves_all_objects_alike_for_an_episode():
    plain, shifted = make("StackCube"), make("StackCube", "camera")
    actions = some_actions(plain)
    (obs, qpos), (seen, same) = play(plain, actions), play(shifted, actions)
    np.testing.assert_array_equal(qpos, same)
    error = seen - obs
    offset = error[:1, :, 32:35]
    assert np.all(np.abs(offset) > 0) and np.all(np.abs(offset) < 5 * shifts.CAMERA_ERROR)
    assert len(np.unique(offset[0], axis=0)) == 4  # each episode its own
    for part in (32, 39, 46, 49):  # both cubes, and both as seen from the tool
        found = error[..., part : part + 3]
        np.testing.assert_allclose(found, np.broadcast_to(offset, found.shape), atol=1e-6)
    others = [*range(32), *range(35, 39), *range(42, 46), *range(52, 55)]
    np.testing.assert_array_equal(error[..., others], 0)


def test_actions_come_one_step_late():
    plain, late = make("StackCube"), make("StackCube", "action_delay")
    actions = some_actions(plain)
    seen, positions = play(late, actions)
    # Before the first action there is none to be late: it is executed at once, and once more.
    obs, qpos = play(plain, np.concatenate([actions[:1], actions[:-1]]))
    np.testing.assert_array_equal(positions, qpos)
    np.testing.assert_array_equal(seen, obs)


def test_shifts_meet():
    both = resets(make("StackCube", "mass+camera"))
    mass, camera = resets(make("StackCube", "mass")), resets(make("StackCube", "camera"))
    jax.tree.map(np.testing.assert_array_equal, both[0].episode, mass[0].episode)
    np.testing.assert_array_equal(both[1], camera[1])


def test_shifts_work_where_nothing_is_batched():
    env = make("StackCube", "sensor_noise+action_delay")
    state, obs = jax.jit(env.reset)(env.model, jax.random.key(0))
    state, out = jax.jit(env.step)(env.model, state, jnp.zeros(4))
    assert out.obs.shape == obs.shape


@pytest.mark.parametrize(
    ("name", "shift", "message"),
    [
        ("StackCube", "mas", "unknown shift 'mas'; did you mean mass?"),
        ("StackCube", "mass+", "unknown shift ''; choose one of: mass, friction"),
        ("brax:fast", "mass", "task brax:fast has no shift 'mass': it names no objects to move"),
        ("brax:fast", "camera", "it observes no objects by camera"),
    ],
)
def test_unknown_shifts_are_refused(name, shift, message):
    with pytest.raises(UnknownName) as raised:
        registry.make(name, shift=shift)
    assert message in str(raised.value)
