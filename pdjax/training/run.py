"""Trains runs from their configs and writes their directories.

Every command and the Python library train through this one file; `runs.load` reads the directories
back. It is not pure.

A run's directory holds `config.yaml`, `base_policy/` (a copy, so that the directory is complete)
and its digests, `lock` (which process trains it), `starts.jsonl` (command, commit, versions and
machine of each start), `residual/` (the parameters of the best residual policy), `checkpoints/` (to
resume from), `metrics.jsonl`, `tb/`, `learning_curve.png`, `episodes.npz` (outcomes of the final
evaluation) and, written last, `result.json`. Each of several members of one program has such a
directory.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pdjax.base_policies import load
from pdjax.base_policies.foreign import exported
from pdjax.config import files as configs
from pdjax.config.schema import BasePolicyConfig, Config, ConfigError
from pdjax.devices import processes
from pdjax.output import checkpoint, plots, records, run_directory, tables, terminal
from pdjax.output.checkpoint import Checkpoints
from pdjax.output.paths import NotSavedError, check_directory, check_name, write_json
from pdjax.output.run_directory import read_result_of_run
from pdjax.rollout.paired import EPISODES, Paired, play_paired, save_paired
from pdjax.rollout.playing import check_sizes
from pdjax.training import memory_plan, start
from pdjax.training.build import Run as Built
from pdjax.training.build import build
from pdjax.training.compiled import prepare
from pdjax.training.loop import OnEpoch, refine
from pdjax.training.members import check as check_members
from pdjax.training.members import varied
from pdjax.training.run_in_progress import CHECKPOINTS, Member, Progress
from pdjax.types import BasePolicy
from pdjax_envs import reading, registry

MEMBERS = "members.json"
MOST_SAID = 400  # characters of a message about what could not be written


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
      ConfigError: the directory is not empty, cannot be written, is in use by another process or
        holds another run; or see `plan`.
      stopping.Stopped: the run was asked to stop, and can be resumed.
      NotSavedError: the run is trained and evaluated, but something could not be written.
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
      stopping.Stopped, NotSavedError: see `run`.
    """
    check_name(directory)
    check_members(members)
    processes.agree(partial(start.check_layout, directory, len(members)))
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
    processes.by_writer(partial(write_json, directory / MEMBERS, rows))
    return results


def _run(
    members: Sequence[Member],
    resume: bool,
    memory_gib: float,
    on_epoch: OnEpoch | None,
    base: InMemory | None,
) -> list[Result]:
    began = time.monotonic()
    new, finished = start.survey(members, resume)
    folder = members[0].directory.parent if len(members) > 1 else members[0].directory
    if len(finished) == len(members):
        terminal.say(f"{folder} is finished already")
        return [Result(m.directory, finished[m.directory]) for m in members]
    with ExitStack() as locks:
        hold = partial(processes.by_writer, partial(start.hold, locks, folder))
        if len(new) < len(members):
            hold()
        config, base = _what_to_use(members, new, base)
        path = base.files if base else Path(config.base_policy.path)
        built = build(config, base.policy if base else None)
        if path and members[0].directory.resolve().is_relative_to(path.resolve()):
            raise ConfigError(
                f"{members[0].directory} is inside the base policy's directory; choose another"
                " --out"
            )
        steps, _ = prepare(built, memory_gib, [member.config for member in members])
        if len(new) == len(members) > 1:  # nothing is made before all is known to fit
            hold()
        for member in members:
            begin = partial(start.begin, *member, path, locks) if member in new else None
            own = partial(start.hold, locks, member.directory) if len(members) > 1 else lambda: None
            processes.by_writer(begin or own)
            processes.agree(partial(start.check_shared, member.directory))
        if base or load.is_foreign(Path(config.base_policy.path)):
            num_envs = config.train.num_envs
            way, microseconds = load.cost(built.base, num_envs)
            terminal.say(
                f"base policy called {way}: {microseconds:,.0f} us per call for {num_envs}"
                " environments"
            )
        before = time.monotonic() - began
        ends = refine(members, steps, on_epoch)
        return _evaluate(members, ends, built, before)


def _evaluate(
    members: Sequence[Member], ends: Sequence[Progress], built: Built, before: float
) -> list[Result]:
    """Evaluates trained members and writes what they end with.

    Args:
      members: the members.
      ends: the last progress of each.
      built: what they were trained with.
      before: seconds that this start took before it trained.

    Raises:
      NotSavedError: something could not be written; it names each part.
    """
    began, config = time.monotonic(), members[0].config
    lost: list[str] = []
    for member, end in zip(members, ends, strict=True):
        _attempt(lost, member.directory / "residual", partial(_save_residual, member, end))
    refined = [(end.best_actor, float(end.state.hyperparams.residual_scale)) for end in ends]
    played = play_paired(built.playing, refined, config.eval.episodes, config.eval.seed)
    results: list[Result] = []
    for member, end, paired in zip(members, ends, played, strict=True):
        directory, state = member.directory, end.state
        trained = records.wall_s(directory)  # of all starts together
        summary = paired.summary | {
            "seed": member.config.seed,
            "decision_steps": int(state.decision_steps),
            "control_steps": int(state.control_steps),
            "gradient_steps": int(state.sac.gradient_steps),
            "wall_s": before + trained + time.monotonic() - began,
        }
        if processes.is_writer():
            _finish(lost, directory, paired, summary)
        results.append(Result(directory, summary))
    if processes.any_of(bool(lost)):
        told = tables.told_gain(results[0].summary)
        raise NotSavedError(
            f"trained and evaluated (gain {told}), but not written: {'; '.join(lost)}"[:MOST_SAID]
            + "; make room, then repeat the command with --resume"
        )
    return [Result(directory, read_result_of_run(directory)) for directory, _ in results]


def _attempt(lost: list[str], path: Path, write: Callable[[], Any]) -> None:
    """Calls what writes a file or directory; adds to `lost` if that fails."""
    try:
        write()
    except (OSError, ValueError) as error:  # Orbax wraps errors of the file system
        lost.append(f"{path} ({reading.reason(error)})")


def _save_residual(member: Member, end: Progress) -> None:
    """Writes `residual/`, in place of what an earlier start left there."""
    path = member.directory / "residual"

    def clear() -> None:
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)

    processes.by_writer(clear)
    checkpoint.save(path, end.best_actor)


def _what_to_use(
    members: Sequence[Member], new: Sequence[Member], base: InMemory | None
) -> tuple[Config, InMemory | None]:
    """Chooses where to read base policy and task: a run that has begun keeps its own copies.

    What their paths name may have changed since then, or be relative to another working directory.

    Returns:
      The first member's config with `base_policy.path` and `task.name` set, and the policy in
      memory, if that is the one to use.

    Raises:
      ConfigError: the policy exists only in memory, and `base` is None.
    """
    config = members[0].config
    begun = [member.directory for member in members if member not in new]
    if not begun:
        return config, base
    run_directory.check_task(begun[0])
    config = configs.with_own_task(config, begun[0])
    copy = begun[0] / run_directory.BASE
    if base is None:
        run_directory.check_base(begun[0])
    elif not copy.is_dir():
        return config, base
    own = dataclasses.replace(config.base_policy, path=str(copy))
    return dataclasses.replace(config, base_policy=own), None


def _finish(lost: list[str], directory: Path, paired: Paired, summary: dict[str, Any]) -> None:
    """Writes the episodes, draws the curve and, last of all, writes `result.json`.

    Adds to `lost` what cannot be written. A run that lacks one of these or its residual has no
    result either: resuming takes a run with a result for finished.
    """
    done = summary["decision_steps"]
    if done and not Checkpoints(directory / CHECKPOINTS, 1).has(done):
        lost.append(f"{directory / CHECKPOINTS}/{done}")
    metrics = directory / records.METRICS
    _attempt(lost, metrics, partial(records.check_reaches, directory, done))
    episodes, curve = directory / EPISODES, directory / "learning_curve.png"
    before = len(lost)
    _attempt(lost, episodes, partial(save_paired, episodes, paired))
    _attempt(lost, curve, partial(plots.plot_learning_curve, directory, summary))
    if (directory / "residual").is_dir() and len(lost) == before:
        result = directory / run_directory.RESULT
        _attempt(lost, result, partial(run_directory.write_result, directory, summary))
