"""The learner's formulas, each with its equation number; pure functions of arrays.

Equation numbers refer to arXiv:1812.05905 (SAC). T stands for the temperature.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from pdjax.types import Array, Scalar


def soft_target(
    reward: Float[Array, " batch"],
    discount: Float[Array, " batch"],
    next_values: Float[Array, "num_critics batch"],
    temperature: Scalar,
    next_log_prob: Float[Array, " batch"],
) -> Float[Array, " batch"]:
    """Returns the critics' target: eq. 3 inserted in eq. 5, with the least of the target critics.

    y = reward + discount * (min_i Q'_i(s', a') - T log pi(a'|s')),  a' ~ pi(.|s')

    Args:
      reward: discounted sum over the n steps.
      discount: gamma^n, or 0 if the episode terminated.
      next_values: Q'_i(s', a').
      temperature: T.
      next_log_prob: log pi(a'|s'), in nats.
    """
    return reward + discount * (jnp.min(next_values, axis=0) - temperature * next_log_prob)


def critic_loss(
    values: Float[Array, "num_critics batch"],
    target: Float[Array, " batch"],
    weight: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Returns eq. 5 over all critics, without its factor 1/2: sum_i mean (Q_i(s, a) - y)^2."""
    return jnp.sum(jax.vmap(weighted_mean, (0, None))((values - target) ** 2, weight))


def actor_loss(
    values: Float[Array, "num_critics batch"],
    log_prob: Float[Array, " batch"],
    temperature: Scalar,
    weight: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Returns eq. 9 with the least of the critics: mean (T log pi(a|s) - min_i Q_i(s, a)).

    The actions a are drawn from pi(.|s).
    """
    return weighted_mean(temperature * log_prob - jnp.min(values, axis=0), weight)


def size_penalty(
    residual_action: Float[Array, "batch residual_dim"], weight: Float[Array, " batch"]
) -> Float[Array, ""]:
    """Returns the mean square of the policy's residual, or of its change; ours.

    It is weighted by SACConfig.residual_penalty and added to eq. 9. In nearly every state, the
    residual of one decision changes the return by far less than the critics' error; without this
    pull to zero, the actor follows that error away from a base policy that was good. For the change
    of the residual it is the temporal term of CAPS (arXiv:2012.06644, eq. 2, squared), weighted by
    SACConfig.smoothness_penalty.
    """
    return weighted_mean(jnp.mean(residual_action**2, axis=-1), weight)


def temperature_loss(
    log_temperature: Float[Array, ""],
    log_prob: Float[Array, " batch"],
    target_entropy: Scalar,
    weight: Float[Array, " batch"],
) -> Float[Array, ""]:
    """Returns eq. 18 with log T for T, as in the reference code.

    It is -log T mean (log pi(a|s) + target).
    """
    return -log_temperature * weighted_mean(log_prob + target_entropy, weight)


def weighted_mean(
    values: Float[Array, " batch"], weight: Float[Array, " batch"]
) -> Float[Array, ""]:
    """Returns sum(weight * values) / sum(weight), or 0 if all weights are 0."""
    total = jnp.sum(weight)
    return jnp.sum(weight * values) / jnp.where(total > 0, total, 1.0)
