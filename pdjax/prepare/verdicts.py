"""Judges what a task showed in play: which numbers are faults, and which only deserve a mention.

Separate from `check_task` and `check_workers`, which play, because both judge by the same rules.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pdjax.output import terminal
from pdjax_envs.reading import short

LARGE, HUGE = 1e3, 1e6  # sizes of observed numbers to mention, and to refuse
OK, NOTE, FAIL = "ok", "note", "FAIL"


class Finding(NamedTuple):
    """The result of one check: its name, `ok`, `note` or `FAIL`, and what was seen."""

    check: str
    verdict: str
    seen: str


def show(task: str, engine: str, findings: Sequence[Finding]) -> dict[str, Any]:
    """Prints a table of findings and returns them, as `--json` prints them."""
    passed = all(finding.verdict != FAIL for finding in findings)
    rows = [[finding.check, finding.verdict, finding.seen] for finding in findings]
    terminal.show_table(f"{task} on {engine}", ["check", "result"], rows, text="seen")
    terminal.say("all checks passed" if passed else "some checks FAILED")
    return {
        "task": task,
        "physics": engine,
        "passed": passed,
        "findings": [finding._asdict() for finding in findings],
    }


def starts(first: np.ndarray) -> tuple[str, str]:
    """Judges first observations (episodes, obs_dim)."""
    different = len(np.unique(first, axis=0))
    seen = f"{different} different first observations of {len(first)}"
    if different == 1:
        return NOTE, f"{seen}: every episode begins alike; add noise"
    return OK, seen


def numbers(obs: np.ndarray, names: Sequence[str]) -> tuple[str, str]:
    """Judges observations (n, obs_dim) whose numbers have names."""
    pick = lambda mask: short(", ".join(np.array(names)[mask]), 120)  # noqa: E731
    size = np.abs(obs).max(axis=0)
    wrong = ~(size < HUGE)  # NaN too
    if wrong.any():
        return FAIL, f"not finite, or beyond {HUGE:g}: {pick(wrong)}"
    said: list[str] = []
    if (constant := np.ptp(obs, axis=0) == 0).any():
        said.append(f"constant under random actions: {pick(constant)}")
    if (large := size > LARGE).any():
        said.append(f"beyond {LARGE:g}: {pick(large)}; use other units")
    return NOTE if said else OK, "; ".join(said) or f"within {size.max():.3g}"


def random_success(rate: float, has_expert: bool) -> tuple[str, str]:
    """Judges the success rate of random actions."""
    seen = f"random actions succeed in {rate:.0%}"
    if rate == 0 and not has_expert:
        return NOTE, f"{seen}; only a base policy will show if it is reachable"
    return NOTE if rate > 0.5 else OK, seen


def still_success(rate: float) -> tuple[str, str]:
    """Judges the success rate of doing nothing."""
    seen = f"doing nothing succeeds in {rate:.0%}"
    return FAIL if rate > 0.5 else NOTE if rate else OK, seen
