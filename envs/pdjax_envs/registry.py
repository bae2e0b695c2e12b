"""Task names and physics engines, and how a program gets an environment by name.

Third parties add tasks through the entry-point group `pdjax_envs.tasks`: each entry names a
function () -> Task. Names such as `brax:ant` and `playground:CartpoleBalance` are environments of
those libraries, see `from_brax`.
"""

import difflib
import importlib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points

import jax

from pdjax_envs.physics.engine import Engine, Scene
from pdjax_envs.task import Env, Task, make_env

ENGINES = ("native", "mjx")


class UnknownName(ValueError):  # noqa: N818 (a mistake, not a failure)
    """A task or engine that does not exist; the message lists those that do."""


# Task -> module with its `make_task`; imported when it is asked for.
BUILT_IN = {
    "AdroitDoor": "pdjax_envs.adroit.door",
    "AdroitHammer": "pdjax_envs.adroit.hammer",
    "AdroitPen": "pdjax_envs.adroit.pen",
    "AdroitRelocate": "pdjax_envs.adroit.relocate",
    "PegInsertionSide": "pdjax_envs.maniskill.peg_insertion_side",
    "PushChair": "pdjax_envs.maniskill.push_chair",
    "PushChairHeldOut": "pdjax_envs.maniskill.push_chair_held_out",
    "StackCube": "pdjax_envs.maniskill.stack_cube",
}


def task_names() -> list[str]:
    """Names of all tasks, those of installed third parties included."""
    return sorted({*BUILT_IN, *(entry.name for entry in entry_points(group="pdjax_envs.tasks"))})


_FOREIGN = ("brax:", "playground:")


@cache
def make_task(name: str) -> Task:
    """Builds a task by name.

    Raises:
      UnknownName: no such task.
    """
    if name.startswith(_FOREIGN):
        return _make_foreign(name).task
    if name in BUILT_IN:
        return importlib.import_module(BUILT_IN[name]).make_task()
    for entry in entry_points(group="pdjax_envs.tasks"):
        if entry.name == name:
            return entry.load()()
    raise unknown("task", name, task_names())


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownName:
    """The error for a name that is none of those known; says which one was meant."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose one of: {', '.join(known)}"
    return UnknownName(f"unknown {kind} {name!r}; {hint}")


def resolve_engine(physics: str) -> str:
    """The engine that `auto` stands for here: native on a CPU, mjx on an accelerator."""
    if physics == "auto":
        return "native" if jax.default_backend() == "cpu" else "mjx"
    if physics not in ENGINES:
        raise UnknownName(f"unknown physics engine {physics!r}; choose auto, {', '.join(ENGINES)}")
    return physics


def make_engine(scene: Scene, physics: str = "auto") -> Engine:
    """Binds a physics engine to a scene; a simulator is imported only when it is used."""
    if resolve_engine(physics) == "native":
        from pdjax_envs.physics import native

        return native.make_engine(scene)
    from pdjax_envs.physics import mjx

    return mjx.make_engine(scene)


def make(
    name: str, physics: str = "auto", reward: str = "success", terminate_on_success: bool = True
) -> Env:
    """Builds an environment by task and engine name; see `task.make_env` for the rest.

    Raises:
      UnknownName: no such task, engine or reward.
    """
    task = make_task(name)
    if reward != "success" and reward not in task.rewards:
        kinds = ", ".join(["success", *task.rewards])
        raise UnknownName(f"task {name} has no reward {reward!r}; choose one of: {kinds}")
    if name.startswith(_FOREIGN):
        if physics != "auto":
            raise UnknownName(f"{name} brings its own physics, got {physics!r}; choose auto")
        return _make_foreign(name, reward, terminate_on_success)
    engine = make_engine(task.adapt(task.scene, resolve_engine(physics)), physics)
    return make_env(task, engine, reward, terminate_on_success)


def _make_foreign(name: str, reward: str = "success", terminate_on_success: bool = True) -> Env:
    from pdjax_envs import from_brax

    theirs, episode_steps = from_brax.load(name)
    return from_brax.from_brax(theirs, name, episode_steps, reward, terminate_on_success)
