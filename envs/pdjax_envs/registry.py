"""Task names and physics engines, and how a program gets an environment by name.

Third parties add tasks through the entry-point group `pdjax_envs.tasks`: each entry names a
function () -> Task.
"""

import difflib
import importlib
import importlib.util
from functools import cache
from importlib.metadata import entry_points

import jax

from pdjax_envs.physics.engine import Engine, Scene
from pdjax_envs.task import Env, Task, make_env

ENGINES = ("native", "mjx", "warp")


class UnknownName(ValueError):  # noqa: N818 (a mistake, not a failure)
    """A task or engine that does not exist here; the message says what does."""


# Task -> module with its `make_task`; imported when it is asked for.
_BUILT_IN = {
    "AdroitDoor": "pdjax_envs.adroit.door",
    "AdroitHammer": "pdjax_envs.adroit.hammer",
    "AdroitPen": "pdjax_envs.adroit.pen",
    "AdroitRelocate": "pdjax_envs.adroit.relocate",
    "PegInsertionSide": "pdjax_envs.maniskill.peg_insertion_side",
}


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
        return importlib.import_module(_BUILT_IN[name]).make_task()
    for entry in entry_points(group="pdjax_envs.tasks"):
        if entry.name == name:
            return entry.load()()
    close = difflib.get_close_matches(name, task_names(), n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose one of: {', '.join(task_names())}"
    raise UnknownName(f"unknown task {name!r}; {hint}")


def resolve_engine(physics: str) -> str:
    """The engine of that name, or the one that `auto` stands for here.

    That is native on a CPU, warp on an NVIDIA GPU where it is installed, else mjx.

    Raises:
      UnknownName: no such engine, or warp is not installed.
    """
    has_warp = importlib.util.find_spec("warp") is not None
    if physics == "auto":
        if jax.default_backend() == "cpu":
            return "native"
        return "warp" if has_warp and "NVIDIA" in jax.devices()[0].device_kind else "mjx"
    if physics not in ENGINES:
        raise UnknownName(f"unknown physics engine {physics!r}; choose auto, {', '.join(ENGINES)}")
    if physics == "warp" and not has_warp:
        raise UnknownName("physics engine 'warp' is not installed; pip install 'mujoco-mjx[warp]'"
                          ", or choose native or mjx")  # fmt: skip
    return physics


def make_engine(scene: Scene, physics: str = "auto") -> Engine:
    """Binds a physics engine to a scene; a simulator is imported only when it is used.

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
    name: str, physics: str = "auto", reward: str = "success", terminate_on_success: bool = True
) -> Env:
    """Builds an environment by task and engine name; see `task.make_env` for the rest.

    Raises:
      UnknownName: no such task, engine or reward, or the engine is not installed.
    """
    task = make_task(name)
    if reward != "success" and reward not in task.rewards:
        kinds = ", ".join(["success", *task.rewards])
        raise UnknownName(f"task {name} has no reward {reward!r}; choose one of: {kinds}")
    engine = make_engine(task.adapt(task.scene, resolve_engine(physics)), physics)
    return make_env(task, engine, reward, terminate_on_success)
