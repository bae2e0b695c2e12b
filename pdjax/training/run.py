"""Trains runs from their configs and writes their directories. This file is not pure.

It is the single door: every command and the Python library train through it. `runs.load` reads the
directories back.

A run's directory holds `config.yaml`, `base_policy/` (a copy, so that the directory is complete),
`starts.jsonl` (command, commit, versions and machine of each start), `residual/` (the parameters of
the best residual policy), `checkpoints/` (to resume from), `metrics.jsonl`, `tb/`,
`learning_curve.png`, `episodes.npz` (outcomes of the final evaluation) and, last of all,
`result.json`. Where one program trains several members, each has such a directory.
"""

import json
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pdjax.base_policies import load
from pdjax.config import files as configs
from pdjax.config.schema import Config, ConfigError
from pdjax.devices import processes
from pdjax.output import checkpoint, plots, records, terminal
from pdjax.output.paths import check_directory, new_directory, write_json, write_result
from pdjax.rollout.paired import EPISODES, Paired, play_paired, save_paired
from pdjax.training import memory_plan
from pdjax.training.build import build
from pdjax.training.compiled import prepare
from pdjax.training.loop import OnEpoch, refine
from pdjax.training.members import check as check_members
from pdjax.training.members import varied
from pdjax.training.run_in_progress import Member
from pdjax.types import BasePolicy


class Result(NamedTuple):
    """A finished run: its directory and the content of `result.json`."""

    directory: Path
    summary: dict[str, Any]


class InMemory(NamedTuple):
    """A base policy that no directory holds.

    Attributes:
      policy: as pure functions.
      files: directory with the same policy for the run's `base_policy/`; None where no file can
        hold it, so that whoever resumes or evaluates the run has to give it again.
    """

    policy: BasePolicy
    files: Path | None = None


def plan(members: Sequence[Config], memory_gib: float = 0.0) -> dict[str, Any]:
    """Shows what a run would take of memory, and takes none: see `memory_plan.summarize`.

    Args:
      members: a run, or several for one program.
      memory_gib: GiB of the machine, or of the accelerator where there is one, to plan for;
        0 = what is free of this one.

    Raises:
      ConfigError: see `build`; or it does not fit.
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
      directory: created; must not exist or be empty, unless the run in it is resumed.
      resume: go on where the run in `directory` stopped; begin where there is none yet, and
        return its result where it is finished.
      memory_gib: see `plan`.
      on_epoch: see `loop.refine`.
      base: the base policy, where it exists in memory; None = read it from `base_policy.path`.

    Raises:
      ConfigError: see `plan`; or the directory is not empty, cannot be written, or is another
        run's.
      stopping.Stopped: it was asked to stop, and can be resumed.
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
    """Trains members of one program, each in a directory of its own below one of all.

    Args:
      members: their configs, see `members.check`. A single one is a run, see `run`.
      directory: see `run`; of several it gets `member_0/` and so on, each as `run` would write it,
        and at the end `members.json`: what each sets and its result.
      resume: see `run`.
      memory_gib: see `plan`.
      on_epoch: see `loop.refine`.
      base: see `run`.

    Raises:
      ConfigError, stopping.Stopped: see `run`; or they are not members of one program.
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
    config = members[0].config
    path = base.files if base else Path(config.base_policy.path)
    if path == members[0].directory / "base_policy":
        configs.check_base_of_run(members[0].directory)
    built = build(config, base.policy if base else None)
    own = [member.directory / "base_policy" for member in members]
    if path and path not in own and members[0].directory.resolve().is_relative_to(path.resolve()):
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
        residual = member.directory / "residual"  # there already where a run ended right here
        processes.by_writer(partial(shutil.rmtree, residual, ignore_errors=True))
        checkpoint.save(residual, end.best_actor)
    refined = [
        (end.best_actor, member.config.decorator.residual_scale)
        for member, end in zip(members, ends, strict=True)
    ]
    played = play_paired(built.playing, refined, config.eval.episodes, config.eval.seed)
    for member, end, paired in zip(members, ends, played, strict=True):
        state, trained = end.state, records.wall_s(member.directory)  # however often interrupted
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
    """Those that begin anew, in directories that can be made, and how many have ended before.

    Raises:
      ConfigError: of several processes one has another config or sees another folder; or see `run`.
    """
    processes.check_same("config", [repr(member.config) for member in members])
    begun = processes.agree(lambda: [resume and _is_begun(*member) for member in members])
    processes.check_same("folder for runs", begun)
    new = [member for member, is_begun in zip(members, begun, strict=True) if not is_begun]
    for member in new:
        processes.by_writer(partial(check_directory, member.directory))
    finished = [
        member
        for member, is_begun in zip(members, begun, strict=True)
        if is_begun and (member.directory / "result.json").is_file()
    ]
    return new, len(finished)


def _finish(directory: Path, paired: Paired, summary: dict[str, Any]) -> None:
    """Writes the episodes, draws the curve and, last, writes `result.json`."""
    save_paired(directory / EPISODES, paired)
    plots.plot_learning_curve(directory, summary)
    write_result(directory, summary)


def _read(directory: Path) -> Result:
    """A finished run."""
    return Result(directory, json.loads((directory / "result.json").read_text()))


def _is_begun(config: Config, directory: Path) -> bool:
    """Whether a directory holds this run, begun or finished.

    Raises:
      ConfigError: it holds a run of another config.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        return False
    for name, (got, held) in configs.differences(config, configs.load(str(path))).items():
        if name == "base_policy.path" and got == str(directory / "base_policy"):
            continue  # the run's own copy
        raise ConfigError(
            f"cannot resume {directory}: it was begun with {name}={held!r}, got {got!r};"
            " give the same config, or choose another --out"
        )
    return True


def _check_shared(directory: Path) -> None:
    """Checks that a run directory, made by one process, is there for all."""
    if not (directory / "config.yaml").is_file():
        raise ConfigError(
            f"cannot see {directory}, which process 0 made; all processes must share"
            " the folder of --out"
        )


def _begin(config: Config, directory: Path, base: Path | None) -> None:
    """Makes a run directory with the config and a copy of the base policy: all of it or nothing."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    new_directory(partial)
    if base is not None:
        shutil.copytree(base, partial / "base_policy")
    configs.save(config, partial / "config.yaml")
    partial.replace(directory)
