"""Runs scripts of the reference code (tongzhoumu/policy_decorator), unchanged, in its interpreter.

    git clone https://github.com/tongzhoumu/policy_decorator
    sh experiments/simulators/maniskill2.sh ms2
    ms2/bin/pip install torch==2.13.0 diffusers stable-baselines3==2.2.1 gymnasium==0.29.1 \
      "numpy<2" "pandas<2.3" "setuptools<80" tensorboard einops

Where no graphics driver is, its processes leave out what is drawn, as ours do.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

SIMULATORS = Path(__file__).absolute().parent / "simulators"
# Runs in each process of the reference before anything else.
WITHOUT_PICTURES = f"""
import sys
if any(word in part for part in sys.orig_argv for word in ("maniskill2", "forkserver")):
    sys.path.insert(0, {str(SIMULATORS)!r})
    import maniskill2
    sys.path.remove({str(SIMULATORS)!r})
"""
READ_EVENTS = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1]).Reload().Scalars(sys.argv[2])
print(json.dumps([[event.step, event.wall_time, event.value] for event in events]))
"""


class Reference(NamedTuple):
    """The reference code.

    Attributes:
      folder: its checkout.
      python: the interpreter that has its libraries.
    """

    folder: Path
    python: Path

    def run(self, script: str, flags: dict[str, Any], out: Path) -> None:
        """Runs a script.

        Args:
          script: its file in the checkout.
          flags: NAME -> value of --NAME.
          out: where it writes; must exist.
        """
        (out / "sitecustomize.py").write_text(WITHOUT_PICTURES)
        named = (flags | {"output-dir": out}).items()
        words = [str(part) for name, value in named for part in (f"--{name}", value)]
        environment = os.environ | {"PYTHONPATH": f"{out}:{self.folder}"}
        program = [self.python, self.folder / script, *words]
        subprocess.run(program, check=True, env=environment, cwd=self.folder)

    def scalars(self, out: Path, tag: str) -> list[tuple[int, float, float]]:
        """Returns (step, Unix time in s, value) of what a script has logged under a tag."""
        (events,) = {path.parent for path in out.rglob("events.out.*")}
        program = [self.python, "-c", READ_EVENTS, events, tag]
        read = subprocess.run(program, check=True, capture_output=True, text=True)
        return [tuple(row) for row in json.loads(read.stdout.splitlines()[-1])]
