"""Soft actor-critic for the residual policy: one update, from the formulas in `losses.py`.

Kept apart from rollout and replay: it sees batches, never environments. Owns SACState. The choices
beyond SAC follow arXiv:2412.13630 and policy_decorator online/pi_dec_diffusion_maniskill2.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdjax.config import Config, DecoratorConfig, SACConfig
from pdjax.decorator import actor_input, critic_action
from pdjax.losses import (
    actor_loss,
    critic_loss,
    size_penalty,
    soft_target,
    temperature_loss,
    weighted_mean,
)
from pdjax.networks import make_critics, make_residual_policy
from pdjax.networks import sample as sample_squashed
from pdjax.types import Array, Batch, Key, Metrics, Params


class Hyperparams(NamedTuple):
    """What a sweep may vary without compiling again: () float32 leaves; `jax.vmap` over them.

    Attributes:
      gamma: discount per decision; read by `replay.sample`.
      tau: share of the critics that the target critics take over in each update.
      actor_lr: Adam step size of the residual policy.
      critic_lr: Adam step size of the critics.
      temperature_lr: Adam step size of the log temperature.
      target_entropy: nats, what the temperature steers the policy's entropy to.
      residual_scale: largest change of an action by the residual.
      exploration_steps: decisions over which the gate opens; read by the rollout.
      exploration_limit: share of decisions beyond which it does not open; the guard lowers it.
    """

    gamma: Array
    tau: Array
    actor_lr: Array
    critic_lr: Array
    temperature_lr: Array
    target_entropy: Array
    residual_scale: Array
    exploration_steps: Array
    exploration_limit: Array


class SACState(NamedTuple):
    """The learner.

    Attributes:
      actor: parameters of the residual policy.
      critic: parameters of the critics, leaves (num_critics, ...).
      target_critic: their slow copy.
      log_temperature: () float32.
      actor_opt, critic_opt, temperature_opt: Adam moments of each.
      gradient_steps: () int32, updates so far.
    """

    actor: Params
    critic: Params
    target_critic: Params
    log_temperature: Array
    actor_opt: Any
    critic_opt: Any
    temperature_opt: Any
    gradient_steps: Array


class SAC(NamedTuple):
    """The learner as pure functions.

    Attributes:
      init: key -> SACState.
      update: (state, batch, hyperparams, key) -> (state, metrics), one gradient step.
      act: (actor_params, obs (batch, obs_dim), base_action (batch, chunk_dim), key)
        -> residual_action (batch, residual_dim), drawn from the policy, before gate and scaling.
      act_deterministic: the same without key: tanh of the policy's mean.
    """

    init: Callable[[Key], SACState]
    update: Callable[[SACState, Batch, Hyperparams, Key], tuple[SACState, Metrics]]
    act: Callable[[Params, Array, Array, Key], Array]
    act_deterministic: Callable[[Params, Array, Array], Array]


class _Parts(NamedTuple):
    """What the steps of one update share."""

    policy: Callable[..., tuple[Array, Array]]  # (params, obs, base_action) -> (mean, log_std)
    values: Callable[..., Array]  # (params, obs, base_action, residual_action, scale) -> Q_i(s, a)
    actor_tx: optax.GradientTransformation
    critic_tx: optax.GradientTransformation
    temperature_tx: optax.GradientTransformation
    entropy_backup: bool  # whether soft_target gets the temperature, or 0
    residual_penalty: float  # weight of the mean squared residual in the actor's loss


def make_hyperparams(config: Config, residual_dim: int) -> Hyperparams:
    """Reads the sweepable numbers of a config; residual_dim: numbers in one residual action.

    The target entropy is -target_entropy_scale * residual_dim for every critic_input. (The
    reference code doubles it for "concat", where its stand-in action space has twice the size.)
    """
    sac, scalar = config.sac, partial(jnp.asarray, dtype=jnp.float32)
    return Hyperparams(
        gamma=scalar(sac.gamma),
        tau=scalar(sac.tau),
        actor_lr=scalar(sac.actor_lr),
        critic_lr=scalar(sac.critic_lr),
        temperature_lr=scalar(sac.temperature_lr),
        target_entropy=scalar(-sac.target_entropy_scale * residual_dim),
        residual_scale=scalar(config.decorator.residual_scale),
        exploration_steps=scalar(config.decorator.exploration_steps),
        exploration_limit=scalar(1.0),
    )


def make_sac(
    config: SACConfig, decorator: DecoratorConfig, obs_dim: int, chunk_dim: int, residual_dim: int
) -> SAC:
    """Builds the learner.

    Args:
      config: structure of the networks, gradient clip, initial temperature; step sizes and other
        sweepable numbers come with each `update` as Hyperparams.
      decorator: `actor_input` and `critic_input` are read.
      obs_dim: numbers in one observation.
      chunk_dim: act_horizon * act_dim, numbers in one base action.
      residual_dim: numbers in one residual action: chunk_dim, or act_dim if it is held.
    """
    read_obs = partial(actor_input, kind=decorator.actor_input)
    read_action = partial(critic_action, kind=decorator.critic_input)
    obs, chunk, residual = jnp.zeros(obs_dim), jnp.zeros(chunk_dim), jnp.zeros(residual_dim)
    (input_dim,) = jax.eval_shape(read_obs, obs, chunk).shape
    (action_dim,) = jax.eval_shape(read_action, chunk, residual, 1.0).shape
    policy = make_residual_policy(input_dim, residual_dim, config)
    critics = make_critics(obs_dim, action_dim, config)
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    parts = _Parts(
        policy=lambda params, obs, base: policy.apply(params, read_obs(obs, base)),
        values=lambda params, obs, *action: critics.apply(params, obs, read_action(*action)),
        actor_tx=optax.chain(clip, optax.scale_by_adam()),
        critic_tx=optax.chain(_clip_each(clip), optax.scale_by_adam()),
        temperature_tx=optax.scale_by_adam(),
        entropy_backup=config.entropy_backup,
        residual_penalty=config.residual_penalty,
    )

    def init(key: Key) -> SACState:
        key_actor, key_critic = jax.random.split(key)
        actor, critic = policy.init(key_actor), critics.init(key_critic)
        log_temperature = jnp.log(jnp.asarray(config.initial_temperature, jnp.float32))
        return SACState(
            actor=actor,
            critic=critic,
            target_critic=jax.tree.map(jnp.copy, critic),  # own buffers: the state is donated
            log_temperature=log_temperature,
            actor_opt=parts.actor_tx.init(actor),
            critic_opt=parts.critic_tx.init(critic),
            temperature_opt=parts.temperature_tx.init(log_temperature),
            gradient_steps=jnp.zeros((), jnp.int32),
        )

    def act(actor_params: Params, obs: Array, base_action: Array, key: Key) -> Array:
        residual_action, _ = sample_squashed(*parts.policy(actor_params, obs, base_action), key)
        return residual_action

    def act_deterministic(actor_params: Params, obs: Array, base_action: Array) -> Array:
        mean, _ = parts.policy(actor_params, obs, base_action)
        return jnp.tanh(mean)

    return SAC(init, partial(_update, parts), act, act_deterministic)


def _update(
    parts: _Parts, state: SACState, batch: Batch, hyperparams: Hyperparams, key: Key
) -> tuple[SACState, Metrics]:
    """One gradient step: critics, actor (against the new critics), temperature, target critics.

    `key` is split into (key_next, key_actor): the draws of a' at s' and of a at s. All three
    losses use the temperature from before the step.
    """
    key_next, key_actor = jax.random.split(key)
    state, critic_metrics = _critic_step(parts, state, batch, hyperparams, key_next)
    state, log_prob, actor_metrics = _actor_step(parts, state, batch, hyperparams, key_actor)
    old, lr = state.log_temperature, hyperparams.temperature_lr
    grad = jax.grad(temperature_loss)(old, log_prob, hyperparams.target_entropy, batch.weight)
    new, temperature_opt = _descend(parts.temperature_tx, grad, state.temperature_opt, old, lr)
    metrics = {**critic_metrics, **actor_metrics, "temperature": jnp.exp(old)}
    state = state._replace(
        target_critic=optax.incremental_update(state.critic, state.target_critic, hyperparams.tau),
        log_temperature=new,
        temperature_opt=temperature_opt,
        gradient_steps=state.gradient_steps + 1,
    )
    return state, metrics


def _critic_step(
    parts: _Parts, state: SACState, batch: Batch, hyperparams: Hyperparams, key: Key
) -> tuple[SACState, Metrics]:
    """Moves the critics towards the soft target."""
    scale = hyperparams.residual_scale
    next_obs, next_base = batch.next_obs, batch.next_base_action
    mean, log_std = parts.policy(state.actor, next_obs, next_base)
    next_residual, next_log_prob = sample_squashed(mean, log_std, key)
    next_values = parts.values(state.target_critic, next_obs, next_base, next_residual, scale)
    # Without the bonus in the targets (as RLPD, arXiv:2302.02948) Q stays the return: over many
    # action dimensions the bonus can outweigh a sparse reward.
    temperature = jnp.exp(state.log_temperature) if parts.entropy_backup else 0.0
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
    parts: _Parts, state: SACState, batch: Batch, hyperparams: Hyperparams, key: Key
) -> tuple[SACState, Array, Metrics]:
    """Moves the actor; also returns the log_prob of its draws, before the move."""
    obs, base_action, scale = batch.obs, batch.base_action, hyperparams.residual_scale
    temperature = jnp.exp(state.log_temperature)

    def loss_of(params: Params) -> tuple[Array, tuple[Array, Array]]:
        residual, log_prob = sample_squashed(*parts.policy(params, obs, base_action), key)
        values = parts.values(state.critic, obs, base_action, residual, scale)
        loss = actor_loss(values, log_prob, temperature, batch.weight)
        penalty = parts.residual_penalty * size_penalty(residual, batch.weight)
        return loss + penalty, (residual, log_prob)

    (loss, (residual, log_prob)), grads = jax.value_and_grad(loss_of, has_aux=True)(state.actor)
    actor, actor_opt = _descend(
        parts.actor_tx, grads, state.actor_opt, state.actor, hyperparams.actor_lr
    )
    magnitude = jnp.mean(jnp.abs(residual), axis=-1)  # (batch, residual_dim) -> (batch,)
    metrics = {
        "actor_loss": loss,
        "entropy": -weighted_mean(log_prob, batch.weight),
        "residual_magnitude": weighted_mean(magnitude, batch.weight),
        "actor_grad_norm": optax.tree.norm(grads),
    }
    return state._replace(actor=actor, actor_opt=actor_opt), log_prob, metrics


def _descend(
    tx: optax.GradientTransformation, grads: Params, opt_state: Any, params: Params, lr: Array
) -> tuple[Params, Any]:
    """params - lr * tx(grads): the step size is applied here, so that it stays an array leaf."""
    updates, opt_state = tx.update(grads, opt_state)
    return jax.tree.map(lambda value, update: value - lr * update, params, updates), opt_state


def _clip_each(clip: optax.GradientTransformation) -> optax.GradientTransformation:
    """Clips every critic by its own norm, as the reference code: leaves (num_critics, ...)."""
    return optax.stateless(
        lambda grads, _: jax.vmap(lambda one: clip.update(one, optax.EmptyState())[0])(grads)
    )
