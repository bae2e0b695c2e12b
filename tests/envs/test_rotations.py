"""Rotations against MuJoCo's C functions, in float32."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pdjax_envs import rotations

COUNT = 200
RNG = np.random.default_rng(0)
QUATS = RNG.normal(size=(COUNT, 4))
QUATS /= np.linalg.norm(QUATS, axis=1, keepdims=True)
OTHERS = QUATS[::-1].copy()
VECTORS = RNG.normal(size=(COUNT, 3))


def each(function, *arrays):
    """`function` vmapped over float32 copies of the arrays."""
    return np.asarray(jax.vmap(function)(*(jnp.asarray(x, jnp.float32) for x in arrays)))


def c_results(function, size, *arrays):
    """MuJoCo's `function(result, *arguments)` for each row."""
    results = np.zeros((COUNT, size))
    for result, *arguments in zip(results, *arrays, strict=True):
        function(result, *arguments)
    return results


def matrices(quats):
    return c_results(mujoco.mju_quat2Mat, 9, quats).reshape(-1, 3, 3)


def test_cosine_and_sine():
    angles = np.linspace(-2 * np.pi, 2 * np.pi, 100_001, dtype=np.float32)
    cos, sin = rotations.cos_sin(jnp.asarray(angles))
    np.testing.assert_allclose(cos, np.cos(angles, dtype=np.float64), rtol=0, atol=5e-7)
    np.testing.assert_allclose(sin, np.sin(angles, dtype=np.float64), rtol=0, atol=5e-7)


def test_product():
    expected = c_results(mujoco.mju_mulQuat, 4, QUATS, OTHERS)
    np.testing.assert_allclose(
        each(rotations.quat_multiply, QUATS, OTHERS), expected, rtol=0, atol=1e-6
    )


def test_conjugate():
    expected = c_results(mujoco.mju_negQuat, 4, QUATS)
    np.testing.assert_allclose(each(rotations.quat_conjugate, QUATS), expected, rtol=0, atol=1e-7)


def test_rotation_of_vectors():
    expected = c_results(mujoco.mju_rotVecQuat, 3, VECTORS, QUATS)
    np.testing.assert_allclose(each(rotations.rotate, QUATS, VECTORS), expected, rtol=0, atol=1e-5)


def test_turn_about_z():
    angles = np.linspace(-7, 7, COUNT)
    axes = np.tile([0.0, 0.0, 1.0], (COUNT, 1))
    expected = c_results(mujoco.mju_axisAngle2Quat, 4, axes, angles)
    np.testing.assert_allclose(each(rotations.quat_about_z, angles), expected, rtol=0, atol=1e-6)


def test_points_in_a_frame():
    points, origins = VECTORS, VECTORS[::-1]
    # row vector times matrix = inverse rotation
    expected = np.einsum("ni,nij->nj", points - origins, matrices(QUATS))
    found = each(rotations.to_frame, origins, QUATS, points)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [0.0, 1e-6, 1e-3, 0.1, 1.0, 3.0])
def test_columns_of_a_rotation_vector(length):
    vectors = length * VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    axes = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    quats = c_results(mujoco.mju_axisAngle2Quat, 4, axes, np.full(COUNT, length))
    columns = each(lambda v: jnp.stack(rotations.from_rotvec(v), axis=1), vectors)
    np.testing.assert_allclose(columns, matrices(quats), rtol=0, atol=2e-6)


def test_quaternion_of_columns_has_a_positive_first_component():
    columns = matrices(QUATS).swapaxes(1, 2)
    found = each(lambda c: rotations.quat_from_columns(*c), columns)
    expected = QUATS * np.sign(QUATS[:, :1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_quaternion_of_columns_at_half_turns():
    # w = 0: each of the other components takes its turn at being the largest
    half_turns = np.eye(4)[1:]
    columns = np.array([np.diag([1.0, -1, -1]), np.diag([-1.0, 1, -1]), np.diag([-1.0, -1, 1])])
    found = each(lambda c: rotations.quat_from_columns(*c), columns)
    np.testing.assert_allclose(np.abs(found), half_turns, rtol=0, atol=1e-6)


def test_rotation_vector_of_a_quaternion():
    expected = c_results(lambda result, quat: mujoco.mju_quat2Vel(result, quat, 1.0), 3, QUATS)
    found = each(rotations.quat_to_rotvec, QUATS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert np.linalg.norm(found, axis=1).max() <= np.pi + 1e-5


def test_rotation_vector_of_almost_no_rotation():
    vectors = 1e-5 * VECTORS
    quats = np.concatenate([np.ones((COUNT, 1)), vectors / 2], axis=1)
    np.testing.assert_allclose(each(rotations.quat_to_rotvec, quats), vectors, rtol=1e-4, atol=1e-9)
    assert not np.any(rotations.quat_to_rotvec(jnp.array([1.0, 0, 0, 0])))


def test_gradients_are_finite_at_no_rotation():
    # both branches of a `where` are differentiated
    gradient = jax.jacobian(lambda v: jnp.stack(rotations.from_rotvec(v)))(jnp.zeros(3))
    assert np.all(np.isfinite(gradient))
