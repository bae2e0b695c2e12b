"""The files of a run's directory that hold its results: their names, and how each is read.

Whoever needs one of these files gets it here, so that damage is noticed once and told in one way.
The other files have one door each as well: `config.yaml` in `config.files`, lines of records in
`records`, checkpoints and `residual/` in `checkpoint`, `episodes.npz` in `rollout.paired`. Not
pure.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdjax.config.files import TASK
from pdjax.config.options import ConfigError
from pdjax.output import digests, terminal
from pdjax.output.checkpoint import CheckpointError
from pdjax.output.paths import write_json
from pdjax_envs import from_gymnasium, reading, registry, task_files
from pdjax_envs.reading import InputError, is_non_negative, is_number, is_rate

RESULT = "result.json"
BASE = "base_policy"  # the run's copy of its base policy
BASE_DIGESTS = "base_policy.digests.json"
TASK_DIGESTS = "task.digests.json"
RATES = ("base_success", "refined_success")  # what the result of a finished run has,
RETURNS = ("base_return", "refined_return")  # or this, if its task has no success
COUNTS = ("episodes", "decision_steps")
INTERVALS = ("base_ci", "refined_ci", "gain_ci")
TOLD = (  # what the tables of a finished run show
    *("task", "episodes", "gain", "gain_ci"),
    *(f"{side}_{name}" for side in ("base", "refined") for name in ("ci", "smoothness")),
)


def write_result(directory: Path, summary: Mapping[str, Any]) -> None:
    """Writes `result.json`."""
    write_json(directory / RESULT, summary)


def read_result(directory: Path) -> dict[str, Any]:
    """Reads the `result.json` of any command; returns an empty dict if there is none.

    Raises:
      InputError: it cannot be read, or holds no object.
    """
    path = directory / RESULT
    return reading.read_json_object(path, "result") if reading.is_file(path) else {}


def read_result_of_run(directory: Path) -> dict[str, Any]:
    """Reads a run's `result.json`; returns an empty dict if there is none.

    Raises:
      InputError: see `read_result`; or a value has another type than a run's result has.
    """
    again = "`pdjax train` with --resume makes it again"
    try:
        found = read_result(directory)
    except InputError as error:
        raise InputError(f"{error}; {again}") from None
    if not found:
        return found
    is_rate = found.get(RATES[0]) is not None or found.get(RETURNS[0]) is None
    needed = RATES if is_rate else RETURNS
    for name, value in ({name: found.get(name) for name in needed} | found).items():
        may_lack = value is None and not is_rate and name not in needed
        if not may_lack and (problem := _problem(name, value)):
            raise InputError(
                f"cannot read result {reading.short(str(directory / RESULT))}: {name} is"
                f" {reading.short(value)}, expected {problem}; {again}"
            )
    return found


def _problem(name: str, value: Any) -> str:
    """Returns what a value of a run's result should be; "" if it is right."""
    if name in ("task", "physics"):
        return "" if isinstance(value, str) else "a name"
    if name in INTERVALS:
        right = isinstance(value, list) and len(value) == 2 and all(map(is_number, value))
        return "" if right else "two numbers"
    if name in RATES:
        return "" if is_rate(value) else "a number in [0, 1]"
    if name in COUNTS:
        return "" if is_non_negative(value) else "a number from 0 on"
    if name == "gain":
        return "" if is_number(value) else "a number"
    if name.startswith(("base_", "refined_")) and not isinstance(value, list):
        return "" if value is None or is_number(value) else "a number"
    return ""


def copy_base(base: Path, directory: Path) -> None:
    """Copies a base policy's directory into a run's, with digests of what was copied."""
    shutil.copytree(base, directory / BASE)
    digests.write(directory / BASE, directory / BASE_DIGESTS)


def copy_task(task: str, directory: Path) -> None:
    """Copies a task's file and what it needs into a run's directory, if the task is in a file.

    Args:
      task: the task's name, as in the config.
      directory: the run's directory.
    """
    if source := task_files.split(task):
        is_other = from_gymnasium.environment(task)  # its interpreter may not be this one
        files = () if is_other else registry.make_task(task).files
        needed = task_files.files_beside(source[0], files)
        for place, file in needed.items():
            copy = directory / TASK / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        digests.write(directory / TASK, directory / TASK_DIGESTS)


def is_task(directory: Path, path: Path) -> bool:
    """Returns whether a task's file is the one that a run holds a copy of.

    Raises:
      InputError: the digests cannot be read.
    """
    return digests.agree_on(path, path.name, directory / TASK_DIGESTS)


def check_task(directory: Path) -> None:
    """Checks that a run's directory holds the task's file that the run began with, and names it.

    Call it before the file runs.

    Raises:
      CheckpointError: the copy is damaged, or is another file.
    """
    try:
        digests.check(directory / TASK, directory / TASK_DIGESTS)
    except InputError as error:
        raise CheckpointError(
            f"the task in {directory / TASK} is not the one that the run began with ({error}); put"
            " the original back, or begin another run"
        ) from None
    for code in sorted((directory / TASK).glob("*.py")):
        terminal.say_code(code)


def is_base(directory: Path, base: Path) -> bool:
    """Returns whether a base policy's directory holds what a run's copy holds.

    A run of an older version, which has no digests, takes any for its own.

    Raises:
      InputError: the digests cannot be read.
    """
    wanted = directory / BASE_DIGESTS
    return not reading.is_file(wanted) or digests.agree(base, wanted)


def check_base(directory: Path) -> None:
    """Checks that a run's directory holds the base policy that the run began with.

    Raises:
      ConfigError: there is no copy: the policy existed only in memory.
      CheckpointError: the copy is damaged, or is another policy.
    """
    if not (directory / BASE).is_dir():
        raise ConfigError(
            f"{directory} refines a base policy that existed only in memory; pass it as base= to"
            " pdjax.resume, pdjax.evaluate or pdjax.export"
        )
    try:
        digests.check(directory / BASE, directory / BASE_DIGESTS)
    except InputError as error:
        raise CheckpointError(
            f"the base policy in {directory / BASE} is not the one that the run began with"
            f" ({error}); put the original back, or begin another run"
        ) from None
