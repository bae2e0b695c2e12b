"""Members: runs that differ only in numbers, advanced together by one program.

Their training states are stacked, with leaves (members, ...), and `jax.vmap` makes one program for
all of them. Apart from that, each member is a run with its own directory. Separate from `loop`,
because this file knows configs and stacks, but not how a run is driven.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.config import files as configs
from pdjax.config.schema import SWEEPABLE, SWITCHES, Config, ConfigError
from pdjax.rollout.evaluate import Evaluation
from pdjax.training.epoch import TrainState
from pdjax.types import Array


class Stack:
    """The training states of the members that still train; a single run's state is not stacked.

    Args:
      states: member -> training state; of several states the arrays are deleted.
      count: number of all members, including those that no longer train.

    Attributes:
      state: TrainState with leaves (members, ...), or without that axis for a single run.
      members: the member that each row belongs to.
    """

    def __init__(self, states: dict[int, TrainState], count: int):
        self.members, self._is_single = list(states), count == 1
        found = list(states.values())
        self.state: Any = found[0] if self._is_single and found else _stack(found)

    def take(self, member: int) -> TrainState:
        """Returns the state of one member: a copy, unless there is only one."""
        if self._is_single:
            return self.state
        return _rows(self.state, self.members.index(member))

    def put(self, member: int, state: TrainState) -> None:
        """Replaces the state of one member."""
        if self._is_single:
            self.state = state
        else:
            self.state = _with_row(self.state, self.members.index(member), state)

    def rows(self, values: Any) -> dict[int, Any]:
        """Splits what a program returned for the stack.

        Args:
          values: leaves (members, ...), on the host.

        Returns:
          Member -> its values.
        """
        if self._is_single:
            return {0: values}
        return {
            member: jax.tree.map(lambda leaf, row=row: leaf[row], values)
            for row, member in enumerate(self.members)
        }

    def keep(self, members: Sequence[int]) -> None:
        """Drops the rows of all other members once they are half of the stack or more.

        Until then those members train on without effect, because a smaller stack is another program
        to compile.

        Args:
          members: the members that still train.
        """
        if self._is_single or 2 * len(members) > len(self.members):
            return
        rows = jnp.asarray([self.members.index(member) for member in members])
        self.state = _rows(self.state, rows)
        self.members = list(members)


def check(members: Sequence[Config]) -> None:
    """Checks that all members differ, but only in numbers that one program can take as arrays.

    Raises:
      ConfigError: two members are the same run, or members differ in anything else.
    """
    for number, member in enumerate(members):
        for name, (first, own) in configs.differences(members[0], member).items():
            if name not in SWEEPABLE:
                raise ConfigError(
                    f"members differ in {name} ({first!r} and {own!r}), which one program cannot"
                    f" hold; they may differ in {', '.join(SWEEPABLE)}; train such runs one by one"
                )
            if name in SWITCHES and bool(first) != bool(own):
                raise ConfigError(
                    f"members differ in whether {name} is 0 ({first!r} and {own!r}), which one"
                    " program cannot hold; give every member a value above 0, or every member 0"
                )
        for other in range(number):
            if members[other] == member:
                raise ConfigError(
                    f"members {other} and {number} are the same run; change a value"
                    " of one of them, such as its seed"
                )


def varied(members: Sequence[Config]) -> list[dict[str, Any]]:
    """Returns for each member the values in which members differ: dotted key -> value."""
    names = [name for member in members for name in configs.differences(members[0], member)]
    values = [configs.flat(member) for member in members]
    return [{name: own[name] for name in dict.fromkeys(names)} for own in values]


def lost(
    halve_at: Sequence[int], done: int, count: int, results: dict[int, Evaluation]
) -> set[int]:
    """Returns the worst members, which end at this evaluation so that enough halvings are done.

    Args:
      halve_at: decisions at which half of the members end.
      done: decisions so far.
      count: number of all members.
      results: interim evaluations of the members that still train.

    Returns:
      The members with the fewest successes, or the least return if the task has no success; among
      equals, those that take longer to succeed, then those with the larger number.
    """
    halvings = sum(done >= at for at in halve_at)
    left = -(-count // 2**halvings)

    def worth(member: int) -> tuple[float, float, int]:
        result = results[member]
        return (
            result.score,
            -float(np.mean(result.steps_to_success)),
            -member,
        )

    return set(sorted(results, key=worth, reverse=True)[left:])


def _stack(states: list[TrainState]) -> Any:
    """Stacks leaf by leaf, so that only one leaf is in memory twice at any time."""
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
    """Returns one row, or a stack of several."""
    return jax.tree.map(lambda leaf: leaf[rows], stack)


@partial(jax.jit, donate_argnums=0)
def _with_row(stack: TrainState, row: int, state: TrainState) -> TrainState:
    """Returns the stack with one row replaced."""
    return jax.tree.map(lambda leaf, new: leaf.at[row].set(new), stack, state)
