"""Named perturbations of any task: what changes between the laboratory and the world.

Each episode draws its own perturbation, to evaluate a policy under it or to train with it (domain
randomisation); everything else that an episode draws stays as it is without. Physical ones are
batched model overrides, so that they differ between environments of one batch on every engine; the
others wrap what goes in and out. Apart from the tasks, which only say what may be perturbed
(`Task.objects`, `Task.resize`, `Task.held_out`, `Task.camera`).
"""

import dataclasses
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdjax_envs.physics.engine import Array
from pdjax_envs.scaling import ALL, HEAVY, extend, make_scaling
from pdjax_envs.task import ControlStep, Env, EnvState, Start, Task

MASS = (0.5, 2.0)  # times the nominal; drawn evenly on a logarithmic scale, as are the next two
FRICTION = (0.4, 1.2)
SIZE = (0.9, 1.1)
SENSOR_NOISE = 0.003  # standard deviation in the observation's own units: m, rad, m/s, ...
CAMERA_ERROR = 0.005  # m, standard deviation of each axis, constant in an episode
DELAY = 1  # control steps by which actions come late


class Shift(NamedTuple):
    """A perturbation.

    Attributes:
      summary: one line for listings.
      of_task: (task) -> task, where it changes the simulated world.
      of_env: (env) -> env, where it changes what goes in or out.
    """

    summary: str
    of_task: Callable[[Task], Task] = lambda task: task
    of_env: Callable[[Env], Env] = lambda env: env


def needed(name: str, task: Task) -> str:
    """What a task lacks for a shift, in words; "" where it lacks nothing."""
    if name in ("mass", "friction", "size") and task.engine is not None:
        return "its physics is its own"
    if name in ("mass", "friction", "size") and not task.objects:
        return "it names no objects to move"
    if name == "size" and not callable(task.resize):
        return task.resize
    if name == "held_out" and task.held_out is None:
        return "it keeps no objects from the demonstrations"
    if name == "camera" and not task.camera:
        return "it observes no objects by camera"
    return ""


def _mass(task: Task) -> Task:
    def perturb(start: Start, key: Array) -> Start:
        return scale(start, _log_uniform(key, MASS), 1.0)

    rows, scale = make_scaling(task.scene, task.objects, HEAVY)
    return _perturbed(task, rows, perturb)


def _size(task: Task) -> Task:
    """Objects keep shape and density; what an object is a part of grows with it."""
    model, resize = task.scene.model, task.resize
    assert callable(resize), resize  # `needed` has refused others
    roots = [model.body_rootid[model.body(name).id] for name in task.objects]
    bodies = [model.body(index).name for index in np.flatnonzero(np.isin(model.body_rootid, roots))]

    def perturb(start: Start, key: Array) -> Start:
        factor = _log_uniform(key, SIZE)
        return resize(scale(start, factor**3, factor), factor)

    rows, scale = make_scaling(task.scene, bodies, ALL)
    return _perturbed(task, rows, perturb)


def _friction(task: Task) -> Task:
    scene, model = task.scene, task.scene.model
    collide = (model.geom_contype | model.geom_conaffinity) != 0
    # Of a pair MuJoCo takes the rougher one, so all are scaled; a nameless shape keeps its own.
    geoms = [model.geom(g).name for g in np.flatnonzero(collide) if model.geom(g).name]
    rows, nominal, own = extend(scene, {"geom_friction": geoms})

    def perturb(start: Start, key: Array) -> Start:
        overrides = {**nominal, **start.episode.overrides}
        value = jnp.asarray(overrides["geom_friction"])  # (rows, 3)
        scaled = value.at[:, 0].multiply(_log_uniform(key, FRICTION))  # sliding
        overrides["geom_friction"] = jnp.where(own["geom_friction"][:, None], scaled, value)
        return start._replace(episode=start.episode._replace(overrides=overrides))

    return _perturbed(task, rows, perturb)


def _perturbed(task: Task, rows: dict[str, tuple[str, ...]], perturb) -> Task:
    """The task with more override rows and perturbed starts."""

    def perturbed(sample_start: Callable[[Array], Start], key: Array) -> Start:
        shift_key = _own_key(key, "start")
        return perturb(sample_start(key), shift_key)

    return dataclasses.replace(
        task,
        scene=dataclasses.replace(task.scene, override_rows=rows),
        sample_start=partial(perturbed, task.sample_start),
        held_out=task.held_out and partial(perturbed, task.held_out),
    )


def _held_out(task: Task) -> Task:
    assert task.held_out is not None  # `needed` has refused others
    return dataclasses.replace(task, sample_start=task.held_out)


def _own_key(key: Array, name: str) -> Array:
    """A key of our own; the episode's own draws stay as they are without the shift."""
    return jax.random.fold_in(jax.random.clone(key), zlib.crc32(name.encode()))


def _log_uniform(key: Array, limits: tuple[float, float]) -> Array:
    low, high = np.log(limits)
    return jnp.exp(jax.random.uniform(key, (), minval=low, maxval=high))


def _watched(env: Env, start: Callable[[Array, Array], Any], watch) -> Env:
    """An environment whose observations pass through `watch`.

    Args:
      env: the environment.
      start: (key, first observation) -> what is carried through an episode.
      watch: (carried, control steps so far, observation) -> observation.
    """

    def reset(model: Any, key: Array) -> tuple[EnvState, Array]:
        shift_key = _own_key(key, watch.__name__)
        return watched(shift_key, *env.reset(model, key))

    def start_from(model: Any, begin: Start) -> tuple[EnvState, Array]:
        return watched(jax.random.key(0), *env.start_from(model, begin))

    def watched(key: Array, state: EnvState, obs: Array) -> tuple[EnvState, Array]:
        carried = start(key, obs)
        return state._replace(extra=(state.extra, carried)), watch(carried, state.steps, obs)

    def step(model: Any, state: EnvState, action: Array) -> tuple[EnvState, ControlStep]:
        inner, carried = state.extra
        state, out = env.step(model, state._replace(extra=inner), action)
        obs = watch(carried, state.steps, out.obs)
        return state._replace(extra=(state.extra, carried)), out._replace(obs=obs)

    return env._replace(reset=reset, start_from=start_from, step=step)


def _sensor_noise(env: Env) -> Env:
    def noisy(key, steps, obs):
        noise = jax.random.normal(jax.random.fold_in(key, steps), obs.shape)
        return obs + SENSOR_NOISE * noise

    return _watched(env, lambda key, obs: key, noisy)


def _camera(env: Env) -> Env:
    """One offset of all that a camera sees, for the episode: its calibration is off."""
    signs = np.zeros((env.task.obs_dim, 3), np.float32)  # which numbers are x, y, z of something
    begin = 0
    for part, size in env.task.observation:
        signs[begin : begin + size][:3] = env.task.camera.get(part, 0) * np.eye(3)[:size]
        begin += size

    def start(key, obs):
        return CAMERA_ERROR * jax.random.normal(key, (3,), obs.dtype)

    def moved(offset, steps, obs):
        del steps
        return obs + signs @ offset

    return _watched(env, start, moved)


def _action_delay(env: Env) -> Env:
    def reset(model: Any, key: Array) -> tuple[EnvState, Array]:
        return waiting(*env.reset(model, key))

    def start_from(model: Any, begin: Start) -> tuple[EnvState, Array]:
        return waiting(*env.start_from(model, begin))

    def waiting(state: EnvState, obs: Array) -> tuple[EnvState, Array]:
        # Nothing was commanded before the first action: it is executed at once, then again.
        queue = jnp.zeros((DELAY, env.task.act_dim), obs.dtype)
        return state._replace(extra=(state.extra, queue)), obs

    def step(model: Any, state: EnvState, action: Array) -> tuple[EnvState, ControlStep]:
        inner, queue = state.extra
        queue = jnp.where(state.steps == 0, jnp.broadcast_to(action, queue.shape), queue)
        executed = queue[0]
        queue = jnp.concatenate([queue[1:], action[None]])
        state, out = env.step(model, state._replace(extra=inner), executed)
        return state._replace(extra=(state.extra, queue)), out

    return env._replace(reset=reset, start_from=start_from, step=step)


SHIFTS = {
    "mass": Shift(f"objects {MASS[0]:g} to {MASS[1]:g} times as heavy", of_task=_mass),
    "friction": Shift(
        f"everything {FRICTION[0]:g} to {FRICTION[1]:g} times as rough", of_task=_friction
    ),
    "size": Shift(
        f"objects {SIZE[0]:g} to {SIZE[1]:g} times as large, of the same density", of_task=_size
    ),
    "held_out": Shift("objects that no demonstration shows", of_task=_held_out),
    "sensor_noise": Shift(
        f"noise of {SENSOR_NOISE:g} (m, rad, ...) on every observation", of_env=_sensor_noise
    ),
    "camera": Shift(
        f"what a camera sees is off by {1000 * CAMERA_ERROR:g} mm per axis, for an episode",
        of_env=_camera,
    ),
    "action_delay": Shift(f"actions come {DELAY} control step late", of_env=_action_delay),
}
