"""pdjax refines frozen robot policies online.

A policy that was trained by imitation stays as it is. pdjax adds a small bounded residual policy
and trains it with SAC in simulation. Names are imported on first use: `import pdjax` alone imports
no JAX.

    import pdjax

    run = pdjax.train("door_fast", base="base", out="runs/door", progress=True)
    print(run.summary["gain"], run.curve["success_once"])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdjax.api import (
        SavedPolicy,
        compare,
        evaluate,
        export,
        imitate,
        load_config,
        resume,
        screen,
        train,
        wrap,
    )
    from pdjax.base_policies.foreign.exported import export_policy
    from pdjax.base_policies.load import from_memory as base_policy
    from pdjax.config.options import ConfigError
    from pdjax.config.schema import Config
    from pdjax.prepare.screen import Screening
    from pdjax.rollout.evaluate import Evaluation
    from pdjax.rollout.paired import Paired
    from pdjax.runs.compare import Comparison
    from pdjax.runs.load import Run, load_run
    from pdjax.training.loop import Epoch
    from pdjax.training.stopping import Stopped
    from pdjax.types import BasePolicy

_HOMES = {  # public name -> module, or (module, name there)
    "BasePolicy": "pdjax.types",
    "Comparison": "pdjax.runs.compare",
    "Config": "pdjax.config.schema",
    "ConfigError": "pdjax.config.options",
    "Epoch": "pdjax.training.loop",
    "Evaluation": "pdjax.rollout.evaluate",
    "Paired": "pdjax.rollout.paired",
    "Run": "pdjax.runs.load",
    "SavedPolicy": "pdjax.api",
    "Screening": "pdjax.prepare.screen",
    "Stopped": "pdjax.training.stopping",
    "base_policy": ("pdjax.base_policies.load", "from_memory"),
    "compare": "pdjax.api",
    "evaluate": "pdjax.api",
    "export": "pdjax.api",
    "export_policy": "pdjax.base_policies.foreign.exported",
    "imitate": "pdjax.api",
    "load_config": "pdjax.api",
    "load_run": "pdjax.runs.load",
    "resume": "pdjax.api",
    "screen": "pdjax.api",
    "train": "pdjax.api",
    "wrap": "pdjax.api",
}

__all__ = [
    "BasePolicy",
    "Comparison",
    "Config",
    "ConfigError",
    "Epoch",
    "Evaluation",
    "Paired",
    "Run",
    "SavedPolicy",
    "Screening",
    "Stopped",
    "__version__",
    "base_policy",
    "compare",
    "evaluate",
    "export",
    "export_policy",
    "imitate",
    "load_config",
    "load_run",
    "resume",
    "screen",
    "train",
    "wrap",
]

__version__: str


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        found = version("pdjax")
    elif name in _HOMES:
        home = _HOMES[name]
        module, there = home if isinstance(home, tuple) else (home, name)
        found = getattr(importlib.import_module(module), there)
    else:
        raise AttributeError(f"module 'pdjax' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
