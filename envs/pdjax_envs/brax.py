"""pdjax's environments for Brax and MuJoCo Playground: one object serves both protocols.

Separate from the environments because it alone needs Brax. Holds no state, but importing it gives
JAX a function back that Brax's trainers call. `from_brax` goes the other way: it makes environments
of Brax and Playground available to pdjax.
"""

import contextlib
import dataclasses
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pdjax_envs import registry
from pdjax_envs.task import ControlStep, Env, EnvState

with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that Warp is not installed
    from brax.envs import base


def _device_put_replicated(tree: Any, devices: Any) -> Any:
    """Returns a copy of each leaf on each device, stacked along a new first axis."""
    mesh = jax.sharding.Mesh(np.array(devices), ("devices",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
    return jax.tree.map(lambda x: jax.device_put(jnp.stack([x] * len(devices)), sharding), tree)


# Brax 0.14.2, the newest, calls `jax.device_put_replicated` in its trainers (PPO, SAC, APG), which
# JAX 0.10 took away. Remove this, with the function above, once Brax no longer calls it.
if not hasattr(jax, "device_put_replicated"):
    jax.device_put_replicated = _device_put_replicated


@struct.dataclass
class State(base.State):
    """Brax's state around pdjax's `EnvState`.

    Playground calls Brax's `pipeline_state` `data`. Both names read it; `replace` accepts either.
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
    """A pdjax environment for the wrappers and trainers of Brax and Playground.

    `done` is pdjax's `terminated` alone. The wrapper applies the time limit, so train with
    `episode_length=env.task.episode_steps`. `metrics` hold `success`, `bad_action` and `overflow`
    as 0 or 1 for each step; Brax sums them over an episode. Brax's automatic reset returns each
    environment to its first start, with all values drawn there.
    """

    def __init__(self, env: Env):
        """Wraps `env`."""
        self._env = env

    def reset(self, rng: jax.Array) -> State:
        """Starts an episode from a fresh random state; the key may be typed or raw."""
        state, obs = self._env.reset(self._env.model, rng)
        zero = jnp.zeros(())
        return State(state, obs, zero, zero, {name: zero for name in _METRICS}, {})

    def step(self, state: State, action: jax.Array) -> State:
        """Plays one control step; action (act_dim,) in [-1, 1]."""
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
        """The length of an observation."""
        return self._env.task.obs_dim

    @property
    def action_size(self) -> int:
        """The length of an action."""
        return self._env.task.act_dim

    @property
    def backend(self) -> str:
        """The name of the physics engine."""
        return self._env.engine

    @property
    def dt(self) -> float:
        """Seconds between two control steps."""
        return 1.0 / self._env.task.control_hz

    @property
    def mj_model(self) -> Any:
        """The MuJoCo model, which Playground's renderer reads."""
        scene = self._env.task.scene
        return None if scene is None else scene.model


_METRICS = ("success", "bad_action", "overflow")


def _metrics(out: ControlStep) -> dict[str, jax.Array]:
    return {name: getattr(out, name).astype(jnp.float32) for name in _METRICS}


def make(
    name: str, physics: str = "auto", reward: str = "success", terminate_on_success: bool = True
) -> BraxEnv:
    """Builds a task for Brax; see `registry.make` for the arguments.

    Raises:
      registry.UnknownName: no such task, engine or reward.
    """
    return BraxEnv(registry.make(name, physics, reward, terminate_on_success))
