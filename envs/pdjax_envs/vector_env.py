"""Many instances of an environment behind Gymnasium's vector interface, as one jitted program.

Separate from `gymnasium`, which registers the tasks, because `sb3` builds on it too. An object here
holds the state of its environments and the number of episodes that they have played.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from pdjax_envs import forks
from pdjax_envs.drawing import HEIGHT, WIDTH, Drawer, check_size
from pdjax_envs.reading import check_fits, short
from pdjax_envs.task import Env, EnvState, select

RENDER_MODES = ("rgb_array",)


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
    fresh random start. With same-step autoreset, the step that ends an episode returns that first
    observation itself; the last one of the old episode is in `info["final_obs"]`, and its info in
    `info["final_info"]`. Environment i plays its episodes 0, 1, ... from the starts that
    `env.reset(model, jax.random.fold_in(jax.random.key(seed + i), episode))` draws. A reset without
    a seed continues with the next episode.

    `info` holds `success` (the task is solved now) and `bad_action` (the action had numbers beyond
    [-1, 1], which were clipped, or NaN, which were replaced by 0). Both are (num_envs,) bool, False
    at the start of an episode. Gymnasium's masks `_success` and `_bad_action` are always True.
    """

    metadata = {"render_modes": list(RENDER_MODES), "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        env: Env,
        num_envs: int,
        seed: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        size: tuple[int, int] = (WIDTH, HEIGHT),
    ):
        """Wraps `num_envs` instances of `env`.

        Args:
          env: the environment.
          num_envs: number of instances.
          seed: the seed of a first `reset` without one.
          autoreset_mode: Gymnasium's `NEXT_STEP` or `SAME_STEP`.
          render_mode: `rgb_array` to draw the environments, or None.
          size: width and height of a picture, pixels.

        Raises:
          ValueError: an argument is not what is described here, or memory is too small.
        """
        if not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ValueError(f"num_envs={num_envs!r}, expected an integer of at least 1")
        if num_envs > 1:
            check_fits(int(num_envs) * _state_bytes(env), f"num_envs={num_envs}")
        if render_mode not in (None, *RENDER_MODES):
            raise ValueError(f"render_mode={render_mode!r}, expected rgb_array or None")
        check_size(*size)
        autoreset_mode = _autoreset_mode(autoreset_mode)
        self.num_envs = int(num_envs)
        self.single_observation_space = Box(-np.inf, np.inf, (env.task.obs_dim,), np.float32)
        self.single_action_space = Box(-1.0, 1.0, (env.task.act_dim,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {
            "render_modes": list(RENDER_MODES),
            "render_fps": env.task.control_hz,
            "autoreset_mode": autoreset_mode,
        }
        self.render_mode = render_mode
        self._task, self._size, self._drawer = env.task, size, None
        self._model, self._first_seed = env.model, seed
        self._start, self._step = _make_programs(env, autoreset_mode)
        self._words: np.ndarray | None = None  # (num_envs,) uint32, what the keys are made of
        self._running: _Running | None = None

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts a new episode in every environment.

        Args:
          seed: environment i gets seed + i, or the i-th seed of a sequence; only the last 32 bits
            count. None, also in a sequence, continues with the next episode; the first time it
            draws a random seed.
          options: must be empty.

        Returns:
          Observations (num_envs, obs_dim) float32, and info, see the class.

        Raises:
          ValueError: there are options, a seed is no integer of at least 0, or a sequence of seeds
            has the wrong length.
          RuntimeError: JAX would hang in this process, see `forks`.
          gymnasium.error.ClosedEnvironmentError: the environment was closed.
        """
        self._check_usable("reset")
        if options:
            raise ValueError(f"reset got options {short(options)}, expected none")
        seeds = self._seeds(seed)
        goes_on = np.array([one is None for one in seeds])
        old = [None] * self.num_envs if self._words is None else self._words
        self._words = np.array(
            [self._word(one, before) for one, before in zip(seeds, old, strict=True)], np.uint32
        )
        given = [one for one in seeds if one is not None]
        super().reset(seed=given[0] if given else None)
        episodes = np.zeros(self.num_envs, np.int32)
        if self._running is not None:
            episodes = np.where(goes_on, np.asarray(self._running.episodes) + 1, episodes)
        self._running, obs = self._start(self._model, self._words, episodes)
        return np.array(obs, np.float32), _info(*np.zeros((2, self.num_envs), bool))

    def _seeds(self, seed: Any) -> list[int | None]:
        """Returns each environment's seed; None continues with its next episode."""
        if seed is None and self._running is None:
            seed = self._word(self._first_seed, None)
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            seed = range(int(seed), int(seed) + self.num_envs)
        try:
            seeds: list[Any] = [*seed]
        except TypeError:  # no sequence
            seeds = [seed]
        for one in seeds:
            if one is not None and not (isinstance(one, int | np.integer) and one >= 0):
                raise ValueError(f"seed {short(one)}, expected an integer of at least 0, or None")
        if len(seeds) != self.num_envs:
            raise ValueError(f"got {len(seeds)} seeds, expected num_envs={self.num_envs}")
        return [None if one is None else int(one) for one in seeds]

    def _word(self, seed: int | None, before: int | None) -> int:
        """Returns the last 32 bits of a seed; without one `before`, or else a random word."""
        if seed is not None:
            return seed % 2**32
        return int(self.np_random.integers(2**32)) if before is None else before

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
          RuntimeError, gymnasium.error.ClosedEnvironmentError: see `reset`.
        """
        self._check_usable("step")
        if self._running is None:
            raise gymnasium.error.ResetNeeded("call reset before step")
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and clipped
            actions = np.asarray(actions, np.float32)
        if actions.shape != self.action_space.shape:
            raise ValueError(f"actions {actions.shape}, expected {self.action_space.shape}")
        self._running, out, obs = self._step(self._model, self._running, actions)
        terminated, truncated = np.array(out.terminated), np.array(out.truncated)
        info = _info(np.array(out.success), np.array(out.bad_action))
        ends = terminated | truncated
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and ends.any():
            info = _with_final(info, np.asarray(out.obs), ends)
        return (
            np.array(obs, np.float32),
            np.array(out.reward, np.float64),
            terminated,
            truncated,
            info,
        )

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Returns a picture of each environment, (height, width, 3) uint8.

        Without a `render_mode` it warns and returns None, as Gymnasium's own environments do.

        Raises:
          gymnasium.error.ResetNeeded: `reset` was never called.
          drawing.RenderError: this machine cannot draw.
          NotImplementedError: the task has no model to draw.
        """
        if self.render_mode is None:
            gymnasium.logger.warn("render was called without render_mode; give make 'rgb_array'")
            return None
        self._check_usable("render")
        if self._running is None:
            raise gymnasium.error.ResetNeeded("call reset before render")
        self._drawer = self._drawer or Drawer(self._task, *self._size)
        state = self._running.state
        qpos, overrides = jax.device_get((state.physics.qpos, state.episode.overrides))
        return tuple(
            self._drawer.draw(qpos[i], {name: value[i] for name, value in overrides.items()})
            for i in range(self.num_envs)
        )

    def close_extras(self, **kwargs: Any) -> None:
        """Frees what drawing took; `close` calls it once."""
        if self._drawer is not None:
            self._drawer.close()
            self._drawer = None

    def _check_usable(self, what: str) -> None:
        forks.refuse()
        if self.closed:
            raise gymnasium.error.ClosedEnvironmentError(f"{what} was called after close")


def _autoreset_mode(mode: AutoresetMode | str) -> AutoresetMode:
    offered = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)
    with contextlib.suppress(ValueError):
        if AutoresetMode(mode) in offered:
            return AutoresetMode(mode)
    names = " or ".join(mode.value for mode in offered)
    raise ValueError(f"autoreset_mode={mode!r}, expected {names}")


def _state_bytes(env: Env) -> int:
    """Returns the bytes of one environment's state and observation."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    leaves = jax.tree.leaves(jax.eval_shape(env.reset, env.model, key))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _info(success: np.ndarray, bad_action: np.ndarray) -> dict[str, Any]:
    """Returns both arrays (num_envs,) bool, and Gymnasium's masks, which are all True."""
    masks = {f"_{name}": np.ones(len(success), bool) for name in ("success", "bad_action")}
    return {"success": success, "bad_action": bad_action, **masks}


def _with_final(info: dict[str, Any], obs: np.ndarray, ends: np.ndarray) -> dict[str, Any]:
    """Returns the info of a step that ended episodes and started others, laid out as Gymnasium's.

    Args:
      info: of the step itself.
      obs: (num_envs, obs_dim), after the step itself.
      ends: (num_envs,) bool, whose episodes it ended.
    """
    final_obs = np.full(len(ends), None, object)
    for index in np.flatnonzero(ends):
        final_obs[index] = np.array(obs[index])
    ended = {name: np.where(ends, info[name], False) for name in ("success", "bad_action")}
    final_info = {**ended, **{f"_{name}": ends.copy() for name in ended}}
    started = {name: np.where(ends, False, info[name]) for name in ended}
    return {
        **info,
        **started,
        "final_obs": final_obs,
        "_final_obs": ends.copy(),
        "final_info": final_info,
        "_final_info": ends.copy(),
    }


def _make_programs(env: Env, autoreset_mode: AutoresetMode):
    """Compiles (start, step) for many environments.

    start: (model, words, episodes) -> (_Running, obs). step: (model, _Running, actions) ->
    (_Running, ControlStep, obs). With next-step autoreset, the ControlStep of an environment that
    was done holds the first observation of its new episode and zeros otherwise. With same-step
    autoreset, `obs` has the first observations of the episodes that the step started.
    """

    def fresh(model, keys, episodes):
        return jax.vmap(env.reset, (None, 0))(model, jax.vmap(jax.random.fold_in)(keys, episodes))

    def start(model, words, episodes):
        keys = jax.vmap(jax.random.key)(words)
        state, obs = fresh(model, keys, episodes)
        return _Running(keys, episodes, state, jnp.zeros(len(episodes), bool)), obs

    # Most steps end no episode, and then no start needs to be computed.

    def next_step(model, running: _Running, actions):
        state, out = jax.vmap(env.step, (None, 0, 0))(model, running.state, actions)
        episodes = running.episodes + running.done

        def restart():
            new_state, obs = fresh(model, running.keys, episodes)
            started = jax.tree.map(jnp.zeros_like, out)._replace(obs=obs)
            return jax.vmap(select)(running.done, (new_state, started), (state, out))

        state, out = jax.lax.cond(jnp.any(running.done), restart, lambda: (state, out))
        done = out.terminated | out.truncated
        return _Running(running.keys, episodes, state, done), out, out.obs

    def same_step(model, running: _Running, actions):
        state, out = jax.vmap(env.step, (None, 0, 0))(model, running.state, actions)
        ends = out.terminated | out.truncated
        episodes = running.episodes + ends

        def restart():
            new = fresh(model, running.keys, episodes)
            return jax.vmap(select)(ends, new, (state, out.obs))

        state, obs = jax.lax.cond(jnp.any(ends), restart, lambda: (state, out.obs))
        return _Running(running.keys, episodes, state, running.done), out, obs

    step = same_step if autoreset_mode is AutoresetMode.SAME_STEP else next_step
    return jax.jit(start), jax.jit(step)
