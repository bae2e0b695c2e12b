"""The dense reward of mani_skill2's PegInsertionSide, with its formula (`compute_dense_reward`).

Separate from the task because it has notions of its own: how well the hand is aligned with the peg,
and whether it holds the peg. mani_skill2 derives the latter from contact impulses. Here both finger
pads must be within 1 mm of the peg, whose sides may be at an angle of up to 20 degrees to them. The
two tests differ if the fingers do not press, and if edges meet faces at a larger angle, because
then the impulse points along the finger at any angle of the peg.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pdjax_envs.maniskill import panda, tabletop
from pdjax_envs.physics.engine import PhysicsState
from pdjax_envs.rotations import rotate, to_frame
from pdjax_envs.task import Episode

GRASP_BACK = 0.06  # m, distance of the grasp from the peg's middle towards its tail
MAX_ANGLE = np.deg2rad(20)  # largest angle between the fingers and the sides of a grasped peg
TURNED = 0.2 * np.pi  # rad, angle of hand to peg below which reaching counts
ALIGNED = 0.01  # m, largest distance of the peg's head and middle from the hole's axis
# (2, 3, 3), the peg's axes in the tool's frame for which fingers from above close across the peg.
_HOLDS = np.array([np.diag([sign, -sign, -1]) for sign in (1, -1)])


def grasped(episode: Episode, physics: PhysicsState) -> jax.Array:
    """Returns () bool, whether the fingers hold the peg across its sides."""
    params, qpos = episode.params, physics.qpos
    pos, quat = qpos[panda.NUM_JOINTS :][:3], qpos[panda.NUM_JOINTS :][3:]
    tool_pos, tool_quat = panda.tcp_pose(qpos[: panda.ARM_JOINTS])
    axes = tabletop.box_axes(tool_quat, quat)
    # Only the piece between the pads counts, where the peg's axis passes the tool, if it does.
    along = axes[0][0]
    offset = -to_frame(tool_pos, tool_quat, pos)[0] / jnp.where(jnp.abs(along) < 0.1, 0.1, along)
    end = params.peg_half_length - tabletop.PAD[0]
    piece = pos + jnp.clip(offset, -end, end) * rotate(quat, jnp.array([1.0, 0.0, 0.0]))
    width = params.peg_half_width
    half_size = jnp.stack([jnp.float32(tabletop.PAD[0]), width, width])
    square = jnp.maximum(jnp.abs(axes[1][1]), jnp.abs(axes[2][1])) >= np.cos(MAX_ANGLE)
    return square & tabletop.pinched(qpos, piece, quat, half_size)


def dense_terms(episode: Episode, physics: PhysicsState, done: jax.Array) -> dict[str, jax.Array]:
    """Returns the terms of the reward, whose sum is 25 or less; `done` () bool is success."""
    params, qpos = episode.params, physics.qpos
    pos, quat = qpos[panda.NUM_JOINTS :][:3], qpos[panda.NUM_JOINTS :][3:]
    tool_pos, tool_quat = panda.tcp_pose(qpos[: panda.ARM_JOINTS])

    # The Frobenius norm of the difference of two rotations is 2 sqrt(2) sin(angle / 2).
    turn = jnp.stack(tabletop.box_axes(tool_quat, quat))
    apart = jnp.min(jnp.linalg.norm(turn - _HOLDS, axis=(1, 2)))
    angle = 2 * jnp.arcsin(jnp.clip(apart / (2 * np.sqrt(2)), 0.0, 1.0))
    turned = angle < TURNED

    x_axis = jnp.array([1.0, 0.0, 0.0])
    target = pos - GRASP_BACK * rotate(quat, x_axis)
    distance = jnp.linalg.norm(tool_pos - target)
    too_low = jnp.maximum(pos[2] + params.peg_half_width + 0.01 - tool_pos[2], 0.0)

    hole = params.box_pos + rotate(params.box_quat, jnp.append(0.0, params.hole_offset))
    middle_at_hole = to_frame(hole, params.box_quat, pos)
    head_pos = pos + params.peg_half_length * rotate(quat, x_axis)
    head_at_hole = to_frame(hole, params.box_quat, head_pos)
    head, middle = (jnp.linalg.norm(p[1:]) for p in (head_at_hole, middle_at_hole))
    off_axis = 0.5 * (head + middle) + 4.5 * jnp.maximum(head, middle)
    aligned = (head < ALIGNED) & (middle < ALIGNED)

    before = ~done
    ready, holding = before & turned, before & turned & grasped(episode, physics)
    inserting = holding & aligned
    return {
        "rotation": jnp.where(before, 1 - angle / np.pi, 0.0),
        "above": jnp.where(before & ~turned, -10 * too_low, 0.0),
        "over": jnp.where(before & ~turned, -10 * jnp.linalg.norm((target - tool_pos)[:2]), 0.0),
        "reach": jnp.where(ready, tabletop.nearness(4 * jnp.maximum(distance - 0.015, 0.0)), 0.0),
        "grasp": jnp.where(holding, 2.0, 0.0),
        "align": jnp.where(holding, 3 * tabletop.nearness(off_axis), 0.0),
        "aligned": jnp.where(inserting, 3.0, 0.0),
        "insert": jnp.where(
            inserting, 5 * tabletop.nearness(5 * jnp.linalg.norm(head_at_hole)), 0.0
        ),
        "success": jnp.where(done, 25.0, 0.0),
    }
