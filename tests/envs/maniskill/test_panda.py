"""The Panda's kinematics against MuJoCo's model of it, and the control built on them."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pdjax_envs.maniskill import panda, peg_insertion_side

COUNT = 100


@pytest.fixture(scope="module")
def model():
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    panda.add_panda(spec, visual=False)
    return spec.compile()


@pytest.fixture(scope="module")
def limits(model):
    """(low, high) of the arm's joints, (7,) rad each."""
    return model.jnt_range[: panda.ARM_JOINTS].T


@pytest.fixture(scope="module")
def configs(limits):
    """Random joint angles (COUNT, 7) all over the joints' ranges."""
    return np.random.default_rng(0).uniform(*limits, size=(COUNT, panda.ARM_JOINTS))


def poses(model, arm_qpos):
    """C's (position, matrix, Jacobian) of the tool for each row of joint angles."""
    data, found = mujoco.MjData(model), []
    for angles in arm_qpos:
        data.qpos[: panda.ARM_JOINTS] = angles
        mujoco.mj_forward(model, data)
        jacobian = np.zeros((2, 3, model.nv))
        mujoco.mj_jacSite(model, data, jacobian[0], jacobian[1], model.site("tcp").id)
        site = data.site("tcp")
        jacobian = jacobian.reshape(6, -1)[:, : panda.ARM_JOINTS]
        found.append((site.xpos.copy(), site.xmat.reshape(3, 3).copy(), jacobian))
    return [np.array(part) for part in zip(*found, strict=True)]


def targets_of(robot_qpos, actions):
    return np.asarray(jax.jit(jax.vmap(panda.delta_pose_control))(robot_qpos, actions))


def test_tool_frame(model, configs):
    pos, matrix, _ = poses(model, configs)
    frames = jax.vmap(panda.forward_kinematics)(jnp.asarray(configs, jnp.float32))
    np.testing.assert_allclose(frames.pos + np.array(panda.BASE_POS), pos, rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.swapaxes(frames.columns, 1, 2), matrix, rtol=0, atol=3e-6)


def test_joint_frames(model, configs):
    frames = jax.vmap(panda.forward_kinematics)(jnp.asarray(configs, jnp.float32))
    data = mujoco.MjData(model)
    for row, angles in enumerate(configs):
        data.qpos[: panda.ARM_JOINTS] = angles
        mujoco.mj_kinematics(model, data)
        anchors = data.xanchor[: panda.ARM_JOINTS] - np.array(panda.BASE_POS)
        np.testing.assert_allclose(frames.origins[row], anchors, rtol=0, atol=2e-6)
        axes = data.xaxis[: panda.ARM_JOINTS]
        np.testing.assert_allclose(frames.axes[row], axes, rtol=0, atol=3e-6)


def test_jacobian(model, configs):
    _, _, expected = poses(model, configs)
    frames = jax.vmap(panda.forward_kinematics)(jnp.asarray(configs, jnp.float32))
    found = jax.vmap(panda.tool_jacobian)(frames)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)


def test_tcp_pose(model, configs):
    pos, matrix, _ = poses(model, configs)
    found_pos, found_quat = jax.vmap(panda.tcp_pose)(jnp.asarray(configs, jnp.float32))
    np.testing.assert_allclose(found_pos, pos, rtol=0, atol=2e-6)
    for quat, row in zip(np.asarray(found_quat, np.float64), matrix, strict=True):
        expected = np.zeros(4)
        mujoco.mju_mat2Quat(expected, row.ravel())
        expected *= np.sign(expected[1])  # x >= 0
        np.testing.assert_allclose(quat, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("rest", [panda.REST_ARM, peg_insertion_side.REST_ARM])
def test_control_reaches_the_commanded_pose(model, limits, rest):
    rng = np.random.default_rng(1)
    arm = rest + 0.05 * rng.normal(size=(500, panda.ARM_JOINTS))
    actions = rng.uniform(-1, 1, size=(500, panda.ACTION_DIM))
    robot_qpos = np.concatenate([arm, np.full((500, 2), 0.04)], axis=1)
    targets = targets_of(robot_qpos.astype(np.float32), actions.astype(np.float32))[:, :7]
    inside = np.all((targets > limits[0] + 1e-6) & (targets < limits[1] - 1e-6), axis=1)
    assert inside.mean() > 0.95

    start_pos, start_matrix, _ = poses(model, arm)
    pos, matrix, _ = poses(model, targets)
    turn = actions[:, 3:6] / np.maximum(1, np.linalg.norm(actions[:, 3:6], axis=1))[:, None]
    for row in np.nonzero(inside)[0]:
        # the delta is in the tool's frame
        goal = start_pos[row] + start_matrix[row] @ (panda.MAX_TRANSLATION * actions[row, :3])
        assert np.linalg.norm(pos[row] - goal) < 2e-4
        rotvec = panda.MAX_ROTATION * turn[row]
        angle = np.linalg.norm(rotvec)
        quat, delta, left = np.zeros(4), np.zeros(9), np.zeros(4)
        mujoco.mju_axisAngle2Quat(quat, rotvec / angle, angle)
        mujoco.mju_quat2Mat(delta, quat)
        goal_matrix = start_matrix[row] @ delta.reshape(3, 3)
        mujoco.mju_mat2Quat(left, (goal_matrix.T @ matrix[row]).ravel())
        assert 2 * np.arctan2(np.linalg.norm(left[1:]), abs(left[0])) < 1e-3


def at_rest(count):
    return np.tile(np.append(panda.REST_ARM, [0.04, 0.04]), (count, 1)).astype(np.float32)


def test_no_action_keeps_the_arm():
    target = targets_of(at_rest(1), np.zeros((1, 7), np.float32))
    np.testing.assert_allclose(target[0, :7], panda.REST_ARM, rtol=0, atol=1e-6)


def test_rotation_is_limited_by_its_norm():
    # (1, 1, 1) has norm sqrt(3): clipped to norm 1, not component by component
    diagonal = np.array([0, 0, 0, 1, 1, 1, 0], np.float32)
    clipped = diagonal / np.array([1, 1, 1, *[np.sqrt(3)] * 3, 1], np.float32)
    shorter = 0.5 * clipped  # within the limit: kept
    long, unit, short = targets_of(at_rest(3), np.stack([diagonal, clipped, shorter]))
    np.testing.assert_allclose(long, unit, rtol=0, atol=1e-6)
    assert np.abs(unit - short).max() > 1e-2


def test_actions_are_clipped_to_one():
    actions = np.array([[2, -3, 0.5, 0, 0, 0, 5], [1, -1, 0.5, 0, 0, 0, 1]], np.float32)
    beyond, at = targets_of(at_rest(2), actions)
    np.testing.assert_array_equal(beyond, at)


@pytest.mark.parametrize(("action", "target"), [(-1.0, -0.01), (0.0, 0.015), (1.0, 0.04)])
def test_gripper(action, target):
    targets = targets_of(at_rest(1), np.array([[0, 0, 0, 0, 0, 0, action]], np.float32))
    np.testing.assert_allclose(targets[0, 7:], target, rtol=0, atol=1e-7)


def test_targets_stay_within_the_joints_ranges(limits):
    rng = np.random.default_rng(2)
    arm = rng.uniform(*limits, size=(300, panda.ARM_JOINTS))
    robot_qpos = np.concatenate([arm, np.full((300, 2), 0.04)], axis=1).astype(np.float32)
    targets = targets_of(robot_qpos, rng.uniform(-1, 1, size=(300, 7)).astype(np.float32))[:, :7]
    low, high = limits.astype(np.float32)
    assert np.all((targets >= low) & (targets <= high))
    assert np.any((targets == low) | (targets == high))
