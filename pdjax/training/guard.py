"""Watches a run: what a run's numbers mean, and what to do about it. Pure decisions, no effects.

Each rule looks at numbers that training has anyway and gives a `Verdict`; `loop` carries it out and
writes it to `audit.jsonl` with the numbers that caused it. From mild to severe:

- note: only written down;
- shrink: the residual is let in half as often while exploring;
- roll_back: back to the state that evaluated best, with half the step sizes and other random
  numbers; after `max_rollbacks` of them the run stops;
- stop: training ends, and the best residual policy is evaluated and kept.

| rule | looks at | does |
|---|---|---|
| non_finite | any metric of an epoch | roll_back |
| exploding_q | the critics' mean value, against what rewards and entropy allow | roll_back |
| below_base | paired interim episodes: worse than the base policy, with confidence | shrink |
| saturation | share of residual numbers at their bounds in evaluation | note |
| anomalies | control steps with a joint too fast or far beyond its limit, or NaN | shrink |
| drift | share of observations that the base policy's data never came near | shrink |
| hopeless_base | no success of the base policy before, and none since in training | stop |
| perfect_base | the base policy never fails before training | stop |
"""

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from pdjax.config.fields import GuardConfig

Action = Literal["note", "shrink", "roll_back", "stop"]
ACTIONS: tuple[Action, ...] = ("note", "shrink", "roll_back", "stop")


class Verdict(NamedTuple):
    """What a rule found.

    Attributes:
      rule: its name.
      action: what to do.
      numbers: that caused it.
    """

    rule: str
    action: Action
    numbers: dict[str, float]


def check_base(config: GuardConfig, successes: int, episodes: int) -> list[Verdict]:
    """Before training: whether there is anything to refine."""
    del config
    if successes < episodes:
        return []
    return [Verdict("perfect_base", "stop", {"base_success": 1.0, "episodes": episodes})]


def check_epoch(
    config: GuardConfig, metrics: Mapping[str, float], return_limit: float, first_drift: float
) -> list[Verdict]:
    """After an epoch.

    Args:
      config: thresholds.
      metrics: of the epoch.
      return_limit: the largest |return| that rewards, and entropy where critics count it, allow;
        infinite where it is not known.
      first_drift: `drift` of the run's first epoch.
    """
    broken = {name: value for name, value in metrics.items() if not math.isfinite(value)}
    if broken:
        return [Verdict("non_finite", "roll_back", broken)]
    found = []
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


def check_evaluation(
    config: GuardConfig, gain: float, gain_ci: tuple[float, float], saturation: float
) -> list[Verdict]:
    """After an interim evaluation on the episodes that the base policy played before training.

    Args:
      config: thresholds.
      gain: refined - base success_once.
      gain_ci: its 95 % interval.
      saturation: share of residual numbers beyond 0.95.
    """
    found = []
    if gain_ci[1] < -config.below_base_margin:
        numbers = {"gain": gain, "gain_high": gain_ci[1], "margin": config.below_base_margin}
        found.append(Verdict("below_base", "shrink", numbers))
    if saturation > config.saturation:
        numbers = {"saturation": saturation, "limit": config.saturation}
        found.append(Verdict("saturation", "note", numbers))
    return found


def check_hope(
    config: GuardConfig, base_successes: int, train_successes: float, decisions: int
) -> list[Verdict]:
    """Whether a base policy without any success has led to one since.

    Args:
      config: thresholds.
      base_successes: of the base policy before training.
      train_successes: episodes that succeeded in training so far.
      decisions: of training so far.
    """
    if base_successes or train_successes or decisions < config.hopeless_decisions:
        return []
    return [Verdict("hopeless_base", "stop", {"decisions": decisions, "successes": 0.0})]


def worst(verdicts: list[Verdict]) -> Action:
    """The most severe action; `note` where there is none."""
    return ACTIONS[max((ACTIONS.index(verdict.action) for verdict in verdicts), default=0)]


def largest_return(gamma: float, reward_offset: float) -> float:
    """The largest |return| where reward is 1 at success, else 0, and an episode ends there.

    Per decision the reward is offset or 1 + offset; the sum of discounts is 1 / (1 - gamma).
    """
    steady = abs(reward_offset) / (1 - gamma) if gamma < 1 else math.inf
    return max(1.0, steady if reward_offset else 1.0)


def largest_bonus(metrics: Mapping[str, float], target_entropy: float, gamma: float) -> float:
    """The largest |sum| that entropy adds to soft returns: temperature * entropy, each decision.

    Args:
      metrics: of an epoch.
      target_entropy: nats, what the policy is steered to; what it has may be more.
      gamma: discount per decision.
    """
    entropy = max(abs(metrics["entropy"]), abs(target_entropy))
    return metrics["temperature"] * entropy / (1 - gamma) if gamma < 1 else math.inf
