"""The learner's formulas, each with its equation number; pure functions of arrays.

Equation numbers refer to arXiv:1812.05905 (SAC). Shapes: values (num_critics, batch); reward,
discount, log_prob, target, weight (batch,); temperature, log_temperature, target_entropy () and
every loss (). T stands for the temperature.
"""

import jax
import jax.numpy as jnp

from pdjax.types import Array


def soft_target(
    reward: Array,
    discount: Array,
    next_values: Array,
    temperature: Array | float,
    next_log_prob: Array,
) -> Array:
    """What the critics should say, (batch,): eq. 3 in eq. 5, with the least of the target critics.

    y = reward + discount * (min_i Q'_i(s', a') - T log pi(a'|s')),  a' ~ pi(.|s')

    discount is gamma^n, or 0 where the episode terminated; next_values are Q'_i(s', a').
    """
    return reward + discount * (jnp.min(next_values, axis=0) - temperature * next_log_prob)


def critic_loss(values: Array, target: Array, weight: Array) -> Array:
    """Eq. 5 over all critics, without its factor 1/2: sum_i mean (Q_i(s, a) - y)^2."""
    return jnp.sum(jax.vmap(weighted_mean, (0, None))((values - target) ** 2, weight))


def actor_loss(values: Array, log_prob: Array, temperature: Array, weight: Array) -> Array:
    """Eq. 9 with the least of the critics: mean (T log pi(a|s) - min_i Q_i(s, a)), a ~ pi(.|s)."""
    return weighted_mean(temperature * log_prob - jnp.min(values, axis=0), weight)


def size_penalty(residual_action: Array, weight: Array) -> Array:
    """Mean square of the policy's residual, or of its change, (batch, residual_dim) to (): ours.

    Weighted by SACConfig.residual_penalty and added to eq. 9. One decision's residual changes the
    return by far less than the critics' error nearly everywhere; without this pull to zero the
    actor follows that error away from a base policy that was good. Of the change it is the temporal
    term of CAPS (arXiv:2012.06644, eq. 2, squared), SACConfig.smoothness_penalty.
    """
    return weighted_mean(jnp.mean(residual_action**2, axis=-1), weight)


def temperature_loss(
    log_temperature: Array, log_prob: Array, target_entropy: Array, weight: Array
) -> Array:
    """Eq. 18 with log T for T, as the reference code: -log T mean (log pi(a|s) + target)."""
    return -log_temperature * weighted_mean(log_prob + target_entropy, weight)


def weighted_mean(values: Array, weight: Array) -> Array:
    """sum(weight * values) / sum(weight), 0 where all weights are 0; both (batch,)."""
    total = jnp.sum(weight)
    return jnp.sum(weight * values) / jnp.where(total > 0, total, 1.0)
