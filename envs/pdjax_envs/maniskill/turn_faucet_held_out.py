"""TurnFaucetHeldOut: TurnFaucet with four faucets that no demonstration shows.

Base policies and demonstrations of TurnFaucet work here: the published experiments train a base
policy on ten faucets and refine it on four others. Everything else is the same as in
`turn_faucet.py`.
"""

import dataclasses

import jax

from pdjax_envs.maniskill import faucets, turn_faucet
from pdjax_envs.task import Start, Task


def sample_start(key: jax.Array) -> Start:
    """Draws one of the four held-out faucets with equal chance, its place and the robot's noise."""
    return turn_faucet.sample_start(key, faucets.HELD_OUT)


def make_task() -> Task:
    """Builds TurnFaucetHeldOut."""
    return dataclasses.replace(
        turn_faucet.make_task(),
        name="TurnFaucetHeldOut",
        family="TurnFaucet",
        summary="turn the handle of one of four faucets kept from the demonstrations; Panda",
        sample_start=sample_start,
        held_out=None,
    )
