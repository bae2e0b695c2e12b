"""The Python library: what a notebook or a script calls. Objects go in, typed results come out.

Each function does what the command of the same name does and writes the same records. It prints
nothing unless `progress=True`. Bad input raises a ValueError of one line, most often a ConfigError.
"""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import pdjax_envs
from pdjax.base_policies import settings
from pdjax.base_policies.load import load_base
from pdjax.config import arguments
from pdjax.config import files as configs
from pdjax.config.schema import BasePolicyConfig, Config
from pdjax.devices.process_settings import plain_numbers
from pdjax.output import records, terminal
from pdjax.prepare import imitate as imitation
from pdjax.prepare import screen as screening
from pdjax.prepare import wrap as wrapping
from pdjax.rollout.paired import Paired
from pdjax.runs import compare as comparing
from pdjax.runs import evaluate as evaluation
from pdjax.runs import export as exporting
from pdjax.runs.load import Run, columns, load_run, task_changes
from pdjax.training import run as training
from pdjax.training.loop import Epoch
from pdjax.types import BasePolicy
from pdjax_envs import registry, workers
from pdjax_envs.task import Task


@dataclasses.dataclass(frozen=True)
class SavedPolicy:
    """A policy on disk, which may serve as a base policy.

    Attributes:
      directory: its directory, as `base=` and `base_policy.path` take it.
      summary: what the command of the same name prints with `--json`; rates are in [0, 1].
      curve: for an imitated policy, its training as arrays (records,): `step` (gradient steps),
        `train_loss`, `validation_loss` and, with `eval_every`, `success_once`; otherwise empty.
    """

    directory: Path
    summary: dict[str, Any]
    curve: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


AnyBase = BasePolicy | SavedPolicy | Path | str
AnyTask = Task | str
AnyRun = Run | Path | str
Exportable = AnyRun | SavedPolicy


def load_config(name: str | Path = "fast", /, **sections: Any) -> Config:
    """Loads a config and changes it by keyword.

    Args:
      name: a preset (`pd`, `dawn`, `resfit`, `fast`), a config that comes with pdjax (`peg_fast`),
        or a YAML file.
      sections: what to change: a mapping for each section, and `seed`; for example
        `train={"total_decisions": 8192}, seed=3`.

    Returns:
      A validated config. `pdjax train --help` explains every key.

    Raises:
      ConfigError: the config or a key is unknown, or a value has a wrong type or is out of range.
    """
    return configs.change(configs.load(str(name)), sections)


def imitate(
    demos: str | Path,
    task: AnyTask,
    out: str | Path,
    policy: str = "diffusion",
    *,
    eval_episodes: int = 200,
    physics: str = "auto",
    resume: bool = False,
    progress: bool = False,
    **changes: Any,
) -> SavedPolicy:
    """Trains a base policy on demonstrations.

    Args:
      demos: a demonstration file in a layout that `pdjax data check` reads.
      task: the task, by name or as an object.
      out: directory to write; new or empty, unless it is resumed.
      policy: `diffusion`, `diffusion_unet`, `bet`, `act` or `mlp`.
      eval_episodes: number of episodes that evaluate the finished policy; 0 = none.
      physics: physics engine of the evaluations.
      resume: whether to continue the training in `out`.
      progress: whether to show progress on stderr.
      changes: settings of the training, such as `steps=3000`, `seed=1`, `eval_every=500` or
        `diffusion={"hidden": 512}`.

    Returns:
      The policy's directory, its summary and its learning curve.

    Raises:
      ConfigError: a setting is wrong, or the directory cannot be used.
      pdjax_envs.demonstrations.trajectory.DataError: the demonstrations cannot be used.
    """
    arguments.check(eval_episodes=eval_episodes)
    out = Path(out)
    config = settings.recipe(policy, changes)
    with _shown(progress):
        summary = imitation.train_base_policy(
            Path(demos), _name(task), out, config, eval_episodes, physics, resume
        )
    return SavedPolicy(out, summary, columns(records.read_records(out / "imitation.jsonl")))


def wrap(
    source: str,
    task: AnyTask,
    out: str | Path,
    *,
    obs_horizon: int = 0,
    action_low: float = -1.0,
    action_high: float = 1.0,
    device: str = "cpu",
    episodes: int = 20,
    seed: int = 0,
    physics: str = "auto",
    progress: bool = False,
) -> SavedPolicy:
    """Makes a base policy's directory from a policy in a file or a Python module.

    Args:
      source: `FILE.jaxexport`, `FILE.pt` (TorchScript), `FILE.py:NAME` or `MODULE:NAME`.
      task: the policy's task, by name or as an object.
      out: directory to write, new or empty.
      obs_horizon: observations that the policy reads; 0 = what the policy states, or 1.
      action_low, action_high: the policy's action numbers that pdjax scales to -1 and 1.
      device: device of a torch policy.
      episodes: number of trial episodes; the learner's observation statistics come from them.
      seed, physics: seed and physics engine of these episodes.
      progress: whether to show progress on stderr.

    Returns:
      The policy's directory and its summary.

    Raises:
      ConfigError: the policy cannot be used, or the directory cannot be written.
    """
    arguments.check(episodes=episodes, obs_horizon=obs_horizon, seed=seed)
    declared = {"obs_horizon": obs_horizon, "device": device}
    declared |= {"action_low": (action_low,), "action_high": (action_high,)}
    with _shown(progress):
        play = wrapping.Play(episodes, seed, physics)
        summary = wrapping.wrap(source, _name(task), Path(out), declared, play)
    return SavedPolicy(Path(out), summary)


def screen(
    base: AnyBase,
    task: AnyTask,
    *,
    episodes: int = 200,
    seed: int = 0,
    physics: str = "auto",
    progress: bool = False,
) -> screening.Screening:
    """Judges whether a base policy is worth refining, and with which settings.

    Args:
      base: the policy, as an object or a directory.
      task: the policy's task, by name or as an object.
      episodes: number of episodes for each of seven residual scales.
      seed, physics: seed and physics engine of the episodes.
      progress: whether to show progress on stderr.

    Returns:
      A `Screening`: the verdict, its reasons, and the recommended settings.

    Raises:
      ConfigError: there is no such policy, or the policy is for another task.
    """
    arguments.check(episodes=episodes, seed=seed)
    with _shown(progress):
        env = registry.make(_name(task), physics)
        if not isinstance(base, BasePolicy):
            base = load_base(BasePolicyConfig(_path(base)), env.task)
        return screening.screen(env, base, episodes, seed)


def train(
    config: Config | str | Path = "fast",
    *,
    base: AnyBase | None = None,
    task: AnyTask | None = None,
    out: str | Path,
    on_epoch: Callable[[Epoch], None] | None = None,
    memory_gib: float = 0.0,
    progress: bool = False,
) -> Run:
    """Refines a base policy and writes a run's directory.

    Args:
      config: the run's config, or the name of one, see `load_config`.
      base: the base policy, as an object or a directory; None = the config's `base_policy.path`.
        `resume`, `evaluate` and `export` need one again that no file can hold, such as NumPy code.
      task: the task, by name or as an object; None = `task.name` of the config.
      out: the run's directory, new or empty.
      on_epoch: called with an `Epoch` after each epoch. An exception that it raises ends the
        training; `resume` continues it from the last checkpoint.
      memory_gib: memory in GiB that the run must fit into; 0 = what is free on this machine.
      progress: whether to show progress on stderr. The records are complete either way.

    Returns:
      The finished run: its curve as arrays, its final paired evaluation and its summary.

    Raises:
      ConfigError: the config cannot work, or the directory cannot be written.
      Stopped: SIGINT or SIGTERM came; the state is saved, and `resume` continues the run.
      pdjax.output.paths.NotSavedError: the run is trained, but some of it could not be written.
    """
    config = config if isinstance(config, Config) else load_config(config)
    if name := _name(task):
        config = configs.change(config, {"task": {"name": name}})
    return _train(config, Path(out), base, on_epoch, memory_gib, progress, resume=False)


def resume(
    directory: str | Path,
    *,
    base: BasePolicy | None = None,
    task: Task | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    memory_gib: float = 0.0,
    progress: bool = False,
) -> Run:
    """Continues a run that was stopped; it ends with the numbers of a run that never stopped.

    Args:
      directory: the run's directory, which may have been moved. Demonstrations are read again.
      base: the base policy, if it exists in memory only; the directory's copy has precedence.
      task: the task, if it exists in memory only.
      on_epoch, memory_gib, progress: see `train`.

    Returns:
      The finished run; immediately, if it is finished already.

    Raises:
      ConfigError: the directory is no run, or its base policy existed in memory only.
      pdjax.output.checkpoint.CheckpointError: none of its checkpoints can be read.
      Stopped: see `train`.
    """
    _name(task)
    config = configs.load_of_run(Path(directory))
    return _train(config, Path(directory), base, on_epoch, memory_gib, progress, resume=True)


def evaluate(
    run: AnyRun,
    *,
    episodes: int = 200,
    seed: int = 20_000,
    physics: str = "",
    shift: str = "",
    base: BasePolicy | None = None,
    task: AnyTask | None = None,
    task_settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Paired:
    """Plays base and refined policy of a finished run on the same episodes.

    Args:
      run: the run, or its directory.
      episodes: number of episodes; both policies play each of them.
      seed: seed of the episodes.
      physics: physics engine; "" = as in the run's config.
      shift: perturbations joined by +, or `none`; "" = as in training.
      base: the base policy, if it exists in memory only and `run` is a directory.
      task: another task of the same sizes, such as the same one in another simulator; or the run's,
        if it exists in memory only and is not registered yet. None = the run's.
      task_settings: of that task, such as `{"python": "venv/bin/python"}` for its simulator.
      progress: whether to show progress on stderr.

    Returns:
      A `Paired` evaluation: arrays of each policy's episodes, and a `summary` with 95 % intervals.

    Raises:
      ConfigError: the run is not finished, or cannot be read.
    """
    arguments.check(episodes=episodes, seed=seed)
    changes = task_changes(_name(task), task_settings)
    directory, base = _directory(run, base)
    with _shown(progress):
        return evaluation.evaluate_run(directory, episodes, seed, physics, shift, base, changes)[0]


def compare(runs: Sequence[AnyRun], *, threshold: float = 0.9) -> comparing.Comparison:
    """Compares runs of one task; runs that differ by seed only form a group.

    Args:
      runs: the runs, or their directories; they may be unfinished.
      threshold: success_once in [0, 1]; the comparison includes the time to reach it.

    Returns:
      A `Comparison`: groups with their figures and curves (interquartile means with 95 % bands).

    Raises:
      ConfigError: runs are missing, named twice, not evaluated yet, or of several tasks.
    """
    arguments.check(threshold=threshold)
    return comparing.compare([_directory(run)[0] for run in runs], threshold)


def export(
    run: Exportable,
    out: str | Path,
    *,
    episodes: int = 100,
    seed: int = 50_000,
    physics: str = "",
    base: BasePolicy | None = None,
    progress: bool = False,
) -> SavedPolicy:
    """Writes the refined policy of a finished run, or a base policy, as files without pdjax.

    Args:
      run: the run or its directory; or a base policy's directory, to export that policy alone.
      out: directory to write, new or empty.
      episodes: number of episodes that set the limit of the fail-safe and try what was written.
      seed: seed of these episodes.
      physics: physics engine; "" = as in the run's config.
      base: the base policy, if it exists in memory only and `run` is a directory.
      progress: whether to show progress on stderr.

    Returns:
      The policy's directory and a summary of how it played.

    Raises:
      ConfigError: the run is not finished or calls the host, or the directory cannot be written.
    """
    arguments.check(episodes=episodes, seed=seed)
    directory, base = _directory(run, base)
    with _shown(progress):
        summary = exporting.export_run(directory, Path(out), episodes, seed, physics, base)
    return SavedPolicy(Path(out), summary)


def _train(
    config: Config,
    directory: Path,
    base: AnyBase | None,
    on_epoch: Callable[[Epoch], None] | None,
    memory_gib: float,
    progress: bool,
    resume: bool,
) -> Run:
    """Trains a run; its base policy may exist in memory only."""
    arguments.check(memory_gib=memory_gib)
    watch = None if on_epoch is None else lambda epochs: on_epoch(epochs[0])
    with tempfile.TemporaryDirectory() as folder, _shown(progress):
        held = None
        if isinstance(base, BasePolicy):
            held = training.hold(base, config.task.name, Path(folder) / "base_policy")
            base = directory / "base_policy"
        if base is not None:
            config = configs.change(config, {"base_policy": {"path": _path(base)}})
        training.run(config, directory, resume, memory_gib, watch, held)
    only_here = held.policy if held is not None and held.files is None else None
    return load_run(directory, only_here)


def _name(task: AnyTask | None) -> str:
    """Registers a task that is given as an object; returns a task's name, or "" without a task."""
    if isinstance(task, Task):
        pdjax_envs.register(task)
        return task.name
    return task or ""


def _path(base: SavedPolicy | Path | str) -> str:
    return str(base.directory if isinstance(base, SavedPolicy) else base)


def _directory(run: Exportable, base: BasePolicy | None = None) -> tuple[Path, BasePolicy | None]:
    """Returns a run's directory, and its base policy if that exists in memory only."""
    if isinstance(run, Run):
        return run.directory, base if base is not None else run.base
    return Path(_path(run)), base


@contextlib.contextmanager
def _shown(progress: bool) -> Iterator[None]:
    """Computes by JAX's rules for numbers; shows what is printed only if asked to; ends workers."""
    with plain_numbers(), workers.closing_pools(), terminal.quiet(not progress):
        yield
