"""The mobile robot: frames against SAPIEN's, drives and control by hand-derived numbers."""

import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pdjax_envs.maniskill import mobile_panda

STILL = np.zeros(20)


@pytest.fixture(scope="module")
def model():
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = 0.005
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    mobile_panda.add_mobile_panda(spec, visual=False)
    return spec.compile()


@pytest.fixture
def data(model):
    data = mujoco.MjData(model)
    arm = mobile_panda.START_ARM
    data.qpos[:] = np.concatenate([[0.3, 0.2, 0.5, 0.9], arm, arm])
    mujoco.mj_forward(model, data)
    return data


def test_frames_are_those_of_sapien(data):
    # SAPIEN 2.2.2 with mani-skill2 0.5.3's mobile_panda_dual_arm.urdf at this configuration
    for name, pos, quat in (
        (
            "right_panda_link1",
            (0.5153382, -0.02557597, 1.32),
            (0.68512666, 0.6851225, 0.1749404, 0.17494154),
        ),
        (
            "right_panda_hand",
            (1.2603239, -0.19479322, 1.3200037),
            (-0.6196264, 0.6214584, -0.33732665, 0.3406808),
        ),
        (
            "left_panda_hand",
            (0.48665813, 1.2213922, 1.3200026),
            (0.3836542, 0.38044626, 0.59603816, 0.5939771),
        ),
    ):
        np.testing.assert_allclose(data.body(name).xpos, pos, atol=1e-5)
        np.testing.assert_allclose(data.body(name).xquat, quat, atol=1e-5)
    # and its get_ee_coords
    tips = [
        [1.3388588, -0.1442380, 1.3400035],
        [1.3389757, -0.1444199, 1.3000041],
        [0.5716314, 1.2601621, 1.3000028],
        [0.5715417, 1.2603582, 1.3400022],
    ]
    np.testing.assert_allclose(data.sensordata[:12], np.ravel(tips), atol=1e-5)


def test_fingers_velocities_are_those_of_their_frames(model, data):
    rng = np.random.default_rng(0)
    data.qvel[:] = rng.normal(size=model.nv)
    mujoco.mj_forward(model, data)
    names = [
        f"{side}_panda_{finger}finger" for side in ("right", "left") for finger in ("left", "right")
    ]
    before = np.ravel([data.body(name).xpos for name in names])
    found = data.sensordata[12:].copy()
    mujoco.mj_integratePos(model, data.qpos, data.qvel, 1e-6)
    mujoco.mj_kinematics(model, data)
    after = np.ravel([data.body(name).xpos for name in names])
    np.testing.assert_allclose(found, (after - before) / 1e-6, atol=1e-4)


def test_joints_and_drives_are_in_sapiens_order(model):
    joints = [model.joint(index).name for index in range(model.njnt)]
    arm = [*(f"panda_joint{i}" for i in range(1, 8)), "panda_finger_joint1", "panda_finger_joint2"]
    sides = [f"{side}_{name}" for side in ("right", "left") for name in arm]
    assert joints == ["base_x", "base_y", "base_turn", "lift", *sides]
    assert [model.actuator(index).name for index in range(model.nu)] == joints
    assert model.nq == model.nv == mobile_panda.NUM_JOINTS


def test_mass(model):
    # base 3 kg (1 kg of it along x alone: rotor inertia), torso 10, chest 1.722937 + 1.482929, and
    # two arms of 7 links (16.062132), hand (0.73) and fingers (0.03)
    expected = 2 + 10 + 3.205866 + 2 * (16.062132 + 0.73 + 0.03)
    np.testing.assert_allclose(model.body_mass.sum(), expected, rtol=1e-6)
    assert model.dof_armature[0] == 1 and model.dof_armature[1] == 0


def test_the_base_moves_in_its_own_frame():
    action = STILL.copy()
    action[:4] = [1.0, -0.5, 0.5, -1.0]
    # Turned by 90 degrees, ahead is the world's y and aside its -x.
    found = np.asarray(mobile_panda.control(jnp.float32(np.pi / 2), jnp.asarray(action)))
    np.testing.assert_allclose(found[:4], [0.25, 0.5, 1.57, -0.5], atol=1e-6)


def test_the_left_arm_comes_first_in_actions_and_last_in_drives():
    action = STILL.copy()
    action[4], action[11], action[18], action[19] = 0.5, 1.0, -1.0, -1.0
    found = np.asarray(mobile_panda.control(jnp.float32(0), jnp.asarray(action)))
    expected = np.zeros(22)
    expected[13] = 1.57  # the left arm's first joint
    expected[20:22] = 0.04  # its fingers open
    expected[10] = -3.14  # the right arm's last joint
    expected[11:13] = -0.01
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_drives_reach_their_velocities_and_hold_still(model, data):
    fingers = [11, 12, 20, 21]
    data.ctrl[:] = 0
    data.ctrl[fingers] = 0.02
    start = data.qpos.copy()
    for _ in range(200):  # 1 s, against gravity
        mujoco.mj_step(model, data)
    np.testing.assert_allclose(data.qpos, start, atol=2e-3)
    data.ctrl[:4] = [0.3, -0.2, 0.5, 0.4]
    data.ctrl[[4, 14]] = [0.6, -0.5]
    for _ in range(100):
        mujoco.mj_step(model, data)
    # What is left are Coriolis forces against the drives' damping.
    np.testing.assert_allclose(data.qvel[:4], data.ctrl[:4], atol=0.02)
    np.testing.assert_allclose(data.qvel[[4, 14]], data.ctrl[[4, 14]], atol=0.1)


def test_forces_are_limited(model, data):
    data.ctrl[:] = 100.0
    mujoco.mj_forward(model, data)
    np.testing.assert_array_equal(data.actuator_force, [500.0] * 4 + [100.0] * 18)
