"""Decides whether a base policy is worth refining, by playing it with random residuals.

Separate from training, which it precedes: a residual policy can only learn from episodes in which
exploration still succeeds. `screen` is pure except for its progress bar; `screen_policy` reads and
writes files.

The recommendation follows three rules. Their two numbers, `KEEP` and `EXAMPLES`, are our choice,
such that the recommendation for PegInsertionSide is its recorded recipe in `experiments/configs`:

- explorable scale: the largest tried scale at which random residuals keep at least half of the base
  policy's success. Residuals are uniform and constant within a chunk, as in training. The scale is
  only reported: it measures how precise the actions have to be.
- residual_scale: the largest tried scale at which random residuals keep at least `KEEP` of the
  success, or the smallest tried scale if none does. A residual only corrects errors within its
  reach, so a larger scale is better as long as training still sees success. Training sees success
  more often than random residuals do, because the gate leaves most decisions to the base policy at
  first, and because a learning residual is not random.
- exploration_steps: the gate opens linearly, so while it opens, exploration succeeds at about the
  mean of two rates, that of the base policy and that of random residuals. The gate takes the number
  of decisions in which this rate yields `EXAMPLES` successful episodes, so that the critics have
  seen success before the gate is fully open.

For a task without a config of its own, `settings` suit the preset `fast` to the base policy: a run
of `OPENED` times exploration_steps, in which learning starts when the gate is half open, and the
penalty on the residual is halved `HALVINGS` times by the time that the gate is fully open. A
constant penalty holds a residual at zero wherever the critics claim less for it than the penalty,
see docs/decisions/method.md.

A task without success is judged by return: the share of the base policy's return that is kept takes
the place of success, and there is no perfect or hopeless base policy.
"""

import math
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.base_policies.load import load_base
from pdjax.config import files as configs
from pdjax.config.schema import BasePolicyConfig
from pdjax.learner.decorator import clip_action, decorate
from pdjax.output import plots, tables, terminal
from pdjax.output.paths import check_file, free_file
from pdjax.rollout import intervals
from pdjax.rollout.evaluate import Evaluation
from pdjax.rollout.playing import make_play, make_playing
from pdjax.types import BasePolicy
from pdjax_envs import registry
from pdjax_envs.task import Env

SCALES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
KEEP = 0.25  # share of the base policy's success that the recommended scale must keep
EXAMPLES = 50  # successful episodes while the gate opens
ROUND_TO = 1_024  # decisions to which exploration_steps is rounded up
NEAR_BOUND = 0.95  # a larger action number leaves a residual no room on one side
LATE = 0.9  # a success after this share of the time limit was nearly a time-out
OPENED = 4  # a recommended run is at least this many times as long as its exploration_steps
HALVINGS = 4  # of the penalty on the residual while the gate opens
EVALUATIONS = 5  # interim evaluations of a recommended run, at least

HOPELESS, HOPELESS_HIGH = 0.05, 0.10  # improve the base if its rate and interval lie below these
SOLVED_LOW = 0.97  # nothing is left to refine if the interval lies above this

REFINE, IMPROVE, NOTHING = "refine", "improve the base first", "nothing left to refine"


class Screening(NamedTuple):
    """The findings of `screen`.

    Attributes:
      summary: plain values, as `--json` prints them: `verdict`, `reasons`, `residual_scale`,
        `exploration_steps` (decisions), `settings` (dotted key -> value, for a config with preset
        `fast`), `base_success` in [0, 1] with the 95 % interval `base_ci`, and `scales`, one dict
        with `residual_scale`, `success` and `ci` for each scale. Without success in the task,
        `base_success` and `base_ci` are None, and `success` and `ci` are those of the return.
      steps: (episodes,) int32, control steps to the first success of the base policy alone, or the
        time limit.
      success: (episodes,) bool, whether the base policy alone succeeds at any step.
    """

    summary: dict[str, Any]
    steps: np.ndarray
    success: np.ndarray


def disturb(base: BasePolicy) -> BasePolicy:
    """Adds a random residual to a policy: uniform in [-1, 1] and constant within a chunk.

    Args:
      base: the policy.

    Returns:
      A policy with the parameters {"base": those of the base policy, "scale": () residual_scale}.
      At scale 0 its actions equal those of the base policy bit for bit; at any scale it draws the
      base policy's own noise from the same keys.
    """

    def apply(params, carry, obs_history, key):
        residual_key = jax.random.fold_in(jax.random.clone(key), 1)
        chunk, carry = base.apply(params["base"], carry, obs_history, key)
        residual_action = jax.random.uniform(residual_key, (base.act_dim,), minval=-1.0)
        action = decorate(chunk.reshape(-1), residual_action, params["scale"])
        return clip_action(action).reshape(chunk.shape), carry

    return base._replace(apply=apply, params={"base": base.params, "scale": jnp.float32(0)})


def screen(env: Env, base: BasePolicy, episodes: int, seed: int) -> Screening:
    """Plays a base policy alone and with random residuals of each scale, on the same episodes.

    Args:
      env: the environment.
      base: the policy.
      episodes: episodes per scale; only with 125 or more can the verdict be that nothing is left to
        refine.
      seed: seed of the episodes.
    """
    play = make_play(make_playing(env, disturb(base)))
    results = []
    with terminal.progress("screening", episodes * (1 + len(SCALES)), "episodes") as bar:
        for scale in (0.0, *SCALES):
            bar.update(episodes * len(results), f"residual_scale {scale:g}")
            params = {"base": base.params, "scale": jnp.float32(scale)}
            results.append(play(seed, episodes, base_params=params))
        bar.update(episodes * len(results))
    seen = make_play(make_playing(env, base))(seed, min(episodes, 64), record=True)
    actions = np.asarray(seen.base_action)
    alone, counts = results[0], _worth(results)
    decisions = -(-env.task.episode_steps // base.act_horizon)
    side = "base" if env.task.has_success else "base_return"
    summary = {"task": env.task.name, "episodes": episodes, "seed": seed}
    summary |= _describe(alone, env.task.episode_steps) | _room(actions, base.act_dim)
    summary["scales"] = [
        {
            "residual_scale": scale,
            "success": result.score,
            "ci": intervals.base_summary(result)[f"{side}_ci"],
        }
        for scale, result in zip(SCALES, results[1:], strict=True)
    ]
    summary |= recommend(counts[0], counts[1:], episodes, decisions)
    summary["settings"] = suit(summary)
    if alone.success_once is None:
        summary["kept_success"] = alone.score - (1 - KEEP) * abs(alone.score)
        summary["verdict"], summary["reasons"] = REFINE, _reasons_of_return(summary)
        return Screening(summary, alone.steps_to_success, np.zeros(episodes, bool))
    summary["verdict"], summary["reasons"] = judge(counts[0], counts[1:], episodes)
    return Screening(summary, alone.steps_to_success, alone.success_once)


def _worth(results: list[Evaluation]) -> list[int]:
    """Returns the number of successes of each result; the first is the base policy's.

    Without success it is the share of the base policy's return, as a number of the episodes. Of a
    negative return that share shrinks by as much as the return falls below it.
    """
    if results[0].success_once is not None:
        return [int(result.success_once.sum()) for result in results]
    episodes, base = len(results[0].returns), results[0].score
    lost = [max(base - result.score, 0) / (abs(base) or 1) for result in results]
    return [round(episodes * max(1 - share, 0)) for share in lost]


def _reasons_of_return(summary: dict[str, Any]) -> list[str]:
    kept = [f"{one['residual_scale']:g}: {one['success']:,.4g}" for one in summary["scales"]]
    return [
        f"the task has no success; the base policy's return is {summary['base_return']:,.4g}",
        f"return with random residuals, by scale: {', '.join(kept)}",
    ]


def suit(found: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that suit the preset `fast` to a new task, by the rules above.

    Args:
      found: what `recommend` returned.
    """
    train, steps = configs.preset("fast").train, found["exploration_steps"]
    epoch = train.decisions_per_epoch
    epochs = math.ceil(OPENED * steps / epoch)
    return {
        "decorator.residual_scale": found["residual_scale"],
        "decorator.exploration_steps": steps,
        "sac.penalty_half_life": float(round(steps * train.updates_per_decision / HALVINGS)),
        "train.learning_starts": steps // 2,
        "train.total_decisions": epochs * epoch,
        "eval.interim_every": max(epochs // EVALUATIONS, 1) * epoch,
    }


def _describe(alone: Evaluation, limit: int) -> dict[str, Any]:
    """Describes how often and when the base policy succeeds; a failure is a time-out."""
    found = intervals.base_summary(alone)
    if alone.success_once is None:
        return found | {"time_limit": limit, "failures": 0}
    once = np.asarray(alone.success_once)
    steps = np.asarray(alone.steps_to_success)[once]
    spread = np.percentile(steps, [10, 50, 90]).tolist() if len(steps) else None
    return {
        **found,
        "base_success_at_end": float(np.mean(alone.success_at_end)),
        "undone": float(np.mean(once & ~np.asarray(alone.success_at_end))),
        "failures": int((~once).sum()),
        "time_limit": limit,
        "steps_to_success_10_50_90": spread,
        "late_successes": float((steps > LATE * limit).mean()) if len(steps) else None,
    }


def _room(actions: np.ndarray, act_dim: int) -> dict[str, Any]:
    """Returns how often actions leave a residual no room, over all numbers and for the worst."""
    near = (np.abs(actions.reshape(-1, act_dim)) > NEAR_BOUND).mean(axis=0)
    return {
        "near_bounds": float(near.mean()),
        "near_bounds_worst": float(near.max()),
        "worst_action_number": int(near.argmax()),
    }


def recommend(base: int, scaled: list[int], episodes: int, decisions: int) -> dict[str, Any]:
    """Recommends residual_scale and exploration_steps, by the rules at the top of this file.

    Args:
      base: number of episodes in which the base policy alone succeeds.
      scaled: the same number with random residuals, for each scale in `SCALES`.
      episodes: episodes played for each of these numbers.
      decisions: decisions in one episode.
    """

    def largest(share: float) -> float | None:
        kept = (
            scale
            for scale, count in zip(SCALES, scaled, strict=True)
            if count and count >= share * base
        )
        return max(kept, default=None)

    scale = largest(KEEP) or SCALES[0]
    rate = (base + scaled[SCALES.index(scale)]) / 2 / episodes
    needed = EXAMPLES * decisions / max(rate, 1 / episodes)
    return {
        "explorable_scale": largest(0.5),
        "residual_scale": scale,
        "kept_success": KEEP * base / episodes,
        "exploration_steps": ROUND_TO * math.ceil(needed / ROUND_TO),
    }


def judge(base: int, scaled: list[int], episodes: int) -> tuple[str, list[str]]:
    """Returns the verdict and its reasons.

    Args:
      base: number of episodes in which the base policy alone succeeds.
      scaled: the same number with random residuals, for each scale in `SCALES`.
      episodes: episodes played for each of these numbers.
    """
    rate, (low, high) = base / episodes, intervals.wilson(base, episodes)
    found = f"the base policy succeeds in {rate:.1%} of episodes [{low:.1%}, {high:.1%}]"
    if low > SOLVED_LOW:
        return NOTHING, [f"{found}; the interval lies above {SOLVED_LOW:.0%}"]
    if rate < HOPELESS and high < HOPELESS_HIGH:
        limits = f"below {HOPELESS:.0%}, with the interval below {HOPELESS_HIGH:.0%}"
        return IMPROVE, [f"{found}: {limits}; exploration would hardly ever see a reward"]
    if not any(scaled):
        return IMPROVE, [
            f"{found}, but never with random residuals of any scale; exploration would not see a"
            " reward"
        ]
    kept = [
        f"{scale:g}: {count / episodes:.0%}" for scale, count in zip(SCALES, scaled, strict=True)
    ]
    return REFINE, [
        f"{found}: enough to learn from, with room for improvement",
        f"success with random residuals, by scale: {', '.join(kept)}",
    ]


def screen_policy(
    path: Path,
    task: str,
    out: Path | None,
    episodes: int,
    seed: int,
    physics: str,
    changes: Sequence[str] = (),
) -> dict[str, Any]:
    """Screens the policy in a directory, draws a picture and prints the findings.

    Args:
      path: the policy's directory, see `base_policy.path`.
      task: name of the task.
      out: the PNG file to write; None = screen.png, or with a number if that exists.
      episodes: episodes per scale.
      seed: seed of the episodes.
      physics: physics engine.
      changes: settings of the task that the recommended command repeats, as key=value.

    Returns:
      The findings, as `--json` prints them.

    Raises:
      ConfigError, checkpoint.CheckpointError: there is no such policy, or the picture exists.
      registry.UnknownName: there is no such task.
    """
    out = free_file("screen.png") if out is None else out
    check_file(out, (".png",))
    env = registry.make(task, physics)
    found = screen(env, load_base(BasePolicyConfig(str(path)), env.task), episodes, seed)
    summary = found.summary | {"policy": str(path)}
    summary["command"] = _command(summary, task, changes) if summary["verdict"] == REFINE else None
    out.parent.mkdir(parents=True, exist_ok=True)
    plots.plot_screening(out, summary, found.steps, found.success)
    _show(summary)
    terminal.say(f"wrote {out}")
    return summary


def _command(summary: dict[str, Any], name: str, more: Sequence[str]) -> str:
    """Returns the `pdjax train` command that follows the recommendation.

    A task with configs of its own keeps their values but for the recommended ones. `name` is the
    task's name as it was given, `more` are settings of it.
    """
    task, settings = summary["task"], summary["settings"]
    names = list(configs.configs())
    fast = [name for name in names if name.endswith("_fast")]
    fast += [name for name in names if name.startswith("fast/") and name.endswith("_diffusion")]
    suitable = [name for name in fast if configs.load(name).task.name == task]
    config = suitable[0] if suitable else "peg_fast"
    values = {"base_policy.path": summary["policy"], "task.name": name}
    if suitable:
        names = ["decorator.residual_scale", "decorator.exploration_steps"]
        if configs.load(config).train.total_decisions < settings["train.total_decisions"]:
            names.append("train.total_decisions")
        values |= {name: settings[name] for name in names}
    else:
        values |= settings
        if summary["base_success"] is None:
            values["task.reward"] = "dense"
    changes = [*(f"{key}={value}" for key, value in values.items()), *more]
    return shlex.join(
        ["pdjax", "train", config, "--out", f"runs/{_in_path(task)}", "--set", *changes]
    )


def _in_path(task: str) -> str:
    """Returns a task's name for a directory, without a file's ending or what paths cannot hold."""
    return re.sub(r"\W+", "_", task.replace(".py:", "_"))


def _why(scale: float) -> str:
    """Explains the recommended scale, and says what to try next."""
    smaller = [other for other in SCALES if other < scale]
    nearest = min(smaller, key=lambda other: abs(other - scale / 2), default=scale)
    return (
        f"residual_scale={scale:g} is the largest at which random residuals keep {KEEP:.0%} of what"
        f" the base reaches; if the training gains little, try {nearest:g}, or twice the decisions"
    )


def _show(summary: dict[str, Any]) -> None:
    """Prints the findings for humans."""
    tables.show_screening(summary)
    if summary.get("steps_to_success_10_50_90"):
        early, median, late = summary["steps_to_success_10_50_90"]
        terminal.say(
            f"control steps to success: median {median:.0f}, 80 % within {early:.0f} to"
            f" {late:.0f}, of {summary['time_limit']}; {summary['late_successes']:.0%} of"
            " successes come in the last tenth"
        )
    if summary["base_success"] is not None:
        terminal.say(
            f"{summary['failures']} episodes reach the time limit without success;"
            f" {summary['undone']:.1%} of episodes succeed but undo it before the end"
        )
    terminal.say(
        f"{summary['near_bounds']:.1%} of action numbers are within 0.05 of the bounds"
        f" (number {summary['worst_action_number']}: {summary['near_bounds_worst']:.0%}),"
        " where a residual can only act in one direction"
    )
    terminal.say(f"verdict: {summary['verdict']}", "bold")
    for reason in summary["reasons"]:
        terminal.say(f"  {reason}")
    if summary["command"]:
        terminal.say(_why(summary["residual_scale"]))
        terminal.say(f"next: {summary['command']}")
    elif summary["verdict"] == IMPROVE:
        terminal.say(
            "next: record more demonstrations or train longer, see pdjax demos --help and pdjax"
            " imitate --help"
        )
