"""Flax modules as pure functions of explicit parameters."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from pdjax.types import Key, Params


def functional(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Any, Callable[[Key], Params]]:
    """Splits a module into its static graph and its parameters.

    Args:
      build: makes the module from Flax's random streams.

    Returns:
      graph: the static graph; `nnx.merge(graph, params)` is the module.
      init: key -> params, a plain dict of arrays.
    """

    def init(key: Key) -> Params:
        return nnx.to_pure_dict(nnx.split(build(nnx.Rngs(params=key)))[1])

    graph, _ = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(params=jax.random.key(0)))))
    return graph, init


def is_finite(params: Params) -> bool:
    """Returns whether all parameters are finite; reads them on the host."""
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(jax.device_get(params)))
