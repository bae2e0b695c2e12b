"""Multi-head attention and dropout, which the transformers of this folder share."""

import jax
import jax.numpy as jnp
from flax import nnx

from pdjax.types import Array, Key


class Keys:
    """Supplies the dropout layers of one pass with random keys, in order.

    Args:
      key: the pass's random key; None = no dropout.
      rate: share of numbers that dropout zeroes.
    """

    def __init__(self, key: Key | None, rate: float):
        self._key, self._rate, self._used = key, rate, 0

    def drop(self, x: Array) -> Array:
        """Zeroes a share `rate` of x and scales the rest up, so that the mean stays the same."""
        if self._key is None or self._rate == 0:
            return x
        self._used += 1
        kept = jax.random.bernoulli(
            jax.random.fold_in(self._key, self._used), 1 - self._rate, x.shape
        )
        return jnp.where(kept, x / (1 - self._rate), 0)


def attend(query: Array, key: Array, value: Array, heads: int, causal: bool, keys: Keys) -> Array:
    """Computes softmax(q k^T / sqrt(width / heads)) v for each head.

    Args:
      query: (..., n, width).
      key: (..., m, width).
      value: (..., m, width).
      heads: number of equal parts of the width that attend separately.
      causal: whether token i only sees tokens up to i.
      keys: random keys of the dropout on the attention weights.

    Returns:
      (..., n, width).
    """
    query, key, value = (x.reshape(*x.shape[:-1], heads, -1) for x in (query, key, value))
    scores = jnp.einsum("...nhd,...mhd->...hnm", query, key) / query.shape[-1] ** 0.5
    if causal:
        visible = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        scores = jnp.where(visible, scores, -jnp.inf)
    weights = keys.drop(jax.nn.softmax(scores, axis=-1))
    mixed = jnp.einsum("...hnm,...mhd->...nhd", weights, value)
    return mixed.reshape(*mixed.shape[:-2], -1)


class Attention(nnx.Module):
    """Multi-head attention with projections of its inputs and its output.

    Args:
      width: numbers in a token.
      heads: number of heads; must divide width.
      kernel_init: initialiser of the projections' weights.
      rngs: random keys of the initialisation.
    """

    def __init__(self, width: int, heads: int, kernel_init, rngs: nnx.Rngs):
        self.heads = heads

        def linear() -> nnx.Linear:
            return nnx.Linear(width, width, kernel_init=kernel_init, rngs=rngs)

        self.query, self.key, self.value, self.out = linear(), linear(), linear(), linear()

    def __call__(self, query: Array, key: Array, value: Array, keys: Keys) -> Array:
        """Returns (..., n, width): the tokens `query` after attending to (..., m, width)."""
        mixed = attend(self.query(query), self.key(key), self.value(value), self.heads, False, keys)
        return self.out(mixed)
