"""The functions that an implementation of MJX provides; `mjx` and `warp` each build one.

Separate from both so that neither has to import the other.
"""

import contextlib
import io
from collections.abc import Callable
from typing import Any, NamedTuple

from pdjax_envs.physics.engine import Array

with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that Warp is not installed
    from mujoco import mjx


class Implementation(NamedTuple):
    """What differs between the implementations of MJX.

    Attributes:
      model: MJX's model of the scene.
      make_data: (model, number of environments) -> MJX's state of one environment.
      derive: (model, data) -> data with the derived fields at its qpos and qvel.
      overflow: data after a step -> () bool, whether contacts or constraints were left out.
      together: turns a function (number of environments, arguments of one) -> result into a
        function of the arguments of one environment.
    """

    model: mjx.Model
    make_data: Callable[[mjx.Model, int], mjx.Data]
    derive: Callable[[mjx.Model, mjx.Data], mjx.Data]
    overflow: Callable[[mjx.Data], Array]
    together: Callable[[Callable[..., Any]], Callable[..., Any]]
