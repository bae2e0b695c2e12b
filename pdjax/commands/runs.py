"""Commands about runs: training one, timing it, evaluating, comparing and drawing it.

Apart from `commands` for size; the same rules hold.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any, ClassVar, Literal

from pdjax.config.fields import Physics
from pdjax.config.schema import ConfigError, Count, Natural, NonNegative, Seed, Share


@dataclasses.dataclass(frozen=True)
class Train:
    """Refines a frozen base policy: trains a bounded residual policy and evaluates both, paired."""

    config: str
    """YAML file, or the name of a config that comes with pdjax."""
    out: Path | None = None
    """Run directory, new or empty; default runs/CONFIG-seedN."""
    set: tuple[str, ...] = ()
    """Change values, each as section.key=value with the value in YAML; several after one --set, or
    --set repeated."""
    members: Natural = 0
    """Train so many runs as one program, with seeds counting up from the config's; each gets a
    directory like that of a run alone, DIR/member_0 and so on. To let them differ in other numbers,
    list these in the config: `members: {seed: [0, 1], sac.gamma: [0.97, 0.99]}`."""
    resume: bool = False
    """Go on where the run in --out stopped, however it stopped; begin it where there is none, and
    only show it where it is finished."""
    plan: bool = False
    """Only show what the run takes of memory, part by part, and whether it fits."""
    memory_gib: NonNegative = 0.0
    """Memory to fit into: GiB of an accelerator, or of a machine without one; 0 = what is free of
    this one."""
    coordinator: str = ""
    """For one run on several machines, or processes: HOST:PORT of process 0, or `auto` = as Slurm,
    Open MPI, Kubernetes or a TPU pod tell. Start this same command in each; they must share the
    folders of the run and the base policy. Default JAX_COORDINATOR_ADDRESS, else alone."""
    process: str = ""
    """INDEX/COUNT of this process, such as 0/2; default JAX_PROCESS_ID and JAX_NUM_PROCESSES, else
    as the cluster tells."""
    track: Literal["none", "wandb", "mlflow"] = "none"
    """Tell a tracker too (pip install 'pdjax[wandb]' or 'pdjax[mlflow]'). Offline, in the run's
    directory or mlflow.db beside it, unless WANDB_MODE or MLFLOW_TRACKING_URI say otherwise."""

    def run(self) -> dict[str, Any]:
        """Trains, evaluates and writes."""
        from pdjax.config import files as configs
        from pdjax.devices import processes

        members = configs.load_members(self.config, self.set, self.members)
        name = f"{Path(self.config).stem}-seed{members[0].seed}"
        several = len(members) > 1
        out = self.out or Path("runs") / (f"{name}-{len(members)}members" if several else name)
        from pdjax.output import terminal, trackers

        trackers.use(self.track)
        if self.coordinator:
            terminal.say(f"waiting for all processes of the run at {self.coordinator}")
        processes.join(self.coordinator, self.process)
        from pdjax.output import tables
        from pdjax.training import run as runner
        from pdjax.training.members import varied

        if not processes.is_writer():
            terminal.mute()
        if self.plan:
            return runner.plan(members, self.memory_gib)
        with processes.together():
            results = runner.run_members(members, out, self.resume, self.memory_gib)
        found = [result.summary for result in results]
        if several:
            tables.show_members(varied(members), found)
            terminal.say(f"written to {out}: members.json, and a run's directory of each")
            return {"members": found}
        tables.show_comparison(found[0])
        terminal.say(
            f"written to {out}: result.json, learning_curve.png, residual/, metrics.jsonl, tb/"
        )
        return found[0]


@dataclasses.dataclass(frozen=True)
class Profile:
    """Says where a run's time goes, phase by phase, and which settings would be faster."""

    config: str
    """YAML file, or the name of a config that comes with pdjax."""
    set: tuple[str, ...] = ()
    """Change values, each as section.key=value with the value in YAML; base_policy.path is needed,
    as for `pdjax train`."""
    repeats: Count = 5
    """Times that each phase is measured; medians are shown."""
    out: Path | None = None
    """Picture to write, .png; must not exist."""
    trace: Path | None = None
    """Directory for a trace of one epoch: `tensorboard --logdir DIR` with xprof installed, or the
    .json.gz in it at ui.perfetto.dev."""
    advice: Literal["yes", "no"] = "yes"
    """Whether to try other numbers of environments and batch sizes, which takes about as long
    again."""

    def run(self) -> dict[str, Any]:
        """Measures, prints and draws."""
        from pdjax.config import files as configs
        from pdjax.profile import profile

        config = configs.load(self.config, self.set)
        return profile.profile_run(config, self.repeats, self.out, self.trace, self.advice == "yes")


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluates base and refined policy of a run on the same episodes."""

    run_directory: Path
    """Run directory of `pdjax train`, or run/ in one of `pdjax quickstart`."""
    episodes: Count = 200
    """Episodes, each played by both policies."""
    seed: Seed = 20_000
    """Seed of the episodes."""
    physics: Physics | None = None
    """Physics engine; default as in the run's config."""
    shift: str = ""
    """Perturbations: mass, friction, size, held_out, sensor_noise, camera, action_delay; joined by
    + to meet together; `none`; `all` = none and each by itself. Default as in training."""

    def run(self) -> dict[str, Any]:
        """Evaluates and prints."""
        from pdjax.output import tables
        from pdjax.runs import evaluate

        where = (self.run_directory, self.episodes, self.seed, self.physics or "")
        if self.shift == "all":
            found = evaluate.evaluate_shifts(*where)
            tables.show_shifts(found)
            return {"shifts": found}
        _, summary = evaluate.evaluate_run(*where, self.shift)
        tables.show_comparison(summary)
        return summary


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compares runs of one task: a table and a picture, runs that differ by seed only as one
    group."""

    runs: tuple[Path, ...]
    """Run directories of `pdjax train`, finished or still running. Runs are of one group where all
    settings are equal but seeds and paths, and their base policies are of one kind with chunks of
    one length; it is named by what sets it apart (--json lists all of that). Name three or more
    seeds of each: of one no interval is known, of two it is no more than their range."""
    out: Path = Path("compare.png")
    """Picture to write, .png; must not exist. Curves end where the shortest run of a group does."""
    threshold: Share = 0.9
    """success_once whose decisions and minutes are told, up to the first interim evaluation that
    reaches it."""

    def run(self) -> dict[str, Any]:
        """Reads, prints and draws."""
        from pdjax.runs import compare

        return compare.show_comparison(self.runs, self.out, self.threshold)


@dataclasses.dataclass(frozen=True)
class Render:
    """Renders base and refined policy side by side on the same episodes."""

    run_directory: Path
    """Run directory of `pdjax train`, or run/ in one of `pdjax quickstart`."""
    out: Path
    """Video file to write, .mp4 or .gif; must not exist."""
    episodes: Count = 3
    """Episodes, one after another."""
    seed: Seed = 20_000
    """Seed of the episodes."""
    grid: str = "1x1"
    """ROWSxCOLUMNS, such as 4x4: that many episodes of the refined policy at once instead."""

    def run(self) -> dict[str, Any]:
        """Plays, draws and writes."""
        from pdjax.output import terminal
        from pdjax.runs import render

        match = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", self.grid)
        if not match:
            raise ConfigError(f"--grid got {self.grid!r}, expected ROWSxCOLUMNS such as 4x4")
        grid = int(match[1]), int(match[2])
        result = render.render_run(self.run_directory, self.out, self.episodes, self.seed, grid)
        terminal.say(f"written {self.out}")
        return result


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Trains over a space of settings on Ray Tune, here or on a cluster, and reports what is best.

    `pdjax sweep report DIR` reports one again, finished or still running.
    """

    POSITIONALS: ClassVar[int] = 2

    spec: str
    """YAML file of the sweep: config, space, search and what each trial may use; see below. Or
    `paper` or `fast`, which come with pdjax. Or `report`."""
    directory: Path | None = None
    """After `report`: directory of the sweep."""
    out: Path | None = None
    """Directory of the sweep, new or empty; default runs/SPEC."""
    address: str | None = None
    """Ray cluster, HOST:PORT; default one of this machine's cores and GPUs, while the sweep lasts.
    All machines of a cluster must share the folders that the sweep reads and writes."""
    resume: bool = False
    """Go on where the sweep in --out stopped, however it stopped; begin it where there is none."""
    dry_run: bool = False
    """Only show the trials, and what they will take of time and memory on this machine."""

    def run(self) -> dict[str, Any]:
        """Sweeps or reports."""
        if (self.spec == "report") != (self.directory is not None):
            raise ConfigError(
                f"sweep got {self.spec} and {self.directory or 'no directory'}, expected SPEC.yaml"
                " alone, or report and the directory of a sweep"
            )
        from pdjax.sweep import dry_run as sweep_foresight
        from pdjax.sweep import report, tune
        from pdjax.sweep import spec as sweep_spec

        if self.directory is not None:
            return report.write(self.directory)
        path = sweep_spec.find(self.spec)
        if self.dry_run:
            return sweep_foresight.foresee(path)
        out = self.out or Path("runs") / path.stem
        return tune.sweep(path, out, self.address or "", self.resume)
