"""The conditional 1-D U-Net of Diffusion Policy, with convolutions computed as matrix products.

It has the same layers as the network of real-stanford/diffusion_policy, conditional_unet1d.py, and
as policy_decorator's copy, so that their weights fit. A kernel here is (taps, in, out); theirs is
(out, in, taps), or (in, out, taps) in a transposed convolution.

On a CPU, XLA's convolution runs at 2-3 GFLOP/s for 256 channels or more; shifted copies and one
matrix product run at 170-240 GFLOP/s, close to any matrix product, in training as well (jax 0.10.2,
2 cores). Under vmap the weights stay one matrix, and environments become its rows.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pdjax.base_policies.settings import DiffusionConfig
from pdjax.types import Array


def mish(x: Array) -> Array:
    """Computes x tanh(log(1 + e^x)) with one exponential.

    With e = e^x, the tanh is e(e + 2) / (e(e + 2) + 2).
    """
    e = jnp.exp(jnp.minimum(x, 20.0))  # above 20, the tanh is 1 in float32
    ratio = e * (e + 2)
    return x * (ratio / (ratio + 2))


def conv(x: Array, kernel: Array, stride: int = 1) -> Array:
    """Convolves (n, length, in) with a kernel (taps, in, out), as torch's Conv1d with zero padding
    of taps // 2."""
    taps, length = len(kernel), x.shape[1]
    padded = jnp.pad(x, ((0, 0), (taps // 2, taps // 2), (0, 0)))
    shifted = [padded[:, tap : tap + length : stride] for tap in range(taps)]
    columns = jnp.concatenate(shifted, axis=-1)  # (n, length / stride, taps * in)
    return columns @ kernel.reshape(-1, kernel.shape[-1])


def transposed_conv(x: Array, kernel: Array) -> Array:
    """Doubles the length of (n, length, in) with a kernel (4, in, out): ConvTranspose1d(4, 2, 1).

    y[2i - 1 + tap] sums x[i] kernel[tap], so even positions use taps 1 and 3, odd ones 2 and 0.
    """
    count, length, _ = x.shape
    before = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))
    after = jnp.pad(x[:, 1:], ((0, 0), (0, 1), (0, 0)))
    columns = jnp.concatenate([before, x, after], axis=-1)  # (n, length, 3 in)
    zero = jnp.zeros_like(kernel[0])
    even = jnp.concatenate([kernel[3], kernel[1], zero])
    odd = jnp.concatenate([zero, kernel[2], kernel[0]])
    y = columns @ jnp.concatenate([even, odd], axis=-1)  # (n, length, 2 out)
    return y.reshape(count, 2 * length, -1)


class UNet(nnx.Module):
    """Predicts a chunk from a noisy chunk, its noise level and the observations.

    Args:
      act_dim: numbers in one action.
      cond_dim: numbers in the flattened observation history.
      config: supplies the `unet_*` settings.
      rngs: random keys of the initialisation, which is that of torch.
    """

    def __init__(self, act_dim: int, cond_dim: int, config: DiffusionConfig, rngs: nnx.Rngs):
        self.act_dim, self.step_dim = act_dim, config.unet_step_dim
        self.step_in = _linear(self.step_dim, 4 * self.step_dim, rngs)
        self.step_out = _linear(4 * self.step_dim, self.step_dim, rngs)
        cond_dim += self.step_dim
        dims = (act_dim, *config.unet_dims)

        def level(inward: int, outward: int, resample: nnx.Module | None):
            first = _Residual(inward, outward, cond_dim, config, rngs)
            second = _Residual(outward, outward, cond_dim, config, rngs)
            return _Level(first, second, resample)

        last = len(dims) - 2
        self.down = nnx.List(
            level(
                dims[i],
                dims[i + 1],
                _Conv(3, dims[i + 1], dims[i + 1], rngs, stride=2) if i < last else None,
            )
            for i in range(last + 1)
        )
        self.middle = level(dims[-1], dims[-1], None)
        self.up = nnx.List(
            level(2 * dims[i + 1], dims[i], _Up(dims[i], rngs)) for i in range(last, 0, -1)
        )
        self.final_block = _Block(dims[1], dims[1], config, rngs, config.unet_final_groups)
        self.final = _Conv(1, dims[1], act_dim, rngs)

    def __call__(self, noisy: Array, step: Array, cond: Array) -> Array:
        """Maps (n, pred_horizon * act_dim), (n,), (n, cond_dim) to (n, pred_horizon * act_dim)."""
        embedding = self.step_out(mish(self.step_in(_positions(step, self.step_dim))))
        condition = mish(jnp.concatenate([embedding, cond], axis=-1))
        x = noisy.reshape(len(noisy), -1, self.act_dim)
        kept = []
        for index, level in enumerate(self.down):
            x = level.blocks(x, condition)
            kept.append(x)
            if index < len(self.down) - 1:
                x = level.resample(x)
        x = self.middle.blocks(x, condition)
        for level in self.up:
            x = level.blocks(jnp.concatenate([x, kept.pop()], axis=-1), condition)
            x = level.resample(x)
        return self.final(self.final_block(x)).reshape(noisy.shape)


class _Level(nnx.Module):
    """Two residual blocks and, optionally, a layer that changes the length."""

    def __init__(self, first, second, resample):
        self.first, self.second = first, second
        if resample is not None:
            self.resample = resample

    def blocks(self, x: Array, condition: Array) -> Array:
        return self.second(self.first(x, condition), condition)


class _Residual(nnx.Module):
    """Two convolution blocks with a skip connection; the condition scales and shifts in between."""

    def __init__(self, inward: int, outward: int, cond_dim: int, config: DiffusionConfig, rngs):
        self.outward, self.scales = outward, config.unet_scale
        self.first = _Block(inward, outward, config, rngs)
        self.second = _Block(outward, outward, config, rngs)
        self.film = _linear(cond_dim, outward * (2 if self.scales else 1), rngs)
        if inward != outward:
            self.around = _Conv(1, inward, outward, rngs)

    def __call__(self, x: Array, condition: Array) -> Array:
        film = self.film(condition)[:, None]  # (n, 1, outward or 2 outward), scale first
        y = self.first(x)
        y = y * film[..., : self.outward] + film[..., self.outward :] if self.scales else y + film
        y = self.second(y)
        return y + (self.around(x) if hasattr(self, "around") else x)


class _Block(nnx.Module):
    """A convolution, a group normalisation and mish."""

    def __init__(
        self, inward: int, outward: int, config: DiffusionConfig, rngs: nnx.Rngs, groups: int = 0
    ):
        self.conv = _Conv(config.unet_kernel, inward, outward, rngs)
        groups = groups or config.unet_groups
        self.norm = nnx.GroupNorm(outward, groups, epsilon=1e-5, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return mish(self.norm(self.conv(x)))


class _Conv(nnx.Module):
    def __init__(self, taps: int, inward: int, outward: int, rngs: nnx.Rngs, stride: int = 1):
        self.stride = stride
        self.kernel = nnx.Param(_uniform(rngs.params(), (taps, inward, outward), taps * inward))
        self.bias = nnx.Param(_uniform(rngs.params(), (outward,), taps * inward))

    def __call__(self, x: Array) -> Array:
        return conv(x, self.kernel[...], self.stride) + self.bias[...]


class _Up(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        # torch uses the outputs of a transposed convolution as its fan-in
        self.kernel = nnx.Param(_uniform(rngs.params(), (4, width, width), 4 * width))
        self.bias = nnx.Param(_uniform(rngs.params(), (width,), 4 * width))

    def __call__(self, x: Array) -> Array:
        return transposed_conv(x, self.kernel[...]) + self.bias[...]


def _linear(inward: int, outward: int, rngs: nnx.Rngs) -> nnx.Linear:
    def start(key, shape, dtype):
        return _uniform(key, shape, inward).astype(dtype)

    return nnx.Linear(inward, outward, kernel_init=start, bias_init=start, rngs=rngs)


def _uniform(key: Array, shape: tuple[int, ...], fan_in: int) -> Array:
    """Initialises as torch's linear and convolutional layers: uniform within 1 / sqrt(fan_in)."""
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _positions(step: Array, size: int) -> Array:
    """Returns (n, size): sines, then cosines, at frequencies from 1 down to 1 / 10,000."""
    half = size // 2
    frequency = jnp.exp(-np.log(10_000.0) * jnp.arange(half) / (half - 1))
    phase = step[:, None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)
