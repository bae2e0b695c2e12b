"""ACT: a conditional VAE of action chunks, made of transformers.

In training, a style encoder reads the demonstrated chunk and outputs z, so that the decoder need
not average over styles; in a rollout, z is 0. With temporal ensembling, the policy predicts at
every control step and executes the weighted mean of all predictions for that step.

The layers are those of DETR: they normalise after each part, and add positions to queries and keys.
Two things differ from the original: observations are numbers instead of images, with one token for
each observation; and chunks that reach beyond the end of a demonstration repeat its last action
instead of being masked.

Source: arXiv:2304.13705; tonyzhaozh/act detr/models/detr_vae.py and imitate_episodes.py.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdjax.base_policies.kinds.attention import Attention, Keys
from pdjax.base_policies.kinds.trainable import TrainablePolicy, Windows, as_base_policy, whiten
from pdjax.base_policies.settings import ActConfig
from pdjax.modules import functional
from pdjax.types import Array, BasePolicy, Key, Params


class Ensemble(NamedTuple):
    """Weighted sums of all predictions for the coming control steps, the next step first.

    Attributes:
      sums: (pred_horizon, act_dim), weighted sum of the predictions for each step.
      weights: (pred_horizon,), sum of their weights.
      counts: (pred_horizon,), number of predictions so far.
    """

    sums: Array
    weights: Array
    counts: Array


def empty_ensemble(pred_horizon: int, act_dim: int) -> Ensemble:
    """Returns the ensemble before the first prediction."""
    zeros = jnp.zeros(pred_horizon)
    return Ensemble(jnp.zeros((pred_horizon, act_dim)), zeros, zeros)


def blend(ensemble: Ensemble, chunk: Array, decay: float) -> tuple[Array, Ensemble]:
    """Adds a prediction and removes the next action.

    Args:
      ensemble: the earlier predictions.
      chunk: (pred_horizon, act_dim), the prediction from the next control step on.
      decay: m; the i-th prediction for a control step has the weight exp(-m i), the oldest first.

    Returns:
      action (act_dim,), and the ensemble one control step later.
    """
    weight = jnp.exp(-decay * ensemble.counts)
    sums = ensemble.sums + weight[:, None] * chunk
    added = Ensemble(sums, ensemble.weights + weight, ensemble.counts + 1)
    later = jax.tree.map(lambda x: jnp.concatenate([x[1:], jnp.zeros_like(x[:1])]), added)
    return added.sums[0] / added.weights[0], later


class _Layer(nnx.Module):
    """Self-attention, attention to `memory` if there is one, and a feed-forward part."""

    def __init__(self, config: ActConfig, looks: bool, rngs: nnx.Rngs):
        def norm():
            return nnx.LayerNorm(config.width, epsilon=1e-5, rngs=rngs)

        xavier = nnx.initializers.xavier_uniform()
        self.attend = Attention(config.width, config.heads, xavier, rngs)
        self.norm_attend = norm()
        if looks:
            self.look = Attention(config.width, config.heads, xavier, rngs)
            self.norm_look = norm()
        self.inner = nnx.Linear(config.width, config.feedforward, kernel_init=xavier, rngs=rngs)
        self.outer = nnx.Linear(config.feedforward, config.width, kernel_init=xavier, rngs=rngs)
        self.norm = norm()

    def __call__(self, x: Array, place: Array, keys: Keys, memory=None) -> Array:
        """Maps (n, tokens, width) with positions `place`; memory = (tokens, their positions)."""
        placed = x + place
        x = self.norm_attend(x + keys.drop(self.attend(placed, placed, x, keys)))
        if memory is not None:
            seen, seen_place = memory
            looked = self.look(x + place, seen + seen_place, seen, keys)
            x = self.norm_look(x + keys.drop(looked))
        hidden = keys.drop(jax.nn.relu(self.inner(x)))
        return self.norm(x + keys.drop(self.outer(hidden)))


class _Network(nnx.Module):
    def __init__(self, config: ActConfig, obs_dim: int, act_dim: int, rngs: nnx.Rngs):
        width, self.latent_dim = config.width, config.latent_dim

        def linear(inward, outward):
            return nnx.Linear(inward, outward, rngs=rngs)

        def tokens(count):
            return nnx.Param(jax.random.normal(rngs.params(), (count, width)))

        def layers(count, looks=False):
            return nnx.List(_Layer(config, looks, rngs) for _ in range(count))

        if config.style:
            self.summary = tokens(1)
            self.style_obs, self.style_action = linear(obs_dim, width), linear(act_dim, width)
            self.style_layers = layers(config.encoder_layers)
            self.style_out = linear(width, 2 * config.latent_dim)
        self.embed_latent = linear(config.latent_dim, width)
        self.embed_obs = linear(obs_dim, config.obs_tokens * width)
        self.places = tokens(1 + config.obs_horizon * config.obs_tokens)
        self.encoder = layers(config.encoder_layers)
        self.queries = tokens(config.pred_horizon)
        self.decoder = layers(config.decoder_layers, looks=True)
        if config.decoder_norm:
            self.decoder_norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.out = linear(width, act_dim)

    def style(self, obs: Array, actions: Array, keys: Keys) -> tuple[Array, Array]:
        """Returns the mean and log variance (n, latent_dim) of z."""
        parts = [self.style_obs(obs), self.style_action(actions)]
        summary = jnp.broadcast_to(self.summary[...], (len(obs), *self.summary.shape))
        x = jnp.concatenate([summary, *parts], axis=1)
        place = _positions(x.shape[1], x.shape[2])
        for layer in self.style_layers:
            x = layer(x, place, keys)
        mean, log_variance = jnp.split(self.style_out(x[:, 0]), 2, axis=-1)
        return mean, log_variance

    def __call__(self, obs: Array, latent: Array, keys: Keys) -> Array:
        """Maps (n, obs_horizon, obs_dim) and (n, latent_dim) to (n, pred_horizon, act_dim)."""
        z = self.embed_latent(latent)[:, None]
        tokens = self.embed_obs(obs).reshape(len(obs), -1, z.shape[-1])  # obs_tokens each
        x = jnp.concatenate([z, tokens], axis=1)
        for layer in self.encoder:
            x = layer(x, self.places[...], keys)
        y = jnp.zeros((len(obs), *self.queries.shape))
        for layer in self.decoder:
            y = layer(y, self.queries[...], keys, (x, self.places[...]))
        return self.out(self.decoder_norm(y) if hasattr(self, "decoder_norm") else y)


def _positions(count: int, width: int) -> Array:
    """Returns (count, width): sines and cosines in turn, wavelengths from 2 pi to 20,000 pi."""
    angle = np.arange(count)[:, None] / 10_000 ** (2 * np.arange(width // 2) / width)
    both = np.stack([np.sin(angle), np.cos(angle)], axis=-1)  # (count, width / 2, 2)
    return jnp.asarray(both.reshape(count, width), jnp.float32)


def divergence(mean: Array, log_variance: Array) -> Array:
    """Returns (n,): KL(N(mean, variance) || N(0, 1)) in nats, summed over latent_dim."""
    return -0.5 * jnp.sum(1 + log_variance - mean**2 - jnp.exp(log_variance), axis=-1)


def make_trainable(config: ActConfig, obs_dim: int, act_dim: int) -> TrainablePolicy:
    """Builds an ACT policy of these sizes, ready to be trained."""

    graph, start = functional(lambda rngs: _Network(config, obs_dim, act_dim, rngs))

    def network(params: Params) -> _Network:
        return nnx.merge(graph, nnx.State(params["act"]))

    def init(key: Key, windows: Windows):
        del windows
        return {"act": start(key)}, {}

    def loss(params: Params, windows: Windows, key: Key) -> Array:
        noise_key, style_key, drop_key = jax.random.split(key, 3)
        net = network(params)
        if not config.style:
            latent = jnp.zeros((len(windows.obs), config.latent_dim))
            chunk = net(windows.obs, latent, Keys(drop_key, config.dropout))
            return jnp.mean(jnp.abs(chunk - windows.actions))
        mean, log_variance = net.style(
            windows.obs, windows.actions, Keys(style_key, config.dropout)
        )
        latent = mean + jnp.exp(log_variance / 2) * jax.random.normal(noise_key, mean.shape)
        chunk = net(windows.obs, latent, Keys(drop_key, config.dropout))
        # L1 + beta KL
        error = jnp.mean(jnp.abs(chunk - windows.actions))
        return error + config.kl_weight * jnp.mean(divergence(mean, log_variance))

    def make_policy(params: Params) -> BasePolicy:
        def init_carry(key):
            del key
            return empty_ensemble(config.pred_horizon, act_dim) if config.temporal_ensemble else ()

        def apply(params, carry, obs_history, key):
            del key
            obs = whiten(params, obs_history)[None]
            latent = jnp.zeros((1, config.latent_dim))
            chunk = jnp.clip(network(params)(obs, latent, Keys(None, 0))[0], -1, 1)
            if not config.temporal_ensemble:
                return chunk[: config.act_horizon], carry
            action, carry = blend(carry, chunk, config.ensemble_decay)
            return action[None], carry

        return as_base_policy(
            params, apply, act_dim, (config.obs_horizon, config.act_horizon), init_carry
        )

    return TrainablePolicy(
        obs_horizon=config.obs_horizon,
        pred_horizon=config.pred_horizon,
        from_now=True,
        init=init,
        loss=loss,
        decays=None,
        make_policy=make_policy,
    )
