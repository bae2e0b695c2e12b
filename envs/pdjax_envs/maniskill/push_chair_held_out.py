"""PushChairHeldOut: PushChair with three chairs that no demonstration has shown.

Everything else is the same as in `push_chair.py`. Demonstrations show that task's five chairs; this
task tests policies trained on them with other chairs.
"""

import dataclasses

import jax

from pdjax_envs.maniskill import chairs, push_chair
from pdjax_envs.task import Start, Task


def sample_start(key: jax.Array) -> Start:
    """Draws a start as PushChair does, with one of the three held-out chairs."""
    return push_chair.sample_start(key, chairs.HELD_OUT)


def make_task() -> Task:
    """Builds PushChairHeldOut."""
    return dataclasses.replace(
        push_chair.make_task(),
        name="PushChairHeldOut",
        family="PushChair",
        sample_start=sample_start,
        held_out=None,
    )
