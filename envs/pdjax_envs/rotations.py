"""Rotations and rigid poses in pure JAX, for one element (use `jax.vmap`).

Quaternions are (w, x, y, z), as MuJoCo and SAPIEN order them. Holds no state.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def cos_sin(angle: Array) -> tuple[Array, Array]:
    """Returns cosine and sine of angles (...,) in rad, accurate to 5e-7 within one turn of zero.

    Uses Taylor series within an eighth of a turn. XLA's own functions must be accurate for any
    number and take a CPU seven times as long.
    """
    quarters = jnp.round(angle * (2 / jnp.pi))
    rest = angle - quarters * (jnp.pi / 2)
    square = rest * rest
    sin = rest * (1 + square * (-1 / 6 + square * (1 / 120 - square / 5040)))
    cos = 1 + square * (-1 / 2 + square * (1 / 24 + square * (-1 / 720 + square / 40320)))
    count = quarters.astype(jnp.int32)
    odd, half = count & 1 != 0, count & 2 != 0  # cosine and sine swap; sine changes sign
    cos, sin = jnp.where(odd, sin, cos), jnp.where(odd, cos, sin)
    return jnp.where(odd != half, -cos, cos), jnp.where(half, -sin, sin)


def quat_multiply(a: Array, b: Array) -> Array:
    """Returns the Hamilton product (4,) of two quaternions (4,)."""
    aw, ax, ay, az = a[0], a[1], a[2], a[3]
    bw, bx, by, bz = b[0], b[1], b[2], b[3]
    return jnp.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ]
    )


def quat_conjugate(quat: Array) -> Array:
    """Returns the inverse (4,) of a unit quaternion (4,)."""
    return quat * jnp.array([1.0, -1.0, -1.0, -1.0])


def quat_about_z(angle: Array) -> Array:
    """Returns the quaternion (4,) of a turn by `angle` () rad about z."""
    zero = jnp.zeros_like(angle)
    return jnp.stack([jnp.cos(angle / 2), zero, zero, jnp.sin(angle / 2)])


def quat_from_euler(euler: Array) -> Array:
    """Returns the quaternion (4,) of Euler angles (3,) in rad about the fixed axes x, y, z in turn.

    Source: gymnasium-robotics `utils/rotations.py`, euler2quat.
    """
    si, sj, sk = jnp.sin(euler[2] / 2), jnp.sin(-euler[1] / 2), jnp.sin(euler[0] / 2)
    ci, cj, ck = jnp.cos(euler[2] / 2), jnp.cos(-euler[1] / 2), jnp.cos(euler[0] / 2)
    return jnp.stack(
        [
            cj * ci * ck + sj * si * sk,
            cj * ci * sk - sj * si * ck,
            -(cj * si * sk + sj * ci * ck),
            cj * si * ck - sj * ci * sk,
        ]
    )


def quat_to_euler(quat: Array) -> Array:
    """Returns the Euler angles (3,) in rad of a quaternion (4,) of any length.

    Source: gymnasium-robotics `utils/rotations.py`, quat2euler.
    """
    w, x, y, z = quat
    s = 2.0 / jnp.sum(quat * quat)
    wx, wy, wz = w * (x * s), w * (y * s), w * (z * s)
    xx, xy, xz = x * (x * s), x * (y * s), x * (z * s)
    yy, yz, zz = y * (y * s), y * (z * s), z * (z * s)
    cos_y = jnp.sqrt((1 - (xx + yy)) ** 2 + (yz - wx) ** 2)
    regular = cos_y > 4 * jnp.finfo(quat.dtype).eps
    return jnp.stack(
        [
            jnp.where(regular, -jnp.arctan2(yz - wx, 1 - (xx + yy)), 0.0),
            -jnp.arctan2(-(xz + wy), cos_y),
            jnp.where(
                regular,
                -jnp.arctan2(xy - wz, 1 - (yy + zz)),
                -jnp.arctan2(-(xy + wz), 1 - (xx + zz)),
            ),
        ]
    )


def rotate(quat: Array, vector: Array) -> Array:
    """Rotates a vector (3,) by a unit quaternion (4,)."""
    # v' = v + 2 u x (u x v + w v)
    axis = quat[1:]
    return vector + 2.0 * jnp.cross(axis, jnp.cross(axis, vector) + quat[0] * vector)


def to_frame(pos: Array, quat: Array, point: Array) -> Array:
    """Returns a world point (3,) in the frame at `pos` (3,) with orientation `quat` (4,)."""
    return rotate(quat_conjugate(quat), point - pos)


def from_rotvec(rotvec: Array) -> tuple[Array, Array, Array]:
    """Returns the columns (3,) of the rotation matrix of a rotation vector (3,) in rad."""
    # Rodrigues: R = I + a K + b K^2 with a = sin(t)/t, b = (1 - cos t)/t^2, safe at t = 0.
    square = jnp.sum(rotvec**2)
    small = square < 1e-8
    angle = jnp.sqrt(jnp.where(small, 1.0, square))
    a = jnp.where(small, 1.0 - square / 6.0, jnp.sin(angle) / angle)
    b = jnp.where(small, 0.5 - square / 24.0, (1.0 - jnp.cos(angle)) / angle**2)

    def column(unit):
        first = jnp.cross(rotvec, unit)
        return unit + a * first + b * jnp.cross(rotvec, first)

    x, y, z = jnp.eye(3)
    return column(x), column(y), column(z)


def quat_from_columns(x: Array, y: Array, z: Array) -> Array:
    """Returns the unit quaternion (4,) with w >= 0 of the rotation with these columns (3,)."""
    # Shepperd's method: four candidates, one for each component that may be the largest.
    trace = x[0] + y[1] + z[2]
    w = jnp.stack([1 + trace, y[2] - z[1], z[0] - x[2], x[1] - y[0]])
    i = jnp.stack([y[2] - z[1], 1 + x[0] - y[1] - z[2], y[0] + x[1], z[0] + x[2]])
    j = jnp.stack([z[0] - x[2], y[0] + x[1], 1 - x[0] + y[1] - z[2], z[1] + y[2]])
    k = jnp.stack([x[1] - y[0], z[0] + x[2], z[1] + y[2], 1 - x[0] - y[1] + z[2]])
    largest = jnp.argmax(jnp.stack([w[0], i[1], j[2], k[3]]))
    quat = jnp.where(largest == 0, w, jnp.where(largest == 1, i, jnp.where(largest == 2, j, k)))
    quat = quat / jnp.linalg.norm(quat)
    return jnp.where(quat[0] < 0, -quat, quat)


def quat_to_rotvec(quat: Array) -> Array:
    """Returns the rotation vector (3,) in rad, of length pi or less, of a unit quaternion (4,)."""
    quat = jnp.where(quat[0] < 0, -quat, quat)
    norm = jnp.linalg.norm(quat[1:])
    angle = 2.0 * jnp.arctan2(norm, quat[0])
    # angle / norm tends to 2 as the rotation vanishes
    return quat[1:] * jnp.where(norm < 1e-6, 2.0, angle / jnp.maximum(norm, 1e-6))
