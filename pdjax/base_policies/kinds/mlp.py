"""A Gaussian or Gaussian-mixture MLP: the simplest policy that is trained by likelihood.

A mixture covers whole chunks, so that all actions of one chunk belong to one mode.
Source of the mixture: robomimic's BC-GMM (arXiv:2108.03298).
"""

from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdjax.base_policies.kinds.trainable import TrainablePolicy, Windows, as_base_policy, whiten
from pdjax.base_policies.settings import MLPConfig
from pdjax.modules import functional
from pdjax.types import Array, BasePolicy, Key, Params


class Mixture(NamedTuple):
    """Diagonal Gaussians over chunks.

    Attributes:
      logits: (..., components), logits of the components' weights.
      mean: (..., components, chunk_dim).
      std: (..., components, chunk_dim), at least the floor.
    """

    logits: Array
    mean: Array
    std: Array


class _MLP(nnx.Module):
    def __init__(self, config: MLPConfig, cond_dim: int, chunk_dim: int, rngs: nnx.Rngs):
        self.shape, self.floor = (config.components, chunk_dim), config.std_floor
        widths = (cond_dim, *config.hidden)
        self.hidden = nnx.List(nnx.Linear(a, b, rngs=rngs) for a, b in pairwise(widths))
        numbers = config.components * chunk_dim
        self.logits = nnx.Linear(widths[-1], config.components, rngs=rngs)
        self.mean = nnx.Linear(widths[-1], numbers, rngs=rngs)
        self.std = nnx.Linear(widths[-1], numbers, rngs=rngs)

    def __call__(self, x: Array) -> Mixture:
        for layer in self.hidden:
            x = nnx.silu(layer(x))
        mean = self.mean(x).reshape(*x.shape[:-1], *self.shape)
        std = jax.nn.softplus(self.std(x)).reshape(mean.shape) + self.floor
        return Mixture(self.logits(x), mean, std)


def log_likelihood(mixture: Mixture, chunk: Array) -> Array:
    """Computes log sum_k w_k N(chunk; mean_k, std_k^2), in nats.

    Args:
      mixture: its arrays have the leading axes of `chunk`.
      chunk: (..., chunk_dim).

    Returns:
      (...,), one log-likelihood for each chunk.
    """
    scaled = (chunk[..., None, :] - mixture.mean) / mixture.std
    # log N = sum[ -z^2 / 2 - log std - log(2 pi) / 2 ]
    each = jnp.sum(-0.5 * scaled**2 - jnp.log(mixture.std) - 0.5 * np.log(2 * np.pi), axis=-1)
    return jax.nn.logsumexp(jax.nn.log_softmax(mixture.logits) + each, axis=-1)


def choose(mixture: Mixture, rollout: str, key: Key) -> Array:
    """Returns (chunk_dim,): the mean of the likeliest component, or a draw from the mixture."""
    if rollout == "greedy":
        return mixture.mean[jnp.argmax(mixture.logits)]
    component_key, noise_key = jax.random.split(key)
    chosen = jax.random.categorical(component_key, mixture.logits)
    noise = jax.random.normal(noise_key, mixture.mean.shape[1:])
    return mixture.mean[chosen] + mixture.std[chosen] * noise


def make_trainable(config: MLPConfig, obs_dim: int, act_dim: int) -> TrainablePolicy:
    """Builds a Gaussian or Gaussian-mixture MLP of these sizes, ready to be trained."""
    cond_dim, chunk_dim = config.obs_horizon * obs_dim, config.act_horizon * act_dim

    graph, start = functional(lambda rngs: _MLP(config, cond_dim, chunk_dim, rngs))

    def predict(params: Params, obs: Array) -> Mixture:
        flat = obs.reshape(*obs.shape[:-2], cond_dim)
        return nnx.merge(graph, nnx.State(params["mlp"]))(flat)

    def init(key: Key, windows: Windows):
        del windows
        return {"mlp": start(key)}, {}

    def loss(params: Params, windows: Windows, key: Key) -> Array:
        del key
        chunk = windows.actions.reshape(-1, chunk_dim)
        # divided by chunk_dim, so that the size of a chunk does not change the step size
        return -jnp.mean(log_likelihood(predict(params, windows.obs), chunk)) / chunk_dim

    def make_policy(params: Params) -> BasePolicy:
        def apply(params, carry, obs_history, key):
            obs = whiten(params, obs_history)
            chunk = choose(predict(params, obs), config.rollout, key)
            return jnp.clip(chunk, -1, 1).reshape(config.act_horizon, act_dim), carry

        return as_base_policy(params, apply, act_dim, (config.obs_horizon, config.act_horizon))

    return TrainablePolicy(
        obs_horizon=config.obs_horizon,
        pred_horizon=config.act_horizon,
        from_now=True,
        init=init,
        loss=loss,
        decays=None,
        make_policy=make_policy,
    )
