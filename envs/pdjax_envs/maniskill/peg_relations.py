"""What the observation of PegInsertionSide says of tool, peg and hole: features and stages."""

import jax
import jax.numpy as jnp

from pdjax_envs.rotations import quat_conjugate, rotate, to_frame


def _head_at_entrance(obs: jax.Array) -> jax.Array:
    """Returns the middle (3,) of the peg's front face relative to the hole's entrance, m."""
    peg_pos, peg_quat, half_length = obs[32:35], obs[35:39], obs[39]
    head = peg_pos + half_length * rotate(peg_quat, jnp.array([1.0, 0.0, 0.0]))
    # the box is as deep as the peg is long
    return to_frame(obs[42:45], obs[45:49], head).at[0].add(half_length)


def _is_at_hole(obs: jax.Array) -> jax.Array:
    head = _head_at_entrance(obs)
    return (head[0] > -0.03) & (jnp.linalg.norm(head[1:]) < 0.03)


def _is_in_hole(obs: jax.Array) -> jax.Array:
    head, radius = _head_at_entrance(obs), obs[49]
    return (head[0] > 0.0) & (jnp.abs(head[1:]).max() <= radius)


STAGES = {
    "lifted": lambda obs: obs[34] - obs[40] > 0.01,
    "within 3 cm of the hole": _is_at_hole,
    "in the hole": _is_in_hole,
}


def features(obs: jax.Array) -> jax.Array:
    """Computes (11,) relations of tool, peg and hole from the observation, within [-3, 3].

    In the hole's frame: the peg's head relative to the hole's entrance (3, per 2 cm) and the peg's
    direction (2, per 0.1 rad). In the peg's frame: the tool relative to the peg's middle (3, per
    2 cm). Further: the tool's x axis across the peg (1, per 0.1 rad), the fingers' opening minus
    the peg's width (1, per 1 cm) and the peg's height above the floor (1, per 2 cm).
    """
    tool_pos, tool_quat, peg_pos, peg_quat = obs[25:28], obs[28:32], obs[32:35], obs[35:39]
    half_width, hole_quat = obs[40], obs[45:49]
    x_axis = jnp.array([1.0, 0.0, 0.0])
    along = rotate(peg_quat, x_axis)
    entrance = _head_at_entrance(obs)
    direction = rotate(quat_conjugate(hole_quat), along)
    tool = to_frame(peg_pos, peg_quat, tool_pos)
    across = rotate(quat_conjugate(peg_quat), rotate(tool_quat, x_axis))[1]
    parts = [
        entrance / 0.02,
        direction[1:] / 0.1,
        tool / 0.02,
        across[None] / 0.1,
        (obs[7:8] - half_width) / 0.01,
        (peg_pos[2:] - half_width) / 0.02,
    ]
    return jnp.clip(jnp.concatenate(parts), -3.0, 3.0)
