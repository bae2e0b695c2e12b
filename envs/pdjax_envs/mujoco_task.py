"""Builds a task from a MuJoCo model and a few functions: the short way to a task of one's own.

`make_mujoco_task` covers the common case: a model, actuators as they are or the packaged Panda
arm, starts with noise, named parts of the observation, success. Whatever goes beyond it is written
as a `Task` itself. Pure but for reading the model.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from pdjax_envs import looks
from pdjax_envs.maniskill import panda
from pdjax_envs.mujoco_state import State, make_prober
from pdjax_envs.names import unknown
from pdjax_envs.physics.engine import Array, Buffers, PhysicsState, Scene, row_ids
from pdjax_envs.reading import InputError, is_file, short
from pdjax_envs.rotations import quat_about_z, quat_multiply
from pdjax_envs.task import Episode, Expert, Start, Task
from pdjax_envs.user_code import guard

Spec = mujoco.MjSpec | Path | str | Callable[[bool], mujoco.MjSpec]
Noise = float | tuple[float, ...]
Factors = Mapping[str, Mapping[str, tuple[float, float]]]

ACTUATORS = "actuators"
JOINT_SPEED = 1.0  # rad/s of the Panda's joints at action 1
PANDA_NOISE = 0.02  # rad, of each arm joint at the start
PANDA_OPEN = 0.04  # m, opening of each finger at the start
PANDA_CONTROLS = {  # control mode -> (name, size) of the parts of its action
    "panda_ee_delta_pose": (("ee_delta_position", 3), ("ee_delta_rotation", 3), ("gripper", 1)),
    "panda_ee_delta_pos": (("ee_delta_position", 3), ("gripper", 1)),
    "panda_joint_velocity": (("joint_velocity", panda.ARM_JOINTS), ("gripper", 1)),
}


def make_mujoco_task(
    name: str,
    model: Spec,
    *,
    episode_steps: int,
    observe: Mapping[str, Callable[[State], Any]],
    success: Callable[[State], Any],
    control_hz: float = 20.0,
    control: str = ACTUATORS,
    start: Mapping[str, Any] | None = None,
    noise: Mapping[str, Noise] | None = None,
    reward: Callable[[State], Mapping[str, Any]] | None = None,
    randomize: Factors | None = None,
    meanings: Mapping[str, str] | None = None,
    summary: str = "",
    view: tuple[looks.Point, looks.Point] | None = None,
    buffers: Buffers | None = None,
    expert: Callable[[], Expert] | None = None,
) -> Task:
    """Builds a task that runs on all physics engines.

    Args:
      name: the task's name, in demonstrations, policies and results.
      model: an MJCF file, whose own files lie beside or below it; an `MjSpec`; or a function
        (visual: bool) -> MjSpec, which may add what is only drawn.
      episode_steps: time limit in control steps.
      observe: name of a part of the observation -> function of the state that returns a number or a
        vector. Parts keep this order.
      success: function of the state that returns whether the task is solved.
      control_hz: control steps per second; a whole number of the model's time steps.
      control: `actuators`: one action number for each actuator, [-1, 1] scaled to its range. Or one
        for the Panda of `panda_scene`: `panda_ee_delta_pose` (7 numbers: translation and rotation
        of the tool in its frame, up to 0.1 m and 0.1 rad a control step; gripper, 1 = open),
        `panda_ee_delta_pos` (4: the tool keeps its orientation) or `panda_joint_velocity` (8: up
        to 1 rad/s for each joint; gripper).
      start: joint -> its position at the start, before noise: m, rad, or for a free joint 3 numbers
        in m or 7 with a quaternion (w, x, y, z). By default the model's keyframe `start`, or else
        its own positions.
      noise: joint -> half width of uniform noise on its position at the start, in m or rad. For a
        free joint: one number for x and y, 3 for x, y and z, or 4 with a turn about z, in rad.
      reward: function of the state that returns named terms of a dense reward, whose sum it is.
      randomize: field of the model -> name of its object -> (low, high) factor, drawn in each
        episode, such as {"geom_friction": {"cube": (0.5, 1.5)}}. A geom's size may only shrink.
      meanings: part of the observation -> its meaning, with units.
      summary: one line for listings.
      view: where the camera of videos is and what it looks at, m. By default the model's camera
        `view`, or else one that sees the whole model.
      buffers: see `Scene`; `pdjax envs check` measures what is needed.
      expert: () -> the scripted demonstrator for `pdjax demos`, if there is one.

    Raises:
      InputError: the model cannot be read, or a name, a size or a range is not right.
    """
    spec, files = _read(model)
    compiled = guard(spec(False).compile, f"compiling the model of {name}")
    is_panda = control != ACTUATORS
    if is_panda and control not in PANDA_CONTROLS:
        raise unknown("control", control, [ACTUATORS, *PANDA_CONTROLS])
    substeps = _substeps(compiled, control_hz)
    rows, ranges = _rows(compiled, randomize or {})
    probe = make_prober(compiled, _scale(compiled, rows, ranges, jnp.zeros(len(ranges))))
    observation = tuple((part, probe.vector(f"observe {part}", f)) for part, f in observe.items())
    probe.flag("success", success)
    if reward is not None:
        probe.terms("reward", reward)
    scene = Scene(
        compiled,
        n_substeps=substeps,
        override_rows=rows,
        fields=probe.fields,
        ctrl_scale=None if is_panda else _ctrl_scale(compiled),
        buffers=buffers or Buffers(),
    )
    nominal = _start_position(compiled, start or {}, is_panda)
    disturb = _disturb(compiled, noise or {}, is_panda)
    sample_start, get_state, make_start = _starts(compiled, rows, ranges, nominal, disturb)

    def look(episode: Episode, physics: PhysicsState) -> State:
        return State(compiled, physics, episode.overrides)

    def observe_all(episode: Episode, physics: PhysicsState) -> Array:
        state = look(episode, physics)
        parts = [jnp.ravel(jnp.asarray(part(state), jnp.float32)) for part in observe.values()]
        return jnp.concatenate(parts)

    def dense(episode: Episode, physics: PhysicsState) -> dict[str, Array]:
        assert reward is not None
        terms = reward(look(episode, physics))
        return {term: jnp.asarray(value, jnp.float32) for term, value in terms.items()}

    return Task(
        name=name,
        summary=summary or f"{compiled.nu} actuators, {compiled.nv} degrees of freedom",
        scene=scene,
        make_visual_model=lambda: _visual(spec(True), compiled, view),
        observation=observation,
        meanings={part: (meanings or {}).get(part, "") for part in observe},
        action=PANDA_CONTROLS[control] if is_panda else (("actuators", compiled.nu),),
        control_mode=control,
        episode_steps=episode_steps,
        control_hz=control_hz,
        sample_start=sample_start,
        get_state=get_state,
        make_start=make_start,
        control=_panda_control(control, control_hz)
        if is_panda
        else lambda episode, physics, action: action,
        observe=observe_all,
        rewards={"dense": dense} if reward is not None else {},
        success=lambda episode, physics: jnp.asarray(success(look(episode, physics)), bool),
        expert=expert,
        files=files,
    )


def _starts(
    model: mujoco.MjModel,
    rows: Mapping[str, tuple[str, ...]],
    ranges: list[tuple[float, float]],
    nominal: np.ndarray,
    disturb: Callable[[Array, Array], Array],
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Returns `Task.sample_start`, `Task.get_state` and `Task.make_start`."""

    def sample_start(key: Array) -> Start:
        place, factors = jax.random.split(key)
        drawn = jax.random.uniform(factors, (len(ranges),))
        return Start(
            Episode(_scale(model, rows, ranges, drawn), ()),
            disturb(place, jnp.asarray(nominal, jnp.float32)),
            jnp.zeros(model.nv),
        )

    def get_state(episode: Episode, physics: PhysicsState) -> dict[str, Array]:
        return {"qpos": physics.qpos, "qvel": physics.qvel, **episode.overrides}

    def make_start(state: Mapping[str, Any]) -> Start:
        overrides = {field: jnp.asarray(state[field]) for field in rows}
        return Start(Episode(overrides, ()), state["qpos"], state["qvel"])

    return sample_start, get_state, make_start


def panda_scene(name: str, visual: bool = False) -> mujoco.MjSpec:
    """Starts a model with a floor and the packaged Panda arm, to which objects are added.

    The arm's base is at (-0.615, 0, 0) m. Solver settings are those of our ManiSkill tasks, for
    stable grasps at 200 Hz; use control_hz=20. Geoms with contype=0 and conaffinity=7 touch floor,
    arm and fixtures; objects that touch each other have contype=4 too.

    Args:
      name: name of the model.
      visual: whether to add the parts that are only drawn.
    """
    from pdjax_envs.maniskill import tabletop

    return tabletop.make_spec(name, visual)


def _read(model: Spec) -> tuple[Callable[[bool], mujoco.MjSpec], tuple[Path, ...]]:
    """Returns what makes the spec, and the files that it comes from."""
    if isinstance(model, mujoco.MjSpec):
        return lambda visual: model.copy(), ()
    if not isinstance(model, Path | str):
        return lambda visual: guard(model, f"making the model, visual={visual},", visual), ()
    path = Path(model)
    if not is_file(path):
        raise InputError(
            f"no model at {short(str(path))}: no such file; name it relative to the Python file,"
            " with Path(__file__).with_name(...)"
        )
    reading = f"reading the model {short(str(path))}"
    guard(mujoco.MjSpec.from_file, reading, str(path))
    needed = guard(mujoco.mju_getXMLDependencies, reading, str(path))
    files = tuple(dict.fromkeys((path.absolute(), *(Path(n).absolute() for n in needed))))
    return lambda visual: mujoco.MjSpec.from_file(str(path)), files


def _substeps(model: mujoco.MjModel, control_hz: float) -> int:
    exact = 1 / (control_hz * model.opt.timestep)
    if round(exact) < 1 or not math.isclose(exact, round(exact), rel_tol=1e-6):
        raise InputError(
            f"control_hz={control_hz:g} makes {exact:.4g} physics steps of"
            f" {model.opt.timestep:g} s a control step, expected a whole number; change control_hz"
            " or the model's timestep"
        )
    return round(exact)


def _ctrl_scale(model: mujoco.MjModel) -> tuple[np.ndarray, np.ndarray]:
    """Returns centre and half range of each actuator."""
    low, high = model.actuator_ctrlrange.T
    for index in range(model.nu):
        if not low[index] < high[index]:
            raise InputError(
                f"actuator {model.actuator(index).name or index!r} has no ctrlrange, so actions in"
                " [-1, 1] cannot be scaled; give it one in the model"
            )
    if not model.nu:
        raise InputError("the model has no actuators; add some, or use a control of the Panda")
    return (low + high) / 2, (high - low) / 2


def _rows(
    model: mujoco.MjModel, randomize: Factors
) -> tuple[dict[str, tuple[str, ...]], list[tuple[float, float]]]:
    """Returns the randomised rows, and the range of the factor of each name in the same order."""
    rows: dict[str, tuple[str, ...]] = {}
    ranges: list[tuple[float, float]] = []
    for field, factors in randomize.items():
        try:
            row_ids(model, field, tuple(factors))
            getattr(model, field)
        except (KeyError, AttributeError) as error:
            raise InputError(
                f"randomize cannot vary {short(field)} of {short(', '.join(factors))}: {error};"
                " expected a field of geoms, bodies, sites or joints and their names"
            ) from None
        for object_name, (low, high) in factors.items():
            if not 0 <= low <= high or (field == "geom_size" and high > 1):
                raise InputError(
                    f"randomize {field} of {short(object_name)} by {(low, high)}, expected factors"
                    " low <= high from 0 on, of a size at most 1"
                )
            ranges.append((low, high))
        rows[field] = tuple(factors)
    return rows, ranges


def _scale(
    model: mujoco.MjModel,
    rows: Mapping[str, tuple[str, ...]],
    ranges: list[tuple[float, float]],
    drawn: Array,
) -> dict[str, Array]:
    """Returns the overrides of one episode: the model's values times factors drawn in [0, 1]."""
    found, count = {}, 0
    for field, names in rows.items():
        values = []
        for object_name in names:
            nominal = getattr(model, field)[row_ids(model, field, (object_name,))]
            low, high = ranges[count]
            values.append(jnp.asarray(nominal, jnp.float32) * (low + drawn[count] * (high - low)))
            count += 1
        found[field] = jnp.concatenate(values)
    return found


def _joint(model: mujoco.MjModel, name: str) -> tuple[int, int]:
    """Returns where a joint begins in qpos and how many numbers it has.

    Raises:
      UnknownName: the model has no such joint.
    """
    names = [model.joint(index).name for index in range(model.njnt)]
    if name not in names:
        raise unknown("joint", name, names)
    joint = model.joint(name)
    return int(joint.qposadr[0]), len(joint.qpos0)


def _start_position(model: mujoco.MjModel, start: Mapping[str, Any], is_panda: bool) -> np.ndarray:
    """Returns qpos at the start, before noise."""
    keys = [model.key(index).name for index in range(model.nkey)]
    qpos = np.array(model.key("start").qpos if "start" in keys else model.qpos0)
    if is_panda and "start" not in keys:
        fingers = [PANDA_OPEN] * (panda.NUM_JOINTS - panda.ARM_JOINTS)
        qpos[: panda.NUM_JOINTS] = [*panda.REST_ARM, *fingers]
    for name, given in start.items():
        begin, size = _joint(model, name)
        values = np.atleast_1d(np.asarray(given, float))
        if len(values) not in ({3, 7} if size == 7 else {size}):
            raise InputError(
                f"start of joint {name} got {len(values)} numbers, expected {size}"
                f"{' or 3' if size == 7 else ''}"
            )
        qpos[begin : begin + len(values)] = values
    return qpos


def _disturb(
    model: mujoco.MjModel, noise: Mapping[str, Noise], is_panda: bool
) -> Callable[[Array, Array], Array]:
    """Returns (key, qpos) -> qpos with the noise of a start."""
    widths, turns = np.zeros(model.nq), {}
    if is_panda:
        widths[: panda.ARM_JOINTS] = PANDA_NOISE
    for name, given in noise.items():
        begin, size = _joint(model, name)
        values = np.atleast_1d(np.asarray(given, float))
        allowed = {1: {1}, 4: set(), 7: {1, 3, 4}}[size]
        if len(values) not in allowed:
            raise InputError(
                f"noise of joint {name} got {len(values)} number(s), expected"
                f" {' or '.join(map(str, sorted(allowed))) or 'none, for a ball joint'}"
            )
        places = [values[0], values[0], 0.0] if size == 7 and len(values) == 1 else values[:3]
        widths[begin : begin + len(places)] = places
        if len(values) == 4:
            turns[begin + 3] = values[3]

    def disturb(key: Array, qpos: Array) -> Array:
        places, angles = jax.random.split(key)
        qpos = qpos + jnp.asarray(widths) * jax.random.uniform(places, qpos.shape, minval=-1)
        drawn = jax.random.uniform(angles, (len(turns),), minval=-1)
        for (begin, width), turn in zip(turns.items(), drawn, strict=True):
            turned = quat_multiply(quat_about_z(width * turn), qpos[begin : begin + 4])
            qpos = qpos.at[begin : begin + 4].set(turned)
        return qpos

    return disturb


def _panda_control(mode: str, control_hz: float) -> Callable[[Episode, PhysicsState, Array], Array]:
    """Returns what turns an action into position targets of the arm's nine actuators."""
    # The drives approach a target exponentially, with the time constant damping / stiffness.
    approach = 1 - math.exp(-panda.STIFFNESS / panda.DAMPING / control_hz)
    lead = JOINT_SPEED / control_hz / approach

    def control(episode: Episode, physics: PhysicsState, action: Array) -> Array:
        del episode
        qpos = physics.qpos[: panda.NUM_JOINTS]
        if mode == "panda_joint_velocity":
            still = jnp.concatenate([jnp.zeros(6), action[-1:]])
            fingers = panda.delta_pose_control(qpos, still, iterations=1)[panda.ARM_JOINTS :]
            return jnp.concatenate([qpos[: panda.ARM_JOINTS] + lead * action[:-1], fingers])
        if mode == "panda_ee_delta_pos":
            action = jnp.concatenate([action[:3], jnp.zeros(3), action[3:]])
        return panda.delta_pose_control(qpos, action)

    return control


def _visual(
    spec: mujoco.MjSpec,
    compiled: mujoco.MjModel,
    view: tuple[looks.Point, looks.Point] | None,
) -> mujoco.MjModel:
    """Returns the model that is drawn, with a camera `view`."""
    has_view = any(camera.name == "view" for camera in spec.cameras)
    if view is not None or not has_view:
        center, extent = compiled.stat.center, compiled.stat.extent
        eye = tuple(float(x) for x in center + extent * np.array([0.6, -1.1, 0.9]))
        if has_view:
            spec.delete(spec.camera("view"))
        looks.add_looks(spec, *(view or (eye, tuple(map(float, center)))))  # pyright: ignore
    return spec.compile()
