"""Trains runs from their configs and writes their directories.

Every command and the Python library train through this one file; `runs.load` reads the directories
back. It is not pure.

A run's directory holds `config.yaml`, `base_policy/` (a copy, so that the directory is complete),
`starts.jsonl` (command, commit, versions and machine of each start), `residual/` (the parameters of
the best residual policy), `checkpoints/` (to resume from), `metrics.jsonl`, `tb/`,
`learning_curve.png`, `episodes.npz` (outcomes of the final evaluation) and, written last,
`result.json`. Each of several members of one program has such a directory.
"""

import dataclasses
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pdjax.base_policies import load
from pdjax.base_policies.foreign import exported
from pdjax.config import files as configs
from pdjax.config.schema import BasePolicyConfig, Config, ConfigError
from pdjax.devices import processes
from pdjax.output import checkpoint, plots, records, terminal
from pdjax.output.paths import (
    check_directory,
    new_directory,
    read_result,
    write_json,
    write_result,
)
from pdjax.rollout.paired import EPISODES, Paired, play_paired, save_paired
from pdjax.rollout.playing import check_sizes
from pdjax.training import memory_plan
from pdjax.training.build import build
from pdjax.training.compiled import prepare
from pdjax.training.loop import OnEpoch, refine
from pdjax.training.members import check as check_members
from pdjax.training.members import varied
from pdjax.training.run_in_progress import Member
from pdjax.types import BasePolicy
from pdjax_envs import registry


class Result(NamedTuple):
    """A finished run: its directory and the content of `result.json`."""

    directory: Path
    summary: dict[str, Any]


class InMemory(NamedTuple):
    """A base policy that exists in memory, instead of at `base_policy.path`.

    Attributes:
      policy: the policy.
      files: a directory with the same policy, to copy to the run's `base_policy/`; None if no file
        can hold the policy. Resuming or evaluating the run then needs the policy again.
    """

    policy: BasePolicy
    files: Path | None = None


def hold(base: BasePolicy, task: str, files: Path) -> InMemory:
    """Writes a policy in memory to files, if files can hold it.

    The policy is then read back from the files, so that a resumed run uses the same program.

    Args:
      base: the policy.
      task: name of its task.
      files: directory to write.

    Raises:
      ConfigError: the policy's sizes do not fit the task.
    """
    check_sizes(base, registry.make_task(task))
    try:
        exported.export_policy(base, files, task)
    except ConfigError:  # it computes through the host, or JAX cannot export it
        return InMemory(base)
    policy = load.load_base(BasePolicyConfig(str(files)), registry.make_task(task))
    return InMemory(policy, files)


def plan(members: Sequence[Config], memory_gib: float = 0.0) -> dict[str, Any]:
    """Prints a run's memory plan and allocates nothing.

    Args:
      members: config of a run, or of each member of one program.
      memory_gib: memory in GiB that the run must fit into: that of one accelerator, or of a machine
        without any; 0 = what is free on this machine.

    Returns:
      The plan for JSON, see `memory_plan.summarize`.

    Raises:
      ConfigError: the run does not fit; or see `build`.
    """
    check_members(members)
    return memory_plan.summarize(prepare(build(members[0]), memory_gib, members)[1], members[0])


def run(
    config: Config,
    directory: Path,
    resume: bool = False,
    memory_gib: float = 0.0,
    on_epoch: OnEpoch | None = None,
    base: InMemory | None = None,
) -> Result:
    """Trains, evaluates and writes a run directory.

    Args:
      config: the run.
      directory: the run directory to write; new or empty, unless its run is resumed.
      resume: whether to continue the run in `directory`, with the copy of the base policy there.
        Starts the run if there is none, and returns its result if it is finished.
      memory_gib: see `plan`.
      on_epoch: see `loop.refine`.
      base: the base policy, if it exists in memory; None = read it from `base_policy.path`.

    Raises:
      ConfigError: the directory is not empty, cannot be written or holds another run; or see
        `plan`.
      stopping.Stopped: the run was asked to stop, and can be resumed.
    """
    return run_members([config], directory, resume, memory_gib, on_epoch, base)[0]


def run_members(
    members: Sequence[Config],
    directory: Path,
    resume: bool = False,
    memory_gib: float = 0.0,
    on_epoch: OnEpoch | None = None,
    base: InMemory | None = None,
) -> list[Result]:
    """Trains the members of one program, each in its own run directory.

    Args:
      members: their configs, see `members.check`; a single config is trained as by `run`.
      directory: with a single config, see `run`. With several it gets the run directories
        `member_0/` and so on, and at the end `members.json`: what each member sets, and its result.
      resume: see `run`.
      memory_gib: see `plan`.
      on_epoch: see `loop.refine`.
      base: see `run`.

    Raises:
      ConfigError: the configs are not members of one program; or see `run`.
      stopping.Stopped: see `run`.
    """
    check_members(members)
    if len(members) == 1:
        return _run([Member(members[0], directory)], resume, memory_gib, on_epoch, base)
    if not resume:
        processes.by_writer(partial(check_directory, directory))
    places = [Member(config, directory / f"member_{index}") for index, config in enumerate(members)]
    results = _run(places, resume, memory_gib, on_epoch, base)
    rows = [
        {"directory": result.directory.name, "set": values, "result": result.summary}
        for values, result in zip(varied(members), results, strict=True)
    ]
    processes.by_writer(partial(write_json, directory / "members.json", rows))
    return results


def _run(
    members: Sequence[Member],
    resume: bool,
    memory_gib: float,
    on_epoch: OnEpoch | None,
    base: InMemory | None,
) -> list[Result]:
    start = time.monotonic()
    new, finished = _survey(members, resume)
    if finished == len(members):
        first = members[0].directory
        terminal.say(f"{first.parent if len(members) > 1 else first} is finished already")
        return [_read(member.directory) for member in members]
    config, base = _base_to_use(members, new, base)
    path = base.files if base else Path(config.base_policy.path)
    built = build(config, base.policy if base else None)
    if path and members[0].directory.resolve().is_relative_to(path.resolve()):
        raise ConfigError(
            f"{members[0].directory} is inside the base policy's directory; choose another --out"
        )
    steps, _ = prepare(built, memory_gib, [member.config for member in members])
    for member in new:
        processes.by_writer(partial(_begin, *member, path))
        processes.agree(partial(_check_shared, member.directory))
    if base or load.is_foreign(Path(config.base_policy.path)):
        num_envs = config.train.num_envs
        way, microseconds = load.cost(built.base, num_envs)
        terminal.say(
            f"base policy called {way}: {microseconds:,.0f} us per call for {num_envs} environments"
        )
    before = time.monotonic() - start
    ends = refine(members, steps, on_epoch)
    start = time.monotonic()
    for member, end in zip(members, ends, strict=True):
        residual = member.directory / "residual"  # exists if an earlier start ended right here
        processes.by_writer(partial(shutil.rmtree, residual, ignore_errors=True))
        checkpoint.save(residual, end.best_actor)
    refined = [(end.best_actor, float(end.state.hyperparams.residual_scale)) for end in ends]
    played = play_paired(built.playing, refined, config.eval.episodes, config.eval.seed)
    for member, end, paired in zip(members, ends, played, strict=True):
        state, trained = end.state, records.wall_s(member.directory)  # of all starts together
        summary = paired.summary | {
            "seed": member.config.seed,
            "decision_steps": int(state.decision_steps),
            "control_steps": int(state.control_steps),
            "gradient_steps": int(state.sac.gradient_steps),
            "wall_s": before + trained + time.monotonic() - start,
        }
        processes.by_writer(partial(_finish, member.directory, paired, summary))
    return [_read(member.directory) for member in members]


def _survey(members: Sequence[Member], resume: bool) -> tuple[list[Member], int]:
    """Returns the members that have not begun, and the number of those that are finished.

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
    finished = [member for member in members if member not in new and read_result(member.directory)]
    return new, len(finished)


def _base_to_use(
    members: Sequence[Member], new: Sequence[Member], base: InMemory | None
) -> tuple[Config, InMemory | None]:
    """Chooses where to read the base policy: a run that has begun keeps its own copy.

    `base_policy.path` may have changed since then, or be relative to another working directory.

    Returns:
      The first member's config with `base_policy.path` set, and the policy in memory, if that is
      the one to use.

    Raises:
      ConfigError: the policy exists only in memory, and `base` is None.
    """
    config = members[0].config
    begun = [member.directory for member in members if member not in new]
    if not begun:
        return config, base
    copy = begun[0] / "base_policy"
    if base is None:
        configs.check_base_of_run(begun[0])
    elif not copy.is_dir():
        return config, base
    own = dataclasses.replace(config.base_policy, path=str(copy))
    return dataclasses.replace(config, base_policy=own), None


def _finish(directory: Path, paired: Paired, summary: dict[str, Any]) -> None:
    """Writes the episodes, draws the curve and, last of all, writes `result.json`."""
    save_paired(directory / EPISODES, paired)
    plots.plot_learning_curve(directory, summary)
    write_result(directory, summary)


def _read(directory: Path) -> Result:
    """Reads the result of a finished run."""
    return Result(directory, read_result(directory))


def _is_begun(config: Config, directory: Path) -> bool:
    """Returns whether a directory holds this run, begun or finished.

    Raises:
      ConfigError: the directory holds a run with another config.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        return False
    copy = (directory / "base_policy").resolve()
    for name, (got, held) in configs.differences(config, configs.load(str(path))).items():
        if name == "base_policy.path" and Path(got).resolve() in (copy, Path(held).resolve()):
            continue
        raise ConfigError(
            f"cannot resume {directory}: it was begun with {name}={held!r}, got {got!r};"
            " give the same config, or choose another --out"
        )
    return True


def _check_shared(directory: Path) -> None:
    """Checks that this process sees a run directory that process 0 made."""
    if not (directory / "config.yaml").is_file():
        raise ConfigError(
            f"cannot see {directory}, which process 0 made; all processes must share"
            " the folder of --out"
        )


def _begin(config: Config, directory: Path, base: Path | None) -> None:
    """Makes a run directory with the config and a copy of the base policy, or nothing at all."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    new_directory(partial)
    if base is not None:
        shutil.copytree(base, partial / "base_policy")
    configs.save(config, partial / "config.yaml")
    partial.replace(directory)
