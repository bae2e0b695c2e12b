"""Environments of Brax and MuJoCo Playground for pdjax: `brax:ant`, `playground:CartpoleBalance`.

Both libraries have nearly the same protocol: reset(key) -> state, step(state, action) -> state,
where a state has `obs`, `reward`, `done`, `metrics` and `info`. They bring their own physics, so
none of pdjax's engines is involved, and the module stands on its own. Holds no state.
"""

import contextlib
import importlib.util
import io
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from pdjax_envs.names import UnknownName, unknown
from pdjax_envs.physics.engine import Array, PhysicsState
from pdjax_envs.task import ControlStep, Env, EnvState, Episode, Start, Task, admit, judge, select

EPISODE_STEPS = 1000  # Brax's default, `brax.envs.create`
_NO_EPISODE = Episode({}, ())  # whatever these environments draw is part of their own state


def from_brax(
    theirs: Any,
    name: str,
    episode_steps: int = EPISODE_STEPS,
    reward: str = "dense",
    terminate_on_success: bool = True,
) -> Env:
    """Turns a Brax or Playground environment into a pdjax environment.

    Success is `metrics["success"]`, or else `info["success"]`; without either the environment never
    succeeds. Their `done` terminates an episode, after which its state no longer changes. The time
    limit truncates it.

    Args:
      theirs: the environment itself, without wrappers for episodes, resets or batches.
      name: the name of the task.
      episode_steps: time limit in control steps.
      reward: `dense` for the environment's own reward, or `success`.
      terminate_on_success: whether success ends the episode too.

    Raises:
      registry.UnknownName: the observation is neither a vector nor a mapping with a vector `state`.
    """
    task = _make_task(theirs, name, episode_steps)

    def reset(model: Any, key: Array) -> tuple[EnvState, Array]:
        return start_from(model, task.sample_start(key))

    def start_from(model: Any, start: Start) -> tuple[EnvState, Array]:
        del model
        physics = _physics(start.episode.params)
        state = EnvState(physics, _NO_EPISODE, jnp.zeros((), jnp.int32))
        return state, task.observe(_NO_EPISODE, physics)

    def step(model: Any, state: EnvState, action: Array) -> tuple[EnvState, ControlStep]:
        del model
        action, bad_action = admit(action)
        before = state.physics.raw
        # A copy, since many of these environments write into the dicts of the state they are given.
        after = theirs.step(jax.tree.map(lambda x: x, before), action)
        after = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), before, after)
        physics = _physics(select(before.done > 0.5, before, after))
        state = EnvState(physics, _NO_EPISODE, state.steps + 1)
        done = physics.raw.done > 0.5
        return state, judge(task, state, reward, terminate_on_success, bad_action, done)

    engine = getattr(theirs, "backend", "mjx")  # Playground's environments all run on MJX
    return Env(task, engine, (), reset, start_from, step)


def _make_task(theirs: Any, name: str, episode_steps: int) -> Task:
    example = jax.eval_shape(theirs.reset, jax.random.PRNGKey(0))
    shape = _observation(name, example.obs).shape

    def sample_start(key: Array) -> Start:
        # The trainers of both libraries pass raw keys, and some states store them.
        return _start(_strong(theirs.reset(jax.random.key_data(key))))

    def get_state(episode: Episode, physics: PhysicsState) -> dict[str, Array]:
        del episode
        leaves = jax.tree_util.tree_leaves_with_path(physics.raw)
        named = {jax.tree_util.keystr(path): leaf for path, leaf in leaves}
        return {**named, "qpos": physics.qpos, "qvel": physics.qvel}

    def make_start(state: Mapping[str, Any]) -> Start:
        leaf = lambda path, like: jnp.asarray(state[jax.tree_util.keystr(path)], like.dtype)  # noqa: E731
        return _start(jax.tree_util.tree_map_with_path(leaf, example))

    def no_picture() -> NoReturn:
        raise NotImplementedError(f"{name} is drawn by its own library's renderer, not by pdjax")

    return Task(
        name=name,
        summary=f"{type(theirs).__name__} with its own physics",
        make_visual_model=no_picture,
        observation=(("state", shape[0]),),
        meanings={"state": "see its own documentation"},
        action=(("action", theirs.action_size),),
        control_mode="own",
        episode_steps=episode_steps,
        control_hz=1.0 / float(getattr(theirs, "dt", math.nan)),
        sample_start=sample_start,
        get_state=get_state,
        make_start=make_start,
        control=lambda episode, physics, action: action,
        observe=lambda episode, physics: _observation(name, physics.raw.obs),
        rewards={"dense": lambda episode, physics: {"reward": physics.raw.reward}},
        success=lambda episode, physics: _success(physics.raw),
        has_success="success" in example.metrics or "success" in example.info,
    )


def _observation(name: str, obs: Any) -> Any:
    """Returns the vector among the observations."""
    if isinstance(obs, Mapping):
        if "state" not in obs:
            raise UnknownName(f"{name} observes {sorted(obs)}, expected `state` among them")
        obs = obs["state"]
    if len(obs.shape) != 1:
        raise UnknownName(f"{name} observes an array of shape {obs.shape}, expected a vector")
    return obs


def _success(state: Any) -> Array:
    for named in (state.metrics, state.info):
        if "success" in named:
            return named["success"] > 0.5
    return jnp.zeros((), bool)


def _strong(state: Any) -> Any:
    """Returns the state with arrays of fixed types, which loops need."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state)


def _start(state: Any) -> Start:
    physics = _physics(state)
    return Start(Episode({}, state), physics.qpos, physics.qvel)


def _physics(state: Any) -> PhysicsState:
    """Returns the state as a `PhysicsState`; positions are empty if the physics has no joints."""
    data = state.data if hasattr(state, "data") else state.pipeline_state
    qpos, qvel = (
        getattr(data, theirs, getattr(data, brax, jnp.zeros(0)))
        for theirs, brax in (("qpos", "q"), ("qvel", "qd"))
    )
    return PhysicsState(qpos, qvel, {}, jnp.zeros((), bool), state)


@cache
def load(name: str) -> tuple[Any, int]:
    """Builds an environment of Brax or Playground; also returns its time limit in control steps.

    Args:
      name: the library and the environment's name there, as in `brax:ant`.

    Raises:
      registry.UnknownName: no such environment, or its library is not installed.
      InputError: JAX's CPU backend started without options that MJX needs.
    """
    library, _, theirs = name.partition(":")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that Warp is not installed
            return _LOADERS[library](theirs)
    except ModuleNotFoundError as error:
        raise UnknownName(
            f"{name} needs the package {library} ({error}); pip install 'pdjax[interop]'"
        ) from None


def _load_brax(name: str) -> tuple[Any, int]:
    from brax import envs

    if name not in envs._envs:  # Brax has no public list of them
        raise unknown("environment of Brax", name, envs._envs)
    return envs.get_environment(name), EPISODE_STEPS


def _load_playground(name: str) -> tuple[Any, int]:
    from pdjax_envs.physics import mjx_flags

    if importlib.util.find_spec("mujoco_playground") is None:  # its absence matters more than JAX
        raise ModuleNotFoundError("No module named 'mujoco_playground'")
    mjx_flags.prepare()
    from mujoco_playground import registry  # pyright: ignore[reportMissingImports]

    if name not in registry.ALL_ENVS:
        raise unknown("environment of Playground", name, registry.ALL_ENVS)
    config = registry.get_default_config(name)
    if "impl" in config:  # Warp's data has fields that all environments share, so rows of a batch
        config.impl = "jax"  # could not be replaced where an episode ends
    return registry.load(name, config), config.episode_length


_LOADERS: dict[str, Callable[[str], tuple[Any, int]]] = {
    "brax": _load_brax,
    "playground": _load_playground,
}
