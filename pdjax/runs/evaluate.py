"""Evaluates a finished run: base and refined policy on the same episodes, also under shifts.

Separate from training, whose final evaluation it repeats on other episodes, engines and shifts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pdjax.config import files as configs
from pdjax.config.options import ConfigError
from pdjax.output import terminal
from pdjax.output.run_directory import check_task, read_result_of_run
from pdjax.rollout.failures import group
from pdjax.rollout.paired import Paired, play_paired
from pdjax.runs.load import load_refined
from pdjax.types import BasePolicy
from pdjax_envs import from_gymnasium, registry, shifts


def evaluate_run(
    directory: Path,
    episodes: int,
    seed: int,
    physics: str = "",
    shift: str = "",
    base: BasePolicy | None = None,
    changes: Sequence[str] = (),
    failures: bool = False,
) -> tuple[Paired, dict[str, Any]]:
    """Plays base and refined policy of a finished run on the same episodes.

    Args:
      directory: the run's directory.
      episodes: number of episodes; both policies play each of them.
      seed: seed of the episodes; these are the same with and without a shift.
      physics: physics engine; "" = as in the run's config.
      shift: see `registry.make`; `none` = no shift, "" = as in training.
      base: the base policy, if it exists in memory only; None = the copy in the directory.
      changes: settings task.NAME=VALUE; another task is another simulator for the same policies.
      failures: whether to tell where failed episodes end; keeps every observation meanwhile.

    Returns:
      The episodes, and their summary for JSON, with the run, the seed and the shift; also
      `failures`, policy -> [{"end": text, "episodes": count}, ...], if they are asked for.

    Raises:
      ConfigError, checkpoint.CheckpointError: see `load_refined`.
    """
    trained_with = read_result_of_run(directory).get("physics")
    refined = load_refined(directory, physics, shift, base, changes)
    playing = refined.playing
    if refined.config.task.name != refined.trained_in:
        terminal.say(f"trained in {refined.trained_in}, evaluated in {refined.config.task.name}")
    elif trained_with not in (None, playing.env.engine):
        terminal.say(f"trained with physics {trained_with}, evaluated with {playing.env.engine}")
    task = playing.env.task
    if failures and not task.has_success:
        raise ConfigError(f"{task.name} has no success, so no episode fails; leave out --failures")
    actors = [(refined.actor, refined.residual_scale)]
    (paired,) = play_paired(playing, actors, episodes, seed, record=failures)
    about: dict[str, Any] = {"run": str(directory), "seed": seed}
    about["shift"] = refined.config.task.shift
    if failures:
        sides = {"base": paired.base, "refined": paired.refined}
        about["failures"] = {
            side: [one._asdict() for one in group(task, played)] for side, played in sides.items()
        }
    return paired, paired.summary | about


def evaluate_shifts(
    directory: Path, episodes: int, seed: int, physics: str = ""
) -> list[dict[str, Any]]:
    """Returns summaries of `evaluate_run` without a shift and under each shift of the run's task.

    Args:
      directory: the run's directory.
      episodes: see `evaluate_run`.
      seed: see `evaluate_run`.
      physics: see `evaluate_run`.
    """
    check_task(directory)
    name = configs.load_of_run(directory).task.name
    if from_gymnasium.environment(name):
        raise ConfigError(f"{name} takes no shifts: its simulator is its own")
    task = registry.make_task(name)
    names = [name for name in shifts.SHIFTS if not shifts.needed(name, task)]
    return [evaluate_run(directory, episodes, seed, physics, name)[1] for name in ["none", *names]]
