"""Our environments as Brax's, and in MuJoCo Playground's protocol: one object serves both.

Apart from the environments because it alone needs Brax to be installed. Holds no state. The other
way, their environments for our trainer, is `from_brax`.
"""

import contextlib
import dataclasses
import io
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from pdjax_envs import registry
from pdjax_envs.task import ControlStep, Env, EnvState

with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that Warp is not installed
    from brax.envs import base


@struct.dataclass
class State(base.State):
    """Brax's state around our `EnvState`.

    What Brax calls `pipeline_state` is `data` in Playground: both names read it, and `replace`
    takes either.
    """

    pipeline_state: Any

    @property
    def data(self) -> EnvState:
        """Playground's name for `pipeline_state`."""
        return self.pipeline_state


def _replace(self: State, **changes: Any) -> State:
    if "data" in changes:
        changes["pipeline_state"] = changes.pop("data")
    return dataclasses.replace(self, **changes)


State.replace = _replace  # `struct.dataclass` overwrites one that is defined in the class


class BraxEnv(base.Env):
    """One of our environments for Brax's and Playground's wrappers and trainers.

    `done` is our `terminated` alone: the time limit is the wrapper's, so train with
    `episode_length=env.task.episode_steps`. `metrics` hold `success`, `bad_action` and `overflow`
    as 0 or 1 of each step, which Brax sums over an episode. Brax's automatic reset returns to each
    environment's first start; that is Brax's way, all drawn values go back with it.
    """

    def __init__(self, env: Env):
        """Wraps `env`."""
        self._env = env

    def reset(self, rng: jax.Array) -> State:
        """A fresh random start from a key, typed or raw."""
        state, obs = self._env.reset(self._env.model, rng)
        zero = jnp.zeros(())
        return State(state, obs, zero, zero, {name: zero for name in _METRICS}, {})

    def step(self, state: State, action: jax.Array) -> State:
        """One control step; action (act_dim,) in [-1, 1]."""
        ours, out = self._env.step(self._env.model, state.pipeline_state, action)
        return state.replace(
            pipeline_state=ours,
            obs=out.obs,
            reward=out.reward,
            done=out.terminated.astype(jnp.float32),
            metrics={**state.metrics, **_metrics(out)},  # wrappers add their own
        )

    @property
    def observation_size(self) -> int:
        """Numbers in one observation."""
        return self._env.task.obs_dim

    @property
    def action_size(self) -> int:
        """Numbers in one action."""
        return self._env.task.act_dim

    @property
    def backend(self) -> str:
        """Name of our physics engine."""
        return self._env.engine

    @property
    def dt(self) -> float:
        """Seconds between two control steps."""
        return 1.0 / self._env.task.control_hz

    @property
    def mj_model(self) -> Any:
        """The MuJoCo model, which Playground's renderer reads."""
        return self._env.task.scene.model


_METRICS = ("success", "bad_action", "overflow")


def _metrics(out: ControlStep) -> dict[str, jax.Array]:
    return {name: getattr(out, name).astype(jnp.float32) for name in _METRICS}


def make(
    name: str, physics: str = "auto", reward: str = "success", terminate_on_success: bool = True
) -> BraxEnv:
    """A task for Brax; see `registry.make`.

    Raises:
      registry.UnknownName: no such task, engine or reward.
    """
    return BraxEnv(registry.make(name, physics, reward, terminate_on_success))
