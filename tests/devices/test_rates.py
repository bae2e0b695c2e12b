"""Operations counted by hand, and rates that a machine can have."""

import jax
import jax.numpy as jnp
import pytest

from pdjax.devices import rates

WEIGHT = jnp.ones((5, 7))


def layer(x):
    return jnp.tanh(x @ WEIGHT) @ WEIGHT.T


PRODUCT = 2 * 3 * 5 * 7  # of (3, 5) and (5, 7)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x + 1, 0),
        (layer, 2 * PRODUCT),
        (jax.jit(layer), 2 * PRODUCT),
        (lambda x: jax.lax.scan(lambda c, _: (layer(c), None), x, length=11), 22 * PRODUCT),
        (lambda x: jax.lax.cond(x[0, 0] > 0, layer, lambda x: x, x), 2 * PRODUCT),
        (lambda x: jax.vmap(lambda row: row @ WEIGHT)(x), PRODUCT),
        # forward twice (both products), backward to x twice; the weights are constants
        (jax.grad(lambda x: layer(x).sum()), 4 * PRODUCT),
    ],
)
def test_operations_are_those_of_the_products(function, expected):
    assert rates.count_flops(function, jnp.ones((3, 5))) == expected


def test_a_convolution_is_a_product_for_each_place():
    def convolve(x):  # (batch 2, length 9, 4 channels) by (3, 4, 6): 7 places
        dims = ("NWC", "WIO", "NWC")
        return jax.lax.conv_general_dilated(
            x, jnp.ones((3, 4, 6)), (1,), "VALID", dimension_numbers=dims
        )

    assert rates.count_flops(convolve, jnp.ones((2, 9, 4))) == 2 * (2 * 7 * 6) * (3 * 4)


def test_where_nothing_repeats_xla_counts_the_same():
    x, weight = jnp.ones((64, 128)), jnp.ones((128, 256))
    product = jax.jit(jnp.matmul)
    analysis = product.lower(x, weight).compile().cost_analysis()
    assert analysis is not None
    counted = analysis["flops"]
    assert rates.count_flops(product, x, weight) == pytest.approx(counted, rel=1e-3)


def test_a_machine_has_rates():
    machine = rates.measure()
    assert 1e8 < machine.flops < 1e16
    assert 1e8 < machine.bytes < 1e14
