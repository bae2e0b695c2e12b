"""Adapts the actions and statistics of a policy that was trained elsewhere to pdjax.

Kept apart because policies that pdjax trained do not need it. Holds no state.
"""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import numpy as np

from pdjax.config import options
from pdjax.config.options import Range
from pdjax.types import BasePolicy


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """How an imported policy is adapted. The policy itself normalises by its own statistics."""

    obs_mean: tuple[float, ...]
    """Mean of each observed number, for the residual policy."""
    obs_std: Annotated[tuple[float, ...], Range(0, above=True)]
    """Standard deviation of each observed number."""
    action_scale: tuple[float, ...] = (1.0,)
    """Factor of the policy's actions: one number for the whole action, or one for each of its
    numbers."""
    action_offset: tuple[float, ...] = (0.0,)
    """Number added after that; then actions are clipped to [-1, 1]."""

    def validate(self, obs_dim: int, act_dim: int) -> None:
        """Raises ConfigError if a value is out of range or has the wrong size."""
        options.check(self)
        sizes = {"obs_mean": (obs_dim,), "obs_std": (obs_dim,)}
        sizes |= {"action_scale": (1, act_dim), "action_offset": (1, act_dim)}
        options.check_lengths(self, sizes)


def adapt(policy: BasePolicy, adaptation: Adaptation) -> BasePolicy:
    """Returns the policy with adapted actions and with statistics for the residual policy.

    Raises:
      ConfigError: a number is out of range or a vector has the wrong size.
    """
    adaptation.validate(policy.obs_dim, policy.act_dim)
    scale = np.array(adaptation.action_scale, np.float32)
    offset = np.array(adaptation.action_offset, np.float32)

    def apply(params, carry, obs_history, key):
        chunk, carry = policy.apply(params, carry, obs_history, key)
        return jnp.clip(chunk * scale + offset, -1, 1), carry

    return policy._replace(
        apply=apply,
        obs_mean=jnp.asarray(adaptation.obs_mean, jnp.float32),
        obs_std=jnp.asarray(adaptation.obs_std, jnp.float32),
    )
