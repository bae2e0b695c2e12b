"""Reads files of PyTorch weights as NumPy arrays, and fits them into parameter trees of pdjax.

Kept apart because every importer needs it. Neither kind of file runs code: `torch_files` reads the
pickles of .pt files as inert records. A torch layer is (out, in, ...), a pdjax layer (..., in,
out). This file is not pure: it reads files.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from pdjax.config.options import ConfigError
from pdjax.types import Params
from pdjax_envs.demonstrations import pickles, torch_files
from pdjax_envs.demonstrations.torch_files import Saved
from pdjax_envs.reading import InputError, check_fits, is_file, reason, short


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
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ConfigError(f"{self.path}: {key} holds NaN or infinity; use another checkpoint")
        return array

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
                f"{self.path} holds {short(left[0])}{more}, which this architecture does not use"
            )


def read_torch(path: Path) -> Saved:
    """Reads a `torch.save` file without torch, and without running any code that it may hold.

    Raises:
      ConfigError: the file is missing, or holds more than a dict of arrays.
    """
    if not is_file(path):
        raise ConfigError(f"no checkpoint at {short(str(path))}")
    name = short(str(path))
    advice = "so pdjax does not read it; write model.state_dict() with torch.save"
    try:
        saved = torch_files.load(path)
    except pickles.Forbidden as error:
        raise ConfigError(
            f"{name} holds {short(str(error))}, which could run code, {advice}"
        ) from None
    except InputError:
        raise
    except Exception as error:  # a damaged archive can raise many kinds
        raise ConfigError(f"{name} is not a torch.save file, {advice} ({reason(error)})") from None
    if not isinstance(saved.value, dict):
        raise ConfigError(
            f"{name} holds a {type(saved.value).__name__}, expected a dict of state dicts"
        )
    return saved


def from_torch(path: Path, saved: Saved, name: str) -> Weights:
    """Converts the tensors of the state dict `name` to arrays.

    Raises:
      ConfigError: the state dict holds something other than tensors.
    """
    state = saved.value[name]
    if not isinstance(state, dict):
        raise ConfigError(f"{path} holds a {type(state).__name__}, expected a state dict")
    arrays = {}
    for key, tensor in state.items():
        try:
            arrays[str(key)] = torch_files.array(tensor, saved.storages)
        except pickles.Damaged as error:
            raise ConfigError(
                f"{short(str(path))}: {short(str(key))} is no tensor that pdjax reads:"
                f" {reason(error)}"
            ) from None
    return _unwrapped(path, arrays)


def read_safetensors(path: Path) -> Weights:
    """Reads a .safetensors file, which cannot hold code.

    Raises:
      ConfigError: the file is missing or is not a safetensors file.
      InputError: it does not fit into memory.
    """
    name = short(str(path))
    if not is_file(path):
        raise ConfigError(f"no weights at {name}; give the folder that LeRobot saved, complete")
    check_fits(os.path.getsize(path), name)
    try:
        return _unwrapped(path, load_file(path))
    except InputError:
        raise
    except Exception as error:  # safetensors raises its own kind, and KeyError for unknown types
        raise ConfigError(
            f"{name} is not readable as safetensors ({reason(error)}); download it again, or save"
            " it in float32"
        ) from None


def _unwrapped(path: Path, arrays: dict[str, np.ndarray]) -> Weights:
    """Returns the arrays by the names that they had before torch wrapped their modules.

    `torch.compile` puts modules into `_orig_mod`, and training in parallel puts them into `module`.
    """
    wrapped = {key: re.sub(r"(?:^|(?<=\.))(?:_orig_mod|module)\.", "", key) for key in arrays}
    if len(set(wrapped.values())) < len(wrapped):
        raise ConfigError(f"{short(str(path))} holds arrays twice, with and without `module.`")
    return Weights(path, {wrapped[key]: array for key, array in arrays.items()})


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
