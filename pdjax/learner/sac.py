"""Soft actor-critic for the residual policy: networks, sizes and gradient steps bound together.

It sees batches and never environments. The choices beyond SAC follow arXiv:2412.13630 and
policy_decorator online/pi_dec_diffusion_maniskill2.py.
"""

# pyright: reportUnknownMemberType=false, reportMissingTypeStubs=false

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from pdjax.config.schema import SWEEPABLE, Config, ConfigError, DecoratorConfig, SACConfig
from pdjax.learner.decorator import actor_input, critic_action, spread
from pdjax.learner.gradient_step import Hyperparams, Parts, SACState, update
from pdjax.learner.networks import make_critics, make_residual_policy
from pdjax.learner.networks import sample as sample_squashed
from pdjax.types import Array, BasePolicy, Batch, Key, Metrics, Params, Scalar

Obs = Float[Array, "*batch obs_dim"]
Chunk = Float[Array, "*batch chunk_dim"]
Residual = Float[Array, "*batch residual_dim"]


class SAC(NamedTuple):
    """The learner as pure functions.

    Attributes:
      init: (key, initial_temperature) -> SACState; the temperature defaults to the config's.
      update: (state, batch, hyperparams, key) -> (state, metrics), one gradient step.
      act: (actor_params, obs, base_action, noise) -> residual_action, drawn from the policy with
        standard normal noise (*batch, residual_dim), before gate and scaling.
      act_deterministic: the same without noise: tanh of the policy's mean.
      limits: the largest size of each number in a residual action.
    """

    init: Callable[..., SACState]
    update: Callable[[SACState, Batch, Hyperparams, Key], tuple[SACState, Metrics]]
    act: Callable[[Params, Obs, Chunk, Residual], Residual]
    act_deterministic: Callable[[Params, Obs, Chunk], Residual]
    limits: Float[Array, " residual_dim"]


def make_hyperparams(config: Config, residual_dim: int) -> Hyperparams:
    """Reads the numbers of a config that are marked `Sweepable`, as float32 arrays of shape ().

    The seed is marked too, but a program receives it as its key.

    The target entropy is -target_entropy_scale * residual_dim for every critic_input. (The
    reference code doubles it for "concat", where its stand-in action space has twice the size.)

    Args:
      config: the run.
      residual_dim: count of numbers in one residual action.
    """
    values: dict[str, float] = {
        name.rpartition(".")[-1]: operator.attrgetter(name)(config)
        for name in SWEEPABLE
        if name != "seed"
    }
    values["target_entropy"] = -values.pop("target_entropy_scale") * residual_dim
    values["penalty_half_life"] = values["penalty_half_life"] or math.inf
    values["exploration_limit"] = 1.0
    return Hyperparams(**{name: jnp.asarray(value, jnp.float32) for name, value in values.items()})


def make_sac(
    config: SACConfig, decorator: DecoratorConfig, obs_dim: int, chunk_dim: int, residual_dim: int
) -> SAC:
    """Builds the learner.

    Args:
      config: structure of the networks, gradient clip, and which terms the losses have. Step sizes
        and other sweepable numbers come with each `update`, as Hyperparams.
      decorator: only `actor_input`, `critic_input` and `residual_limits` are read.
      obs_dim: count of numbers in one observation.
      chunk_dim: act_horizon * act_dim, the count of numbers in one base action.
      residual_dim: count of numbers in one residual action: chunk_dim, or act_dim if it is held.
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

    def draw(
        actor_params: Params, obs: Obs, base_action: Chunk, key: Key
    ) -> tuple[Residual, Float[Array, "*batch"]]:
        noise = jax.random.normal(key, (*obs.shape[:-1], residual_dim))
        return draw_with(actor_params, obs, base_action, noise)

    def draw_with(
        actor_params: Params, obs: Obs, base_action: Chunk, noise: Residual
    ) -> tuple[Residual, Float[Array, "*batch"]]:
        mean, log_std = policy.apply(actor_params, read_obs(obs, base_action))
        residual_action, log_prob = sample_squashed(mean, log_std, noise)
        # The limits shift log_prob by a constant, which no gradient sees.
        return limits * residual_action, log_prob

    def act(actor_params: Params, obs: Obs, base_action: Chunk, noise: Residual) -> Residual:
        return draw_with(actor_params, obs, base_action, noise)[0]

    def mean(actor_params: Params, obs: Obs, base_action: Chunk) -> Residual:
        return limits * jnp.tanh(policy.apply(actor_params, read_obs(obs, base_action))[0])

    def values(
        critic_params: Params,
        obs: Obs,
        base_action: Chunk,
        residual_action: Residual,
        scale: Scalar,
    ) -> Float[Array, "num_critics batch"]:
        action = read_action(base_action, residual_action, scale)
        return critics.apply(critic_params, obs, action)

    parts = Parts(
        draw=draw,
        mean=mean,
        values=values,
        actor_tx=optax.chain(clip, optax.scale_by_adam()),
        critic_tx=optax.chain(_clip_each(clip), optax.scale_by_adam()),
        temperature_tx=optax.scale_by_adam(),
        config=config,
    )

    def init(key: Key, initial_temperature: Scalar = config.initial_temperature) -> SACState:
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

    return SAC(init, partial(update, parts), act, mean, limits)


def _clip_each(clip: optax.GradientTransformation) -> optax.GradientTransformation:
    """Clips each critic by its own norm, as the reference code does: leaves (num_critics, ...)."""

    def clip_one(grads: Params) -> Params:
        return clip.update(grads, optax.EmptyState())[0]

    def clip_all(grads: Params, params: Params) -> Params:
        del params
        return jax.vmap(clip_one)(grads)

    return optax.stateless(clip_all)


def residual_dim(config: DecoratorConfig, base: BasePolicy) -> int:
    """Returns the count of numbers in one residual action.

    That is a chunk's, or one action's if the residual is held for the whole chunk.

    Raises:
      ConfigError: residual_limits has a number for some parts of an action only.
    """
    if len(config.residual_limits) not in (0, base.act_dim):
        raise ConfigError(
            f"decorator.residual_limits has {len(config.residual_limits)} numbers, expected one for"
            f" each of an action's {base.act_dim}, or none"
        )
    return base.act_dim if config.hold_residual else base.act_horizon * base.act_dim
