"""One gradient step of the residual soft actor-critic, from the formulas in `losses.py`.

Kept apart from how the learner is built: `sac` binds networks to these steps. Owns SACState.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdjax.config.fields import SACConfig
from pdjax.learner.losses import (
    actor_loss,
    critic_loss,
    size_penalty,
    soft_target,
    temperature_loss,
    weighted_mean,
)
from pdjax.types import Array, Batch, Key, Metrics, Params


class Hyperparams(NamedTuple):
    """What a sweep may vary without compiling again: () float32 leaves; `jax.vmap` over them.

    Attributes:
      gamma: discount per decision; read by `replay.sample`.
      tau: share of the critics that the target critics take over in each update.
      actor_lr: Adam step size of the residual policy.
      critic_lr: Adam step size of the critics.
      temperature_lr: Adam step size of the log temperature.
      initial_temperature: SAC's alpha at the start.
      target_entropy: nats, what the temperature steers the policy's entropy to.
      actor_average: decay per update of the averaged residual policy.
      residual_penalty: weight of the residual's size in the actor's loss, at the start.
      penalty_half_life: gradient steps in which half of the way to final_penalty is gone; infinite
        where it stays as it is.
      final_penalty: what the weight tends to.
      smoothness_penalty: weight of the residual's change in the actor's loss.
      reward_offset: added to the reward of each decision; read by `replay.sample`.
      residual_scale: largest change of an action by the residual.
      exploration_steps: decisions over which the gate opens; read by the rollout.
      exploration_limit: share of decisions beyond which it does not open; the guard lowers it.
    """

    gamma: Array
    tau: Array
    actor_lr: Array
    critic_lr: Array
    temperature_lr: Array
    initial_temperature: Array
    target_entropy: Array
    actor_average: Array
    residual_penalty: Array
    penalty_half_life: Array
    final_penalty: Array
    smoothness_penalty: Array
    reward_offset: Array
    residual_scale: Array
    exploration_steps: Array
    exploration_limit: Array


class SACState(NamedTuple):
    """The learner.

    Attributes:
      actor: parameters of the residual policy, as it explores.
      mean_actor: their average over the latest updates, which is evaluated and kept.
      critic: parameters of the critics, leaves (num_critics, ...).
      target_critic: their slow copy.
      log_temperature: () float32.
      actor_opt, critic_opt, temperature_opt: Adam moments of each.
      gradient_steps: () int32, updates so far.
    """

    actor: Params
    mean_actor: Params
    critic: Params
    target_critic: Params
    log_temperature: Array
    actor_opt: Any
    critic_opt: Any
    temperature_opt: Any
    gradient_steps: Array


class Parts(NamedTuple):
    """What the steps of one update share.

    Attributes:
      draw: (actor_params, obs, base_action, key) -> (residual_action, log_prob).
      mean: (actor_params, obs, base_action) -> residual_action, without noise.
      values: (critic_params, obs, base_action, residual_action, scale) -> Q_i(s, a).
      actor_tx, critic_tx, temperature_tx: how gradients become steps.
      config: what is switched on.
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
    """One gradient step: critics, actor (against the new critics), temperature, target critics.

    Actor and temperature move in one of `actor_every` updates. `key` is split into (key_next,
    key_actor, key_subset): the draws of a' at s', of a at s and of the target critics. All losses
    use the temperature from before the step.
    """
    key_next, key_actor, key_subset = jax.random.split(key, 3)
    temperature = jnp.exp(state.log_temperature)
    state, critic_metrics = _critic_step(parts, state, batch, hyperparams, (key_next, key_subset))
    move = partial(_actor_step, parts, batch=batch, hyperparams=hyperparams, key=key_actor)
    every = parts.config.actor_every
    if every == 1:
        state, actor_metrics = move(state)
    else:
        shapes = jax.eval_shape(move, state)[1]
        stay = lambda state: (state, jax.tree.map(jnp.zeros_like, shapes))  # noqa: E731
        is_due = state.gradient_steps % every == 0
        state, actor_metrics = jax.lax.cond(is_due, move, stay, state)
        # so that means over many updates are means over those that moved the actor
        actor_metrics = jax.tree.map(lambda x: every * x, actor_metrics)
    state = state._replace(
        mean_actor=optax.incremental_update(
            state.actor, state.mean_actor, 1 - hyperparams.actor_average
        ),
        target_critic=optax.incremental_update(state.critic, state.target_critic, hyperparams.tau),
        gradient_steps=state.gradient_steps + 1,
    )
    return state, {**critic_metrics, **actor_metrics, "temperature": temperature}


def _critic_step(
    parts: Parts, state: SACState, batch: Batch, hyperparams: Hyperparams, keys: tuple[Key, Key]
) -> tuple[SACState, Metrics]:
    """Moves the critics towards the soft target."""
    key_next, key_subset = keys
    scale, next_base = hyperparams.residual_scale, batch.next_base_action
    next_residual, next_log_prob = parts.draw(state.actor, batch.next_obs, next_base, key_next)
    targets = state.target_critic
    if _is_subset(parts.config):
        of, chosen = parts.config.num_critics, (parts.config.min_of,)
        index = jax.random.choice(key_subset, of, chosen, replace=False)
        targets = jax.tree.map(lambda leaf: leaf[index], targets)
    next_values = parts.values(targets, batch.next_obs, next_base, next_residual, scale)
    # Without the bonus in the targets (as RLPD, arXiv:2302.02948) Q stays the return: over many
    # action dimensions the bonus can outweigh a sparse reward.
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
    """Moves the actor, and the temperature by the log_prob of the actor's draws before it moved."""
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
        if config.smoothness_penalty:
            now = parts.mean(params, obs, base_action)
            later = parts.mean(params, batch.next_obs, batch.next_base_action)
            loss += hyperparams.smoothness_penalty * size_penalty(later - now, batch.weight)
        return loss, (residual, log_prob)

    (loss, (residual, log_prob)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.actor)
    actor, actor_opt = _descend(
        parts.actor_tx, grads, state.actor_opt, state.actor, hyperparams.actor_lr
    )
    grad = jax.grad(temperature_loss)(old, log_prob, hyperparams.target_entropy, batch.weight)
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


def _penalty(hyperparams: Hyperparams, gradient_steps: Array) -> Array:
    """Weight of the residual's size in the actor's loss, after so many gradient steps."""
    left = 0.5 ** (gradient_steps / hyperparams.penalty_half_life)
    first, last = hyperparams.residual_penalty, hyperparams.final_penalty
    return last + left * (first - last)


def _is_subset(config: SACConfig) -> bool:
    """Whether targets take the least of a few critics drawn at random, not of all."""
    return 0 < config.min_of < config.num_critics


def _descend(
    tx: optax.GradientTransformation, grads: Params, opt_state: Any, params: Params, lr: Array
) -> tuple[Params, Any]:
    """params - lr * tx(grads): the step size is applied here, so that it stays an array leaf."""
    updates, opt_state = tx.update(grads, opt_state)
    return jax.tree.map(lambda value, update: value - lr * update, params, updates), opt_state
