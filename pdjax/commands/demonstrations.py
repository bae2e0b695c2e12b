"""The commands about tasks and demonstrations: `envs`, `demos` and `data`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pdjax.config.fields import Physics
from pdjax.config.schema import Count, Natural, Range, Seed

NOISE_LIMIT = 1.0  # beyond it noise would always hit the ends of the actions' range


@dataclasses.dataclass(frozen=True)
class Envs:
    """Lists the tasks; with a name, says what its observation and action mean, number by number."""

    POSITIONALS: ClassVar[int] = 1

    task: str | None = None
    """A task's name."""

    def run(self) -> dict[str, Any]:
        """Prints a table."""
        from pdjax.output import terminal
        from pdjax_envs import registry

        if self.task is not None:
            task = registry.make_task(self.task)
            terminal.say(
                f"{task.name}: {task.summary}; {task.episode_steps} control steps at"
                f" {task.control_hz:g} Hz, {task.control_mode}"
            )
            terminal.show_parts(
                f"observation: {task.obs_dim} numbers", task.observation, task.meanings
            )
            terminal.show_parts(f"action: {task.act_dim} numbers in [-1, 1]", task.action, {})
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
        return {"tasks": [_describe(task) for task in tasks]}


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
    """Records successful episodes of an expert: a task's scripted one or a published policy."""

    task: str
    """Task name, see `pdjax envs`."""
    out: Path
    """HDF5 file to write, .h5 or .hdf5; neither it nor its .json (ManiSkill's layout) may exist."""
    expert: str | None = None
    """Who demonstrates in place of the task's scripted expert: dapg:FILE, a published DAPG policy
    (an mjrl pickle such as door-v0.pickle, or an .npz), or dapg-noisy:FILE, the same with the
    action noise that it was trained with."""
    episodes: Count = 100
    """Successful episodes to record."""
    seed: Seed = 0
    """Seed of the first episode; further ones count up."""
    noise: Annotated[float, Range(0, NOISE_LIMIT)] = 0.03
    """Standard deviation of noise on the executed actions, as a share of [-1, 1]; recorded is what
    the expert wanted, beside what was executed."""
    physics: Physics = "auto"
    """Physics engine; auto = native on a CPU, warp on an NVIDIA GPU where it is installed, else
    mjx."""

    def run(self) -> dict[str, Any]:
        """Records and writes."""
        from pdjax.prepare import demonstrate

        return demonstrate.record_demonstrations(
            self.task, self.out, self.episodes, self.seed, self.noise, self.physics, self.expert
        )


@dataclasses.dataclass(frozen=True)
class Data:
    """Checks demonstrations: lengths, success, ranges, and whether the simulator replays them."""

    POSITIONALS: ClassVar[int] = 2

    action: Literal["check"]
    """What to do: check."""
    file: Path
    """Demonstrations: HDF5 of `pdjax demos`, ManiSkill, D4RL or Minari, or a pickle of DAPG; told
    apart by content."""
    task: str | None = None
    """Task that they are of; by default what the file says, or the only task of its sizes."""
    replay: Natural = 10
    """Episodes to replay from their initial states; 0 = none."""
    physics: Physics = "auto"
    """Physics engine of the replay."""

    def run(self) -> dict[str, Any]:
        """Checks, replays and prints."""
        from pdjax.prepare import check_demonstrations

        return check_demonstrations.check_demonstrations(
            self.file, self.task, self.replay, self.physics
        )
