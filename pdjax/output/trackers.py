"""Reports a run's numbers to W&B or MLflow as they come: optional, and offline by default.

Nothing leaves this machine unless the tracker's own environment variables (WANDB_MODE,
MLFLOW_TRACKING_URI) say so. The only state here is which tracker this process uses.
"""

import importlib.util
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from pdjax.config.options import ConfigError, flatten

PROJECT = "pdjax"  # name of W&B's project and MLflow's experiment, unless one is set

_chosen = "none"


def use(name: str) -> None:
    """Chooses the tracker of all later runs: `wandb`, `mlflow` or `none`.

    Raises:
      ConfigError: the tracker's package is not installed.
    """
    global _chosen
    if name != "none" and importlib.util.find_spec(name) is None:
        raise ConfigError(f"tracker {name} is not installed; pip install 'pdjax[{name}]'")
    _chosen = name


class Tracker(Protocol):
    """One run in a tracker."""

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """Records numbers at a number of decisions."""

    def close(self, failed: bool) -> None:
        """Ends the run, and marks it as finished or failed."""


def follow(directory: Path, say: Callable[[str], None]) -> Tracker | None:
    """Opens the run of a run directory in the tracker; a resumed run opens the same one again.

    Args:
      directory: of the run, with its `config.yaml`; `trackers.json` in it keeps the run's name.
      say: called once with a message if the tracker fails; the run then continues without it.

    Returns:
      The run in the tracker; None without a tracker.
    """
    return None if _chosen == "none" else _Careful(directory, say)


class _Careful:
    """A tracker that does nothing after its first failure, such as a lost server or a full disk."""

    def __init__(self, directory: Path, say: Callable[[str], None]):
        self._name, self._say = _chosen, say
        self._tracker: Tracker | None = None
        self._try(lambda: setattr(self, "_tracker", _KINDS[self._name](directory)))

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        tracker = self._tracker
        if tracker is not None:
            self._try(lambda: tracker.log(scalars, step))

    def close(self, failed: bool) -> None:
        tracker = self._tracker
        if tracker is not None:
            self._try(lambda: tracker.close(failed))

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            self._say(f"{self._name} failed ({first}); the run continues without it")
            self._tracker = None


class _Wandb:
    """Weights & Biases: in `wandb/` of the run's directory, for `wandb sync`."""

    def __init__(self, directory: Path):
        import wandb

        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=directory.name,
            mode=mode,
            id=_known(directory, "wandb", lambda: uuid.uuid4().hex),
            resume="allow",
            dir=str(directory),
            config=_read_config(directory),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Not W&B's own steps, which cannot go back: a resumed run repeats some.
        self._run.define_metric("*", step_metric="decision_steps")

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log({**scalars, "decision_steps": step})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Mlflow:
    """MLflow: in `mlflow.db` beside the run's directory, for `mlflow ui --backend-store-uri`."""

    def __init__(self, directory: Path):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        here = f"sqlite:///{directory.absolute().parent / 'mlflow.db'}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", here))

        def begin() -> str:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            return self._client.create_run(experiment, run_name=directory.name).info.run_id

        self._id = _known(directory, "mlflow", begin)
        self._client.update_run(self._id, "RUNNING")
        params = [Param(key, str(value)) for key, value in _read_config(directory).items()]
        self._client.log_batch(self._id, params=params)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


_KINDS: dict[str, Callable[[Path], Tracker]] = {"wandb": _Wandb, "mlflow": _Mlflow}


def _known(directory: Path, tracker: str, make: Callable[[], str]) -> str:
    """Returns the name of a run in a tracker: from `trackers.json`, or a new one."""
    path = directory / "trackers.json"
    names = json.loads(path.read_text()) if path.is_file() else {}
    if tracker not in names:
        names[tracker] = make()
        path.write_text(json.dumps(names) + "\n")
    return names[tracker]


def _read_config(directory: Path) -> dict[str, Any]:
    """Returns a run's `config.yaml` by dotted keys."""
    path = directory / "config.yaml"
    return flatten(yaml.safe_load(path.read_text())) if path.is_file() else {}
