"""Watches a run: decides what its numbers mean and what to do about them.

Each rule looks at numbers that training computes anyway, and returns a `Verdict`; `shrink` and
`roll_back` change the training state accordingly. All functions are pure: `run_in_progress` calls
them and writes each verdict to `audit.jsonl`, with the numbers that caused it. The actions, from
mild to severe:

- note: only record the verdict;
- shrink: halve how often the residual acts while exploring;
- roll_back: go back to the state with the best interim evaluation, halve the step sizes and draw
  other random numbers; after `max_rollbacks` rollbacks, stop instead;
- stop: end the training, then evaluate and keep the best residual policy.

| rule | looks at | action |
|---|---|---|
| non_finite | any metric of an epoch; parameters of the residual policy to evaluate | roll_back |
| cut_episodes | episodes cut short because a number was not finite | note |
| exploding_q | mean value of the critics, against what rewards and entropy allow | roll_back |
| below_base | paired interim episodes: worse than the base policy, with confidence | shrink |
| saturation | share of residual actions at their bounds in an evaluation | note |
| anomalies | control steps with a joint too fast or far beyond its limit, or NaN | shrink |
| drift | share of observations far from all of the base policy's data | shrink |
| hopeless_base | no success of the base policy before training, and none since | stop |
| perfect_base | no failure of the base policy before training | stop |

A task without success is judged by return: `below_base` compares returns, and the last two rules do
not apply.
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import numpy as np

from pdjax.config.schema import GuardConfig
from pdjax.modules import is_finite
from pdjax.training.epoch import TrainState
from pdjax.types import Params

Action = Literal["note", "shrink", "roll_back", "stop"]
ACTIONS: tuple[Action, ...] = ("note", "shrink", "roll_back", "stop")


class Verdict(NamedTuple):
    """What a rule found.

    Attributes:
      rule: name of the rule.
      action: what to do.
      numbers: the numbers that caused it, by name.
    """

    rule: str
    action: Action
    numbers: dict[str, float]


def shrink(state: TrainState) -> TrainState:
    """Carries out `shrink`: halves how often the residual acts while exploring."""
    limit = 0.5 * state.hyperparams.exploration_limit
    return state._replace(hyperparams=state.hyperparams._replace(exploration_limit=limit))


def roll_back(now: TrainState, best: TrainState, rollbacks: int | np.int32) -> TrainState:
    """Carries out `roll_back`: the best state, with half the step sizes and other random numbers.

    Args:
      now: the state that went wrong.
      best: the state to go back to.
      rollbacks: number of rollbacks of the run, this one included.
    """
    halved = {
        name: 0.5 * getattr(now.hyperparams, name)
        for name in ("actor_lr", "critic_lr", "temperature_lr")
    }
    return best._replace(
        key=jax.random.fold_in(best.key, rollbacks),  # so that the failure does not repeat itself
        hyperparams=now.hyperparams._replace(**halved),
        decision_steps=now.decision_steps,  # the budget counts discarded decisions, too
        control_steps=now.control_steps,
    )


def check_base(config: GuardConfig, successes: int, episodes: int) -> list[Verdict]:
    """Judges the base policy before training: whether there is anything to refine.

    Args:
      config: thresholds.
      successes: its successes on the interim episodes.
      episodes: number of these episodes.
    """
    del config
    if successes < episodes:
        return []
    return [Verdict("perfect_base", "stop", {"base_success": 1.0, "episodes": episodes})]


def check_epoch(
    config: GuardConfig, metrics: Mapping[str, float], return_limit: float, first_drift: float
) -> list[Verdict]:
    """Judges an epoch.

    Args:
      config: thresholds.
      metrics: metrics of the epoch.
      return_limit: largest |return| that the rewards allow, with entropy where the critics count
        it; infinite if it is not known.
      first_drift: `drift` of the run's first epoch.
    """
    broken = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if broken:
        return [Verdict("non_finite", "roll_back", broken)]
    found = []
    if metrics["cut_episodes"]:
        found.append(Verdict("cut_episodes", "note", {"episodes": metrics["cut_episodes"]}))
    limit = config.q_factor * return_limit
    if abs(metrics["q_mean"]) > limit:
        numbers = {"q_mean": metrics["q_mean"], "limit": limit}
        found.append(Verdict("exploding_q", "roll_back", numbers))
    if metrics["anomalies"] > config.anomalies:
        numbers = {"anomalies": metrics["anomalies"], "limit": config.anomalies}
        found.append(Verdict("anomalies", "shrink", numbers))
    if metrics["drift"] > first_drift + config.drift:
        numbers = {"drift": metrics["drift"], "at_first": first_drift, "growth": config.drift}
        found.append(Verdict("drift", "shrink", numbers))
    return found


def check_actor(actor: Params) -> list[Verdict]:
    """Judges the residual policy that is to be evaluated: its parameters must be finite."""
    if is_finite(actor):
        return []
    return [Verdict("non_finite", "roll_back", {"residual_policy": math.nan})]


def check_evaluation(
    config: GuardConfig,
    gain: float,
    gain_ci: tuple[float, float],
    saturation: float,
    unit: float = 1.0,
) -> list[Verdict]:
    """Judges an interim evaluation, on the episodes that the base policy played before training.

    Args:
      config: thresholds.
      gain: success_once of the refined policy minus that of the base policy; or return, if the task
        has no success.
      gain_ci: its 95 % interval.
      saturation: share of residual actions beyond 0.95.
      unit: what the margin is a share of: 1, or the size of the base policy's return.
    """
    found, margin = [], config.below_base_margin * unit
    if gain_ci[1] < -margin:
        numbers = {"gain": gain, "gain_high": gain_ci[1], "margin": margin}
        found.append(Verdict("below_base", "shrink", numbers))
    if saturation > config.saturation:
        numbers = {"saturation": saturation, "limit": config.saturation}
        found.append(Verdict("saturation", "note", numbers))
    return found


def check_hope(
    config: GuardConfig, base_successes: int, train_successes: float, decisions: int
) -> list[Verdict]:
    """Judges whether a base policy without any success has led to a success since.

    Args:
      config: thresholds.
      base_successes: successes of the base policy before training.
      train_successes: episodes that succeeded in training so far.
      decisions: decisions of training so far.
    """
    if base_successes or train_successes or decisions < config.hopeless_decisions:
        return []
    return [Verdict("hopeless_base", "stop", {"decisions": decisions, "successes": 0.0})]


def worst(verdicts: list[Verdict]) -> Action:
    """Returns the most severe action; `note` without verdicts."""
    return ACTIONS[max((ACTIONS.index(verdict.action) for verdict in verdicts), default=0)]


def largest_return(gamma: float, reward_offset: float) -> float:
    """Returns the largest |return| if the reward is 1 at success, 0 before, and success ends it.

    The reward of a decision is offset or 1 + offset; the discounts sum up to 1 / (1 - gamma).

    Args:
      gamma: discount per decision.
      reward_offset: number added to the reward of each decision.
    """
    steady = abs(reward_offset) / (1 - gamma) if gamma < 1 else math.inf
    return max(1.0, steady if reward_offset else 1.0)


def largest_bonus(metrics: Mapping[str, float], target_entropy: float, gamma: float) -> float:
    """Returns the largest |sum| that entropy adds to soft returns.

    Each decision adds temperature * entropy.

    Args:
      metrics: metrics of an epoch.
      target_entropy: nats; the entropy that training steers to.
      gamma: discount per decision.
    """
    entropy = max(abs(metrics["entropy"]), abs(target_entropy))
    return metrics["temperature"] * entropy / (1 - gamma) if gamma < 1 else math.inf
