"""PushChair: observation against C, spawns, success by hand-placed chairs, features."""

import copy

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pdjax_envs import registry
from pdjax_envs.maniskill import chairs, mobile_panda, push_chair
from pdjax_envs.physics.engine import apply_overrides
from pdjax_envs.task import Episode
from tests.probe import physics_at

NOTHING = Episode({}, ())


@pytest.fixture(scope="module")
def env():
    return registry.make("PushChair", "native")


def starts_of(name):
    """1,000 fresh starts."""
    sample = registry.make_task(name).sample_start
    return jax.jit(jax.vmap(sample))(jax.random.split(jax.random.key(0), 1000))


@pytest.fixture(scope="module")
def starts():
    return starts_of("PushChair")


def c_scene(scene, episodes, index):
    """The compiled model and data of one environment."""
    model = copy.copy(scene.model)
    apply_overrides(model, scene, jax.tree.map(lambda x: x[index], episodes.overrides))
    return model, mujoco.MjData(model)


def placed(xy=(0.0, 0.0), quat=(1.0, 0, 0, 0), velocity=(0, 0, 0), turning=(0, 0, 0)):
    """The physics of a chair in a place; the robot at the origin."""
    arm = mobile_panda.START_ARM
    qpos = np.concatenate([[0, 0, 0, 0.9], arm, arm, [*xy, 0.42], quat, [0.0]])
    qvel = np.concatenate([np.zeros(22), velocity, turning, [0.0]])
    return physics_at(jnp.float32(qpos), jnp.float32(qvel), {"sensordata": jnp.zeros(24)})


def tilted(angle):
    """About an axis between x and y."""
    half = np.sqrt(0.5)
    return (np.cos(angle / 2), half * np.sin(angle / 2), half * np.sin(angle / 2), 0.0)


def test_observation_is_what_c_computes(env):
    count = 8

    @jax.jit
    def play(key):
        reset_key, key = jax.random.split(key)
        states, _ = jax.vmap(env.reset, (None, 0))(env.model, jax.random.split(reset_key, count))
        actions = jax.random.uniform(key, (60, count, env.task.act_dim), minval=-1.0)
        step = lambda s, a: jax.vmap(env.step, (None, 0, 0))(env.model, s, a)  # noqa: E731
        states, outcomes = jax.lax.scan(step, states, actions)
        return states, outcomes.obs[-1]

    states, observations = play(jax.random.key(1))
    scene = env.task.scene
    assert len(np.unique(states.episode.params.chair)) > 2  # different chairs in one batch
    fingers = [
        f"{side}_panda_{finger}finger" for side in ("right", "left") for finger in ("right", "left")
    ]
    for index in range(count):
        model, data = c_scene(scene, states.episode, index)
        data.qpos[:], data.qvel[:] = states.physics.qpos[index], states.physics.qvel[index]
        mujoco.mj_forward(model, data)
        chair = data.body("chair")
        speed = np.zeros(6)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_XBODY, chair.id, speed, 0)
        tips = [data.body(f).xpos + 0.035 * data.body(f).xmat.reshape(3, 3)[:, 2] for f in fingers]
        finger_speeds = []
        for side in ("right", "left"):
            for finger in ("left", "right"):
                body = data.body(f"{side}_panda_{finger}finger").id
                found = np.zeros(6)
                mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_XBODY, body, found, 0)
                finger_speeds.append(found[3:])
        expected = {
            "qpos": data.qpos[3:22],
            "qvel": data.qvel[3:22],
            "base_pos": data.body("mobile_base").xpos[:2],
            "base_orientation": data.qpos[2:3],
            "base_vel": data.qvel[:2],
            "base_ang_vel": data.qvel[2:3],
            "chair_pose": [*chair.xpos, *chair.xquat],
            "chair_vel": speed[3:],
            "chair_ang_vel": speed[:3],
            "chair_qpos": [data.joint("chair_seat_joint").qpos[0], *np.zeros(24)],
            "chair_qvel": [data.joint("chair_seat_joint").qvel[0], *np.zeros(24)],
            "fingers_pos": np.ravel(tips),
            "fingers_vel": np.ravel(finger_speeds),
        }
        sizes = [(name, len(value)) for name, value in expected.items()]
        assert sizes == list(push_chair.OBSERVATION)
        found = np.concatenate([np.ravel(value) for value in expected.values()])
        np.testing.assert_allclose(observations[index], found, rtol=0, atol=1e-5)
    assert env.task.obs_dim == 131 and env.task.act_dim == 20


def wrapped(angle):
    return np.arctan2(np.sin(angle), np.cos(angle))


def spans(values, low, high):
    """Asserts that values stay in [low, high] and fill it, as uniform draws do."""
    values = np.asarray(values)
    assert np.all((values >= low - 1e-5) & (values <= high + 1e-5))
    assert values.min() < low + 0.02 * (high - low)
    assert values.max() > high - 0.02 * (high - low)
    assert abs(values.mean() - (low + high) / 2) < 4.5 * (high - low) / np.sqrt(12 * len(values))


def test_spawns(starts):
    qpos = np.asarray(starts.qpos, np.float64)
    chair, robot, kind = qpos[:, 22:24], qpos[:, :2], np.asarray(starts.episode.params.chair)
    spans(np.linalg.norm(chair, axis=1), 0.8, 1.2)
    around = np.arctan2(chair[:, 1], chair[:, 0])
    spans(around, -np.pi, np.pi)
    assert np.all(qpos[:, 26:28] == 0)  # upright
    facing = 2 * np.arctan2(qpos[:, 28], qpos[:, 25]) + qpos[:, 29]
    spans(wrapped(facing - around - np.pi), -0.4 * np.pi, 0.4 * np.pi)
    spans(qpos[:, 29], -np.pi, np.pi)
    offset = robot - chair
    spans(np.linalg.norm(offset, axis=1), 0.8, 1.2)
    behind = np.arctan2(offset[:, 1], offset[:, 0])
    spans(wrapped(behind - facing - np.pi), -0.2 * np.pi, 0.2 * np.pi)
    spans(wrapped(qpos[:, 2] - behind - np.pi), -0.05 * np.pi, 0.05 * np.pi)
    spans(starts.episode.params.seat_damping, 5, 15)
    arm = [0, 0, 0, -1.5, 0, 3, 0.78, 0.02, 0.02]
    np.testing.assert_allclose(qpos[:, 3:22], np.tile([0.9, *arm, *arm], (1000, 1)), rtol=1e-6)
    np.testing.assert_array_equal(qpos[:, 24], chairs.heights()[kind])
    assert not np.any(starts.qvel)


@pytest.mark.parametrize(
    ("name", "kinds"), [("PushChair", [0, 1, 2, 3, 4]), ("PushChairHeldOut", [5, 6, 7])]
)
def test_chairs_of_the_split(name, kinds):
    chair = np.asarray(starts_of(name).episode.params.chair)
    found, counts = np.unique(chair, return_counts=True)
    assert found.tolist() == kinds
    share = 1 / len(kinds)  # 4.5 standard deviations of a binomial share
    assert np.all(np.abs(counts / 1000 - share) < 4.5 * np.sqrt(share * (1 - share) / 1000))


def test_nothing_touches_at_the_start(env, starts):
    for index in range(100):
        model, data = c_scene(env.task.scene, starts.episode, index)
        data.qpos[:] = starts.qpos[index]
        mujoco.mj_forward(model, data)
        names = {model.geom(geom).name for pair in data.contact.geom for geom in pair}
        assert all(name == "floor" or "caster" in name for name in names)
        assert np.all(np.abs(data.contact.dist) < 1e-4)  # the casters stand on the floor


def test_floor_and_fingers_keep_their_friction(env, starts):
    scene = env.task.scene
    found = np.asarray(starts.episode.overrides["geom_friction"][0])
    named = dict(zip(scene.override_rows["geom_friction"], found, strict=True))
    for name in ("floor", "right_panda_leftfinger_pad", "left_panda_rightfinger_carriage"):
        np.testing.assert_allclose(named[name], scene.model.geom(name).friction, rtol=1e-6)


@pytest.mark.parametrize(
    ("chair", "expected"),
    [
        (placed(), True),
        (placed(xy=(0.149, 0)), True),
        (placed(xy=(0.107, 0.107)), False),  # 0.1513 m away
        (placed(xy=(0, -0.151)), False),
        (placed(quat=tilted(0.049 * np.pi)), True),
        (placed(quat=tilted(0.051 * np.pi)), False),
        (placed(quat=(0, 1.0, 0, 0)), False),  # upside down
        (placed(quat=(0, 0, 0, 1.0)), True),  # turned
        (placed(velocity=(0.06, -0.07, 0)), True),  # 0.092 m/s
        (placed(velocity=(0.08, 0.07, 0)), False),  # 0.106 m/s
        (placed(turning=(0, 0, 0.62)), True),  # 0.2 pi = 0.628 rad/s
        (placed(turning=(0, 0, -0.63)), False),
    ],
)
def test_success(chair, expected):
    assert bool(push_chair.success(NOTHING, chair)) is expected
    assert push_chair.sparse_reward(NOTHING, chair) == {"success": float(expected)}


def test_features_are_relations_of_the_observation():
    # The robot at the origin faces x; the chair 0.9 m ahead and 0.1 m to the left, turned and
    # moving at 0.2 m/s along y, turning at -0.1 pi rad/s, tilted by 0.025 pi.
    quat = tilted(0.025 * np.pi)
    chair = placed(xy=(0.9, 0.1), quat=quat, velocity=(0, 0.2, 0), turning=(0, 0, -0.1 * np.pi))
    features = np.asarray(push_chair.features(push_chair.observe(NOTHING, chair)))
    distance = np.hypot(0.9, 0.1) / 0.15
    turning = -0.5 * np.cos(0.025 * np.pi)  # about the world's z axis
    expected = [-3, -0.1 / 0.15, 0.5, 0.5, 0, 2, min(3, distance), turning, 0.5, 0.48 / 0.2]
    np.testing.assert_allclose(features, np.clip(expected, -3, 3), atol=1e-5)


def test_features_do_not_depend_on_where_all_face(env):
    # In the robot's frame: what turns everything about the target changes nothing.
    def turned(qpos, angle):
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.array([[cos, -sin], [sin, cos]])
        out = np.array(qpos, np.float64)
        out[:2], out[22:24] = matrix @ qpos[:2], matrix @ qpos[22:24]
        out[2] += angle
        quat = np.zeros(4)
        turn = np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])
        mujoco.mju_mulQuat(quat, turn, np.asarray(qpos[25:29], np.float64))
        out[25:29] = quat
        return jnp.float32(out)

    start = env.task.sample_start(jax.random.key(3))
    base = placed()
    first, second = (
        push_chair.features(
            push_chair.observe(NOTHING, base._replace(qpos=turned(np.asarray(start.qpos), a)))
        )
        for a in (0.0, 2.0)
    )
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_random_actions_stay_bounded(env):
    count = 64

    @jax.jit
    def play(key):
        reset_key, key = jax.random.split(key)
        states, _ = jax.vmap(env.reset, (None, 0))(env.model, jax.random.split(reset_key, count))

        def step(states, key):
            # full speed, in a direction that changes every time: the worst that a policy does
            action = jax.random.rademacher(key, (count, env.task.act_dim), jnp.float32)
            states, _ = jax.vmap(env.step, (None, 0, 0))(env.model, states, action)
            physics = states.physics
            return states, (jnp.abs(physics.qvel), physics.qpos[:, 24], physics.overflow)

        return jax.lax.scan(step, states, jax.random.split(key, 200))[1]

    speed, height, overflow = (np.asarray(x) for x in play(jax.random.key(0)))
    assert np.isfinite(speed).all() and not overflow.any()
    assert speed[..., :4].max() < 6  # m/s and rad/s, commanded 0.5 and 3.14
    assert speed[..., 4:11].max() < 20 and speed[..., 13:20].max() < 20  # rad/s, commanded 3.14
    assert speed[..., 22:25].max() < 5  # m/s, the chair
    assert height.min() > 0.0 and height.max() < 1.0  # m, neither through the floor nor flying
    assert (speed[..., 22] > 0.1).any()  # chairs were hit
