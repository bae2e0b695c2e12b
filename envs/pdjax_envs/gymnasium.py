"""Our environments as Gymnasium's: one jitted program steps them all, NumPy goes in and comes out.

Importing this registers every task; `gymnasium.make_vec("pdjax_envs.gymnasium:pdjax/AdroitDoor-v0",
64)` does so itself. Apart from the environments because those are pure functions, while Gymnasium's
objects remember: each holds the state of its environments and how many episodes they have played.
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
    """What a vector environment carries; leaves (num_envs, ...).

    Attributes:
      keys: the seed of each environment.
      episodes: int32, which episode is played; it starts from fold_in(key, episode).
      state: the environments.
      done: bool, the episode has ended and the next step starts another.
    """

    keys: jax.Array
    episodes: jax.Array
    state: EnvState
    done: jax.Array


class VectorEnv(gymnasium.vector.VectorEnv):
    """Many instances of an environment behind Gymnasium's vector interface.

    An episode's end is followed by Gymnasium's next-step autoreset: the next `step` ignores that
    environment's action, returns the first observation of a new episode from a fresh random start,
    and reward 0. Environment i plays its episodes 0, 1, ... from the starts that
    `env.reset(model, jax.random.fold_in(jax.random.key(seed + i), episode))` draws; a reset without
    a seed goes on to the next episode.

    `info` holds `success` (solved now) and `bad_action` (the action held numbers beyond [-1, 1],
    which were clipped, or NaN, which were taken as 0), each (num_envs,) bool and False at an
    episode's start, with Gymnasium's masks `_success` and `_bad_action`, which are True throughout.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, env: Env, num_envs: int, seed: int | None = None):
        """Wraps `num_envs` instances of `env`; `seed` is that of a first `reset` without one."""
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
          seed: environment i gets seed + i, or the i-th of a sequence; only the last 32 bits count.
            None goes on to the next episodes, at first from an unpredictable seed.
          options: none are known.

        Returns:
          observations (num_envs, obs_dim) float32, and info, see the class.

        Raises:
          ValueError: options, or a sequence of seeds of another length.
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
          observations (num_envs, obs_dim) float32; rewards float64, terminations and truncations
          bool, each (num_envs,); info, see the class.

        Raises:
          ValueError: actions of another shape.
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
    """Both (num_envs,) bool, and Gymnasium's masks of who has them: all."""
    masks = {f"_{name}": np.ones(len(success), bool) for name in ("success", "bad_action")}
    return {"success": success, "bad_action": bad_action, **masks}


def _make_programs(env: Env):
    """(start, step) of many environments, jitted.

    start: (model, keys, episodes) -> (_Running, obs); step: (model, _Running, actions) ->
    (_Running, ControlStep), where an environment that was done has its new episode's first
    observation, and zeros beside it.
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

        # Most steps end no episode; then no start is computed.
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
        """Starts a new episode; returns its observation (obs_dim,) and info, as `step`.

        The start is that of environment 0 of a `VectorEnv`, for the same seeds.
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
    """Many instances of a task for Gymnasium; see `registry.make` for the rest.

    Raises:
      registry.UnknownName: no such task, engine or reward.
    """
    return VectorEnv(registry.make(name, physics, reward, terminate_on_success), num_envs, seed)


def make(
    name: str, physics: str = "auto", reward: str = "success", terminate_on_success: bool = True
) -> SingleEnv:
    """One instance of a task for Gymnasium; see `registry.make`.

    Raises:
      registry.UnknownName: no such task, engine or reward.
    """
    return SingleEnv(registry.make(name, physics, reward, terminate_on_success))


def register() -> None:
    """Registers every task with Gymnasium as `pdjax/NAME-v0`, single and vector; again is nothing.

    `gymnasium.make` and `make_vec` take the keywords of the functions here.
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
