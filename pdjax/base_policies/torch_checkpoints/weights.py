"""Reads files of PyTorch weights as NumPy arrays, and fits them into parameter trees of pdjax.

Kept apart because every importer needs it, and because this file refuses pickles that could run
code. A torch layer is (out, in, ...), a pdjax layer (..., in, out). This file is not pure: it reads
files.
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

from pdjax.base_policies.foreign.user_code import guard
from pdjax.config.options import ConfigError
from pdjax.types import Params


class Weights(NamedTuple):
    """Arrays by their torch names.

    Attributes:
      path: the file that they come from, for messages.
      arrays: the arrays that have not been taken yet.
    """

    path: Path
    arrays: dict[str, np.ndarray]

    def take(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """Removes an array and returns it as float32.

        Args:
          key: the array's name.
          shape: the shape that it must have.

        Raises:
          ConfigError: the array is missing, has another shape, or holds NaN or infinity.
        """
        if key not in self.arrays:
            raise ConfigError(f"{self.path} lacks {key}; is it a checkpoint of this architecture?")
        array = self.arrays.pop(key)
        if array.shape != shape:
            raise ConfigError(f"{self.path}: {key} has shape {array.shape}, expected {shape}")
        if not np.isfinite(array).all():
            raise ConfigError(f"{self.path}: {key} holds NaN or infinity; use another checkpoint")
        return array.astype(np.float32)

    def shape_of(self, key: str, dimensions: int) -> tuple[int, ...]:
        """Returns the shape of an array without removing it.

        Raises:
          ConfigError: the array is missing or has another number of dimensions.
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
        """Returns whether any array's name starts with `prefix`."""
        return any(name.startswith(prefix) for name in self.arrays)

    def finish(self) -> None:
        """Raises ConfigError if an array has not been taken."""
        if left := sorted(self.arrays):
            more = f" and {len(left) - 1} more" if len(left) > 1 else ""
            raise ConfigError(
                f"{self.path} holds {left[0]}{more}, which this architecture does not use"
            )


def read_torch(path: Path) -> dict[str, Any]:
    """Reads a `torch.save` file without running any code that it may hold.

    Raises:
      ConfigError: the file is missing or holds more than arrays, or torch is not installed.
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
    except Exception as error:  # many types, one of them for pickles that hold more than arrays
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds {found[1]}, which could run code" if found else "is not a torch.save file"
        raise ConfigError(
            f"{path} {what}, so pdjax does not read it; write model.state_dict() with torch.save"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, expected a dict of state dicts")
    return values


def from_torch(path: Path, state: Any) -> Weights:
    """Converts the tensors of a state dict to NumPy.

    Raises:
      ConfigError: the state dict holds something other than tensors.
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
    """Reads a .safetensors file, which cannot hold code.

    Raises:
      ConfigError: the file is missing or is not a safetensors file.
    """
    return Weights(path, guard(lambda: load_file(path), f"reading {path} as safetensors"))


def read_json(path: Path, wanted: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: the file.
      wanted: what the file should be, for the error message.

    Raises:
      ConfigError: the file cannot be read or holds something else.
    """
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        values = None
    if not isinstance(values, dict):
        raise ConfigError(f"no usable {path}: expected {wanted}")
    return values


def fit(weights: Weights, like: Params, key_of: Callable[[tuple[str, ...]], str]) -> Params:
    """Builds a parameter tree of torch weights, and checks that every weight is used.

    Args:
      weights: the weights; all of them are removed.
      like: the parameter tree, with `jax.ShapeDtypeStruct` leaves.
      key_of: maps the path of a leaf in `like` to the torch name of its layer, or of the array
        itself if the path does not end in kernel, scale or bias.

    Returns:
      The parameters, with the structure of `like`.

    Raises:
      ConfigError: an array is missing, left over or has another shape.
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
    """Returns the order of torch's axes in pdjax."""
    if names[-1] != "kernel":
        return tuple(range(dimensions))
    if "up" in names and names[-2] == "resample":
        return 2, 0, 1  # a transposed convolution is (in, out, taps) in torch
    return tuple(reversed(range(dimensions)))
