"""PegInsertionSide: observation, spawns, success, the hole's walls and the demonstrator."""

import copy

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pdjax_envs import registry
from pdjax_envs.maniskill import panda, peg_insertion_side, peg_reward
from pdjax_envs.physics.engine import apply_overrides
from pdjax_envs.rotations import quat_about_z
from pdjax_envs.task import Episode
from tests.probe import physics_at

WALLS = ("wall_left", "wall_right", "wall_top", "wall_bottom")


@pytest.fixture(scope="module")
def env():
    return registry.make("PegInsertionSide", "native")


@pytest.fixture(scope="module")
def starts():
    """1,000 fresh starts."""
    return jax.jit(jax.vmap(peg_insertion_side.sample_start))(
        jax.random.split(jax.random.key(0), 1000)
    )


def c_scene(scene, overrides, index):
    """The compiled model and data of one environment."""
    model = copy.copy(scene.model)
    apply_overrides(model, scene, jax.tree.map(lambda x: np.asarray(x[index]), overrides))
    return model, mujoco.MjData(model)


def hole_of(model, data):
    """World position, quaternion and half width of the hole, from where the walls' faces are."""
    box = model.body("box").id
    pos, size = (
        {name: values[model.geom(name).id] for name in WALLS}
        for values in (model.geom_pos, model.geom_size)
    )
    y = [pos["wall_right"][1] + size["wall_right"][1], pos["wall_left"][1] - size["wall_left"][1]]
    z = [pos["wall_bottom"][2] + size["wall_bottom"][2], pos["wall_top"][2] - size["wall_top"][2]]
    local = np.array([0, np.mean(y), np.mean(z)])
    world = data.xpos[box] + data.xmat[box].reshape(3, 3) @ local
    return world, data.xquat[box], [np.diff(y)[0] / 2, np.diff(z)[0] / 2]


def test_observation_has_fifty_numbers_in_named_parts(env):
    assert sum(size for _, size in peg_insertion_side.OBSERVATION) == env.task.obs_dim == 50
    assert env.task.act_dim == panda.ACTION_DIM == 7


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
    assert observations.dtype == jnp.float32
    for index in range(count):
        model, data = c_scene(env.task.scene, states.episode.overrides, index)
        data.qpos[:], data.qvel[:] = states.physics.qpos[index], states.physics.qvel[index]
        mujoco.mj_forward(model, data)
        hole_pos, hole_quat, half_widths = hole_of(model, data)
        tcp_quat = np.zeros(4)
        mujoco.mju_mat2Quat(tcp_quat, data.site("tcp").xmat)
        tcp_quat *= np.sign(tcp_quat[1])
        base, body = data.body("panda_link0"), data.body("peg")
        expected = {
            "qpos": data.qpos[:9],
            "qvel": data.qvel[:9],
            "base_pose": [*base.xpos, *base.xquat],
            "tcp_pose": [*data.site("tcp").xpos, *tcp_quat],
            "peg_pose": [*body.xpos, *body.xquat],
            "peg_half_size": model.geom("peg").size,
            "box_hole_pose": [*hole_pos, *hole_quat],
            "box_hole_radius": [half_widths[0]],
        }
        assert list(expected) == [name for name, _ in peg_insertion_side.OBSERVATION]
        np.testing.assert_allclose(half_widths[0], half_widths[1], rtol=1e-5)
        start = 0
        for name, size in peg_insertion_side.OBSERVATION:
            found = observations[index, start : start + size]
            np.testing.assert_allclose(found, expected[name], rtol=0, atol=5e-6, err_msg=name)
            start += size


def spans(values, low, high):
    """Asserts that values stay in [low, high] and fill it, as uniform draws do."""
    values = np.asarray(values)
    margin = 1e-6
    assert np.all((values >= low - margin) & (values <= high + margin))
    assert values.min() < low + 0.02 * (high - low)
    assert values.max() > high - 0.02 * (high - low)
    # the mean of 1,000 uniform draws: 4.5 standard errors
    assert abs(values.mean() - (low + high) / 2) < 4.5 * (high - low) / np.sqrt(12 * len(values))


def yaw_of(quat):
    assert np.all(np.asarray(quat)[:, 1:3] == 0)
    return 2 * np.arctan2(quat[:, 3], quat[:, 0])


def test_spawns_fill_their_ranges(starts):
    params, qpos = starts.episode.params, np.asarray(starts.qpos)
    spans(params.peg_half_length, 0.075, 0.125)
    spans(params.peg_half_width, 0.015, 0.025)
    np.testing.assert_allclose(params.hole_half_width, params.peg_half_width + 0.003, rtol=1e-6)
    spans(qpos[:, 9], -0.1, 0.1)
    spans(qpos[:, 10], -0.3, 0.0)
    np.testing.assert_allclose(qpos[:, 11], params.peg_half_width, rtol=1e-6)  # on the floor
    spans(yaw_of(qpos[:, 12:]), np.pi / 6, np.pi * 5 / 6)
    spans(params.box_pos[:, 0], -0.05, 0.05)
    spans(params.box_pos[:, 1], 0.2, 0.4)
    np.testing.assert_allclose(params.box_pos[:, 2], params.peg_half_length, rtol=1e-6)
    spans(yaw_of(np.asarray(params.box_quat)), np.pi * 3 / 8, np.pi * 5 / 8)
    largest = 0.5 * (params.peg_half_length - params.peg_half_width)
    for axis in range(2):
        spans(params.hole_offset[:, axis] / largest, -1, 1)


def test_the_robot_starts_near_its_rest_pose(starts):
    arm = np.asarray(starts.qpos[:, :7])
    np.testing.assert_allclose(
        arm.mean(axis=0), peg_insertion_side.REST_ARM, atol=4.5 * 0.02 / np.sqrt(1000)
    )
    np.testing.assert_allclose(arm.std(axis=0), 0.02, rtol=0.12)
    assert np.all(np.asarray(starts.qpos[:, 7:9]) == np.float32(0.04))
    assert not np.any(starts.qvel)


def test_starts_are_in_the_compiled_models_bounds(starts, env):
    # Bounding volumes are compiled, not overridden: no episode may be larger.
    compiled = env.task.scene.model
    names = ("peg", "peg_head", *WALLS)
    for row, name in enumerate(names):
        if name != "peg_head":  # only drawn
            size = np.asarray(starts.episode.overrides["geom_size"][:, row])
            assert np.all(size <= compiled.geom(name).size + 1e-6), name


def place(head, hole_quat=(1.0, 0, 0, 0), half_width=0.02):
    """An episode with its hole at the origin, and the peg with its head at `head`, aligned."""
    half_length = 0.1
    quat = jnp.array(hole_quat)
    params = peg_insertion_side.PegParams(
        peg_half_length=jnp.array(half_length),
        peg_half_width=jnp.array(half_width),
        hole_offset=jnp.zeros(2),
        hole_half_width=jnp.array(half_width + 0.003),
        box_pos=jnp.zeros(3),
        box_quat=quat,
    )
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, np.asarray(quat, np.float64))
    pos = matrix.reshape(3, 3) @ (np.array(head) - [half_length, 0, 0])
    qpos = jnp.concatenate([jnp.zeros(9), jnp.asarray(pos, jnp.float32), quat])
    return Episode({}, params), physics_at(qpos, jnp.zeros(15))


@pytest.mark.parametrize("hole_quat", [(1.0, 0, 0, 0), (0.8, 0, 0, 0.6)])
@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ((-0.016, 0, 0), False),
        ((-0.014, 0, 0), True),
        ((0.0, 0, 0), True),
        ((0.074, 0, 0), True),
        ((0.076, 0, 0), False),
        # half width of the hole: 0.02 + 0.003
        ((0.0, 0.0229, 0), True),
        ((0.0, 0.0231, 0), False),
        ((0.0, -0.0229, 0), True),
        ((0.0, -0.0231, 0), False),
        ((0.0, 0, 0.0229), True),
        ((0.0, 0, 0.0231), False),
        ((0.0, 0, -0.0231), False),
    ],
)
def test_success(head, expected, hole_quat):
    episode, physics = place(head, hole_quat)
    assert bool(peg_insertion_side.success(episode, physics)) is expected
    assert peg_insertion_side.sparse_reward(episode, physics) == {"success": float(expected)}


def touches_walls(env, starts, index, shift):
    """Whether the peg, in the middle of the hole and shifted (3,) m in its frame, meets a wall."""
    model, data = c_scene(env.task.scene, starts.episode.overrides, index)
    data.qpos[:] = starts.qpos[index]
    mujoco.mj_forward(model, data)
    pos, quat, _ = hole_of(model, data)
    moved = np.zeros(3)
    mujoco.mju_rotVecQuat(moved, np.array(shift, float), quat)
    data.qpos[9:12], data.qpos[12:] = pos + moved, quat
    mujoco.mj_forward(model, data)
    fixed, own = [model.geom(name).id for name in WALLS], model.geom("peg").id
    pairs = [set(pair) for pair in data.contact.geom]
    return any(own in pair and pair & set(fixed) for pair in pairs)


@pytest.mark.parametrize("index", range(5))
def test_the_hole_leaves_three_millimetres(env, starts, index):
    assert not touches_walls(env, starts, index, (0, 0, 0))
    for axis in (1, 2):
        for sign in (1, -1):
            direction = sign * np.eye(3)[axis]
            assert not touches_walls(env, starts, index, 0.0029 * direction)
            assert touches_walls(env, starts, index, 0.0031 * direction)
            assert touches_walls(env, starts, index, 0.004 * direction)


def test_actions_end_an_episode_only_by_success_or_time(env):
    assert env.task.episode_steps == 200
    state, _ = env.reset(env.model, jax.random.key(0))
    state, outcome = env.step(env.model, state._replace(steps=jnp.array(199)), jnp.zeros(7))
    assert outcome.truncated and not outcome.terminated
    assert outcome.reward == 0


def held_peg(back=0.06, head=(-0.3, 0.0, 0.0), fingers=0.02, yaw=0.0):
    """The peg across the fingers, grasped `back` m behind its middle; its head at `head`."""
    arm = jnp.asarray(peg_insertion_side.REST_ARM, jnp.float32)
    tool, _ = panda.tcp_pose(arm)
    # At rest the tool points down and its x axis is the world's y, or its opposite.
    x_axis = panda.forward_kinematics(arm).columns[0]
    turn = jnp.arctan2(x_axis[1], x_axis[0])
    quat, axis = quat_about_z(turn + yaw), jnp.stack([jnp.cos(turn), jnp.sin(turn), 0.0])
    pos = tool + back * axis
    hole_quat = quat_about_z(turn)
    sideways = jnp.stack([-axis[1], axis[0], 0.0])
    hole = pos + (0.1 - head[0]) * axis - head[1] * sideways - jnp.array([0, 0, head[2]])
    params = peg_insertion_side.PegParams(
        jnp.array(0.1), jnp.array(0.02), jnp.zeros(2), jnp.array(0.023), hole, hole_quat
    )
    qpos = jnp.concatenate([arm, jnp.full(2, fingers), pos, quat])
    return Episode({}, params), physics_at(qpos, jnp.zeros(15))


def reward_of(*state):
    return {k: round(float(v), 3) for k, v in peg_insertion_side.dense_reward(*state).items() if v}


def test_dense_reward():
    assert reward_of(*held_peg(fingers=0.04)) == {"rotation": 1.0, "reach": 1.0}
    # 11.5 cm off the place to grasp, 1.5 cm of which are free: 1 - tanh(0.4)
    assert reward_of(*held_peg(back=-0.055, fingers=0.04)) == {"rotation": 1.0, "reach": 0.62}
    # Head and middle 4 mm off the hole's axis: 3 (1 - tanh(0.5 * 0.008 + 4.5 * 0.004)); the head
    # 30 cm before it: 5 (1 - tanh(5 * 0.30003))
    assert reward_of(*held_peg(head=(-0.3, 0.004, 0.0))) == {
        "rotation": 1.0,
        "reach": 1.0,
        "grasp": 2.0,
        "align": 2.934,
        "aligned": 3.0,
        "insert": 0.474,
    }
    # 2 cm off: 3 (1 - tanh(0.02 + 0.09)), but not aligned, and not paid for the way in
    assert reward_of(*held_peg(head=(-0.3, 0.02, 0.0))) == {
        "rotation": 1.0,
        "reach": 1.0,
        "grasp": 2.0,
        "align": 2.671,
    }
    assert reward_of(*held_peg(head=(0.0, 0.0, 0.0))) == {"success": 25.0}
    # Turned by 1 rad: reaching is not paid, but being above and over the place is asked for.
    found = reward_of(*held_peg(yaw=1.0, fingers=0.04))
    assert found["rotation"] == round(1 - 1 / np.pi, 3) and "reach" not in found
    assert found["above"] == -0.3  # 2 cm of peg and 1 cm of air, tenfold
    assert found["over"] == round(-10 * 2 * 0.06 * np.sin(0.5), 3)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"fingers": 0.0215}, False),
        ({"back": 0.1}, True),  # near the tail
        ({"back": 0.12}, False),  # behind it
        ({"yaw": np.deg2rad(19), "fingers": 0.0225}, True),
        ({"yaw": np.deg2rad(21), "fingers": 0.0225}, False),
    ],
)
def test_a_grasp_of_the_peg_is_seen(change, expected):
    # Turned by 19 degrees it reaches 0.02 cos + 0.00875 sin = 21.8 mm to each side at the pads.
    back = change.get("back", 0.0 if "yaw" in change else 0.06)
    assert bool(peg_reward.grasped(*held_peg(**{**change, "back": back}))) is expected
