"""Named perturbations of any task: what changes between the laboratory and the world.

Each episode draws its own perturbation, to evaluate a policy under it or to train with it (domain
randomisation); everything else that an episode draws stays as it is without. Physical ones are
batched model overrides, so that they differ between environments of one batch on every engine; the
others wrap what goes in and out. Apart from the tasks, which only say what may be perturbed
(`Task.objects`, `Task.camera`).
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdjax_envs.physics.engine import Array, Scene, row_ids
from pdjax_envs.task import ControlStep, Env, EnvState, Start, Task

MASS = (0.5, 2.0)  # times the nominal; drawn evenly on a logarithmic scale, as is friction
FRICTION = (0.4, 1.2)
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
    if name in ("mass", "friction") and not task.objects:
        return "it names no objects to move"
    if name == "camera" and not task.camera:
        return "it observes no objects by camera"
    return ""


# How model values of a body follow its mass: proportional or inverse.
_MASS_POWERS = {
    "body_mass": 1, "body_inertia": 1, "body_subtreemass": 1, "dof_M0": 1,
    "body_invweight0": -1, "dof_invweight0": -1,
}  # fmt: skip


def _mass(task: Task) -> Task:
    scene, model = task.scene, task.scene.model
    joints = [
        model.joint(j).name for body in task.objects for j in range(model.njnt)
        if model.jnt_bodyid[j] == model.body(body).id
    ]  # fmt: skip
    wanted = {field: joints if field.startswith("dof") else task.objects for field in _MASS_POWERS}
    rows, nominal, own = _extend(scene, wanted)
    armature = jnp.asarray(model.dof_armature[row_ids(model, "dof_M0", rows["dof_M0"])])

    def perturb(start: Start, key: Array) -> Start:
        factor = _log_uniform(key, MASS)
        before = {**nominal, **start.episode.overrides}
        # A joint's own rotor does not grow with what it carries.
        inertia = armature + factor * (before["dof_M0"] - armature)
        # A body's inverse inertias set the softness of its contacts; a rotor's part is neglected.
        after = {field: before[field] * factor**power for field, power in _MASS_POWERS.items()}
        after["dof_M0"] = inertia
        after["dof_invweight0"] = before["dof_invweight0"] * before["dof_M0"] / inertia
        chosen = {
            field: jnp.where(own[field].reshape(-1, *[1] * (value.ndim - 1)), value, before[field])
            for field, value in after.items()
        }
        return start._replace(episode=start.episode._replace(overrides={**before, **chosen}))

    return _perturbed(task, rows, perturb)


def _friction(task: Task) -> Task:
    scene, model = task.scene, task.scene.model
    collide = (model.geom_contype | model.geom_conaffinity) != 0
    # Of a pair MuJoCo takes the rougher one, so all are scaled; a nameless shape keeps its own.
    geoms = [model.geom(g).name for g in np.flatnonzero(collide) if model.geom(g).name]
    rows, nominal, own = _extend(scene, {"geom_friction": geoms})

    def perturb(start: Start, key: Array) -> Start:
        overrides = {**nominal, **start.episode.overrides}
        value = jnp.asarray(overrides["geom_friction"])  # (rows, 3)
        scaled = value.at[:, 0].multiply(_log_uniform(key, FRICTION))  # sliding
        overrides["geom_friction"] = jnp.where(own["geom_friction"][:, None], scaled, value)
        return start._replace(episode=start.episode._replace(overrides=overrides))

    return _perturbed(task, rows, perturb)


def _extend(scene: Scene, wanted: Mapping[str, Any]):
    """Override rows of a scene and those wanted; nominal values of new fields; whose rows are ours.

    A field that the scene overrides already must have the wanted rows among its own.
    """
    rows, nominal, own = dict(scene.override_rows), {}, {}
    for field, names in wanted.items():
        if field not in rows:
            rows[field] = tuple(names)
            index = row_ids(scene.model, field, rows[field])
            nominal[field] = jnp.asarray(getattr(scene.model, field)[index], jnp.float32)
        if missing := set(names) - set(rows[field]):
            raise ValueError(f"the scene overrides {field}, but not of {', '.join(missing)}")
        own[field] = jnp.asarray(
            np.isin(row_ids(scene.model, field, rows[field]),
                    row_ids(scene.model, field, tuple(names)))
        )  # fmt: skip
    return rows, nominal, own


def _perturbed(task: Task, rows: dict[str, tuple[str, ...]], perturb) -> Task:
    """The task with more override rows and perturbed starts."""

    def sample_start(key: Array) -> Start:
        shift_key = _own_key(key, "start")
        return perturb(task.sample_start(key), shift_key)

    scene = dataclasses.replace(task.scene, override_rows=rows)
    return dataclasses.replace(task, scene=scene, sample_start=sample_start)


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
    "sensor_noise": Shift(
        f"noise of {SENSOR_NOISE:g} (m, rad, ...) on every observation", of_env=_sensor_noise
    ),
    "camera": Shift(
        f"what a camera sees is off by {1000 * CAMERA_ERROR:g} mm per axis, for an episode",
        of_env=_camera,
    ),
    "action_delay": Shift(f"actions come {DELAY} control step late", of_env=_action_delay),
}
