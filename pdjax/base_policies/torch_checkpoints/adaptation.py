"""What stands between a policy that was trained elsewhere and pdjax: actions, statistics.

Kept apart because a policy of pdjax's own needs none of it. Holds no state.
"""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import numpy as np

from pdjax.config import schema
from pdjax.config.schema import Range
from pdjax.types import BasePolicy


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """Numbers that an imported policy is surrounded with; the policy has its own statistics."""

    obs_mean: tuple[float, ...]
    """Mean of each number observed, for the learner."""
    obs_std: Annotated[tuple[float, ...], Range(0, above=True)]
    """Their standard deviations."""
    action_scale: tuple[float, ...] = (1.0,)
    """What the policy's actions are multiplied by, one for all numbers of an action or each its
    own."""
    action_offset: tuple[float, ...] = (0.0,)
    """What is added to them then; after that they are clipped to [-1, 1]."""

    def validate(self, obs_dim: int, act_dim: int) -> None:
        """Raises ConfigError at a value out of range or of the wrong size."""
        schema.check(self)
        sizes = {"obs_mean": (obs_dim,), "obs_std": (obs_dim,)}
        sizes |= {"action_scale": (1, act_dim), "action_offset": (1, act_dim)}
        schema.check_lengths(self, sizes)


def adapt(policy: BasePolicy, adaptation: Adaptation) -> BasePolicy:
    """The policy with its actions brought to the task's and with statistics for the learner.

    Raises:
      ConfigError: numbers out of range or of the wrong size.
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
