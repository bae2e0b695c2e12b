"""A diffusion policy: denoises a chunk of actions, conditioned on recent observations.

The noise schedule and sampler are those of Diffusion Policy (arXiv:2303.04137) in the reference
implementation: 100 squared-cosine steps, clipped samples and DDIM with few steps. The denoiser is
the U-Net of Diffusion Policy (`unet`) or a residual MLP, which is many times cheaper on a CPU.

Flax modules stay inside this file; callers see pure functions and parameter pytrees.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdjax.base_policies.chunking import executed_part
from pdjax.base_policies.kinds.trainable import TrainablePolicy, Windows, as_base_policy, whiten
from pdjax.base_policies.kinds.unet import UNet
from pdjax.base_policies.settings import NOISE_STEPS, DiffusionConfig
from pdjax.modules import functional
from pdjax.types import Array, BasePolicy, Key, Params


class Denoiser(NamedTuple):
    """The denoising network as pure functions of flattened chunks and histories.

    Attributes:
      init: key -> params.
      apply: (params, noisy (n, chunk_dim), step (n,), cond (n, cond_dim)) -> prediction.
      prediction: what the network predicts, `sample` (the clean chunk) or `epsilon` (the noise).
    """

    init: Callable[[Key], Params]
    apply: Callable[[Params, Array, Array, Array], Array]
    prediction: str


class _Block(nnx.Module):
    """A residual block: the condition scales and shifts the normalised input."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, use_bias=False, use_scale=False, rngs=rngs)
        self.modulation = nnx.Linear(width, 2 * width, rngs=rngs)
        self.inner = nnx.Linear(width, 2 * width, rngs=rngs)
        self.outer = nnx.Linear(2 * width, width, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: Array, condition: Array) -> Array:
        scale, shift = jnp.split(self.modulation(condition), 2, axis=-1)
        return x + self.outer(nnx.silu(self.inner(self.norm(x) * (1 + scale) + shift)))


class _MLP(nnx.Module):
    def __init__(self, chunk_dim: int, cond_dim: int, config: DiffusionConfig, rngs: nnx.Rngs):
        width = config.hidden
        self.embed_action = nnx.Linear(chunk_dim, width, rngs=rngs)
        self.embed_obs = nnx.Linear(cond_dim, width, rngs=rngs)
        self.mix_obs = nnx.Linear(width, width, rngs=rngs)
        self.embed_time = nnx.Linear(64, width, rngs=rngs)
        self.blocks = nnx.List([_Block(width, rngs) for _ in range(config.blocks)])
        self.out = nnx.Linear(width, chunk_dim, rngs=rngs)

    def __call__(self, noisy: Array, step: Array, cond: Array) -> Array:
        time = self.embed_time(_sinusoid(step, 64))
        obs = self.mix_obs(nnx.silu(self.embed_obs(cond)))
        condition = nnx.silu(obs + time)
        x = self.embed_action(noisy) + obs
        for block in self.blocks:
            x = block(x, condition)
        return self.out(nnx.silu(x))


def _sinusoid(step: Array, size: int) -> Array:
    frequency = jnp.exp(-np.log(10_000.0) * jnp.arange(size // 2) / (size // 2))
    phase = step[:, None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


def make_denoiser(obs_dim: int, act_dim: int, config: DiffusionConfig) -> Denoiser:
    """Builds the network for the given sizes."""
    chunk_dim, cond_dim = config.pred_horizon * act_dim, config.obs_horizon * obs_dim

    def build(rngs):
        if config.denoiser == "unet":
            return UNet(act_dim, cond_dim, config, rngs)
        return _MLP(chunk_dim, cond_dim, config, rngs)

    graph, init = functional(build)

    def apply(params, noisy, step, cond):
        return nnx.merge(graph, nnx.State(params))(noisy, step, cond)

    return Denoiser(init, apply, config.prediction)


def alphas_cumprod() -> np.ndarray:
    """Returns (100,) float32: the share of signal after each noising step (squared cosine)."""
    # Nichol and Dhariwal 2021:
    # beta_i = min(1 - f((i+1)/T) / f(i/T), 0.999) with f(t) = cos^2((t + 0.008) / 1.008 * pi/2)
    time = np.arange(NOISE_STEPS + 1) / NOISE_STEPS
    signal = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    return np.cumprod(1 - betas).astype(np.float32)


def loss(denoiser: Denoiser, params: Params, batch: tuple[Array, Array], key: Key) -> Array:
    """Computes the mean squared error of the predicted chunk or noise.

    Args:
      denoiser: the network.
      params: its parameters.
      batch: normalised observations (n, obs_horizon * obs_dim) and actions
        (n, pred_horizon * act_dim).
      key: random key of the noise and its level.
    """
    cond, actions = batch
    level_key, noise_key = jax.random.split(key)
    step = jax.random.randint(level_key, (len(actions),), 0, NOISE_STEPS)
    noise = jax.random.normal(noise_key, actions.shape)
    alpha = jnp.asarray(alphas_cumprod())[step][:, None]
    # x_t = sqrt(alpha) x_0 + sqrt(1 - alpha) noise   (DDPM, eq. 4)
    noisy = jnp.sqrt(alpha) * actions + jnp.sqrt(1 - alpha) * noise
    target = noise if denoiser.prediction == "epsilon" else actions
    return jnp.mean((denoiser.apply(params, noisy, step, cond) - target) ** 2)


def ddim_sample(denoiser: Denoiser, params: Params, cond: Array, noise: Array, steps: int) -> Array:
    """Denoises chunks with deterministic DDIM (arXiv:2010.02502, eq. 12, eta = 0).

    Args:
      denoiser: the network.
      params: its parameters.
      cond: (n, obs_horizon * obs_dim), normalised.
      noise: (n, chunk_dim), standard normal.
      steps: number of denoising steps, evenly spaced from the noisiest level down ("leading").

    Returns:
      (n, chunk_dim) in [-1, 1].
    """
    alpha_table = alphas_cumprod()
    stride = NOISE_STEPS // steps
    levels = np.arange(steps)[::-1] * stride
    alphas = alpha_table[levels]
    next_alphas = np.append(alpha_table[levels[1:]], 1.0).astype(np.float32)

    def denoise(x, step):
        level, alpha, next_alpha = step
        predicted = denoiser.apply(params, x, jnp.full(len(x), level), cond)
        if denoiser.prediction == "epsilon":
            noise = predicted
            clean = jnp.clip((x - jnp.sqrt(1 - alpha) * noise) / jnp.sqrt(alpha), -1, 1)
        else:
            clean = jnp.clip(predicted, -1, 1)
            noise = (x - jnp.sqrt(alpha) * clean) / jnp.sqrt(1 - alpha)
        return jnp.sqrt(next_alpha) * clean + jnp.sqrt(1 - next_alpha) * noise, None

    chunk, _ = jax.lax.scan(denoise, noise, (levels, alphas, next_alphas))
    return jnp.clip(chunk, -1, 1)


def make_policy(
    config: DiffusionConfig, act_dim: int, params: Params, obs_mean: Array, obs_std: Array
) -> BasePolicy:
    """Builds the `BasePolicy` of a trained diffusion policy, which has no carry."""
    denoiser = make_denoiser(len(obs_mean), act_dim, config)

    def apply(params, carry, obs_history, key):
        cond = whiten(params, obs_history).reshape(1, -1)
        noise = jax.random.normal(key, (1, config.pred_horizon * act_dim))
        chunk = ddim_sample(denoiser, params["denoiser"], cond, noise, config.ddim_steps)
        prediction = chunk.reshape(config.pred_horizon, act_dim)
        return executed_part(prediction, config.obs_horizon, config.act_horizon), carry

    bundle = {"denoiser": params, "obs_mean": obs_mean, "obs_std": obs_std}
    return as_base_policy(bundle, apply, act_dim, (config.obs_horizon, config.act_horizon))


def make_trainable(config: DiffusionConfig, obs_dim: int, act_dim: int) -> TrainablePolicy:
    """Builds a diffusion policy of these sizes, ready to be trained."""
    denoiser = make_denoiser(obs_dim, act_dim, config)

    def init(key: Key, windows: Windows):
        del windows
        return {"denoiser": denoiser.init(key)}, {}

    def windows_loss(params: Params, windows: Windows, key: Key) -> Array:
        count = len(windows.obs)
        flat = windows.obs.reshape(count, -1), windows.actions.reshape(count, -1)
        return loss(denoiser, params["denoiser"], flat, key)

    def finish(params: Params) -> BasePolicy:
        return make_policy(
            config, act_dim, params["denoiser"], params["obs_mean"], params["obs_std"]
        )

    return TrainablePolicy(
        obs_horizon=config.obs_horizon,
        pred_horizon=config.pred_horizon,
        from_now=False,
        init=init,
        loss=windows_loss,
        decays=None,
        make_policy=finish,
    )
