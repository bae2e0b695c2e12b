"""Task names and physics engines, and how a program gets an environment by name.

Third parties add tasks through the entry-point group `pdjax_envs.tasks`: each entry names a
function () -> Task.
"""

import difflib
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points

import jax

from pdjax_envs.physics.engine import Engine, Scene
from pdjax_envs.task import Env, Task, make_env

ENGINES = ("native", "mjx")


class UnknownName(ValueError):  # noqa: N818 (a mistake, not a failure)
    """A task or engine that does not exist; the message lists those that do."""


def _peg_insertion_side() -> Task:
    from pdjax_envs.maniskill.peg_insertion_side import make_task

    return make_task()


_BUILT_IN: dict[str, Callable[[], Task]] = {"PegInsertionSide": _peg_insertion_side}


def task_names() -> list[str]:
    """Names of all tasks, those of installed third parties included."""
    return sorted({*_BUILT_IN, *(entry.name for entry in entry_points(group="pdjax_envs.tasks"))})


@cache
def make_task(name: str) -> Task:
    """Builds a task by name.

    Raises:
      UnknownName: no such task.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    for entry in entry_points(group="pdjax_envs.tasks"):
        if entry.name == name:
            return entry.load()()
    close = difflib.get_close_matches(name, task_names(), n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose one of: {', '.join(task_names())}"
    raise UnknownName(f"unknown task {name!r}; {hint}")


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


def make(name: str, physics: str = "auto") -> Env:
    """Builds an environment by task and engine name."""
    task = make_task(name)
    return make_env(task, make_engine(task.scene, physics))
