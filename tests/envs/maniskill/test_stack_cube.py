"""StackCube: observation against C, spawns, grasp and success by hand-placed cubes."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pdjax_envs import registry
from pdjax_envs.maniskill import panda, stack_cube
from pdjax_envs.task import Episode
from tests.probe import physics_at

EPISODE = Episode({}, stack_cube.CubeParams(jnp.float32(0.02)))
UPRIGHT = np.array([1.0, 0, 0, 0])


@pytest.fixture(scope="module")
def env():
    return registry.make("StackCube", "native")


@pytest.fixture(scope="module")
def starts():
    """1,000 fresh starts."""
    return jax.jit(jax.vmap(stack_cube.sample_start))(jax.random.split(jax.random.key(0), 1000))


def physics_of(qpos, qvel=None):
    qvel = np.zeros(21) if qvel is None else qvel
    return physics_at(jnp.asarray(qpos, jnp.float32), jnp.asarray(qvel, jnp.float32))


def test_observation_is_what_c_computes(env):
    count = 8

    @jax.jit
    def play(key):
        reset_key, key = jax.random.split(key)
        states, _ = jax.vmap(env.reset, (None, 0))(env.model, jax.random.split(reset_key, count))
        actions = jax.random.uniform(key, (30, count, env.task.act_dim), minval=-1.0)
        step = lambda s, a: jax.vmap(env.step, (None, 0, 0))(env.model, s, a)  # noqa: E731
        states, outcomes = jax.lax.scan(step, states, actions)
        return states.physics, outcomes.obs[-1]

    physics, observations = play(jax.random.key(1))
    model = env.task.scene.model
    for index in range(count):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = physics.qpos[index], physics.qvel[index]
        mujoco.mj_forward(model, data)
        quat = np.zeros(4)
        mujoco.mju_mat2Quat(quat, data.site("tcp").xmat)
        quat *= np.sign(quat[1])
        tcp, base = data.site("tcp").xpos, data.body("panda_link0")
        a, b = data.body("cube_a"), data.body("cube_b")
        expected = {
            "qpos": data.qpos[:9],
            "qvel": data.qvel[:9],
            "base_pose": [*base.xpos, *base.xquat],
            "tcp_pose": [*tcp, *quat],
            "cube_a_pose": [*a.xpos, *a.xquat],
            "cube_b_pose": [*b.xpos, *b.xquat],
            "tcp_to_cube_a": a.xpos - tcp,
            "tcp_to_cube_b": b.xpos - tcp,
            "cube_a_to_cube_b": b.xpos - a.xpos,
        }
        assert {name: len(value) for name, value in expected.items()} == dict(
            stack_cube.OBSERVATION
        )
        found = np.concatenate([np.ravel(value) for value in expected.values()])
        np.testing.assert_allclose(observations[index], found, rtol=0, atol=5e-6)


def test_spawns(starts):
    qpos = np.asarray(starts.qpos)
    a, b = qpos[:, stack_cube.A], qpos[:, stack_cube.B]
    for cube in (a, b):
        # region +-(0.1, 0.2) about a shift of +-0.1
        assert np.all(np.abs(cube[:, 0]) <= 0.2) and np.abs(cube[:, 0]).max() > 0.18
        assert np.all(np.abs(cube[:, 1]) <= 0.3) and np.abs(cube[:, 1]).max() > 0.27
        np.testing.assert_allclose(cube[:, 2], 0.02)  # on the floor
        yaw = 2 * np.arctan2(cube[:, 6], cube[:, 3]) % (2 * np.pi)
        assert yaw.min() < 0.1 and yaw.max() > 2 * np.pi - 0.1
    apart = np.linalg.norm(a[:, :2] - b[:, :2], axis=1)
    assert apart.min() > 2 * (np.hypot(0.02, 0.02) + 0.001)  # no start overlaps
    assert apart.min() < 0.065  # but they may be close


def test_cubes_weigh_what_they_should(env):
    # (4 cm)^3 at 1,000 kg/m^3
    for name in ("cube_a", "cube_b"):
        np.testing.assert_allclose(env.task.scene.model.body(name).mass, 0.064)


def placed(offset, fingers=0.04, yaw=0.0):
    """The robot at rest; the red cube at `offset` (3,) from the green one, or in the fingers."""
    arm = np.asarray(panda.REST_ARM)
    tcp, _ = panda.tcp_pose(jnp.asarray(arm))
    green = np.array([-0.3, 0.3, 0.02])
    turned = np.array([np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
    red = np.asarray(tcp) if offset is None else green + offset
    return np.concatenate([arm, [fingers] * 2, red, turned, green, UPRIGHT])


@pytest.mark.parametrize(
    ("offset", "velocity", "expected"),
    [
        ((0, 0, 0.04), 0, True),
        ((0, 0, 0.0449), 0, True),
        ((0, 0, 0.0451), 0, False),
        ((0, 0, 0.0349), 0, False),
        # horizontally up to |(2 cm, 2 cm)| + 5 mm = 33.3 mm
        ((0.0332, 0, 0.04), 0, True),
        ((0, -0.0334, 0.04), 0, False),
        ((0, 0, 0.04), 0.9e-3, True),
        ((0, 0, 0.04), 1.1e-3, False),  # still moving
    ],
)
def test_success(offset, velocity, expected):
    qvel = np.zeros(21)
    qvel[9] = velocity
    assert bool(stack_cube.success(EPISODE, physics_of(placed(offset), qvel))) is expected


@pytest.mark.parametrize(
    ("fingers", "yaw", "expected"),
    [
        (0.0205, 0, True),
        (0.0215, 0, False),  # 1.5 mm of air at each side
        (0.03, 0, False),
        # turned by 45 degrees the cube is 20 mm * sqrt(2) = 28.3 mm to each side
        (0.029, np.pi / 4, True),
        (0.0295, np.pi / 4, False),
    ],
)
def test_a_grasp_is_seen(fingers, yaw, expected):
    # The tool at rest points down, with the fingers along the world's y axis.
    assert bool(stack_cube.grasped(EPISODE, physics_of(placed(None, fingers, yaw)))) is expected


def test_a_cube_beside_the_fingers_is_not_grasped():
    assert not stack_cube.grasped(EPISODE, physics_of(placed((0, 0, 0.04), fingers=0.0)))


def test_a_stacked_cube_in_the_fingers_is_no_success():
    qpos = placed(None, fingers=0.02)
    qpos[16:19] = qpos[9:12] - [0, 0, 0.04]  # the green cube under the one in the fingers
    assert stack_cube.stacked(EPISODE, physics_of(qpos))
    assert not stack_cube.success(EPISODE, physics_of(qpos))
    qpos[7:9] = 0.04
    assert stack_cube.success(EPISODE, physics_of(qpos))


def test_the_tool_keeps_its_orientation(env):
    qpos = placed((0, 0, 0.04))
    action = jnp.array([0.5, -0.4, 0.3, 1.0])
    target = env.task.control(EPISODE, physics_of(qpos), action)
    before = panda.forward_kinematics(jnp.asarray(qpos[:7], jnp.float32))
    after = panda.forward_kinematics(target[:7])
    moved = np.asarray(before.columns) @ np.asarray(after.pos - before.pos)  # in the tool's frame
    np.testing.assert_allclose(moved, 0.1 * np.array(action[:3]), atol=2e-4)
    np.testing.assert_allclose(after.columns, before.columns, atol=2e-3)
    np.testing.assert_allclose(target[7:], 0.04)


def test_features_are_relations_of_the_observation(env):
    state, obs = env.reset(env.model, jax.random.key(0))
    features = np.asarray(stack_cube.features(obs))
    assert features.shape == (8,) and np.all(np.abs(features) <= 3)
    qpos = placed((0.004, -0.006, 0.05), fingers=0.03)
    features = np.asarray(stack_cube.features(stack_cube.observe(state.episode, physics_of(qpos))))
    # 4, -6 and 10 mm off its place, per 2 cm; fingers 10 mm wide of the cube; 5 cm up, per 2 cm
    np.testing.assert_allclose(features[3:], [0.2, -0.3, 0.5, 1.0, 2.5], atol=1e-4)


def reward_of(qpos, qvel=None):
    terms = stack_cube.dense_reward(
        EPISODE, physics_of(qpos, np.zeros(21) if qvel is None else qvel)
    )
    return {name: round(float(value), 4) for name, value in terms.items() if value}


def test_dense_reward_at_a_distance():
    # The tool around the red cube, open: turned as it should be, and there.
    assert reward_of(placed(None)) == {"rotation": 1.0, "reach": 1.0}
    # Turned by 45 degrees: |difference|^2 = 8 sin^2(22.5 deg) = 1.1716; 1 - tanh(1.1716 / 8)
    assert reward_of(placed(None, yaw=np.pi / 4))["rotation"] == 0.8546
    qvel = np.zeros(21)
    qvel[15:21] = [0.3, 0, 0.4, 0, 2, 0]  # the green cube: 0.5 m/s and 2 rad/s
    assert reward_of(placed(None), qvel)["disturbed"] == -2.5


def test_dense_reward_of_carrying():
    qpos = placed(None, fingers=0.02)
    # Its place is 30 cm beside and 7 cm below: 2 (1 - tanh(5 * 2 * 0.05)) = 1.0758 for the height,
    # and 4 (1 - tanh(5 * 0.30806)) = 0.3513 for the distance.
    qpos[16:19] = qpos[9:12] + np.array([0.3, 0, -0.11])
    assert reward_of(qpos) == {"rotation": 1.0, "reach": 1.0, "grasp": 1.0, "carry": 1.4271}


def test_dense_reward_on_the_green_cube():
    qpos = placed(None, fingers=0.02)
    qpos[16:19] = qpos[9:12] - [0, 0, 0.04]
    assert reward_of(qpos) == {"placed": 10.0, "let_go": 1.0}  # 2 * (2 + 2) cm / 8 cm
    qpos[7:9] = 0.04
    assert reward_of(qpos) == {"success": 15.0}
    qvel = np.zeros(21)
    qvel[9] = 0.002
    assert reward_of(qpos, qvel) == {"placed": 10.0, "let_go": 2.0}


def test_a_pushed_cube_stays_on_the_floor(env):
    model = env.task.scene.model
    data = mujoco.MjData(model)
    data.qpos[: panda.NUM_JOINTS] = np.append(panda.REST_ARM, [0.04, 0.04])
    data.ctrl[:] = data.qpos[: panda.NUM_JOINTS]
    data.qpos[stack_cube.A] = [-0.3, -0.5, stack_cube.HALF_SIZE, 1, 0, 0, 0]
    mujoco.mj_step(model, data, 40)
    for _ in range(40):
        data.qvel[stack_cube.A_VEL] = [0.3, 0, *data.qvel[stack_cube.A_VEL][2:]]
        mujoco.mj_step(model, data)
        assert abs(data.qpos[stack_cube.A][2] - stack_cube.HALF_SIZE) < 1e-4  # m
    mujoco.mj_step(model, data, 200)
    assert np.linalg.norm(data.qvel[stack_cube.A_VEL][:2]) < 1e-4
