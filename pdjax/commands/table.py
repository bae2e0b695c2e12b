"""The table of commands: what each takes, and which function does its work.

A field is a flag. The first field without a default is the command's positional argument;
`POSITIONALS` gives another number of them. `EXAMPLE` is shown by `--help`. Work is imported inside
`run`, so that help and mistakes in flags answer at once.
"""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pdjax.commands.demonstrations import Data, Demos, Envs
from pdjax.commands.policies import Export, Imitate, Import, Screen, Wrap
from pdjax.commands.runs import Compare, Eval, Profile, Render, Sweep, Train
from pdjax.config.options import Seed


class Command(Protocol):
    """A parsed command."""

    EXAMPLE: ClassVar[str]

    def run(self) -> dict[str, Any]:
        """Does the work; returns what `--json` prints."""
        ...


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """Runs the whole chain on TurnFaucet in minutes: demonstrations, imitation, refinement,
    evaluation."""

    EXAMPLE: ClassVar[str] = "pdjax quickstart"

    out: Path | None = None
    """Directory to write; new or empty. Default: runs/quickstart-seedN."""
    seed: Seed = 0
    """Seed of everything random."""

    def run(self) -> dict[str, Any]:
        """Runs the whole chain."""
        from pdjax.commands import quickstart

        out = self.out or Path("runs") / f"quickstart-seed{self.seed}"
        return quickstart.quickstart(out, self.seed)


GROUPS: dict[str, dict[str, type[Command]]] = {
    "start here": {"quickstart": Quickstart},
    "prepare a base policy": {
        "envs": Envs,
        "demos": Demos,
        "data": Data,
        "imitate": Imitate,
        "wrap": Wrap,
        "import": Import,
        "screen": Screen,
    },
    "train a residual policy": {"train": Train, "profile": Profile},
    "use a run": {"eval": Eval, "render": Render, "export": Export},
    "work with many runs": {"compare": Compare, "sweep": Sweep},
}
"""The commands by what a user does, in the order of doing it."""

COMMANDS = {name: cls for group in GROUPS.values() for name, cls in group.items()}
