"""Members: runs that differ in numbers only, advanced together by one program.

Their training states are stacked, leaves (members, ...), and `jax.vmap` makes one program of them.
In everything else each member is a run of its own, with its own directory. Knows configs and
stacks, not how a run is driven.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.config import files as configs
from pdjax.config.fields import SWEEPABLE, SWITCHES, Config, ConfigError
from pdjax.rollout.evaluate import Evaluation
from pdjax.training.epoch import TrainState
from pdjax.types import Array


class Stack:
    """The training states of the members that still train; of a single run as it is, unstacked.

    Args:
      states: by member; taken over: their arrays are gone afterwards.
      count: of all members, trained or not.

    Attributes:
      state: leaves (members, ...); of a single run without that axis.
      members: which member each row is of.
    """

    def __init__(self, states: dict[int, TrainState], count: int):
        self.members, self._is_single = list(states), count == 1
        found = list(states.values())
        self.state: Any = found[0] if self._is_single and found else _stack(found)

    def take(self, member: int) -> TrainState:
        """One member's state: a copy, but for a single run."""
        if self._is_single:
            return self.state
        return _rows(self.state, self.members.index(member))

    def put(self, member: int, state: TrainState) -> None:
        """Replaces one member's state."""
        if self._is_single:
            self.state = state
        else:
            self.state = _with_row(self.state, self.members.index(member), state)

    def rows(self, values: Any) -> dict[int, Any]:
        """Results of a program over the stack, leaves (members, ...) on the host, by member."""
        if self._is_single:
            return {0: values}
        return {
            member: jax.tree.map(lambda leaf, row=row: leaf[row], values)
            for row, member in enumerate(self.members)
        }

    def keep(self, members: Sequence[int]) -> None:
        """Drops all other members' rows once they are half of the stack or more.

        Before that they go on without effect: a smaller stack is another program to compile.
        """
        if self._is_single or 2 * len(members) > len(self.members):
            return
        rows = jnp.asarray([self.members.index(member) for member in members])
        self.state = _rows(self.state, rows)
        self.members = list(members)


def check(members: Sequence[Config]) -> None:
    """Checks that members differ, and only in what one program can hold.

    Raises:
      ConfigError: the first that cannot be.
    """
    for number, member in enumerate(members):
        for name, (first, own) in configs.differences(members[0], member).items():
            if name not in SWEEPABLE:
                raise ConfigError(
                    f"members differ in {name} ({first!r} and {own!r}), which is another program;"
                    f" they may differ in {', '.join(SWEEPABLE)}; train others one by one"
                )
            if name in SWITCHES and bool(first) != bool(own):
                raise ConfigError(
                    f"members differ in whether {name} is 0 ({first!r} and {own!r}), which is"
                    " another program; give each a value above 0, or none"
                )
        for other in range(number):
            if members[other] == member:
                raise ConfigError(
                    f"members {other} and {number} are the same run; change a value"
                    " of either, such as its seed"
                )


def varied(members: Sequence[Config]) -> list[dict[str, Any]]:
    """What each member sets that not all agree in: dotted key -> value."""
    names = [name for member in members for name in configs.differences(members[0], member)]
    values = [configs.flat(member) for member in members]
    return [{name: own[name] for name in dict.fromkeys(names)} for own in values]


def lost(
    halve_at: Sequence[int], done: int, count: int, results: dict[int, Evaluation]
) -> set[int]:
    """Members that end at an evaluation: the worse ones, beyond what the halvings so far leave.

    Args:
      halve_at: decisions at which the half is left of the members that there were.
      done: decisions so far.
      count: of all members.
      results: interim evaluations of those that train.

    Returns:
      The members with the fewest successes, and of equals those that took longer to succeed.
    """
    halvings = sum(done >= at for at in halve_at)
    left = -(-count // 2**halvings)

    def worth(member: int) -> tuple[float, float, int]:
        result = results[member]
        return (
            float(np.mean(result.success_once)),
            -float(np.mean(result.steps_to_success)),
            -member,
        )

    return set(sorted(results, key=worth, reverse=True)[left:])


def _stack(states: list[TrainState]) -> Any:
    """Stacks leaf by leaf, so that no more than one leaf is ever there twice."""
    if not states:
        return None
    columns = [jax.tree.leaves(state) for state in states]
    treedef = jax.tree.structure(states[0])
    stacked = []
    for leaves in zip(*columns, strict=True):
        stacked.append(jnp.stack(leaves))
        for leaf in leaves:
            leaf.delete()
    return jax.tree.unflatten(treedef, stacked)


@jax.jit
def _rows(stack: TrainState, rows: Array | int) -> TrainState:
    """One row, or a stack of several."""
    return jax.tree.map(lambda leaf: leaf[rows], stack)


@partial(jax.jit, donate_argnums=0)
def _with_row(stack: TrainState, row: int, state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf, new: leaf.at[row].set(new), stack, state)
