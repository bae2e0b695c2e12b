"""What an implementation of MJX provides; `mjx` and `warp` each build one.

Kept apart so that neither of them imports the other for it.
"""

import contextlib
import io
from collections.abc import Callable
from typing import Any, NamedTuple

from pdjax_envs.physics.engine import Array

with contextlib.redirect_stdout(io.StringIO()):  # prints that the optional Warp is not installed
    from mujoco import mjx


class Implementation(NamedTuple):
    """What differs between MJX's implementations.

    Attributes:
      model: MJX's model of the scene.
      make_data: (model, number of environments) -> MJX's state of one of them.
      derive: (model, data) -> data with derived fields at its qpos and qvel.
      overflow: data after a step -> () bool, whether contacts or constraints were left out.
      together: (number of environments, arguments of one) -> result, as a function of the
        arguments of one environment alone.
    """

    model: mjx.Model
    make_data: Callable[[mjx.Model, int], mjx.Data]
    derive: Callable[[mjx.Model, mjx.Data], mjx.Data]
    overflow: Callable[[mjx.Data], Array]
    together: Callable[[Callable[..., Any]], Callable[..., Any]]
