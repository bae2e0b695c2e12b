"""Soft actor-critic for the residual policy: networks, sizes and gradient steps bound together.

Kept apart from rollout and replay: it sees batches, never environments. The choices
beyond SAC follow arXiv:2412.13630 and policy_decorator online/pi_dec_diffusion_maniskill2.py.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from pdjax.config.fields import Config, ConfigError, DecoratorConfig, SACConfig
from pdjax.learner.decorator import actor_input, critic_action, spread
from pdjax.learner.gradient_step import Hyperparams, Parts, SACState, update
from pdjax.learner.networks import make_critics, make_residual_policy
from pdjax.learner.networks import sample as sample_squashed
from pdjax.types import Array, BasePolicy, Batch, Key, Metrics, Params

SWEEPABLE = (  # keys of a config that members of one program may differ in
    "seed",
    "decorator.residual_scale",
    "decorator.exploration_steps",
    "sac.gamma",
    "sac.tau",
    "sac.actor_lr",
    "sac.critic_lr",
    "sac.temperature_lr",
    "sac.initial_temperature",
    "sac.target_entropy_scale",
    "sac.actor_average",
    "sac.residual_penalty",
    "sac.penalty_half_life",
    "sac.final_penalty",
    "sac.smoothness_penalty",
    "sac.reward_offset",
)
SWITCHES = ("decorator.residual_scale", "sac.smoothness_penalty")  # of these, where 0 is another


class SAC(NamedTuple):
    """The learner as pure functions.

    Attributes:
      init: (key, initial_temperature () = the config's) -> SACState.
      update: (state, batch, hyperparams, key) -> (state, metrics), one gradient step.
      act: (actor_params, obs (batch, obs_dim), base_action (batch, chunk_dim), key)
        -> residual_action (batch, residual_dim), drawn from the policy, before gate and scaling.
      act_deterministic: the same without key: tanh of the policy's mean.
      limits: (residual_dim,), the largest size of each number in a residual action.
    """

    init: Callable[..., SACState]
    update: Callable[[SACState, Batch, Hyperparams, Key], tuple[SACState, Metrics]]
    act: Callable[[Params, Array, Array, Key], Array]
    act_deterministic: Callable[[Params, Array, Array], Array]
    limits: Array


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
        initial_temperature=scalar(sac.initial_temperature),
        target_entropy=scalar(-sac.target_entropy_scale * residual_dim),
        actor_average=scalar(sac.actor_average),
        residual_penalty=scalar(sac.residual_penalty),
        penalty_half_life=scalar(sac.penalty_half_life or math.inf),
        final_penalty=scalar(sac.final_penalty),
        smoothness_penalty=scalar(sac.smoothness_penalty),
        reward_offset=scalar(sac.reward_offset),
        residual_scale=scalar(config.decorator.residual_scale),
        exploration_steps=scalar(config.decorator.exploration_steps),
        exploration_limit=scalar(1.0),
    )


def make_sac(
    config: SACConfig, decorator: DecoratorConfig, obs_dim: int, chunk_dim: int, residual_dim: int
) -> SAC:
    """Builds the learner.

    Args:
      config: structure of the networks, gradient clip, and which terms losses have; step sizes and
        other sweepable numbers come with each `update` as Hyperparams.
      decorator: `actor_input`, `critic_input` and `residual_limits` are read.
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
    limits = spread(jnp.asarray(decorator.residual_limits or (1.0,)), residual_dim)
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    start = config.initial_temperature

    def draw(actor_params: Params, obs: Array, base_action: Array, key: Key):
        gaussian = policy.apply(actor_params, read_obs(obs, base_action))
        residual_action, log_prob = sample_squashed(*gaussian, key)
        return limits * residual_action, log_prob  # narrower by a constant factor: no matter

    def mean(actor_params: Params, obs: Array, base_action: Array) -> Array:
        return limits * jnp.tanh(policy.apply(actor_params, read_obs(obs, base_action))[0])

    parts = Parts(
        draw=draw,
        mean=mean,
        values=lambda params, obs, *action: critics.apply(params, obs, read_action(*action)),
        actor_tx=optax.chain(clip, optax.scale_by_adam()),
        critic_tx=optax.chain(_clip_each(clip), optax.scale_by_adam()),
        temperature_tx=optax.scale_by_adam(),
        config=config,
    )

    def init(key: Key, initial_temperature: Array | float = start) -> SACState:
        key_actor, key_critic = jax.random.split(key)
        actor, critic = policy.init(key_actor), critics.init(key_critic)
        log_temperature = jnp.log(jnp.asarray(initial_temperature, jnp.float32))
        return SACState(
            actor=actor,  # copies have their own buffers: the state is donated
            mean_actor=jax.tree.map(jnp.copy, actor),
            critic=critic,
            target_critic=jax.tree.map(jnp.copy, critic),
            log_temperature=log_temperature,
            actor_opt=parts.actor_tx.init(actor),
            critic_opt=parts.critic_tx.init(critic),
            temperature_opt=parts.temperature_tx.init(log_temperature),
            gradient_steps=jnp.zeros((), jnp.int32),
        )

    act = lambda *inputs: draw(*inputs)[0]  # noqa: E731
    return SAC(init, partial(update, parts), act, mean, limits)


def _clip_each(clip: optax.GradientTransformation) -> optax.GradientTransformation:
    """Clips every critic by its own norm, as the reference code: leaves (num_critics, ...)."""
    return optax.stateless(
        lambda grads, _: jax.vmap(lambda one: clip.update(one, optax.EmptyState())[0])(grads)
    )


def residual_dim(config: DecoratorConfig, base: BasePolicy) -> int:
    """Numbers in one residual action: a chunk's, or one action's if it is held over the chunk.

    Raises:
      ConfigError: residual_limits are not one for each number of an action.
    """
    if len(config.residual_limits) not in (0, base.act_dim):
        raise ConfigError(
            f"decorator.residual_limits has {len(config.residual_limits)} numbers, expected one for"
            f" each of an action's {base.act_dim}, or none"
        )
    return base.act_dim if config.hold_residual else base.act_horizon * base.act_dim
