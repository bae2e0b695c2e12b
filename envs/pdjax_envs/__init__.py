"""Robot tasks as pure JAX functions, on several physics engines.

Importing this package imports no JAX; the names below import their modules when they are first
used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdjax_envs.mujoco_state import State
    from pdjax_envs.mujoco_task import make_mujoco_task, panda_scene
    from pdjax_envs.names import UnknownName
    from pdjax_envs.registry import make, make_task, register, task_names, unregister
    from pdjax_envs.task import Env, Task

__all__ = [
    "Env",
    "State",
    "Task",
    "UnknownName",
    "make",
    "make_mujoco_task",
    "make_task",
    "panda_scene",
    "register",
    "task_names",
    "unregister",
]

_HOMES = {
    "Env": "pdjax_envs.task",
    "State": "pdjax_envs.mujoco_state",
    "make_mujoco_task": "pdjax_envs.mujoco_task",
    "panda_scene": "pdjax_envs.mujoco_task",
    "Task": "pdjax_envs.task",
    "UnknownName": "pdjax_envs.names",
    "make": "pdjax_envs.registry",
    "make_task": "pdjax_envs.registry",
    "register": "pdjax_envs.registry",
    "task_names": "pdjax_envs.registry",
    "unregister": "pdjax_envs.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pdjax_envs' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
