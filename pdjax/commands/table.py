"""The commands: what each takes, and which function does its work.

A field is a flag; the first field of a command that has no default is its positional argument, or
as many of them as its `POSITIONALS` says. Work is imported where it is done, so that help and
mistakes in flags answer at once.
"""

import dataclasses
from pathlib import Path
from typing import Any, Protocol

from pdjax.commands.demonstrations import Data, Demos, Envs
from pdjax.commands.policies import Export, Imitate, Import, Screen, Wrap
from pdjax.commands.runs import Compare, Eval, Profile, Render, Sweep, Train
from pdjax.config.schema import Seed


class Command(Protocol):
    """A parsed command."""

    def run(self) -> dict[str, Any]:
        """Does the work; returns what `--json` prints."""
        ...


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """Demonstrations, imitation, refinement and evaluation of PegInsertionSide, in minutes."""

    out: Path | None = None
    """Directory to write, new or empty; default runs/quickstart-seedN."""
    seed: Seed = 0
    """Seed of everything random."""

    def run(self) -> dict[str, Any]:
        """Runs the whole chain."""
        from pdjax.commands import quickstart

        out = self.out or Path("runs") / f"quickstart-seed{self.seed}"
        return quickstart.quickstart(out, self.seed)


COMMANDS: dict[str, type[Command]] = {
    "envs": Envs,
    "demos": Demos,
    "data": Data,
    "imitate": Imitate,
    "wrap": Wrap,
    "import": Import,
    "screen": Screen,
    "train": Train,
    "sweep": Sweep,
    "profile": Profile,
    "eval": Eval,
    "compare": Compare,
    "export": Export,
    "render": Render,
    "quickstart": Quickstart,
}
