"""Task names and physics engines, and how a program gets an environment by name.

A program adds a task of its own with `register`, for as long as the process lives. An installed
package adds tasks through the entry-point group `pdjax_envs.tasks`: each entry names a function
() -> Task. Names such as `brax:ant` and `playground:CartpoleBalance` are environments of those
libraries, see `from_brax`; `gymnasium:ID` is one in worker processes, see `from_gymnasium`; and
FILE.py:FUNCTION is a task in a file, see `task_files`.
"""

import importlib
import importlib.util
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import jax

from pdjax_envs import from_gymnasium, lasting, shifts, task_files
from pdjax_envs.names import UnknownName, suggest, task_named, unknown
from pdjax_envs.physics import mjx_flags
from pdjax_envs.physics.engine import Engine, Scene
from pdjax_envs.reading import short
from pdjax_envs.task import Env, Task, make_env

ENGINES = ("native", "mjx", "warp")


# Task -> module with its `make_task`, which is imported on first use.
BUILT_IN = {
    "AdroitDoor": "pdjax_envs.adroit.door",
    "AdroitHammer": "pdjax_envs.adroit.hammer",
    "AdroitPen": "pdjax_envs.adroit.pen",
    "AdroitRelocate": "pdjax_envs.adroit.relocate",
    "PegInsertionSide": "pdjax_envs.maniskill.peg_insertion_side",
    "PushChair": "pdjax_envs.maniskill.push_chair",
    "PushChairHeldOut": "pdjax_envs.maniskill.push_chair_held_out",
    "StackCube": "pdjax_envs.maniskill.stack_cube",
    "TurnFaucet": "pdjax_envs.maniskill.turn_faucet",
    "TurnFaucetHeldOut": "pdjax_envs.maniskill.turn_faucet_held_out",
}


_PLAYGROUND = "playground:"
_FOREIGN = ("brax:", _PLAYGROUND)
OTHER_TASKS = (
    "brax:NAME, playground:NAME, gymnasium:ID (other libraries' environments), or FILE.py:FUNCTION"
)
_registered: dict[str, Task] = {}
_from_files: dict[str, Task] = {}  # by their own names, the latest of each


def register(task: Task) -> None:
    """Makes a task available under `task.name` everywhere that tasks are found by name.

    The registration lasts as long as this process. Another process, such as a resumed run, must
    register the task again or find it through the entry-point group `pdjax_envs.tasks`.
    Registering the same object twice changes nothing. Call `pdjax_envs.gymnasium.register()` to
    offer the task to Gymnasium too.

    Args:
      task: the task. If it has an `engine`, that engine alone steps it; otherwise its `scene` runs
        on any engine of `ENGINES`.

    Raises:
      TypeError: this is not a `Task`.
      ValueError: another task has this name, or the task has neither scene nor engine.
    """
    if not isinstance(task, Task):
        raise TypeError(f"register takes a pdjax_envs.Task, got {type(task).__name__}")
    name = task.name
    if name in _registered and _registered[name] is not task:
        raise ValueError(
            f"another task is registered as {name!r}; choose another name, or call"
            f" pdjax_envs.unregister({name!r}) first"
        )
    if name.startswith(_FOREIGN) or name in _installed():
        if make_task(name) is not task:
            raise ValueError(f"the name {name!r} belongs to an installed task; choose another name")
        return
    if task.scene is None and task.engine is None:
        raise ValueError(f"task {name!r} has neither scene nor engine; give it one of the two")
    _registered[name] = task


def unregister(name: str) -> None:
    """Removes the task that was registered under this name.

    Raises:
      UnknownName: no task is registered under this name.
    """
    if name not in _registered:
        raise unknown("registered task", name, _registered)
    del _registered[name]


def task_names() -> list[str]:
    """Returns the names of all tasks: built-in, from installed packages, and registered."""
    return sorted({*_installed(), *_registered})


def _installed() -> set[str]:
    return {*BUILT_IN, *(entry.name for entry in entry_points(group="pdjax_envs.tasks"))}


def make_task(name: str) -> Task:
    """Returns the task with this name, the same object at every call.

    A task in a file is FILE.py:FUNCTION, and from then on also its own name.

    Raises:
      UnknownName: no such task.
      InputError: it is in a file whose code fails.
    """
    if from_gymnasium.environment(name):
        return from_gymnasium.make(name).task
    if source := task_files.split(name):
        return _load_file(*source)
    for known in (_registered, _from_files):
        if name in known:
            return known[name]
    return _build_task(name)


def _load_file(path: Path, function: str) -> Task:
    task = task_files.load(path, function)
    if task.name in _registered or task.name in _installed() or task.name.startswith(_FOREIGN):
        raise UnknownName(
            f"{short(str(path))}:{function} names its task {short(repr(task.name))}, which is"
            " another task's name; choose another one"
        )
    _from_files[task.name] = task
    return task


@cache
def _build_task(name: str) -> Task:
    if name.startswith(_FOREIGN):
        return _make_foreign(name).task
    if name in BUILT_IN:
        return importlib.import_module(BUILT_IN[name]).make_task()
    for entry in entry_points(group="pdjax_envs.tasks"):
        if entry.name == name:
            return entry.load()()
    raise UnknownName(
        f"unknown task {short(repr(name))}; {suggest(name, task_names(), '`pdjax envs`')};"
        f" or {OTHER_TASKS}"
    )


def family(name: str) -> str:
    """Returns `Task.family` of the task with this name; an unknown task is its own family.

    The name may come from somebody else's file, so it starts no worker and runs no code.
    """
    if from_gymnasium.environment(name) or task_files.split(name):
        return from_gymnasium.family(name) or task_files.in_name(name)
    try:
        return make_task(name).family
    except UnknownName:
        return name


def is_same(named: str, task: Task) -> bool:
    """Returns whether demonstrations and base policies of one task suit another, by its name.

    Another version of an environment will do. What a file of the user's makes may be any
    environment, perhaps in a wrapper, so its name says nothing: sizes have to decide.

    Args:
      named: the task that a file or a policy names.
      task: the task that it shall be used for.
    """
    if any(from_gymnasium.is_file(name) for name in (named, task.name)):
        return True
    short_names = (task_named(name.rpartition(":")[2]) for name in (named, task.name))
    return len(set(short_names)) == 1 or family(named) == task.family


def resolve_engine(physics: str) -> str:
    """Returns the name of the engine, resolving `auto` for this machine.

    `auto` means native on a CPU, warp on an NVIDIA GPU if it is installed, and mjx otherwise.

    Raises:
      UnknownName: no such engine, or warp is not installed.
    """
    has_warp = importlib.util.find_spec("warp") is not None
    if physics == "auto":
        if jax.default_backend() == "cpu":
            return "native"
        return "warp" if has_warp and "NVIDIA" in jax.devices()[0].device_kind else "mjx"
    if physics not in ENGINES:
        raise UnknownName(
            f"unknown physics engine {short(repr(physics))}; choose auto, {', '.join(ENGINES)}"
        )
    if physics == "warp" and not has_warp:
        raise UnknownName(
            "physics engine 'warp' is not installed; pip install 'mujoco-mjx[warp]'"
            ", or choose native or mjx"
        )
    return physics


def prepare(name: str, physics: str = "auto") -> None:
    """Sets what a task's physics needs from JAX; call it before JAX first looks for its devices.

    `make` needs no call of this if nothing has used JAX before it.

    Args:
      name: the task.
      physics: as for `make`.

    Raises:
      InputError: JAX has started already, without those settings.
    """
    if from_gymnasium.environment(name):  # no physics of JAX
        return
    if physics in ("mjx", "warp") or name.startswith(_PLAYGROUND):
        mjx_flags.prepare()


def make_engine(scene: Scene, physics: str = "auto") -> Engine:
    """Binds a physics engine to a scene; imports a simulator only when it is used.

    Raises:
      UnknownName: no such engine, or it is not installed.
    """
    engine = resolve_engine(physics)
    if engine == "native":
        from pdjax_envs.physics import native

        return native.make_engine(scene)
    from pdjax_envs.physics import mjx

    return mjx.make_engine(scene, "warp" if engine == "warp" else "jax")


def make(
    name: str,
    physics: str = "auto",
    reward: str = "",
    terminate_on_success: bool = True,
    shift: str = "",
    workers: from_gymnasium.Workers | None = None,
    hold_steps: int = 1,
) -> Env:
    """Builds an environment from the names of its parts.

    Args:
      name: the task.
      physics: the physics engine, or `auto`. A task with physics of its own accepts only `auto` or
        the name of its own engine.
      reward: see `task.make_env`; "" = `success`, or `dense` if the task has no success.
      terminate_on_success: see `task.make_env`.
      shift: perturbations joined by +, see `shifts`; "" means none.
      workers: how the worker processes of a Gymnasium environment are run.
      hold_steps: control steps in a row that the task must be solved before success pays and ends
        the episode, see `lasting`.

    Raises:
      UnknownName: no such task, engine, reward or shift, the engine is not installed, or success
        cannot be held.
    """
    if hold_steps > 1:
        if from_gymnasium.environment(name):
            raise UnknownName(
                f"{name} takes no hold_steps, got {hold_steps}: its simulator says what success is"
            )
        env = make(name, physics, reward, terminate_on_success=False, shift=shift)
        kind = reward or ("success" if env.task.has_success else "dense")
        return lasting.hold_success(env, hold_steps, kind, terminate_on_success)
    if from_gymnasium.environment(name):
        _check_own_physics(name, physics, from_gymnasium.ENGINE)
        if shift:
            raise UnknownName(f"{name} takes no shift, got {shift!r}: its simulator is its own")
        return from_gymnasium.make(name, workers, reward, terminate_on_success)
    task = make_task(name)
    reward = reward or ("success" if task.has_success else "dense")
    if reward != "success" and reward not in task.rewards:
        kinds = ", ".join(["success", *task.rewards])
        raise UnknownName(
            f"task {name} has no reward {short(repr(reward))}; choose one of: {kinds}"
        )
    if name.startswith(_FOREIGN):
        env = _make_foreign(name, reward, terminate_on_success)
        _check_own_physics(name, physics, env.engine)
        return _shift(env, shift)
    for part in _parse_shift(task, shift):
        task = part.of_task(task)
    if task.engine is not None:
        _check_own_physics(name, physics, task.engine.name)
        engine = task.engine
    else:
        engine = make_engine(task.adapt(task.scene, resolve_engine(physics)), physics)
    return _shift(make_env(task, engine, reward, terminate_on_success), shift)


def _check_own_physics(name: str, physics: str, engine: str) -> None:
    """Raises UnknownName unless `physics` is `auto` or the task's own engine."""
    if physics not in ("auto", engine):
        raise UnknownName(f"{name} brings its own physics, got {physics!r}; choose auto")


def _parse_shift(task: Task, shift: str) -> list[shifts.Shift]:
    parts = shift.split("+") if shift else []
    for part in parts:
        if part not in shifts.SHIFTS:
            raise unknown("shift", part, shifts.SHIFTS)
        if lack := shifts.needed(part, task):
            raise UnknownName(f"task {task.name} has no shift {part!r}: {lack}")
    return [shifts.SHIFTS[part] for part in parts]


def _shift(env: Env, shift: str) -> Env:
    for part in _parse_shift(env.task, shift):
        env = part.of_env(env)
    return env


def _make_foreign(name: str, reward: str = "success", terminate_on_success: bool = True) -> Env:
    from pdjax_envs import from_brax

    theirs, episode_steps = from_brax.load(name)
    return from_brax.from_brax(theirs, name, episode_steps, reward, terminate_on_success)
