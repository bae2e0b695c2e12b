"""Our port of a task, from starts of the original simulator; runs in a worker.

Seeded like the original, it begins where the original begins, so both play the same episodes.
"""

from typing import Any

import gymnasium
import jax
import numpy as np

from pdjax_envs import registry


class Port(gymnasium.Env):
    """Our task from given starts.

    Args:
      name: name of the task.
      starts: NPZ with `seed` (starts,) and each part of `Task.get_state` (starts, ...).
    """

    def __init__(self, name: str, starts: str):
        self._env = registry.make(name, "native")
        states = dict(np.load(starts))
        self._seeds = states.pop("seed").tolist()
        self._states = states
        self._begin = jax.jit(self._env.start_from)
        self._step = jax.jit(self._env.step)
        task = self._env.task
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (task.obs_dim,))
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (task.act_dim,))

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins at the start of this seed; any other seed begins at the first start."""
        super().reset(seed=seed)
        row = self._seeds.index(seed) if seed in self._seeds else 0
        start = self._env.task.make_start({k: v[row] for k, v in self._states.items()})
        self._state, obs = self._begin(self._env.model, start)
        return np.asarray(obs), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Plays one control step."""
        self._state, out = self._step(self._env.model, self._state, np.float32(action))
        ends = bool(out.terminated), bool(out.truncated)
        return np.asarray(out.obs), float(out.reward), *ends, {"success": bool(out.success)}


def make_env(name: str, starts: str) -> gymnasium.Env:
    """Returns our task from given starts, see `Port`."""
    task = registry.make_task(name)
    return gymnasium.wrappers.TimeLimit(Port(name, starts), task.episode_steps)
