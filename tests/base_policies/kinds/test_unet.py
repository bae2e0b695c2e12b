"""The U-Net: convolutions by their definition, the number of parameters, and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.base_policies.kinds import diffusion, unet
from pdjax.base_policies.settings import DiffusionConfig
from pdjax.config.options import ConfigError

PEG = {"denoiser": "unet", "pred_horizon": 16}  # 50 observed numbers, 7 of an action


def test_mish_by_its_definition():
    x = jnp.array([-30.0, -2.0, 0.0, 0.5, 19.0, 21.0, 200.0])
    expected = x * jnp.tanh(jax.nn.softplus(x))
    np.testing.assert_allclose(unet.mish(x), expected, rtol=2e-6, atol=1e-10)
    assert jnp.isfinite(jax.grad(lambda x: unet.mish(x).sum())(x)).all()


@pytest.mark.parametrize(
    ("taps", "stride", "length"), [(5, 1, 16), (5, 1, 4), (3, 2, 8), (1, 1, 4)]
)
def test_convolution_by_its_definition(taps, stride, length):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, length, 3)), rng.normal(size=(taps, 3, 4))
    expected = np.zeros((2, length // stride, 4))
    for place in range(length // stride):
        for tap in range(taps):
            source = stride * place + tap - taps // 2
            if 0 <= source < length:
                expected[:, place] += x[:, source] @ kernel[tap]
    found = unet.conv(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), stride)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_transposed_convolution_by_its_definition():
    # input i adds to four outputs from 2 i - 1 on; outputs beyond the ends are cut off
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 5, 3)), rng.normal(size=(4, 3, 4))
    expected = np.zeros((2, 10, 4))
    for place in range(5):
        for tap in range(4):
            target = 2 * place - 1 + tap
            if 0 <= target < 10:
                expected[:, target] += x[:, place] @ kernel[tap]
    found = unet.transposed_conv(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def count(config):
    denoiser = diffusion.make_denoiser(50, 7, config)
    shapes = jax.eval_shape(denoiser.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def parameters_by_hand(dims, cond_dim, scales, act_dim=7, kernel=5, step_dim=64):
    """Counts the parameters of real-stanford/diffusion_policy's conditional_unet1d.py by layer."""
    linear = lambda inward, outward: inward * outward + outward  # noqa: E731
    conv = lambda taps, inward, outward: taps * inward * outward + outward  # noqa: E731
    block = lambda inward, outward: conv(kernel, inward, outward) + 2 * outward  # noqa: E731

    def residual(inward, outward):
        film = linear(cond_dim + step_dim, outward * (2 if scales else 1))
        around = conv(1, inward, outward) if inward != outward else 0
        return block(inward, outward) + block(outward, outward) + film + around

    def pair(inward, outward):
        return residual(inward, outward) + residual(outward, outward)

    total = linear(step_dim, 4 * step_dim) + linear(4 * step_dim, step_dim)
    levels = list(zip((act_dim, *dims), dims, strict=False))
    total += sum(pair(*level) for level in levels) + pair(dims[-1], dims[-1])
    total += sum(conv(3, width, width) for width in dims[:-1])
    for inward, outward in reversed(levels[1:]):
        total += pair(2 * outward, inward) + conv(4, inward, inward)
    return total + block(dims[0], dims[0]) + conv(1, dims[0], act_dim)


@pytest.mark.parametrize("scales", [True, False])
def test_parameters_are_counted_by_hand(scales):
    expected = parameters_by_hand((64, 128, 256), 100, scales)
    assert count(DiffusionConfig(**PEG, unet_scale=scales)) == expected


def test_its_size_is_the_reference_s():
    # policy_decorator offline/diffusion_policy_unet_maniskill2.py: about 4.45 M on PegInsertionSide
    assert count(DiffusionConfig(**PEG)) == pytest.approx(4.45e6, rel=0.01)


@functools.cache
def small():
    config = DiffusionConfig(denoiser="unet", pred_horizon=8, unet_dims=(8, 16), unet_groups=4)
    denoiser = diffusion.make_denoiser(3, 2, config)
    shapes = jax.eval_shape(denoiser.init, jax.random.key(0))
    rng = np.random.default_rng(0)  # compiles nothing
    params = jax.tree.map(lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), s.dtype), shapes)
    return denoiser._replace(apply=jax.jit(denoiser.apply)), params


def test_it_reads_noise_level_and_observations(key):
    denoiser, params = small()
    noisy, cond = jax.random.normal(key, (2, 16)), jnp.ones((2, 6))
    out = denoiser.apply(params, noisy, jnp.array([3, 3]), cond)
    assert out.shape == (2, 16)
    assert not jnp.allclose(out, denoiser.apply(params, noisy, jnp.array([9, 9]), cond))
    assert not jnp.allclose(out, denoiser.apply(params, noisy, jnp.array([3, 3]), 2 * cond))


def test_one_of_many_is_as_alone(key):
    denoiser, params = small()
    noisy = jax.random.normal(key, (4, 16))
    step, cond = jnp.arange(4), jnp.linspace(-1, 1, 24).reshape(4, 6)
    together = denoiser.apply(params, noisy, step, cond)
    alone = jax.jit(jax.vmap(lambda n, s, c: denoiser.apply(params, n[None], s[None], c[None])[0]))
    np.testing.assert_allclose(together, alone(noisy, step, cond), atol=1e-5)


def test_over_environments_weights_stay_one_matrix():
    # a product with the environments as a batch axis would not reuse the weights
    denoiser, params = small()

    def one(noisy, cond):
        return denoiser.apply(params, noisy[None], jnp.zeros(1), cond[None])[0]

    jaxpr = jax.make_jaxpr(jax.vmap(one))(jnp.ones((4, 16)), jnp.ones((4, 6)))
    products = [e for e in _equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
    assert len(products) > 20
    assert all(e.params["dimension_numbers"][1] == ((), ()) for e in products)
    assert not [
        e
        for e in _equations(jaxpr.jaxpr)
        if "conv" in e.primitive.name and e.primitive.name != "convert_element_type"
    ]


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred_horizon": 10}, r"pred_horizon got 10, expected a multiple of 4"),
        ({"unet_groups": 12}, r"unet_dims got 64, expected a multiple of 12"),
        ({"unet_kernel": 4}, r"unet_kernel .* odd"),
        ({"unet_step_dim": 5}, r"unet_step_dim got 5"),
        ({"unet_dims": ()}, r"unet_dims got \(\), expected"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        DiffusionConfig(**(PEG | change)).validate()
