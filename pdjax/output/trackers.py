"""Reports a run's numbers to those who follow them: TensorBoard, and W&B or MLflow if asked for.

Whatever fails here, the run goes on without it. Nothing leaves this machine unless the tracker's
own environment variables (WANDB_MODE, MLFLOW_TRACKING_URI) say so. The only state here is which
tracker this process uses.
"""

import importlib.util
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pdjax.config import plain_yaml
from pdjax.config.options import ConfigError, flatten
from pdjax_envs import reading, writing
from pdjax_envs.reading import InputError

PROJECT = "pdjax"  # name of W&B's project and MLflow's experiment, unless one is set

FLUSH_S = 30.0  # s after which TensorBoard sees what is new

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
    make = _KINDS.get(_chosen)
    return _Careful(_chosen, lambda: make(directory), say) if make else None


def tensorboard(directory: Path, begin: int, say: Callable[[str], None]) -> Tracker:
    """Opens `tb/` of a run directory for TensorBoard.

    Args:
      directory: of the run.
      begin: decisions that the run goes on from; TensorBoard drops what it has of later ones.
      say: see `follow`.
    """
    return _Careful("tb", lambda: _TensorBoard(directory, begin), say)


class _Careful:
    """A tracker that does nothing after its first failure, such as a lost server or a full disk."""

    def __init__(self, name: str, make: Callable[[], Tracker], say: Callable[[str], None]):
        self._name, self._say = name, say
        self._tracker: Tracker | None = None
        self._try(lambda: setattr(self, "_tracker", make()))

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
            self._say(
                f"{self._name} failed ({reading.reason(error)}); the run continues without it"
            )
            self._tracker = None


class _TensorBoard:
    """TensorBoard: event files in `tb/`.

    Written from here and not by tensorboardX's own thread, which waits forever once a full disk has
    ended it.
    """

    def __init__(self, directory: Path, begin: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder = directory / "tb"
        folder.mkdir(exist_ok=True)
        self._events = EventsWriter(str(folder / "events"), f".{os.getpid()}.{begin}")
        restart = SessionLog(status=SessionLog.SessionStatus.Value("START"))
        self._write(Event(step=begin + 1, session_log=restart))
        self._events.flush()
        self._flushed = time.monotonic()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        for name, value in scalars.items():
            self._write(Event(step=step, summary=summary.scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSH_S:
            self._events.flush()
            self._flushed = time.monotonic()

    def close(self, failed: bool) -> None:
        self._events.close()


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
    try:
        names = reading.read_json_object(path, "trackers") if path.is_file() else {}
    except InputError:  # then the run begins anew in the tracker
        names = {}
    if not isinstance(names.get(tracker), str):
        names[tracker] = make()
        writing.write_json(path, names)
    return names[tracker]


def _read_config(directory: Path) -> dict[str, Any]:
    """Returns a run's `config.yaml` by dotted keys."""
    path = directory / "config.yaml"
    return flatten(plain_yaml.read(path, "config", "sections of keys")) if path.is_file() else {}
