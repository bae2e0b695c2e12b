"""Takes a plain JAX function of observations into the jitted program as a policy without memory.

Kept apart from `assemble` because a function does not say whether it reads one environment or all
of them; this file finds out. Pure: it traces the function and plays nothing.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.base_policies.foreign.user_code import words
from pdjax.config.options import ConfigError
from pdjax.types import Array, Key

ADDRESS = re.compile(r"0x[0-9a-f]+")  # of a Python object; differs between two equal traces


class NotTraceableError(ConfigError):
    """JAX cannot trace the function, so it cannot be part of a jitted program."""


class TracedFunction(NamedTuple):
    """A function as `assemble.adapt` takes JAX policies.

    Attributes:
      init_carry: key -> (), since the function has no memory.
      apply: (params, carry, obs_history, key) -> (chunk, carry), for one environment.
      params: the arrays that the function closes over, such as its weights.
    """

    init_carry: Callable[[Key], Any]
    apply: Callable[..., tuple[Array, Any]]
    params: list[Any]


def trace(
    function: Callable[..., Any], obs_shape: tuple[int, int], chunk_shape: tuple[int, int]
) -> TracedFunction:
    """Traces a function once and freezes it, with copies of the arrays that it closes over.

    Args:
      function: JAX code, either of one environment, obs_history (obs_horizon, obs_dim) -> chunk
        (act_horizon, act_dim), or of all, obs_history (num_envs, obs_horizon, obs_dim) -> chunk
        (num_envs, act_horizon, act_dim). A chunk of one step may come without its act_horizon axis.
      obs_shape: (obs_horizon, obs_dim).
      chunk_shape: (act_horizon, act_dim).

    Raises:
      NotTraceableError: the function is not JAX code.
      ConfigError: the function returns other shapes, changes between two calls, or accepts both
        forms of observations with different results.
    """
    one = _Attempt(function, obs_shape, chunk_shape, ())
    every = _Attempt(function, obs_shape, chunk_shape, (1,))
    if not one.fits and not every.fits:
        if every.program is None:
            raise NotTraceableError(
                "JAX cannot trace the policy's function: on one observation history"
                f" {obs_shape}: {one.outcome}; on a batch {every.lead + obs_shape}: {every.outcome}"
            )
        raise ConfigError(
            f"the policy's function returns {one.outcome} for one observation history {obs_shape}"
            f" and {every.outcome} for a batch {every.lead + obs_shape}; expected a chunk"
            f" {chunk_shape} (act_horizon, act_dim), or {every.lead + chunk_shape} for the batch"
        )
    chosen = one if one.fits else every
    if not chosen.repeats():
        raise ConfigError(
            "two traces of the policy's function differ: it has memory or draws its own random"
            " numbers; write an object whose init_carry and apply keep memory in the carry and take"
            " randomness from the key"
        )
    history = jnp.asarray(np.random.default_rng(0).normal(size=obs_shape), jnp.float32)
    if one.fits and every.fits and not _agree(one, every, history):
        raise ConfigError(
            f"the policy's function takes one observation history {obs_shape} and also a batch of"
            " them, with different results, so pdjax cannot tell which it is written for; write an"
            " object with init_carry and apply, which is always for one environment"
        )
    return TracedFunction(lambda key: (), chosen.apply, list(chosen.program.consts))


class _Attempt:
    """A function traced on observation histories with the leading axes `lead`."""

    def __init__(self, function, obs_shape, chunk_shape, lead):
        self.function, self.chunk_shape, self.lead = function, chunk_shape, lead
        self.inputs = jax.ShapeDtypeStruct(lead + obs_shape, jnp.float32)
        self.program: Any = None
        try:
            self.program = self._trace()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whatever the user's code raises
            self.outcome = words(error)
            self.fits = False
            return
        shapes = [leaf.shape for leaf in self.program.out_avals]
        self.outcome = f"shape {shapes[0]}" if len(shapes) == 1 else f"{len(shapes)} arrays"
        wanted = [lead + chunk_shape]
        if chunk_shape[0] == 1:
            wanted.append(lead + chunk_shape[1:])
        self.fits = len(shapes) == 1 and shapes[0] in wanted

    def _trace(self):
        as_float = lambda obs_history: jax.tree.map(  # noqa: E731
            lambda chunk: jnp.asarray(chunk, jnp.float32), self.function(obs_history)
        )
        return jax.make_jaxpr(as_float)(self.inputs)

    def repeats(self) -> bool:
        """Returns whether a second trace gives the same program with the same constants."""
        again = self._trace()
        texts = [ADDRESS.sub("", str(program)) for program in (self.program, again)]
        same = [_same(*pair) for pair in zip(self.program.consts, again.consts, strict=False)]
        return texts[0] == texts[1] and all(same)

    def apply(self, params, carry, obs_history, key):
        """See `TracedFunction.apply`."""
        del key
        history = obs_history.reshape(self.inputs.shape)
        [chunk] = jax.core.eval_jaxpr(self.program.jaxpr, params, history)
        return chunk.reshape(self.chunk_shape), carry


def _same(one: Any, other: Any) -> bool:
    return one is other or np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True)


def _agree(one: _Attempt, other: _Attempt, history: Array) -> bool:
    chunks = [
        attempt.apply(attempt.program.consts, (), history, None)[0] for attempt in (one, other)
    ]
    return np.allclose(*chunks, atol=1e-4, rtol=1e-3, equal_nan=True)
