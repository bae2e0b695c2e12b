"""TurnFaucet: its faucets, observation against C, spawns, success, the handle's motion."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pdjax_envs import registry
from pdjax_envs.demonstrations import store
from pdjax_envs.demonstrations.store import DataError, Trajectory
from pdjax_envs.maniskill import faucets, turn_faucet, turn_faucet_held_out
from pdjax_envs.physics.engine import apply_overrides
from tests.probe import physics_at

FAMILY = faucets.make_family()
RANGES = [
    1.426,
    1.252,
    1.126,
    1.471,
    1.667,
    1.137,
    1.473,
    1.432,
    0.917,
    1.496,
    1.37,
    1.099,
    1.022,
    1.57,
]  # rad
EVERY = pytest.mark.parametrize("model_id", range(14))


@pytest.fixture(scope="module")
def env():
    return registry.make("TurnFaucet", "native")


@pytest.fixture(scope="module")
def starts():
    """1,000 fresh starts."""
    return jax.jit(jax.vmap(turn_faucet.sample_start))(jax.random.split(jax.random.key(0), 1000))


def start_of(model_id, yaw=0.0):
    """An episode with a given faucet at the origin; the robot at rest."""
    return turn_faucet.make_start(
        {
            "qpos": jnp.concatenate([jnp.array(turn_faucet.REST_ARM), jnp.zeros(3)]),
            "qvel": jnp.zeros(10),
            "model_id": jnp.array(model_id),
            "faucet_pos": jnp.array([0.0, 0.0, 0.01]),
            "faucet_quat": jnp.array([np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]),
        }
    )


def c_scene(scene, overrides):
    model = copy.copy(scene.model)
    apply_overrides(model, scene, overrides)
    return model, mujoco.MjData(model)


def rotation(quat):
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, np.asarray(quat, float))
    return matrix.reshape(3, 3)


def test_the_family_is_what_it_was():
    # Base policies and demonstrations depend on it: a change needs new ones.
    ranges = [round(float(faucet.joint_range), 3) for faucet in FAMILY]
    assert ranges == RANGES
    assert [faucet.kind for faucet in FAMILY] == [faucets.KINDS[i % 3] for i in range(14)]


def test_the_split_has_every_kind_on_both_sides():
    assert len(faucets.TRAINING) == 10 and len(faucets.HELD_OUT) == 4
    assert not set(faucets.TRAINING) & set(faucets.HELD_OUT)
    for models in (faucets.TRAINING, faucets.HELD_OUT):
        assert {FAMILY[model_id].kind for model_id in models} == set(faucets.KINDS)


@EVERY
def test_shapes_stand_where_the_family_says(env, model_id):
    faucet, start = FAMILY[model_id], start_of(model_id, yaw=0.2)
    model, data = c_scene(env.task.scene, start.episode.overrides)
    mujoco.mj_kinematics(model, data)
    world = rotation([np.cos(0.1), 0, 0, np.sin(0.1)])
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for row, name in enumerate((*faucets.FIXED, *faucets.MOVING)):
        place, axis = faucet.place[row], rotation(faucet.turn[row])[:, 2]
        if name in faucets.MOVING:
            handle = rotation(faucet.quat)
            place, axis = faucet.pivot + handle @ place, handle @ axis
        geom = data.geom(name)
        np.testing.assert_allclose(geom.xpos, world @ place + [0, 0, 0.01], atol=1e-6)
        np.testing.assert_allclose(geom.xmat.reshape(3, 3)[:, 2], world @ axis, atol=1e-6)
        radius, half, _ = model.geom(name).size
        reach = np.abs(axis) * half + radius
        low, high = np.minimum(low, place - reach), np.maximum(high, place + reach)
    np.testing.assert_allclose(np.max(high - low), 0.3, rtol=1e-5)  # the longest side
    assert abs(low[2]) < 1e-6  # the base lies at z = 0


@EVERY
def test_every_handle_turns_by_its_range_without_touching(env, model_id):
    faucet = FAMILY[model_id]
    model, data = c_scene(env.task.scene, start_of(model_id).episode.overrides)
    arms = faucets.MOVING
    if faucet.kind != "cross":  # the hub turns about its own axis, which is the joint's
        hub, arms = faucets.MOVING[0], faucets.MOVING[1:]
        np.testing.assert_allclose(model.geom(hub).pos, 0, atol=1e-7)
        np.testing.assert_allclose(rotation(model.geom(hub).quat)[:, 2], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(model.joint("handle_joint").range, [0, faucet.joint_range])
    for angle in np.linspace(0, faucet.joint_range, 60):
        data.joint("handle_joint").qpos = angle
        mujoco.mj_kinematics(model, data)
        for arm in arms:
            for name in faucets.FIXED:
                pair = model.geom(arm).id, model.geom(name).id
                assert mujoco.mj_geomDistance(model, data, *pair, 0.1, None) > 1e-3


def test_bounds_are_compiled_at_the_largest_and_poses_are_free(env):
    model, (low, *_) = env.task.scene.model, faucets.FIXED
    first = model.geom(low).id
    for faucet in FAMILY:
        radius = faucet.size[:, 0] + faucet.size[:, 1]  # of the sphere around a capsule
        assert np.all(radius <= model.geom_rbound[first : first + 7] + 1e-6)
    # Shapes that coincide with a body's frame at compilation would ignore their overrides.
    assert not model.geom_sameframe[first : first + 7].any()
    assert not model.body_sameframe[model.body("handle").id]


@EVERY
def test_explicit_constants_are_what_mujoco_derives(env, model_id):
    derived = {"body_invweight0", "dof_invweight0", "dof_M0", "body_subtreemass"}
    scene, overrides = env.task.scene, start_of(model_id, yaw=0.2).episode.overrides
    assert derived < set(scene.override_rows)
    ours, _ = c_scene(scene, overrides)
    theirs, _ = c_scene(scene, overrides)
    for field in derived:  # forgotten, so that they must be derived
        getattr(theirs, field)[:] = getattr(scene.model, field)
    mujoco.mj_setConst(theirs, mujoco.MjData(theirs))
    theirs.body_subtreemass[0] = ours.body_subtreemass[0]  # only sensors of momentum read it
    for field in derived:
        np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), rtol=2e-5)
    np.testing.assert_allclose(ours.body("handle").ipos, FAMILY[model_id].middle, atol=1e-6)


def test_the_demonstrator_can_tell_faucets_apart():
    seen = []
    for faucet in FAMILY:
        frame = rotation(faucet.quat)
        height = faucet.pivot[2] + (frame @ faucet.middle)[2]
        seen.append([height, frame[2, 2], 0.9 * faucet.joint_range])
    apart = np.linalg.norm(np.array(seen)[:, None] - seen, axis=-1) + np.eye(14)
    assert apart.min() > 1e-3  # observations are exact to 1e-6


def test_observation_is_what_c_computes(env):
    count = 8

    @jax.jit
    def play(key):
        reset_key, key = jax.random.split(key)
        states, _ = jax.vmap(env.reset, (None, 0))(env.model, jax.random.split(reset_key, count))
        actions = jax.random.uniform(key, (30, count, env.task.act_dim), minval=-1.0)
        step = lambda s, a: jax.vmap(env.step, (None, 0, 0))(env.model, s, a)  # noqa: E731
        states, outcomes = jax.lax.scan(step, states, actions)
        return states, outcomes.obs[-1]

    states, observations = play(jax.random.key(1))
    for index in range(count):
        overrides = jax.tree.map(lambda x, index=index: x[index], states.episode.overrides)
        model, data = c_scene(env.task.scene, overrides)
        data.qpos[:9], data.qvel[:] = states.physics.qpos[index][:9], states.physics.qvel[index]
        mujoco.mj_forward(model, data)  # with the handle as it was at the start
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, data.site("tcp").xmat)
        quat *= np.sign(quat[1])
        base, target = data.body("panda_link0"), 0.9 * model.joint("handle_joint").range[1]
        expected = {
            "qpos": data.qpos[:9],
            "qvel": data.qvel[:9],
            "base_pose": [*base.xpos, *base.xquat],
            "tcp_pose": [*data.site("tcp").xpos, *quat],
            "target_angle_diff": [target],
            "target_joint_axis": data.joint("handle_joint").xaxis,
            "target_link_pos": data.body("handle").xipos,
            "angle_dist": [target - states.physics.qpos[index][9]],
        }
        assert {name: len(value) for name, value in expected.items()} == dict(
            turn_faucet.OBSERVATION
        )
        found = np.concatenate([np.ravel(value) for value in expected.values()])
        np.testing.assert_allclose(observations[index], found, rtol=0, atol=5e-6)
    assert env.task.obs_dim == 40


def test_spawns(starts):
    params, qpos = starts.episode.params, np.asarray(starts.qpos)
    for axis in (0, 1):
        place = np.asarray(params.faucet_pos[:, axis])
        assert np.all(np.abs(place) <= 0.05) and place.min() < -0.048 and place.max() > 0.048
    np.testing.assert_allclose(params.faucet_pos[:, 2], 0.01)
    yaw = np.rad2deg(2 * np.arctan2(params.faucet_quat[:, 3], params.faucet_quat[:, 0]))
    assert np.all(np.abs(yaw) <= 15.001) and yaw.min() < -14.5 and yaw.max() > 14.5
    rest = [0, -0.785, 0, -2.356, 0, 1.57, 0.785]
    np.testing.assert_allclose(qpos[:, :7].mean(axis=0), rest, atol=4.5 * 0.02 / np.sqrt(1000))
    np.testing.assert_allclose(qpos[:, :7].std(axis=0), 0.02, rtol=0.12)
    assert not np.any(qpos[:, 7:])  # fingers closed, handle at 0


def test_each_task_draws_its_own_faucets(starts):
    counts = np.bincount(starts.episode.params.model_id, minlength=14)
    assert np.all(counts[:10] > 50) and not counts[10:].any()  # 1,000 / 10, 5 deviations
    keys = jax.random.split(jax.random.key(1), 200)
    other = jax.vmap(turn_faucet_held_out.sample_start)(keys).episode.params.model_id
    assert set(np.asarray(other).tolist()) == {10, 11, 12, 13}


@EVERY
@pytest.mark.parametrize(("beyond", "expected"), [(-1e-4, False), (1e-4, True)])
def test_success(model_id, beyond, expected):
    start = start_of(model_id)
    angle = 0.9 * FAMILY[model_id].joint_range + beyond
    physics = physics_at(start.qpos.at[9].set(angle), start.qvel)
    assert bool(turn_faucet.success(start.episode, physics)) is expected
    assert turn_faucet.sparse_reward(start.episode, physics) == {"success": float(expected)}


@pytest.mark.parametrize("speed", [0.0, 5.0])
def test_handles_stay_where_they_are_and_stop_by_themselves(env, speed):
    starts = jax.vmap(start_of)(jnp.arange(14))
    starts = starts._replace(qvel=starts.qvel.at[:, 9].set(speed))
    states, _ = jax.vmap(env.start_from, (None, 0))(env.model, starts)
    step = jax.jit(jax.vmap(env.step, (None, 0, 0)))
    for _ in range(6):
        states, _ = step(env.model, states, jnp.zeros((14, 7)))
    # A handle turns on by speed * inertia / damping, the latter 2 N m s/rad.
    inertia = np.asarray(starts.episode.overrides["dof_M0"][:, 0])
    assert np.all((inertia > 0.03) & (inertia < 0.036))  # with the rotor's 0.03 kg m^2
    np.testing.assert_allclose(states.physics.qpos[:, 9], speed * inertia / 2, rtol=1e-3, atol=1e-6)
    assert np.all(np.abs(states.physics.qvel[:, 9]) < 1e-4)


def test_the_fingers_do_not_sink_into_what_they_push(env):
    expert, count = env.task.expert(), 10

    def control_step(carry, key):
        state, obs, memory = carry
        actions, memory = jax.vmap(expert.act)(memory, obs, jax.random.split(key, count))
        state, outcome = jax.vmap(env.step, (None, 0, 0))(env.model, state, actions)
        return (state, outcome.obs, memory), state.physics.qpos

    @jax.jit
    def demonstrate(keys):
        starts = jax.vmap(start_of)(jnp.arange(count))
        state, obs = jax.vmap(env.start_from, (None, 0))(env.model, starts)
        memory = jax.vmap(expert.init)(keys)
        steps = jax.random.split(jax.random.key(1), 90)
        return jax.lax.scan(control_step, (state, obs, memory), steps)[1]

    qpos = np.asarray(demonstrate(jax.random.split(jax.random.key(0), count)))
    for index in range(count):
        model, data = c_scene(env.task.scene, start_of(index).episode.overrides)
        depths = []
        for positions in qpos[:, index]:
            data.qpos[:] = positions
            mujoco.mj_fwdPosition(model, data)
            depths.append(-min(data.contact.dist, default=0.0))
        assert 0 < max(depths) < 0.003  # 0.006 without the rotor's inertia


def test_features_are_relations_of_the_observation():
    obs = jnp.zeros(40).at[25:28].set(jnp.array([0.11, 0.02, 0.23]))  # the tool
    obs = obs.at[36:39].set(jnp.array([0.1, 0.0, 0.2])).at[33:36].set(jnp.array([0.0, 0, 1]))
    obs = obs.at[32].set(1.2).at[39].set(0.9)
    # (1, 2, 3) cm from the handle, per 5 cm; z x (1, 2, 3) = (-2, 1, 0); 0.9 rad to go, 0.3 done
    np.testing.assert_allclose(
        turn_faucet.features(obs), [0.2, 0.4, 0.6, -0.4, 0.2, 0, 1.8, 0.6], atol=1e-6
    )
    far = turn_faucet.features(obs.at[25].set(5.0))
    assert far[0] == 3.0 and far[4] == 3.0


def test_demonstrations_serve_the_whole_family(env, tmp_path):
    held_out = registry.make_task("TurnFaucetHeldOut")
    assert env.task.family == held_out.family == "TurnFaucet"
    episode = Trajectory(
        obs=np.zeros((3, 40), np.float32),
        actions=np.zeros((2, 7), np.float32),
        success=np.array([False, True]),
        env_states=np.zeros((3, 20), np.float32),
        seed=0,
    )
    path = tmp_path / "demos.h5"
    store.write(path, env.task, [episode])
    assert len(store.read(path, held_out)) == 1
    stranger = dataclasses.replace(held_out, name="Stranger", family="Stranger")
    with pytest.raises(DataError, match="of TurnFaucet, expected Stranger; pass --task"):
        store.read(path, stranger)


def test_an_unknown_task_is_a_family_of_its_own():
    assert registry.family("StackCube") == "StackCube"
    assert registry.family("Nobody") == "Nobody"
