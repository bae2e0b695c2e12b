"""pdjax's environments for Gymnasium: one jitted program steps them all; NumPy goes in and out.

Importing this module registers every task with Gymnasium, and `gymnasium.make_vec(
"pdjax_envs.gymnasium:pdjax/AdroitDoor-v0", 64)` imports it. It is separate from the environments
because those are pure functions, while Gymnasium's objects have state.
"""

import dataclasses
import warnings
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from pdjax_envs import forks, registry
from pdjax_envs.drawing import HEIGHT, WIDTH
from pdjax_envs.reading import reason
from pdjax_envs.task import Env
from pdjax_envs.vector_env import RENDER_MODES, VectorEnv

NAMESPACE = "pdjax"
NO_LIMIT = 2**31 - 1  # control steps


class SingleEnv(gymnasium.Env):
    """One environment behind Gymnasium's interface: a vector environment of one.

    An episode that has ended stays so: `step` asks for a `reset`.
    """

    metadata = {"render_modes": list(RENDER_MODES)}  # noqa: RUF012

    def __init__(
        self, env: Env, render_mode: str | None = None, size: tuple[int, int] = (WIDTH, HEIGHT)
    ):
        """Wraps `env`; see `VectorEnv` for the arguments."""
        self._vector = VectorEnv(env, 1, render_mode=render_mode, size=size)
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space
        self.metadata = {
            "render_modes": list(RENDER_MODES),
            "render_fps": env.task.control_hz,
        }
        self.render_mode = render_mode
        self._ended = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts a new episode; returns its observation (obs_dim,) and info as `step` does.

        For the same seed, the start equals that of environment 0 of a `VectorEnv`.

        Raises:
          ValueError, RuntimeError, gymnasium.error.ClosedEnvironmentError: see `VectorEnv.reset`.
        """
        obs, info = self._vector.reset(seed=None if seed is None else [seed], options=options)
        super().reset(seed=None if seed is None else int(seed))
        self._ended = False
        return obs[0], _first(info)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Plays one control step; `info` holds the bools `success` and `bad_action`.

        Raises:
          ValueError: the action has the wrong shape.
          gymnasium.error.ResetNeeded: the episode has ended, or `reset` was never called.
          RuntimeError, gymnasium.error.ClosedEnvironmentError: see `VectorEnv.reset`.
        """
        if self._ended:
            raise gymnasium.error.ResetNeeded("the episode has ended; call reset before step")
        if np.shape(action) != self.action_space.shape:
            raise ValueError(f"action {np.shape(action)}, expected {self.action_space.shape}")
        obs, reward, terminated, truncated, info = self._vector.step(np.asarray(action)[None])
        self._ended = bool(terminated[0] or truncated[0])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(info)

    def render(self) -> Any:
        """Returns a picture, (height, width, 3) uint8; see `VectorEnv.render`."""
        pictures = self._vector.render()
        return None if pictures is None else pictures[0]

    def close(self) -> None:
        """Frees what drawing took; closing again changes nothing."""
        self._vector.close()


def _first(info: dict[str, Any]) -> dict[str, bool]:
    return {name: bool(info[name][0]) for name in ("success", "bad_action")}


def _with_limit(env: Env, steps: int | None) -> Env:
    """Returns the environment with this time limit, in control steps; None keeps the task's.

    -1 means no limit, as for `gymnasium.make`.

    Raises:
      ValueError: this is no such number.
    """
    if steps is None:
        return env
    limit = NO_LIMIT if steps == -1 else steps
    if not isinstance(limit, int | np.integer) or not 1 <= limit <= NO_LIMIT:
        raise ValueError(f"max_episode_steps={steps!r}, expected 1 to {NO_LIMIT}, or -1 for none")

    def step(model, state, action):
        state, out = env.step(model, state, action)
        return state, out._replace(truncated=~out.terminated & (state.steps >= limit))

    return env._replace(task=dataclasses.replace(env.task, episode_steps=int(limit)), step=step)


def make_vec(
    name: str,
    num_envs: int = 1,
    physics: str = "auto",
    reward: str = "success",
    terminate_on_success: bool = True,
    seed: int | None = None,
    max_episode_steps: int | None = None,
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    render_mode: str | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> VectorEnv:
    """Builds many instances of a task for Gymnasium.

    Args:
      name: see `registry.make`, also for the next four.
      num_envs: see `VectorEnv`.
      physics: see `registry.make`.
      reward: see `registry.make`.
      terminate_on_success: see `registry.make`.
      seed: see `VectorEnv`.
      max_episode_steps: time limit in control steps, -1 for none; by default the task's.
      autoreset_mode: see `VectorEnv`.
      render_mode: see `VectorEnv`.
      width: of a picture, pixels.
      height: of a picture, pixels.

    Raises:
      registry.UnknownName: no such task, engine or reward.
      ValueError: see `VectorEnv`, or the time limit is not what is described here.
      RuntimeError: JAX would hang in this process, see `forks`.
    """
    forks.refuse()
    env = _with_limit(registry.make(name, physics, reward, terminate_on_success), max_episode_steps)
    return VectorEnv(env, num_envs, seed, autoreset_mode, render_mode, (width, height))


def make(
    name: str,
    physics: str = "auto",
    reward: str = "success",
    terminate_on_success: bool = True,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> SingleEnv:
    """Builds one instance of a task for Gymnasium; see `make_vec` for the arguments.

    Raises:
      registry.UnknownName: no such task, engine or reward.
      ValueError: see `make_vec`.
    """
    if forks.is_cut_off():  # `reset` says so; a worker that fails here leaves its parent without
        cut_off = cast(Any, forks.refuse)  # a reason, and some engines already hang when built
        env = Env(registry.make_task(name), physics, (), cut_off, cut_off, cut_off)
    else:
        env = registry.make(name, physics, reward, terminate_on_success)
    return SingleEnv(_with_limit(env, max_episode_steps), render_mode, (width, height))


def make_without_limit(name: str, **options: Any) -> SingleEnv:
    """Builds one instance for `gymnasium.make`, which adds the time limit as a wrapper.

    So the limit that the caller gives `gymnasium.make` holds, longer or shorter than the task's.
    """
    return make(name, max_episode_steps=-1, **options)


# `gymnasium.make` looks here for the modes from which it derives others, such as `human`.
make_without_limit.metadata = SingleEnv.metadata


def register() -> None:
    """Registers every task with Gymnasium as `pdjax/NAME-v0`, single and vector.

    Tasks that are registered already stay as they are. `gymnasium.make` and `gymnasium.make_vec`
    accept the keywords of `make` and `make_vec` here. A task of another package that cannot be
    loaded is left out, with a warning.
    """
    for name in registry.task_names():
        env_id = f"{NAMESPACE}/{name}-v0"
        if env_id in gymnasium.registry:
            continue
        try:
            steps = registry.make_task(name).episode_steps
        except Exception as error:  # another package's code
            warnings.warn(f"Gymnasium gets no task {name}: {reason(error)}", stacklevel=2)
            continue
        gymnasium.register(
            env_id,
            entry_point=f"{__name__}:make_without_limit",
            vector_entry_point=f"{__name__}:make_vec",
            max_episode_steps=steps,
            kwargs={"name": name},
        )


register()
