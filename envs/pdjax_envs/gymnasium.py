"""pdjax's environments for Gymnasium: one jitted program steps them all; NumPy goes in and out.

Importing this module registers every task with Gymnasium, and `gymnasium.make_vec(
"pdjax_envs.gymnasium:pdjax/AdroitDoor-v0", 64)` imports it. It is separate from the environments
because those are pure functions, while Gymnasium's objects have state: each holds the state of its
environments and the number of episodes that they have played.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from pdjax_envs import registry
from pdjax_envs.task import Env, EnvState, select

NAMESPACE = "pdjax"


class _Running(NamedTuple):
    """The state of a vector environment; leaves are (num_envs, ...).

    Attributes:
      keys: the key of each environment, made from its seed.
      episodes: int32, number of the current episode, which starts from fold_in(key, episode).
      state: the environments' states.
      done: bool, the episode has ended and the next step starts another.
    """

    keys: jax.Array
    episodes: jax.Array
    state: EnvState
    done: jax.Array


class VectorEnv(gymnasium.vector.VectorEnv):
    """Many instances of an environment behind Gymnasium's vector interface.

    After the end of an episode, Gymnasium's next-step autoreset applies: the next `step` ignores
    that environment's action and returns reward 0 and the first observation of a new episode from a
    fresh random start. Environment i plays its episodes 0, 1, ... from the starts that
    `env.reset(model, jax.random.fold_in(jax.random.key(seed + i), episode))` draws. A reset without
    a seed continues with the next episode.

    `info` holds `success` (the task is solved now) and `bad_action` (the action had numbers beyond
    [-1, 1], which were clipped, or NaN, which were replaced by 0). Both are (num_envs,) bool, False
    at the start of an episode. Gymnasium's masks `_success` and `_bad_action` are always True.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, env: Env, num_envs: int, seed: int | None = None):
        """Wraps `num_envs` instances of `env`; a first `reset` without a seed uses `seed`."""
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}, expected at least 1")
        self.num_envs = num_envs
        self.single_observation_space = Box(-np.inf, np.inf, (env.task.obs_dim,), np.float32)
        self.single_action_space = Box(-1.0, 1.0, (env.task.act_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._model, self._first_seed = env.model, seed
        self._start, self._step = _make_programs(env)
        self._running: _Running | None = None

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts a new episode in every environment.

        Args:
          seed: environment i gets seed + i, or the i-th seed of a sequence; only the last 32 bits
            count. None continues with the next episodes; the first time it draws a random seed.
          options: must be empty.

        Returns:
          Observations (num_envs, obs_dim) float32, and info, see the class.

        Raises:
          ValueError: there are options, or a sequence of seeds has the wrong length.
        """
        if options:
            raise ValueError(f"reset got options {sorted(options)}, expected none")
        if seed is None and self._running is None:
            seed = self._first_seed
            if seed is None:
                seed = int(self.np_random.integers(2**32))
        if seed is not None:
            one = isinstance(seed, int | np.integer)
            seeds = range(seed, seed + self.num_envs) if one else seed
            if len(seeds) != self.num_envs:
                raise ValueError(f"got {len(seeds)} seeds, expected num_envs={self.num_envs}")
            super().reset(seed=int(seeds[0]))
            words = np.array([seed % 2**32 for seed in seeds], np.uint32)
            keys, episodes = jax.vmap(jax.random.key)(words), jnp.zeros(self.num_envs, jnp.int32)
        else:
            assert self._running is not None
            keys, episodes = self._running.keys, self._running.episodes + 1
        self._running, obs = self._start(self._model, keys, episodes)
        return np.array(obs, np.float32), _info(*np.zeros((2, self.num_envs), bool))

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Plays one control step in each environment, or starts its next episode.

        Args:
          actions: (num_envs, act_dim) in [-1, 1].

        Returns:
          Observations (num_envs, obs_dim) float32; rewards float64, terminations and truncations
          bool, each (num_envs,); info, see the class.

        Raises:
          ValueError: the actions have the wrong shape.
          gymnasium.error.ResetNeeded: `reset` was never called.
        """
        if self._running is None:
            raise gymnasium.error.ResetNeeded("call reset before step")
        actions = np.asarray(actions, np.float32)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions {actions.shape}, expected {self.action_space.shape}")
        self._running, out = self._step(self._model, self._running, actions)
        return (
            np.array(out.obs, np.float32),
            np.array(out.reward, np.float64),
            np.array(out.terminated),
            np.array(out.truncated),
            _info(np.array(out.success), np.array(out.bad_action)),
        )


def _info(success: np.ndarray, bad_action: np.ndarray) -> dict[str, Any]:
    """Returns both arrays (num_envs,) bool, and Gymnasium's masks, which are all True."""
    masks = {f"_{name}": np.ones(len(success), bool) for name in ("success", "bad_action")}
    return {"success": success, "bad_action": bad_action, **masks}


def _make_programs(env: Env):
    """Compiles (start, step) for many environments.

    start: (model, keys, episodes) -> (_Running, obs). step: (model, _Running, actions) ->
    (_Running, ControlStep); for an environment that was done, the result holds the first
    observation of its new episode and zeros otherwise.
    """

    def fresh(model, keys, episodes):
        return jax.vmap(env.reset, (None, 0))(model, jax.vmap(jax.random.fold_in)(keys, episodes))

    def start(model, keys, episodes):
        state, obs = fresh(model, keys, episodes)
        return _Running(keys, episodes, state, jnp.zeros(len(episodes), bool)), obs

    def step(model, running: _Running, actions):
        state, out = jax.vmap(env.step, (None, 0, 0))(model, running.state, actions)
        episodes = running.episodes + running.done

        def restart():
            new_state, obs = fresh(model, running.keys, episodes)
            started = jax.tree.map(jnp.zeros_like, out)._replace(obs=obs)
            return jax.vmap(select)(running.done, (new_state, started), (state, out))

        # Most steps end no episode, and then no start needs to be computed.
        state, out = jax.lax.cond(jnp.any(running.done), restart, lambda: (state, out))
        done = out.terminated | out.truncated
        return _Running(running.keys, episodes, state, done), out

    return jax.jit(start), jax.jit(step)


class SingleEnv(gymnasium.Env):
    """One environment behind Gymnasium's interface: a vector environment of one."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, env: Env):
        """Wraps `env`."""
        self._vector = VectorEnv(env, 1)
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts a new episode; returns its observation (obs_dim,) and info as `step` does.

        For the same seed, the start equals that of environment 0 of a `VectorEnv`.
        """
        super().reset(seed=seed)
        obs, info = self._vector.reset(seed=seed, options=options)
        return obs[0], _first(info)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Plays one control step; `info` holds the bools `success` and `bad_action`."""
        obs, reward, terminated, truncated, info = self._vector.step(np.asarray(action)[None])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), _first(info)


def _first(info: dict[str, Any]) -> dict[str, bool]:
    return {name: bool(info[name][0]) for name in ("success", "bad_action")}


def make_vec(
    name: str,
    num_envs: int = 1,
    physics: str = "auto",
    reward: str = "success",
    terminate_on_success: bool = True,
    seed: int | None = None,
) -> VectorEnv:
    """Builds many instances of a task for Gymnasium; see `registry.make` for the arguments.

    Raises:
      registry.UnknownName: no such task, engine or reward.
    """
    return VectorEnv(registry.make(name, physics, reward, terminate_on_success), num_envs, seed)


def make(
    name: str, physics: str = "auto", reward: str = "success", terminate_on_success: bool = True
) -> SingleEnv:
    """Builds one instance of a task for Gymnasium; see `registry.make` for the arguments.

    Raises:
      registry.UnknownName: no such task, engine or reward.
    """
    return SingleEnv(registry.make(name, physics, reward, terminate_on_success))


def register() -> None:
    """Registers every task with Gymnasium as `pdjax/NAME-v0`, single and vector.

    Tasks that are registered already stay as they are. `gymnasium.make` and `gymnasium.make_vec`
    accept the keywords of `make` and `make_vec` here.
    """
    for name in registry.task_names():
        env_id = f"{NAMESPACE}/{name}-v0"
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id,
                entry_point=f"{__name__}:make",
                vector_entry_point=f"{__name__}:make_vec",
                kwargs={"name": name},
            )


register()
