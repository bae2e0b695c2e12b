"""Which environment a worker makes, and what counts as success there; plain values, as JSON.

Separate from `pool`, because whoever reads a config can check it before any process starts.
"""

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pdjax_envs.names import suggest
from pdjax_envs.reading import InputError, short

DEFAULTS: Mapping[str, Any] = {
    "env": "",
    "options": {},
    "success": "auto",
    "episode_steps": 0,
    "render": False,
    "expert": "",
}
SUCCESS_KEYS = ("success", "is_success", "task_success", "goal_achieved", "solved")  # as `worker`'s


def check_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a complete spec.

    Args:
      spec: has `env`, an ID, MODULE:ID (importing the module registers the ID) or FILE.py:FUNCTION
        that returns an environment. May have `options`, its keyword arguments; `episode_steps`,
        control steps after which episodes are truncated, 0 = when the environment does; `render`,
        to draw pictures; and `success`, what says that the task is solved: `auto` (the first of
        SUCCESS_KEYS in info), a key of info, `terminated`, `reward>=X`, or FILE.py:FUNCTION, a
        function of (env, observation, reward, terminated, info). `expert` is FILE.py:FUNCTION, a
        function of (env, observation) that returns an action of the environment's own, or a class
        of such objects, of which each episode gets a new one.

    Raises:
      InputError: a field is unknown, missing, of another kind, or cannot be written as JSON.
    """
    for key in spec:
        if key not in DEFAULTS:
            raise InputError(
                f"unknown field {short(key)} in an environment's spec; "
                + suggest(str(key), DEFAULTS)
            )
    full = {**DEFAULTS, **spec}
    for key, default in DEFAULTS.items():
        kind = Mapping if key == "options" else type(default)
        if not isinstance(full[key], kind):
            raise InputError(f"{key}={short(full[key])}, expected {kind.__name__.lower()}")
    if not full["env"] or not full["success"] or full["episode_steps"] < 0:
        raise InputError(f"spec {short(full)}: env, success or episode_steps is empty or negative")
    rule = full["success"]
    if rule.startswith("reward>=") and not _is_finite(rule[len("reward>=") :]):
        raise InputError(f"success={short(rule)}, expected a number after reward>=")
    try:
        json.dumps(full)
    except (TypeError, ValueError) as error:
        raise InputError(f"options {short(full['options'])}: {error}; use JSON values") from None
    return full


def _is_finite(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return math.isfinite(float(text))
    return False
