"""Measures a machine's peak rates, and counts the operations of a program.

XLA's cost analysis counts the body of a loop once, no matter how often it runs. So operations are
counted on the jaxpr, where a scan states its length: the multiplications and additions of matrix
products and convolutions, which are nearly all operations of a network.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

SIZE = 1024  # of the square matrices
MEGABYTES = 64  # of the array that is read and written, beyond caches
TURNS = 10


class Machine(NamedTuple):
    """The highest rates that plain XLA programs in float32 reached on this machine.

    Attributes:
      flops: floating-point operations per second in a product of two 1,024 x 1,024 matrices.
      bytes: bytes per second, read and written, in x + 1 over 64 MiB. One program repeats it, so
        that allocating fresh memory for each result does not count.
    """

    flops: float
    bytes: float


def measure() -> Machine:
    """Measures both rates, each the best of several turns; takes about a second."""
    multiply, matrices, flops = product()
    array = jnp.zeros(MEGABYTES * 2**18)
    again = jax.jit(lambda x: jax.lax.fori_loop(0, TURNS, lambda _, x: x + 1, x))
    return Machine(
        flops / _best(multiply, *matrices), 2 * array.nbytes * TURNS / _best(again, array)
    )


def product() -> tuple[Callable[..., Any], Any, int]:
    """Returns a float32 product of two square matrices as (function, arguments, operations)."""
    matrices = jax.random.normal(jax.random.key(0), (2, SIZE, SIZE))
    return jax.jit(jnp.matmul), matrices, 2 * SIZE**3


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Calls a function; returns the seconds until its result is ready, and the result."""
    began = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - began, result


def _best(function: Callable[..., Any], *arguments: Any) -> float:
    timed(function, *arguments)  # compiles
    return min(timed(function, *arguments)[0] for _ in range(TURNS))


def count_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Counts the operations of matrix products and convolutions in one call.

    Counts the most expensive branch of a `cond`, and the body of a `while_loop` once.
    """
    return _count(jax.make_jaxpr(function)(*arguments))


def _count(jaxpr: Any) -> float:
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)  # closed or not
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        inner = [_count(part) for value in parameters.values() for part in _jaxprs(value)]
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * kernel.size / features
        elif name == "cond":
            total += max(inner, default=0)
        else:
            total += parameters.get("length", 1) * sum(inner) if name == "scan" else sum(inner)
    return total


def _jaxprs(value: Any) -> list[Any]:
    """Returns the jaxprs in a parameter of an equation."""
    values = value if isinstance(value, tuple | list) else [value]
    return [value for value in values if hasattr(getattr(value, "jaxpr", value), "eqns")]
