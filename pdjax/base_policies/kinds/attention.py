"""Multi-head attention and dropout, shared by the transformers of this folder. Holds no state."""

import jax
import jax.numpy as jnp
from flax import nnx

from pdjax.types import Array, Key


class Keys:
    """Keys for the dropout layers of one pass, in order; without one, nothing is dropped."""

    def __init__(self, key: Key | None, rate: float):
        self._key, self._rate, self._used = key, rate, 0

    def drop(self, x: Array) -> Array:
        """Zeroes a share `rate` of x and scales the rest up, so that the mean stays."""
        if self._key is None or self._rate == 0:
            return x
        self._used += 1
        kept = jax.random.bernoulli(
            jax.random.fold_in(self._key, self._used), 1 - self._rate, x.shape
        )
        return jnp.where(kept, x / (1 - self._rate), 0)


def attend(query: Array, key: Array, value: Array, heads: int, causal: bool, keys: Keys) -> Array:
    """softmax(q k^T / sqrt(width / heads)) v, head by head.

    Args:
      query: (..., n, width).
      key: (..., m, width).
      value: same.
      heads: parts of the width that attend apart.
      causal: whether token i sees tokens up to i only.
      keys: of the dropout on the attention.

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
    """Projections around `attend`.

    Args:
      width: numbers in a token.
      heads: must divide it.
      kernel_init: of the projections.
      rngs: of the initialisation.
    """

    def __init__(self, width: int, heads: int, kernel_init, rngs: nnx.Rngs):
        self.heads = heads

        def linear() -> nnx.Linear:
            return nnx.Linear(width, width, kernel_init=kernel_init, rngs=rngs)

        self.query, self.key, self.value, self.out = linear(), linear(), linear(), linear()

    def __call__(self, query: Array, key: Array, value: Array, keys: Keys) -> Array:
        """Tokens (..., n, width) that looked at (..., m, width)."""
        mixed = attend(self.query(query), self.key(key), self.value(value), self.heads, False, keys)
        return self.out(mixed)
