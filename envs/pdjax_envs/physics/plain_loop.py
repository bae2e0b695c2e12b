"""MuJoCo's own loop for one environment: what every engine is compared with.

Its state is MuJoCo's data.
"""

import copy
from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

from pdjax_envs.physics.engine import Scene, apply_overrides


class PlainLoop:
    """One environment in MuJoCo C, without JAX.

    Attributes:
      contacts: the largest number of contacts so far.
      constraints: the largest number of rows in the constraint solver so far.
    """

    def __init__(self, scene: Scene, overrides: Mapping[str, Any], qpos: Any, qvel: Any):
        """Starts an episode.

        Args:
          scene: the scene.
          overrides: model field -> (rows, ...) values of the episode.
          qpos: (nq,) positions, m and rad.
          qvel: (nv,) velocities, m/s and rad/s.
        """
        self._scene, self._model = scene, copy.copy(scene.model)
        apply_overrides(self._model, scene, overrides)
        self._data = mujoco.MjData(self._model)
        self._data.qpos[:], self._data.qvel[:] = qpos, qvel
        self.contacts = self.constraints = 0

    def step(self, ctrl: np.ndarray) -> np.ndarray:
        """Takes a control step with a task's ctrl (nu,); returns the positions (nq,)."""
        self._data.ctrl[:] = self._scene.scale_ctrl(np.asarray(ctrl, np.float64))
        for _ in range(self._scene.n_substeps):
            mujoco.mj_step(self._model, self._data)
            self.contacts = max(self.contacts, self._data.ncon)
            self.constraints = max(self.constraints, self._data.nefc)
        return self._data.qpos.copy()
