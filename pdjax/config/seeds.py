"""Seeds: which numbers are seeds, and how one seed follows from another.

A seed has 31 bits, so that Python, NumPy and JAX (without 64-bit integers) all take it as it is.
"""

SEEDS = 2**31
"""The number of seeds: 0 to 2**31 - 1."""


def shift_seed(seed: int, by: int) -> int:
    """Returns the seed `by` places after `seed`; seed 0 follows the last one.

    Two different shifts of one seed never meet, as long as they differ by less than `SEEDS`.
    """
    return (seed + by) % SEEDS
