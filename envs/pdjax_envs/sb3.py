"""pdjax's environments for Stable-Baselines3 and SBX: many instances as one `VecEnv`.

Separate from `gymnasium` because it alone needs Stable-Baselines3, whose vector environments have
an interface of their own.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv, VecMonitor  # pyright: ignore[reportMissingImports]

from pdjax_envs.gymnasium import make_vec
from pdjax_envs.vector_env import VectorEnv


class StableVecEnv(VecEnv):
    """A `VectorEnv` with same-step autoreset behind the interface of Stable-Baselines3.

    Each environment's info holds `success`, `bad_action`, `is_success` (for its log) and
    `TimeLimit.truncated`, and at the end of an episode `terminal_observation`.
    """

    def __init__(self, vector: VectorEnv):
        """Wraps `vector`.

        Raises:
          ValueError: its autoreset is not same-step.
        """
        if vector.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:
            raise ValueError("Stable-Baselines3 needs a VectorEnv with autoreset_mode='SameStep'")
        self.vector = vector
        self._actions: Any = None
        super().__init__(
            vector.num_envs, vector.single_observation_space, vector.single_action_space
        )
        self.metadata |= {"render_fps": vector.metadata["render_fps"]}

    def reset(self) -> np.ndarray:
        """Starts a new episode in every environment; returns (num_envs, obs_dim) float32.

        Raises:
          ValueError: `set_options` gave options, which no environment here has.
        """
        options = {name: value for one in self._options for name, value in one.items()}
        obs, _ = self.vector.reset(seed=list(self._seeds), options=options)
        self._reset_seeds()  # seeds and options hold for one reset
        self._reset_options()
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions (num_envs, act_dim) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Plays one control step in each environment.

        Returns:
          Observations (num_envs, obs_dim) float32, of a new episode where one has ended; rewards
          float32 and dones bool, each (num_envs,); the infos, see the class.
        """
        obs, rewards, terminated, truncated, info = self.vector.step(self._actions)
        dones = terminated | truncated
        infos: list[dict[str, Any]] = []
        for i in range(self.num_envs):
            last = info["final_info"] if dones[i] else info
            success = bool(last["success"][i])
            infos.append(
                {
                    "success": success,
                    "bad_action": bool(last["bad_action"][i]),
                    "is_success": success,
                    "TimeLimit.truncated": bool(truncated[i] and not terminated[i]),
                }
            )
            if dones[i]:
                infos[i]["terminal_observation"] = info["final_obs"][i]
        return obs, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Frees what drawing took; closing again changes nothing."""
        self.vector.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Returns a picture of each environment, (height, width, 3) uint8."""
        return self.vector.render() or [None] * self.num_envs

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Returns an attribute, which all environments share, once for each index."""
        return [getattr(self.vector, attr_name) for _ in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Raises AttributeError: the environments are one program, and have no attributes."""
        del value, indices
        raise AttributeError(f"cannot set {attr_name!r} of environments that are one program")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Raises AttributeError: the environments are one program, and have no methods."""
        del method_args, indices, method_kwargs
        raise AttributeError(f"cannot call {method_name!r} of environments that are one program")

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper], indices: Any = None
    ) -> list[bool]:
        """Returns False for each index."""
        del wrapper_class
        return [False for _ in self._chosen(indices)]

    def _chosen(self, indices: Any) -> Iterable[int]:
        return self._get_indices(indices)


def make(name: str, num_envs: int = 1, **options: Any) -> VecEnv:
    """Builds many instances of a task for Stable-Baselines3, with its log of episodes.

    Args:
      name: the task.
      num_envs: number of instances.
      **options: see `gymnasium.make_vec`; `autoreset_mode` is not among them.

    Raises:
      registry.UnknownName, ValueError, RuntimeError: see `gymnasium.make_vec`.
    """
    vector = make_vec(name, num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **options)
    return VecMonitor(StableVecEnv(vector))
