"""How Orbax writes a checkpoint of pdjax: as always, and with digests of its files.

Separate from `checkpoint`, since Orbax finds a handler by the type of its arguments. Not pure.
"""

import dataclasses
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from pdjax.output import digests

LATER = "_CHECKPOINT_METADATA"  # Orbax adds to this file when a checkpoint is complete


class Handler(ocp.StandardCheckpointHandler):
    """Orbax's handler, which adds digests of all files before a checkpoint gets its name."""

    def finalize(self, directory: Any) -> None:
        """Completes a checkpoint; Orbax calls it in one process, in the background."""
        super().finalize(directory)
        digests.write(Path(directory), Path(directory) / digests.FILE, (LATER,))


@ocp.args.register_with_handler(Handler, for_save=True)
@dataclasses.dataclass
class Save(ocp.args.StandardSave):
    """What `Handler` takes to save."""


@ocp.args.register_with_handler(Handler, for_restore=True)
@dataclasses.dataclass
class Restore(ocp.args.StandardRestore):
    """What `Handler` takes to restore; Orbax asks for both."""
