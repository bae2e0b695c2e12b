"""One gradient step of the residual soft actor-critic, from the formulas in `losses.py`.

`sac` builds the learner and binds networks to these steps. Owns SACState and Hyperparams.
"""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

from pdjax.config.schema import SACConfig
from pdjax.learner.losses import (
    actor_loss,
    critic_loss,
    size_penalty,
    soft_target,
    temperature_loss,
    weighted_mean,
)
from pdjax.types import Array, Batch, Key, Metrics, Params

Number = Float[Array, ""]


class Hyperparams(NamedTuple):
    """The numbers that a sweep may vary without another compilation: `jax.vmap` over them.

    A compiled program reads these numbers here and nowhere else. `sac.make_hyperparams` fills them
    from the fields of a config that are marked `Sweepable`; each attribute has the name and the
    meaning of its field. Three differ:

    Attributes:
      target_entropy: nats; computed from target_entropy_scale.
      penalty_half_life: gradient steps; infinite if the penalty is constant.
      exploration_limit: largest share of decisions that may apply the residual. It is not a field
        of the config: it starts at 1, and the guard lowers it.
    """

    gamma: Number
    tau: Number
    actor_lr: Number
    critic_lr: Number
    temperature_lr: Number
    initial_temperature: Number
    target_entropy: Number
    actor_average: Number
    residual_penalty: Number
    penalty_half_life: Number
    final_penalty: Number
    smoothness_penalty: Number
    reward_offset: Number
    residual_scale: Number
    exploration_steps: Number
    exploration_limit: Number


class SACState(NamedTuple):
    """The learner.

    Attributes:
      actor: parameters of the residual policy, as it explores.
      mean_actor: their average over the latest updates, which pdjax evaluates and saves.
      critic: parameters of the critics, leaves (num_critics, ...).
      target_critic: their slow copy.
      log_temperature: logarithm of the temperature.
      actor_opt: Adam moments of the residual policy.
      critic_opt: Adam moments of the critics.
      temperature_opt: Adam moments of the log temperature.
      gradient_steps: updates so far.
    """

    actor: Params
    mean_actor: Params
    critic: Params
    target_critic: Params
    log_temperature: Float[Array, ""]
    actor_opt: Any
    critic_opt: Any
    temperature_opt: Any
    gradient_steps: Int[Array, ""]


class Parts(NamedTuple):
    """What the steps of one update share.

    Attributes:
      draw: (actor_params, obs, base_action, key) -> (residual_action, log_prob).
      mean: (actor_params, obs, base_action) -> residual_action, without noise.
      values: (critic_params, obs, base_action, residual_action, scale) -> Q_i(s, a).
      actor_tx: turns the actor's gradients into steps.
      critic_tx: turns the critics' gradients into steps.
      temperature_tx: turns the temperature's gradient into steps.
      config: says which terms the losses have.
    """

    draw: Callable[..., tuple[Array, Array]]
    mean: Callable[..., Array]
    values: Callable[..., Array]
    actor_tx: optax.GradientTransformation
    critic_tx: optax.GradientTransformation
    temperature_tx: optax.GradientTransformation
    config: SACConfig


def update(
    parts: Parts, state: SACState, batch: Batch, hyperparams: Hyperparams, key: Key
) -> tuple[SACState, Metrics]:
    """Takes one gradient step: critics, actor (against the new critics), temperature, targets.

    The actor and the temperature move in one of `actor_every` updates. All losses use the
    temperature from before the step.

    Args:
      parts: what the steps share.
      state: the learner.
      batch: transitions, see `Batch` for shapes.
      hyperparams: the sweepable numbers.
      key: consumed; split into the keys that draw a' at s', a at s, and the target critics.

    Returns:
      The learner after the step, and metrics of shape ().
    """
    key_next, key_actor, key_subset = jax.random.split(key, 3)
    temperature = jnp.exp(state.log_temperature)
    state, critic_metrics = _critic_step(parts, state, batch, hyperparams, key_next, key_subset)
    move = partial(_actor_step, parts, batch=batch, hyperparams=hyperparams, key=key_actor)
    every = parts.config.actor_every
    if every == 1:
        state, actor_metrics = move(state)
    else:
        shapes: Metrics = jax.eval_shape(move, state)[1]

        def stay(state: SACState) -> tuple[SACState, Metrics]:
            return state, {name: jnp.zeros_like(shape) for name, shape in shapes.items()}

        is_due = state.gradient_steps % every == 0
        state, actor_metrics = cast(
            "tuple[SACState, Metrics]", jax.lax.cond(is_due, move, stay, state)
        )
        # so that a mean over many updates is the mean over those that moved the actor
        actor_metrics = {name: every * value for name, value in actor_metrics.items()}
    state = state._replace(
        mean_actor=optax.incremental_update(
            state.actor, state.mean_actor, 1 - hyperparams.actor_average
        ),
        target_critic=optax.incremental_update(state.critic, state.target_critic, hyperparams.tau),
        gradient_steps=state.gradient_steps + 1,
    )
    return state, {**critic_metrics, **actor_metrics, "temperature": temperature}


def _critic_step(
    parts: Parts,
    state: SACState,
    batch: Batch,
    hyperparams: Hyperparams,
    key_next: Key,
    key_subset: Key,
) -> tuple[SACState, Metrics]:
    """Moves the critics towards the soft target."""
    scale, next_base = hyperparams.residual_scale, batch.next_base_action
    next_residual, next_log_prob = parts.draw(state.actor, batch.next_obs, next_base, key_next)
    targets = state.target_critic
    if _is_subset(parts.config):
        of, chosen = parts.config.num_critics, (parts.config.min_of,)
        index = jax.random.choice(key_subset, of, chosen, replace=False)

        def take(leaf: Array) -> Array:
            return leaf[index]

        targets = jax.tree.map(take, targets)
    next_values = parts.values(targets, batch.next_obs, next_base, next_residual, scale)
    # Without the bonus in the targets (as in RLPD, arXiv:2302.02948), Q stays the return: summed
    # over many action dimensions, the bonus can outweigh a sparse reward.
    temperature = jnp.exp(state.log_temperature) if parts.config.entropy_backup else 0.0
    target = soft_target(batch.reward, batch.discount, next_values, temperature, next_log_prob)

    def loss_of(params: Params) -> tuple[Array, Array]:
        values = parts.values(params, batch.obs, batch.base_action, batch.residual_action, scale)
        return critic_loss(values, target, batch.weight), jnp.mean(values, axis=0)

    (loss, mean_values), grads = jax.value_and_grad(loss_of, has_aux=True)(state.critic)
    critic, critic_opt = _descend(
        parts.critic_tx, grads, state.critic_opt, state.critic, hyperparams.critic_lr
    )
    metrics = {
        "critic_loss": loss,
        "q_mean": weighted_mean(mean_values, batch.weight),
        "target_mean": weighted_mean(target, batch.weight),
        "critic_grad_norm": jnp.max(jax.vmap(optax.tree.norm)(grads)),
    }
    return state._replace(critic=critic, critic_opt=critic_opt), metrics


def _actor_step(
    parts: Parts, state: SACState, batch: Batch, hyperparams: Hyperparams, key: Key
) -> tuple[SACState, Metrics]:
    """Moves the actor, and the temperature by the log_prob that the actor had before it moved."""
    obs, base_action, scale = batch.obs, batch.base_action, hyperparams.residual_scale
    config, old = parts.config, state.log_temperature
    penalty = _penalty(hyperparams, state.gradient_steps)

    def loss_of(params: Params) -> tuple[Array, tuple[Array, Array]]:
        residual, log_prob = parts.draw(params, obs, base_action, key)
        values = parts.values(state.critic, obs, base_action, residual, scale)
        if _is_subset(config):
            values = jnp.mean(values, axis=0, keepdims=True)
        loss = actor_loss(values, log_prob, jnp.exp(old), batch.weight)
        loss += penalty * size_penalty(residual, batch.weight)
        if config.smoothness_penalty:  # a switch: the config decides whether the term exists
            now = parts.mean(params, obs, base_action)
            later = parts.mean(params, batch.next_obs, batch.next_base_action)
            loss += hyperparams.smoothness_penalty * size_penalty(later - now, batch.weight)
        return loss, (residual, log_prob)

    (loss, (residual, log_prob)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.actor)
    actor, actor_opt = _descend(
        parts.actor_tx, grads, state.actor_opt, state.actor, hyperparams.actor_lr
    )
    inputs = (old, log_prob, hyperparams.target_entropy, batch.weight)
    grad = cast("Array", jax.grad(temperature_loss)(*inputs))
    new, temperature_opt = _descend(
        parts.temperature_tx, grad, state.temperature_opt, old, hyperparams.temperature_lr
    )
    magnitude = jnp.mean(jnp.abs(residual), axis=-1)  # (batch, residual_dim) -> (batch,)
    metrics = {
        "actor_loss": loss,
        "entropy": -weighted_mean(log_prob, batch.weight),
        "residual_magnitude": weighted_mean(magnitude, batch.weight),
        "actor_grad_norm": optax.tree.norm(grads),
    }
    state = state._replace(
        actor=actor, actor_opt=actor_opt, log_temperature=new, temperature_opt=temperature_opt
    )
    return state, metrics


def _penalty(hyperparams: Hyperparams, gradient_steps: Int[Array, ""]) -> Float[Array, ""]:
    """Returns the weight of the residual's size in the actor's loss at a gradient step."""
    left = 0.5 ** (gradient_steps / hyperparams.penalty_half_life)
    first, last = hyperparams.residual_penalty, hyperparams.final_penalty
    return last + left * (first - last)


def _is_subset(config: SACConfig) -> bool:
    """Returns whether targets take the least of a few critics drawn at random, instead of all."""
    return 0 < config.min_of < config.num_critics


def _descend(
    tx: optax.GradientTransformation, grads: Params, opt_state: Any, params: Params, lr: Array
) -> tuple[Params, Any]:
    """Returns params - lr * tx(grads); applied here, so that the step size stays an array leaf."""
    updates, opt_state = tx.update(grads, opt_state)

    def step(value: Array, update: Array) -> Array:
        return value - lr * update

    return jax.tree.map(step, params, updates), opt_state
