"""Any Gymnasium environment as a task: it lives in worker processes of any Python.

Such an environment is no pure function, so it has a task that says what its numbers mean, and
`Env.open`, which starts the workers. Its names are `gymnasium:ID`, `gymnasium:MODULE:ID` and
FILE.py:FUNCTION, if the function's name begins with make_env. Not pure: it starts processes.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from pdjax_envs import task_files
from pdjax_envs.names import UnknownName
from pdjax_envs.reading import InputError, short
from pdjax_envs.task import Env, Task
from pdjax_envs.workers import Description, WorkerPool, describe

PREFIX = "gymnasium:"
ORIGINALS = {  # ID -> our task that equals it, whose demonstrations and base policies fit
    f"AdroitHand{name}-v1": f"Adroit{name}" for name in ("Door", "Hammer", "Pen", "Relocate")
}
MAKER = "make_env"  # begins the name of a function of a file that returns an environment
ENGINE = "gymnasium"
CONTROL_MODE = "own, scaled from its bounds"


@dataclass(frozen=True)
class Workers:
    """How the worker processes of an environment are run.

    Attributes:
      count: number of processes; 0 = one for each core.
      python: the interpreter that has the environment; "" = this one.
      options: keyword arguments of the environment.
      success: see `workers.spec.check_spec`.
      episode_steps: time limit in control steps; 0 = the environment's own.
      step_timeout: s that a worker may take for a decision.
      restarts: workers that may be replaced before that is an error.
    """

    count: int = 0
    python: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    success: str = "auto"
    episode_steps: int = 0
    step_timeout: float = 60.0
    restarts: int = 10


_default = Workers()  # of this process


def use(workers: Workers) -> None:
    """Sets how worker processes are run where a caller of `make` does not say."""
    global _default
    _default = workers


def environment(name: str) -> str:
    """Returns what a worker makes for a task's name; "" if the name is none of an environment."""
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX)
    if is_file(name):
        path, _, function = name.rpartition(":")
        return f"{Path(path).absolute()}:{function}"
    return ""


def is_file(name: str) -> bool:
    """Returns whether a task's name is that of an environment which a file of the user's makes."""
    source = task_files.split(name)
    return source is not None and source[1].startswith(MAKER)


def family(name: str) -> str:
    """Returns `Task.family` of a name, without starting a worker; "" for a family of its own."""
    return ORIGINALS.get(environment(name).rpartition(":")[2], "")


def make(
    name: str,
    workers: Workers | None = None,
    reward: str = "",
    terminate_on_success: bool = True,
) -> Env:
    """Builds the environment; a worker makes one instance to see what it is made of.

    Args:
      name: see above.
      workers: how the worker processes are run; None = what `use` has set.
      reward: `success`, or `dense` for the environment's own; "" = `success` if it has success.
      terminate_on_success: whether success ends an episode.

    Raises:
      workers.WorkerError, InputError: the environment cannot be used.
    """
    workers = workers or _default
    found = _described(_key(name, workers))
    task = _make_task(name, found, workers)
    reward = reward or ("success" if task.has_success else "dense")
    if reward not in ("success", *task.rewards):
        raise UnknownName(f"{name} has no reward {reward!r}; choose one of: success, dense")

    def open_pool(num_envs: int, act_horizon: int, **more: Any) -> WorkerPool:
        count = min(workers.count or os.cpu_count() or 1, num_envs)
        return WorkerPool(
            _spec(name, workers) | more,
            num_envs,
            count,
            chunk=act_horizon,
            python=workers.python,
            step_timeout=workers.step_timeout,
            restarts=workers.restarts,
        )

    return Env(task, ENGINE, (), _no, _no, _no, open_pool, terminate_on_success, reward)


def _spec(name: str, workers: Workers) -> dict[str, Any]:
    return {
        "env": environment(name),
        "options": dict(workers.options),
        "success": workers.success,
        "episode_steps": workers.episode_steps,
    }


def _key(name: str, workers: Workers) -> str:
    return json.dumps([_spec(name, workers), workers.python])


@cache
def _described(key: str) -> Description:
    spec, python = json.loads(key)
    return describe(spec, python)


def _make_task(name: str, found: Description, workers: Workers) -> Task:
    steps = workers.episode_steps or found.episode_steps
    if not steps:
        raise InputError(f"{name} has no time limit; set task.episode_steps to its control steps")
    versions = ", ".join(f"{library} {version}" for library, version in found.versions.items())
    return Task(
        name=task_files.in_name(name),
        summary=f"in worker processes of Python {found.python} ({versions})",
        observation=tuple((part.name, part.stop - part.start) for part in found.parts),
        action=(("action", found.act_dim),),
        meanings={"action": f"scaled to the environment's own, {_bounds(found)}"},
        control_mode=CONTROL_MODE,
        episode_steps=steps,
        control_hz=found.control_hz or float("nan"),
        sample_start=_no,
        observe=_no,
        success=_no,
        rewards={"dense": _no},
        has_success=bool(found.success),
        family=family(name),
    )


def _bounds(found: Description) -> str:
    """Returns the bounds of the environment's actions: one pair if all numbers have the same."""
    pairs = list(dict.fromkeys(zip(found.low, found.high, strict=True)))
    pairs = pairs if len(pairs) == 1 else list(zip(found.low, found.high, strict=True))
    return short(", ".join(f"[{low:g}, {high:g}]" for low, high in pairs))


def _no(*arguments: Any) -> NoReturn:
    raise NotImplementedError(
        "an environment in worker processes is no pure function; open its workers with Env.open"
    )
