"""PushChairHeldOut: PushChair with three chairs that no demonstration has shown.

Everything else is `push_chair.py`'s: demonstrations are recorded on its five chairs, and a policy
trained on them is asked here what it does with others.
"""

import dataclasses

import jax

from pdjax_envs.maniskill import chairs, push_chair
from pdjax_envs.task import Start, Task


def sample_start(key: jax.Array) -> Start:
    """As PushChair's, with one of the held-out chairs."""
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
