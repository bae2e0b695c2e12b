"""Reads a run's directory: its records as arrays, and its policies ready to play.

Separate from `training.run`, which writes the directory, so that reading needs no trainer.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pdjax.config import files as configs
from pdjax.config.schema import Config
from pdjax.devices.sharding import make_playing_mesh
from pdjax.modules import is_finite
from pdjax.output import checkpoint, records
from pdjax.output.checkpoint import CheckpointError
from pdjax.output.run_directory import check_base, check_task, read_result_of_run
from pdjax.rollout.paired import EPISODES, Paired, read_paired
from pdjax.rollout.playing import Playing, load_playing
from pdjax.types import BasePolicy, Params


@dataclasses.dataclass(frozen=True)
class Run:
    """A run on disk, finished or not.

    Attributes:
      directory: the run's directory.
      config: the run's config; `base_policy.path` is the run's own copy.
      summary: the content of `result.json`, such as `base_success`, `refined_success`, `gain`
        (shares in [0, 1]), `gain_ci` (95 % interval), `decision_steps` and `wall_s` (s); empty
        while the run is not finished.
      curve: interim evaluations as arrays (evaluations,): `decision_steps`, `wall_s` (s of training
        so far), and means over the episodes of `success_once`, `success_at_end`,
        `steps_to_success` (control steps), `smoothness` and `saturation`, see `Evaluation`. The
        first one is the base policy's, at 0 decisions. Empty without interim evaluations.
      metrics: what training recorded as arrays (epochs,): `decision_steps`, `control_steps`,
        `gradient_steps`, `wall_s` (s of training so far), losses, and rates and counts of the
        epoch, such as `train_success`. Empty before the first epoch.
      evaluation: the final paired evaluation, episode by episode; None while the run is not
        finished.
      base: the base policy, if it exists in memory only; None = the copy in the directory.
    """

    directory: Path
    config: Config
    summary: dict[str, Any]
    curve: dict[str, np.ndarray]
    metrics: dict[str, np.ndarray]
    evaluation: Paired | None
    base: BasePolicy | None = dataclasses.field(default=None, repr=False)


class Refined(NamedTuple):
    """A finished run, ready to play.

    Attributes:
      config: the run's config, with physics, shift and settings of the task as asked for.
      playing: the environment and both policies as functions.
      actor: parameters of the residual policy.
      residual_scale: largest change of an action number by the residual, in [0, 1].
      trained_in: name of the task of the training; `config` may name another one.
    """

    config: Config
    playing: Playing
    actor: Params
    residual_scale: float
    trained_in: str = ""


def load_run(directory: Path | str, base: BasePolicy | None = None) -> Run:
    """Reads a run's directory as arrays; builds and plays nothing.

    Args:
      directory: the run's directory.
      base: the base policy, if it exists in memory only; `evaluate` and `export` then use it.

    Raises:
      ConfigError: the directory is no run.
      InputError: one of its files is damaged.
    """
    directory = Path(directory)
    config = configs.load_of_run(directory)
    summary = read_result_of_run(directory)
    episodes = directory / EPISODES
    evaluation = read_paired(episodes, summary) if summary and episodes.is_file() else None
    curve, metrics = (
        columns(records.read_metrics(directory, group)) for group in ("eval", "train")
    )
    return Run(directory, config, summary, curve, metrics, evaluation, base)


def load_refined(
    directory: Path,
    physics: str = "",
    shift: str = "",
    base: BasePolicy | None = None,
    changes: Sequence[str] = (),
) -> Refined:
    """Builds what plays a finished run's policies, without trainer, replay and demonstrations.

    Args:
      directory: the run's directory.
      physics: physics engine; "" = as in the run's config.
      shift: perturbations, joined by +; `none` = none, "" = as in training.
      base: the base policy, if it exists in memory only; None = the copy in the directory.
      changes: settings task.NAME=VALUE, such as another task, whose observations and actions have
        the same sizes.

    Raises:
      ConfigError, checkpoint.CheckpointError: the directory is no run, or the run is not finished.
    """
    configs.check_of_task(changes)
    overrides = [f"task.physics={physics}"] if physics else []
    overrides += [f"task.shift={'' if shift == 'none' else shift!r}"] if shift else []
    config = configs.load_of_run(directory, [*overrides, *changes])
    trained_in = configs.load_of_run(directory).task
    if config.task.name == trained_in.name:
        check_task(directory)
    if base is None:
        check_base(directory)
    playing = load_playing(config, make_playing_mesh(config), base, trained_in)
    like = jax.eval_shape(playing.sac.init, jax.random.key(0)).actor
    actor = checkpoint.restore(directory / "residual", like)
    if not is_finite(actor):
        raise CheckpointError(
            f"{directory / 'residual'} holds numbers that are not finite: the training diverged;"
            " train again, with smaller step sizes"
        )
    return Refined(config, playing, actor, config.decorator.residual_scale, trained_in.name)


def task_changes(name: str, settings: Mapping[str, Any] | None) -> list[str]:
    """Returns settings task.NAME=VALUE for `load_refined`; a name "" changes no name."""
    values = ({"name": name} if name else {}) | dict(settings or {})
    return [f"task.{key}={json.dumps(value)}" for key, value in values.items()]


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Returns arrays (records,), one for each number that all records have; None becomes NaN."""
    names = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
    return {
        name: np.asarray([np.nan if row[name] is None else row[name] for row in rows])
        for name in names
        if not isinstance(rows[0][name], str)
    }
