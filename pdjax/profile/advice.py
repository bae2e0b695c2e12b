"""Measures what other settings of a run would bring: more environments, larger batches.

Each suggestion is a line with the figures behind it; a gain below WORTH is not suggested.
"""

import dataclasses
from contextlib import suppress
from typing import Any

from pdjax.config.schema import Config, ConfigError
from pdjax.profile.phases import Timing, learner_phases, rollout_phases, time_phase
from pdjax.training.build import build
from pdjax.training.compiled import make_init

WORTH = 1.1  # smallest speed-up worth a suggestion
DEAR = 0.15  # smallest share of the time for which a part is worth a suggestion


def suggest(
    config: Config, timings: dict[str, Timing], between: dict[str, float], epoch_s: float
) -> list[str]:
    """Tries other settings.

    Args:
      config: of a run that learns from its first decision.
      timings: of the run's phases, by name.
      between: name -> seconds per epoch of the work between two epochs.
      epoch_s: seconds of an epoch.

    Returns:
      Lines such as `train.num_envs=128: ...`.
    """
    whole = epoch_s + sum(between.values())
    advice = []
    learning = timings["updates"].seconds / config.train.decisions_per_epoch
    if config.task.physics in ("auto", "native"):  # others compile for minutes
        advice += _suggest_envs(config, learning)
    updates = timings["updates"].seconds / whole
    if updates > DEAR:
        fewer = config.train.updates_per_decision / 2
        advice.append(
            f"train.updates_per_decision={fewer:g}: updates take {updates:.0%} of the time, so this"
            f" gives about {1 / (1 - updates / 2):.2f}x as many decisions per second, with half as"
            " many gradient steps per decision"
        )
        dearer = _update_s(config, 2 * config.sac.batch_size) / timings["updates"].seconds
        if dearer < 2 / WORTH:
            advice.append(
                f"sac.batch_size={2 * config.sac.batch_size}: a gradient step on twice the batch"
                f" takes {dearer:.2f}x as long"
            )
    for name, key in (("evaluation", "eval.interim_every"), ("checkpoint", "checkpoint.every")):
        share = between.get(name, 0.0) / whole
        if share > DEAR:
            section, field = key.split(".")
            rarer = 2 * getattr(getattr(config, section), field)
            advice.append(
                f"{key}={rarer}: the {name} takes {share:.0%} of the time; this halves it"
            )
    return advice


def _suggest_envs(config: Config, learning: float) -> list[str]:
    """Suggests the fastest number of environments; `learning` takes that many s per decision."""
    now = config.train.num_envs
    playing = {now: _decision_s(config, now)}
    for num_envs in filter(None, (now // 2, 2 * now, 4 * now)):
        with suppress(ConfigError):  # too few for the devices, or too many for the replay
            playing[num_envs] = _decision_s(config, num_envs)
    best = min(playing, key=lambda num_envs: playing[num_envs])
    gain = (playing[now] + learning) / (playing[best] + learning)
    if gain <= WORTH:
        return []
    return [
        f"train.num_envs={best}: playing a decision takes {1e3 * playing[best]:.2f} ms instead of"
        f" {1e3 * playing[now]:.2f}, which gives about {gain:.2f}x as many decisions per second"
    ]


def _decision_s(config: Config, num_envs: int) -> float:
    """Measures the seconds that playing one decision takes with this number of environments.

    Raises:
      ConfigError: the config cannot have this number.
    """
    size = num_envs * max(1, config.train.decisions_per_round // num_envs)
    run = build(
        changed(
            config,
            "train",
            num_envs=num_envs,
            decisions_per_round=size,
            decisions_per_epoch=size,
            updates_per_decision=1 / size,
        )
    )
    phases = [phase for phase in rollout_phases(run, make_init(run)()) if phase.name != "physics"]
    return sum(time_phase(phase, repeats=2).seconds for phase in phases) / size


def _update_s(config: Config, batch_size: int) -> float:
    """Measures the seconds that an epoch's gradient steps take on batches of this size."""
    run = build(changed(config, "sac", batch_size=batch_size))
    return time_phase(learner_phases(run, make_init(run)())[0], repeats=2).seconds


def changed(config: Config, section: str, **values: Any) -> Config:
    """Returns the config with other values in a section."""
    part = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: part})
