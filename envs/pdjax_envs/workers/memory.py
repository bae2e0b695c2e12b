"""Arrays that a pool shares with its workers, in a file that has no name any more.

Separate from `process`, because all workers of a pool write into the same arrays, each into rows
of its own. `multiprocessing.shared_memory` will not do: its tracker of resources removes what
another interpreter still uses. Not pure: an object here owns a file.
"""

import contextlib
import math
import mmap
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pdjax_envs.reading import InputError, reason

IN_MEMORY = Path("/dev/shm")
LEAST_FREE = 64 << 20  # bytes free there, below which a file on a disk is used
ALIGNMENT = 64  # bytes

Layout = dict[str, tuple[int, tuple[int, ...], str]]  # name -> offset in bytes, shape, dtype


class Played(NamedTuple):
    """One decision of all environments; leaves are (num_envs, chunk, ...).

    Attributes:
      obs: (num_envs, chunk, obs_dim) float32, after each control step. What was not executed
        repeats the one before, so `obs[:, -1]` is always the newest. An environment that began an
        episode has its first observation everywhere.
      reward: float32; 0 where nothing was executed.
      terminated, truncated: bool, the episode ended with this control step. An episode that a
        worker lost is truncated at 0, with `executed` False and the last good observation.
      success: bool, the task is solved after this control step.
      executed: bool, the control step was played: the episode had begun before, and not ended.
    """

    obs: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    success: np.ndarray
    executed: np.ndarray


class Memory:
    """A nameless file and the arrays in it.

    Attributes:
      file: its descriptor, which workers inherit.
      layout, size: where the arrays lie, and the bytes of all, after `share`.
      arrays: the arrays.
    """

    def __init__(self):
        self.layout: Layout = {}
        self.size = 0
        self.arrays: dict[str, np.ndarray] = {}
        folder = None
        with contextlib.suppress(OSError):
            free = os.statvfs(IN_MEMORY)
            if free.f_bavail * free.f_frsize >= LEAST_FREE and os.access(IN_MEMORY, os.W_OK):
                folder = IN_MEMORY
        self.file, name = tempfile.mkstemp(prefix="pdjax-", dir=folder)
        os.unlink(name)

    def share(self, arrays: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
        """Makes the arrays, all zero.

        Args:
          arrays: name -> shape, dtype.

        Raises:
          InputError: there is no room for them.
        """
        for name, (shape, dtype) in arrays.items():
            self.layout[name] = (self.size, shape, dtype)
            size = math.prod(shape) * np.dtype(dtype).itemsize
            self.size += -(-size // ALIGNMENT) * ALIGNMENT
        try:
            if hasattr(os, "posix_fallocate"):  # else a full file system would kill both sides
                os.posix_fallocate(self.file, 0, self.size)
            else:
                os.ftruncate(self.file, self.size)
            shared = mmap.mmap(self.file, self.size)
        except OSError as error:
            raise InputError(
                f"no room for {self.size:,} bytes shared with workers: {reason(error)}; make room"
                f" in {IN_MEMORY} or in {tempfile.gettempdir()}"
            ) from None
        self.arrays = {
            name: np.ndarray(shape, dtype, shared, offset)
            for name, (offset, shape, dtype) in self.layout.items()
        }

    def write_standstill(self, rows: slice, obs: np.ndarray) -> None:
        """Writes into some environments' answers that nothing was executed.

        Args:
          rows: the environments.
          obs: (environments, obs_dim), the observation that they show all the time.
        """
        if self.arrays:
            self.arrays["obs"][rows] = obs[:, None]
            self.arrays["reward"][rows] = self.arrays["flags"][rows] = 0

    def read_picture(self, shape: Iterable[int]) -> np.ndarray:
        """Returns the picture (H, W, 3) uint8 that a worker wrote behind the arrays."""
        shape = tuple(shape)
        pixels = os.pread(self.file, math.prod(shape), self.size)
        return np.frombuffer(pixels, np.uint8).reshape(shape).copy()

    def close(self) -> None:
        """Frees all; does nothing the second time."""
        if self.file >= 0:
            os.close(self.file)
        self.file, self.arrays = -1, {}


def shapes(
    num_envs: int, chunk: int, obs_dim: int, act_dim: int, act_dtype: str
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns shape and dtype of what is shared; the flags are those of `Played`, in its order."""
    return {
        "actions": ((num_envs, chunk, act_dim), act_dtype),  # within the environments' bounds
        "obs": ((num_envs, chunk, obs_dim), "<f4"),
        "reward": ((num_envs, chunk), "<f4"),
        "flags": ((num_envs, chunk, 4), "?"),
    }
