"""A Behavior Transformer: picks a cluster of actions, then corrects the cluster's centre.

A causal transformer (minGPT: normalisation before each part, learned positions, GELU) reads the
latest observations. For each of them, it predicts which cluster ("bin") contains the
demonstrator's action, and for every bin the offset from its centre. This keeps modes apart that a
mean would blend.

The bins are fitted to the demonstrations once and never trained. They cluster single actions or,
with `act_horizon` above 1, flattened chunks of actions (arXiv:2403.03181 also predicts chunks).

Source: arXiv:2206.11251; policy_decorator nets/behavior_transformer and offline/bet_maniskill2.py.
Two things differ. Dropout is off in a rollout; there, it stays on. Training includes windows that
reach beyond the start of an episode, because a rollout meets them; there, they are left out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from pdjax.base_policies.kinds.attention import Keys, attend
from pdjax.base_policies.kinds.trainable import TrainablePolicy, Windows, as_base_policy, whiten
from pdjax.base_policies.settings import BehaviorTransformerConfig
from pdjax.modules import functional
from pdjax.types import Array, BasePolicy, Key, Params

KMEANS_STEPS = 50  # policy_decorator nets/behavior_transformer/bet.py, kmeans_iters
KMEANS_ACTIONS = 20_000  # actions drawn at random to fit the bins: enough for tens of bins


class Prediction(NamedTuple):
    """The transformer's output for each observation.

    Attributes:
      logits: (..., bins), logits of the bins.
      offsets: (..., bins, chunk_dim), offsets from each bin's centre.
    """

    logits: Array
    offsets: Array


class _Block(nnx.Module):
    def __init__(self, config: BehaviorTransformerConfig, rngs: nnx.Rngs):
        width, self.heads = config.width, config.heads
        self.norm_1 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.attend_in = _linear(width, 3 * width, rngs)
        self.attend_out = _linear(width, width, rngs, depth=config.layers)
        self.norm_2 = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.inner = _linear(width, 4 * width, rngs)
        self.outer = _linear(4 * width, width, rngs, depth=config.layers)

    def __call__(self, x: Array, keys: Keys) -> Array:
        query, key, value = jnp.split(self.attend_in(self.norm_1(x)), 3, axis=-1)
        mixed = attend(query, key, value, self.heads, True, keys)
        x = x + keys.drop(self.attend_out(mixed))
        return x + keys.drop(self.outer(jax.nn.gelu(self.inner(self.norm_2(x)))))


class _Transformer(nnx.Module):
    def __init__(self, config: BehaviorTransformerConfig, obs_dim: int, chunk_dim: int, rngs):
        self.bins = config.bins
        self.embed = _linear(obs_dim, config.width, rngs)
        normal = jax.random.normal(rngs.params(), (config.obs_horizon, config.width))
        self.positions = nnx.Param(0.02 * normal)
        self.blocks = nnx.List(_Block(config, rngs) for _ in range(config.layers))
        self.norm = nnx.LayerNorm(config.width, epsilon=1e-5, rngs=rngs)
        self.readout = _linear(config.width, config.readout, rngs, use_bias=False)
        self.head = nnx.Linear(config.readout, config.bins * (chunk_dim + 1), rngs=rngs)

    def __call__(self, obs: Array, keys: Keys) -> Prediction:
        x = keys.drop(self.embed(obs) + self.positions[...])
        for block in self.blocks:
            x = block(x, keys)
        out = self.head(self.readout(self.norm(x)))
        logits, offsets = out[..., : self.bins], out[..., self.bins :]
        return Prediction(logits, offsets.reshape(*logits.shape, -1))


def _linear(inward: int, outward: int, rngs: nnx.Rngs, depth: int = 0, use_bias: bool = True):
    """Initialises as GPT-2: std 0.02, smaller for the `2 depth` layers that add to the residual."""
    std = 0.02 / (2 * depth) ** 0.5 if depth else 0.02
    return nnx.Linear(
        inward, outward, kernel_init=nnx.initializers.normal(std), use_bias=use_bias, rngs=rngs
    )


def fit_bins(actions: Array, bins: int, key: Key) -> Array:
    """Fits centres by k-means, with the spread-out start of k-means++.

    Args:
      actions: (n, chunk_dim), flattened chunks.
      bins: number of centres.
      key: random key that picks the actions at which the centres start.

    Returns:
      (bins, chunk_dim), the centres. A centre that loses all its actions stays where it is.
    """
    first_key, key = jax.random.split(key)

    def spread(centers, inputs):
        index, key = inputs
        known = jnp.arange(bins) < index
        distance = jnp.where(known, _distances(actions, centers), jnp.inf).min(axis=-1)
        # The next centre is an action drawn in proportion to its squared distance from the nearest
        # centre, or any action if all of them coincide with a centre.
        logits = jnp.where(distance.max() > 0, jnp.log(distance), jnp.zeros_like(distance))
        return centers.at[index].set(actions[jax.random.categorical(key, logits)]), None

    start = (
        jnp.zeros((bins, actions.shape[1]))
        .at[0]
        .set(actions[jax.random.randint(first_key, (), 0, len(actions))])
    )
    steps = (jnp.arange(1, bins), jax.random.split(key, bins)[1:])
    centers, _ = jax.lax.scan(spread, start, steps)

    def improve(centers, _):
        own = jax.nn.one_hot(nearest(actions, centers), bins)  # (n, bins)
        count = own.sum(axis=0)[:, None]
        means = (own.T @ actions) / jnp.maximum(count, 1)
        return jnp.where(count > 0, means, centers), None

    return jax.lax.scan(improve, centers, length=KMEANS_STEPS)[0]


def nearest(actions: Array, centers: Array) -> Array:
    """Returns (...,): the index of the nearest centre of each action in (..., chunk_dim)."""
    return jnp.argmin(_distances(actions, centers), axis=-1)


def _distances(actions: Array, centers: Array) -> Array:
    """Returns (..., bins): squared distances."""
    return jnp.sum((actions[..., None, :] - centers) ** 2, axis=-1)


def focal_loss(logits: Array, target: Array, gamma: float) -> Array:
    """Computes -(1 - p)^gamma log p for the target's probability p (arXiv:1708.02002, eq. 4).

    Args:
      logits: (..., bins).
      target: (...,) integer, the true bin.
      gamma: the exponent; 0 gives the cross-entropy.

    Returns:
      (...,), one loss for each target.
    """
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]
    return -((1 - jnp.exp(log_p)) ** gamma) * log_p


def loss(
    prediction: Prediction, actions: Array, centers: Array, config: BehaviorTransformerConfig
) -> Array:
    """Computes focal loss of the bins + offset_weight * squared error of the true bin's offset.

    Args:
      prediction: (n, obs_horizon, ...), the prediction for every observation in the windows.
      actions: (n, obs_horizon, chunk_dim).
      centers: (bins, chunk_dim).
      config: supplies focal_gamma and offset_weight.
    """
    bins = nearest(actions, centers)
    offset = jnp.take_along_axis(prediction.offsets, bins[..., None, None], axis=-2)[..., 0, :]
    error = jnp.mean((offset - (actions - centers[bins])) ** 2)
    focal = jnp.mean(focal_loss(prediction.logits, bins, config.focal_gamma))
    return focal + config.offset_weight * error


def choose(prediction: Prediction, centers: Array, rollout: str, key: Key) -> Array:
    """Returns (chunk_dim,): centre + offset of the likeliest bin, or of a drawn one."""
    if rollout == "sampled":
        chosen = jax.random.categorical(key, prediction.logits)
    else:
        chosen = jnp.argmax(prediction.logits)
    return centers[chosen] + prediction.offsets[chosen]


def make_trainable(
    config: BehaviorTransformerConfig, obs_dim: int, act_dim: int
) -> TrainablePolicy:
    """Builds a Behavior Transformer of these sizes, ready to be trained."""

    chunk_dim = config.act_horizon * act_dim
    graph, start = functional(lambda rngs: _Transformer(config, obs_dim, chunk_dim, rngs))

    def chunks(windows: Windows) -> Array:
        """Returns (n, obs_horizon, chunk_dim): the chunk that begins at each observation."""
        index = jnp.arange(config.obs_horizon)[:, None] + jnp.arange(config.act_horizon)
        return windows.actions[:, index].reshape(*windows.obs.shape[:2], chunk_dim)

    def predict(params: Params, obs: Array, key: Key | None) -> Prediction:
        keys = Keys(key, config.dropout)
        return nnx.merge(graph, nnx.State(params["transformer"]))(obs, keys)

    def init(key: Key, windows: Windows):
        network_key, pick_key, bins_key = jax.random.split(key, 3)
        actions = chunks(windows)[:, -1]
        count = min(len(actions), KMEANS_ACTIONS)
        actions = jax.random.permutation(pick_key, actions)[:count]
        network = start(network_key)
        return {"transformer": network}, {"bins": fit_bins(actions, config.bins, bins_key)}

    def windows_loss(params: Params, windows: Windows, key: Key) -> Array:
        return loss(predict(params, windows.obs, key), chunks(windows), params["bins"], config)

    def decays(params: Params) -> Params:
        # Weights of linear layers decay; biases, normalisations and positions do not (minGPT).
        def is_weight(path, leaf):
            return leaf.ndim == 2 and "positions" not in jax.tree_util.keystr(path)

        return jax.tree_util.tree_map_with_path(is_weight, params)

    def make_policy(params: Params) -> BasePolicy:
        def apply(params, carry, obs_history, key):
            obs = whiten(params, obs_history)
            last = jax.tree.map(lambda x: x[-1], predict(params, obs, None))
            action = choose(last, params["bins"], config.rollout, key)
            return jnp.clip(action, -1, 1).reshape(config.act_horizon, act_dim), carry

        return as_base_policy(params, apply, act_dim, (config.obs_horizon, config.act_horizon))

    return TrainablePolicy(
        obs_horizon=config.obs_horizon,
        pred_horizon=config.obs_horizon - 1 + config.act_horizon,
        from_now=False,
        init=init,
        loss=windows_loss,
        decays=decays,
        make_policy=make_policy,
    )
