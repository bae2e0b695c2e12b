"""Files of PyTorch weights as NumPy arrays, and how they become parameter trees of pdjax.

Kept apart because every importer needs both, and because this is where a pickle that could run
code is refused. A torch layer is (out, in, ...), one of pdjax (..., in, out). This file is not
pure: it reads files.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from pdjax.base_policies.foreign.sources import guard
from pdjax.config.schema import ConfigError
from pdjax.types import Params


class Weights(NamedTuple):
    """Arrays by the names that torch gave them.

    Attributes:
      path: file that they come from, for messages.
      arrays: what has not been taken yet.
    """

    path: Path
    arrays: dict[str, np.ndarray]

    def take(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """Removes an array and gives it.

        Args:
          key: its name.
          shape: that it must have.

        Raises:
          ConfigError: it is missing, has another shape, or holds NaN or infinity.
        """
        if key not in self.arrays:
            raise ConfigError(f"{self.path} lacks {key}; is it a checkpoint of this architecture?")
        array = self.arrays.pop(key)
        if array.shape != shape:
            raise ConfigError(f"{self.path}: {key} has shape {array.shape}, expected {shape}")
        if not np.isfinite(array).all():
            raise ConfigError(f"{self.path}: {key} holds NaN or infinity; take another checkpoint")
        return array.astype(np.float32)

    def shape_of(self, key: str, dimensions: int) -> tuple[int, ...]:
        """The shape of an array that stays.

        Raises:
          ConfigError: it is missing or has another number of dimensions.
        """
        if key not in self.arrays:
            raise ConfigError(f"{self.path} lacks {key}; is it a checkpoint of this architecture?")
        shape = self.arrays[key].shape
        if len(shape) != dimensions:
            raise ConfigError(
                f"{self.path}: {key} has shape {shape}, expected {dimensions} dimensions"
            )
        return shape

    def has(self, prefix: str) -> bool:
        """Whether a name begins so."""
        return any(name.startswith(prefix) for name in self.arrays)

    def finish(self) -> None:
        """Raises ConfigError where an array has not been taken."""
        if left := sorted(self.arrays):
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ConfigError(
                f"{self.path} holds {left[0]}{more}, which this architecture has no place for"
            )


def read_torch(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote, read without running any code that it may hold.

    Raises:
      ConfigError: no such file, more than arrays in it, or torch is not installed.
    """
    if not path.is_file():
        raise ConfigError(f"no checkpoint at {path}")
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            f"{path} needs torch, which is not installed; pip install 'pdjax[torch]'"
        ) from None

    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # many kinds, of which a pickle with more than arrays is one
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds {found[1]}, which could run code" if found else "is no file of torch.save"
        raise ConfigError(
            f"{path} {what} and is not read; save model.state_dict() by torch.save"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, expected a dict of state dicts")
    return values


def from_torch(path: Path, state: Any) -> Weights:
    """A state dict's tensors.

    Raises:
      ConfigError: something else is in it.
    """
    if not isinstance(state, dict):
        raise ConfigError(f"{path} holds a {type(state).__name__}, expected a state dict")
    arrays = {}
    for name, tensor in state.items():
        if not hasattr(tensor, "detach"):
            raise ConfigError(f"{path}: {name} is a {type(tensor).__name__}, expected a tensor")
        arrays[str(name)] = tensor.detach().float().numpy()
    return Weights(path, arrays)


def read_safetensors(path: Path) -> Weights:
    """A .safetensors file, which cannot hold code.

    Raises:
      ConfigError: no such file, or not of that form.
    """
    return Weights(path, guard(lambda: load_file(path), f"reading {path} as safetensors"))


def read_json(path: Path, wanted: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
      ConfigError: it cannot be read; `wanted` says what it should be.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"no usable {path}: expected {wanted}")
    return values


def fit(weights: Weights, like: Params, key_of: Callable[[tuple[str, ...]], str]) -> Params:
    """Puts every array into its place.

    Args:
      weights: all taken, at the end.
      like: parameters as `jax.ShapeDtypeStruct`.
      key_of: names on the way to a leaf of `like` -> torch's name of its layer, or of the array
        itself where the last name is not kernel, scale or bias.

    Raises:
      ConfigError: an array is missing, left over, or of another shape.
    """

    def place(path: Any, leaf: jax.ShapeDtypeStruct):
        names = tuple(str(entry.key) for entry in path)
        suffix = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}.get(names[-1], "")
        key = key_of(names) + suffix
        axes = _axes(names, leaf.ndim)
        shape = tuple(leaf.shape[axes.index(axis)] for axis in range(leaf.ndim))
        return jnp.asarray(weights.take(key, shape).transpose(axes))

    params = jax.tree_util.tree_map_with_path(place, like)
    weights.finish()
    return params


def _axes(names: tuple[str, ...], dimensions: int) -> tuple[int, ...]:
    """How torch's axes are to be ordered."""
    if names[-1] != "kernel":
        return tuple(range(dimensions))
    if "up" in names and names[-2] == "resample":
        return 2, 0, 1  # a transposed convolution is (in, out, taps) in torch
    return tuple(reversed(range(dimensions)))
