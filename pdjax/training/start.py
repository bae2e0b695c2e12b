"""How a run's directory begins or is taken up again: what it holds, whose it is, who may write.

Separate from `run`, which trains. Nothing here needs a compiled program. Not pure.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from pdjax.base_policies import load
from pdjax.config import files as configs
from pdjax.config.schema import Config, ConfigError
from pdjax.devices import processes
from pdjax.output import checkpoint, lock, run_directory, terminal
from pdjax.output.paths import check_directory, new_directory, whole_directory
from pdjax.training.run_in_progress import CHECKPOINTS, Member
from pdjax_envs import task_files
from pdjax_envs.reading import InputError


def check_layout(directory: Path, count: int) -> None:
    """Checks that a directory does not hold runs in the other layout, or of other members.

    Raises:
      ConfigError: it does.
    """
    held = len(list(directory.glob("member_*/config.yaml")))
    if count > 1 and (directory / "config.yaml").is_file():
        raise ConfigError(
            f"{directory} holds a single run, not {count} members; choose another --out, or leave"
            " out --members"
        )
    if held and count == 1:
        raise ConfigError(
            f"{directory} holds {held} members, not a single run; choose another --out, or give"
            f" --members {held}"
        )
    begun = any(directory.glob(f"member_*/{CHECKPOINTS}/*"))
    if held > count or (begun and held < count):
        raise ConfigError(
            f"{directory} holds {held} members, got {count}; give the same config and --members as"
            " at its start, or choose another --out"
        )


def survey(
    members: Sequence[Member], resume: bool
) -> tuple[list[Member], dict[Path, dict[str, Any]]]:
    """Returns the members that have not begun, and the results of those that are finished.

    Raises:
      ConfigError: a directory cannot be used, see `run`; or the processes of this run differ in
        their configs or do not see the same run directories.
    """
    processes.check_same("config", [repr(member.config) for member in members])
    begun = processes.agree(lambda: [resume and _is_begun(*member) for member in members])
    processes.check_same("folder for runs", begun)
    new = [member for member, is_begun in zip(members, begun, strict=True) if not is_begun]
    for member in new:
        processes.by_writer(partial(check_directory, member.directory))
    found = {m.directory: _read_finished(m.directory) for m in members if m not in new}
    return new, {directory: result for directory, result in found.items() if result}


def _read_finished(directory: Path) -> dict[str, Any]:
    """Returns the result of a run; an empty dict if the run must be evaluated, perhaps again."""
    try:
        result = run_directory.read_result_of_run(directory)
    except InputError as error:
        terminal.say(f"{error}; evaluating it again")
        return {}
    missing = [name for name in run_directory.TOLD if name not in result]
    if result and missing:
        terminal.say(f"the result of {directory} lacks {missing[0]}; evaluating it again")
        return {}
    if result and not checkpoint.is_intact(directory / "residual"):
        terminal.say(f"{directory / 'residual'} is damaged; writing it again")
        return {}
    return result


def _is_begun(config: Config, directory: Path) -> bool:
    """Returns whether a directory holds this run, begun or finished.

    Raises:
      ConfigError: the directory holds a run with another config.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        return False
    held = configs.load(str(path))
    for name, (got, before) in configs.differences(config, held).items():
        if name == "base_policy.path" and _may_be_base(directory, Path(got), Path(before)):
            continue
        if name == "task.name" and _may_be_task(directory, str(got), str(before)):
            continue
        raise ConfigError(
            f"cannot resume {directory}: it was begun with {name}={before!r}, got {got!r};"
            " give the same config, or choose another --out"
        )
    _tell_base(directory, Path(config.base_policy.path))
    _tell_task(directory, config.task.name)
    return True


def _tell_base(directory: Path, given: Path) -> None:
    """Says that the base policy at its path is no longer the one that a run began with."""
    copy = directory / run_directory.BASE
    is_other = load.is_policy(given) and given.resolve() != copy.resolve()
    if copy.is_dir() and is_other and not run_directory.is_base(directory, given):
        terminal.say(f"{given} has changed since the run began, which goes on with its own copy")


def _may_be_task(directory: Path, given: str, before: str) -> bool:
    """Whether a task's name may stand for that of a run, which has its own copy of a task's file.

    The path may be relative to another folder, or the file may be gone; only another is refused.
    """
    source = task_files.split(given)
    if source is None or task_files.in_name(given) != task_files.in_name(before):
        return False
    return not source[0].exists() or run_directory.is_task(directory, source[0])


def _tell_task(directory: Path, name: str) -> None:
    """Says that a task's file is no longer the one that a run began with."""
    source = task_files.split(name)
    if source and source[0].is_file() and not run_directory.is_task(directory, source[0]):
        terminal.say(
            f"{source[0]} has changed since the run began, which goes on with its own copy"
        )


def _may_be_base(directory: Path, given: Path, before: Path) -> bool:
    """Whether a path may stand for the base policy of a run, which has its own copy of it.

    The path may be relative to another folder, the policy may have been moved or removed; only
    another policy is refused.
    """
    copy = directory / run_directory.BASE
    if given.resolve() in (copy.resolve(), before.resolve()):
        return True
    has_digests = (directory / run_directory.BASE_DIGESTS).is_file()
    return has_digests and (not given.exists() or run_directory.is_base(directory, given))


def hold(locks: ExitStack, directory: Path) -> None:
    """Holds a directory, which is made where it is missing, until `locks` is closed."""
    if not directory.is_dir():
        new_directory(directory)
    locks.enter_context(lock.held(directory))


def begin(config: Config, directory: Path, base: Path | None, locks: ExitStack) -> None:
    """Makes a run directory with the config and copies of base policy and task, or nothing at all.

    The directory is held from the moment it exists until `locks` is closed.

    Raises:
      ConfigError: it cannot be written, or another process has made it meanwhile.
    """
    with whole_directory(directory) as written, ExitStack() as own:
        own.enter_context(lock.held(written))
        if base is not None:
            run_directory.copy_base(base, written)
        run_directory.copy_task(config.task.name, written)
        configs.save(config, written / "config.yaml")
        locks.enter_context(own.pop_all())


def check_shared(directory: Path) -> None:
    """Checks that this process sees a run directory that process 0 made."""
    if not (directory / "config.yaml").is_file():
        raise ConfigError(
            f"cannot see {directory}, which process 0 made; all processes must share"
            " the folder of --out"
        )
