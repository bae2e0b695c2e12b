"""Holes: rows of the replay whose numbers are not finite, so that nothing may learn from them.

The ring is written in whole rows of all environments, so a row cannot be left out. Separate from
`replay`, because a rollout marks holes but knows no replay.
"""

# pyright: reportUnknownMemberType=false

import jax
import jax.numpy as jnp
from jaxtyping import Bool

from pdjax.types import Array, Transition


def mark_holes(rows: Transition, at: Bool[Array, "*rows"]) -> Transition:
    """Takes rows with numbers that are not finite out of what enters the ring.

    A hole holds zeros and is marked as both reset and truncated, which no other row is. No
    transition that starts at a hole, crosses one or bootstraps from one has any weight, see
    `replay.sample`.

    Args:
      rows: leaves (*rows, ...).
      at: the rows to take out.
    """

    def clear(numbers: Array) -> Array:
        is_out = at.reshape(*at.shape, *[1] * (numbers.ndim - at.ndim))
        return jnp.where(is_out, jnp.zeros_like(numbers), numbers)

    cleared: Transition = jax.tree.map(clear, rows)
    return cleared._replace(truncated=cleared.truncated | at, is_reset=cleared.is_reset | at)


def is_hole(
    is_reset: Bool[Array, "*rows"], truncated: Bool[Array, "*rows"]
) -> Bool[Array, "*rows"]:
    """Returns which rows are holes, from two of their marks."""
    return is_reset & truncated
