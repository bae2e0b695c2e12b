"""The commands about tasks and demonstrations: `envs`, `demos` and `data`."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pdjax.commands.worlds import use_workers
from pdjax.config.options import ConfigError, Count, Natural, Range, Seed
from pdjax.config.schema import Physics
from pdjax_envs.reading import short

NOISE_LIMIT = 1.0  # larger noise would always reach the ends of the actions' range


@dataclasses.dataclass(frozen=True)
class Envs:
    """Lists the tasks, explains every number of one task's observation and action, checks a task
    of yours, or writes a new one to begin with."""

    EXAMPLE: ClassVar[str] = "pdjax envs PegInsertionSide"

    POSITIONALS: ClassVar[int] = 2

    task: str | None = None
    """Name of the task to explain; without it, all tasks are listed. `check` checks the task that
    follows, and `new` writes the file that follows."""
    target: str | None = None
    """For `check`: a task, such as FILE.py:make_task. For `new`: FILE.py, which must not exist."""
    physics: Physics = "auto"
    """Physics engine of `check`."""
    set: tuple[str, ...] = ()
    """Settings of an environment of Gymnasium, such as task.python=venv/bin/python; see `pdjax
    train --help`."""

    def run(self) -> dict[str, Any]:
        """Prints a table, or writes files."""
        from pdjax.output import terminal
        from pdjax_envs import registry

        use_workers(self.set)
        if self.task in ("new", "check"):
            return self._do()
        if self.target is not None:
            raise ConfigError(
                f"envs got {short(repr(self.target))} after {short(repr(self.task))}, expected one"
                " task; `new` and `check` come first"
            )
        if self.task is not None:
            task = registry.make_task(self.task)
            rate = "" if math.isnan(task.control_hz) else f" at {task.control_hz:g} Hz"
            terminal.say(
                f"{task.name}: {task.summary}; {task.episode_steps} control steps{rate},"
                f" control {task.control_mode}"
            )
            terminal.show_parts(
                f"observation: {task.obs_dim} numbers", task.observation, task.meanings
            )
            title = f"action: {task.act_dim} numbers in [-1, 1]"
            terminal.show_parts(title, task.action, task.meanings)
            return _describe(task)
        tasks = [registry.make_task(name) for name in registry.task_names()]
        header = ["task", "obs", "act", "steps", "Hz", "expert"]
        rows = [
            [
                t.name,
                str(t.obs_dim),
                str(t.act_dim),
                str(t.episode_steps),
                f"{t.control_hz:g}",
                "yes" if t.expert else "no",
                t.summary,
            ]
            for t in tasks
        ]
        terminal.show_table("Tasks", header, rows, text="summary")
        terminal.say(f"also {registry.OTHER_TASKS}")
        return {"tasks": [_describe(task) for task in tasks]}

    def _do(self) -> dict[str, Any]:
        if self.target is None:
            raise ConfigError(
                f"envs {self.task} needs {'FILE.py' if self.task == 'new' else 'a task'}"
            )
        if self.task == "new":
            from pdjax.prepare import new_task

            return new_task.write(Path(self.target))
        from pdjax.prepare import check_task

        return check_task.check_task(self.target, self.physics)


def _describe(task: Any) -> dict[str, Any]:
    return {
        "name": task.name,
        "summary": task.summary,
        "observation": dict(task.observation),
        "meanings": dict(task.meanings),
        "action": dict(task.action),
        "rewards": ["success", *task.rewards],
        "episode_steps": task.episode_steps,
        "control_hz": task.control_hz,
        "expert": task.expert is not None,
    }


@dataclasses.dataclass(frozen=True)
class Demos:
    """Records demonstrations: successful episodes of a scripted expert or a published policy."""

    EXAMPLE: ClassVar[str] = "pdjax demos PegInsertionSide --episodes 300 --out demos.h5"

    task: str
    """Task to demonstrate; `pdjax envs` lists the tasks."""
    out: Path
    """HDF5 file to write (.h5 or .hdf5). Neither this file nor the .json beside it, as in
    ManiSkill's layout, may exist."""
    expert: str | None = None
    """Expert to use instead of the task's scripted one: dapg:FILE is a published DAPG policy (an
    mjrl pickle such as door-v0.pickle, or an .npz); dapg-noisy:FILE adds the action noise that the
    policy was trained with. For an environment of Gymnasium: FILE.py:FUNCTION, a function of (env,
    observation), both as they are there, that returns an action; or a class of such objects, of
    which each episode gets a new one. It runs beside the simulator, in task.python. A task's name,
    such as PegInsertionSide, is that task's own expert, for an environment that equals it."""
    episodes: Count = 100
    """Number of successful episodes to record."""
    seed: Seed = 0
    """Seed of the first episode; each further episode takes the next seed."""
    noise: Annotated[float, Range(0, NOISE_LIMIT)] = 0.03
    """Standard deviation of the noise on executed actions, as a share of [-1, 1]. The file holds
    the action that the expert wanted and the action that was executed."""
    physics: Physics = "auto"
    """Physics engine; auto = native on a CPU, warp on an NVIDIA GPU if warp is installed, else
    mjx."""
    set: tuple[str, ...] = ()
    """Settings of an environment of Gymnasium, such as task.python=venv/bin/python; see `pdjax
    train --help`."""

    def run(self) -> dict[str, Any]:
        """Records and writes."""
        from pdjax.prepare import demonstrate

        use_workers(self.set)
        return demonstrate.record_demonstrations(
            self.task, self.out, self.episodes, self.seed, self.noise, self.physics, self.expert
        )


@dataclasses.dataclass(frozen=True)
class Data:
    """Checks demonstrations: lengths, success, ranges, and whether the simulator replays them."""

    EXAMPLE: ClassVar[str] = "pdjax data check demos.h5"

    POSITIONALS: ClassVar[int] = 2

    action: Literal["check"]
    """What to do; the only choice is `check`."""
    file: Path
    """Demonstrations: HDF5 of `pdjax demos`, ManiSkill, D4RL or Minari, a DAPG pickle, or a folder
    or name of a Minari dataset. The content decides which of these it is."""
    task: str | None = None
    """Task of the demonstrations; by default the task that the file names, or the only task with
    the same sizes."""
    replay: Natural = 10
    """Number of episodes to replay from their initial states; 0 = none."""
    physics: Physics = "auto"
    """Physics engine of the replay."""
    set: tuple[str, ...] = ()
    """Settings of an environment of Gymnasium, such as task.python=venv/bin/python; see `pdjax
    train --help`."""

    def run(self) -> dict[str, Any]:
        """Checks, replays and prints."""
        from pdjax.prepare import check_demonstrations

        use_workers(self.set)
        return check_demonstrations.check_demonstrations(
            self.file, self.task, self.replay, self.physics
        )
