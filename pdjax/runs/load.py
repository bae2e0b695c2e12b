"""Reads a run's directory back: what it holds as arrays, and what it takes to play its policies."""

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
from pdjax.output import checkpoint, records
from pdjax.rollout.paired import EPISODES, Paired, read_paired
from pdjax.rollout.playing import Playing, load_playing
from pdjax.types import BasePolicy, Params


@dataclasses.dataclass(frozen=True)
class Run:
    """A run on disk, finished or not.

    Attributes:
      directory: of the run.
      config: the run's config; `base_policy.path` is the run's own copy.
      summary: the content of `result.json`; empty while the run is not finished.
      curve: interim evaluations as arrays (evaluations,): `decision_steps`, `wall_s` (s),
        `success_once`, `success_at_end`, `steps_to_success`, `smoothness`, `saturation`. The first
        one is the base policy's, at 0 decisions.
      metrics: what training recorded as arrays (epochs,): `decision_steps`, `control_steps`,
        `gradient_steps`, `wall_s` (s), losses and counts.
      evaluation: the final paired evaluation, episode by episode; None while the run is not
        finished.
      base: the base policy, where it exists in memory only; None = the copy in the directory.
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
      config: the run's, with what was overridden.
      playing: environment, base policy and actor.
      actor: parameters of the residual policy.
      residual_scale: by which its residual is scaled.
    """

    config: Config
    playing: Playing
    actor: Params
    residual_scale: float


def load_run(directory: Path | str, base: BasePolicy | None = None) -> Run:
    """Reads a run's directory; builds and plays nothing.

    Args:
      directory: of the run.
      base: see `Run`.

    Raises:
      ConfigError: the directory is no run.
    """
    directory = Path(directory)
    config = configs.load_of_run(directory)
    path = directory / "result.json"
    summary = json.loads(path.read_text()) if path.is_file() else {}
    episodes = directory / EPISODES
    evaluation = read_paired(episodes, summary) if summary and episodes.is_file() else None
    curve, metrics = (
        columns(records.read_metrics(directory, group)) for group in ("eval", "train")
    )
    return Run(directory, config, summary, curve, metrics, evaluation, base)


def load_refined(
    directory: Path, physics: str = "", shift: str = "", base: BasePolicy | None = None
) -> Refined:
    """Builds what plays a finished run's policies; no learner, replay or demonstrations.

    Args:
      directory: of the run.
      physics: another engine than in the run's config; "" = the same.
      shift: other perturbations than in training, `none` for none; "" = the same.
      base: see `Run`.

    Raises:
      ConfigError, checkpoint.CheckpointError: the directory is no finished run.
    """
    overrides = [f"task.physics={physics}"] if physics else []
    overrides += [f"task.shift={'' if shift == 'none' else shift!r}"] if shift else []
    config = configs.load_of_run(directory, overrides)
    if base is None:
        configs.check_base_of_run(directory)
    playing = load_playing(config, make_playing_mesh(config), base)
    like = jax.eval_shape(playing.sac.init, jax.random.key(0)).actor
    actor = checkpoint.restore(directory / "residual", like)
    return Refined(config, playing, actor, config.decorator.residual_scale)


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Records as arrays, one for each number that all of them have; None becomes NaN."""
    names = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
    return {
        name: np.asarray([np.nan if row[name] is None else row[name] for row in rows])
        for name in names
        if not isinstance(rows[0][name], str)
    }
