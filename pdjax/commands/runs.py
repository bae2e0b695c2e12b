"""The commands about runs: `train`, `profile`, `eval`, `compare`, `render` and `sweep`."""

import dataclasses
import re
import threading
from pathlib import Path
from typing import Any, ClassVar, Literal

from pdjax.config.options import ConfigError, Count, Natural, NonNegative, Seed, Share
from pdjax.config.schema import Physics
from pdjax_envs.reading import short

MOST_CELLS = 10  # of a video, in a row or a column; more would be too small to see


@dataclasses.dataclass(frozen=True)
class Train:
    """Refines a frozen base policy: trains a bounded residual policy, then compares both
    policies."""

    EXAMPLE: ClassVar[str] = "pdjax train peg_fast --set base_policy.path=base --out runs/peg"

    config: str
    """YAML file, or name of a config that comes with pdjax."""
    out: Path | None = None
    """Run directory; new or empty. Default: runs/CONFIG-seedN; with --resume and a run's own
    config.yaml, the directory of that run."""
    set: tuple[str, ...] = ()
    """Changes values: section.key=value, with the value in YAML. One --set takes several values;
    --set may be repeated."""
    members: Natural = 0
    """Trains this many runs as one program, with seeds that count up from the config's seed. Each
    run has its own directory: DIR/member_0, DIR/member_1 and so on. To vary other numbers, list
    them in the config: `members: {seed: [0, 1], sac.gamma: [0.97, 0.99]}`. 0 = as the config
    says."""
    resume: bool = False
    """Continues the run in --out from its last checkpoint, whatever stopped it. Starts the run if
    there is none, and prints the result if it is finished."""
    plan: bool = False
    """Only prints the memory plan: what each part of the run needs, and whether the whole fits."""
    memory_gib: NonNegative = 0.0
    """Memory that the run must fit into, in GiB: that of one accelerator, or of a machine without
    any. 0 = the free memory of this machine."""
    coordinator: str = ""
    """For one run on several machines or processes: HOST:PORT of process 0, or `auto` to ask Slurm,
    Open MPI, Kubernetes or the TPU pod. Start the same command in every process; all processes must
    share the folders of the run and of the base policy. Default: JAX_COORDINATOR_ADDRESS, else a
    single process."""
    process: str = ""
    """Number of this process as INDEX/COUNT, such as 0/2. Default: JAX_PROCESS_ID and
    JAX_NUM_PROCESSES, else what the cluster says."""
    track: Literal["none", "wandb", "mlflow"] = "none"
    """Also reports to a tracker (pip install 'pdjax[wandb]' or 'pdjax[mlflow]'): offline, in the
    run's directory or in mlflow.db beside it, unless WANDB_MODE or MLFLOW_TRACKING_URI say
    otherwise."""

    @property
    def is_resumable(self) -> bool:
        """Whether --resume continues what a signal stops."""
        return not self.plan

    def run(self) -> dict[str, Any]:
        """Trains, evaluates and writes."""
        from pdjax.config import files as configs
        from pdjax.devices import processes

        members = configs.load_members(self.config, self.set, self.members)
        name = f"{Path(self.config).stem}-seed{members[0].seed}"
        several = len(members) > 1
        out = Path("runs") / (f"{name}-{len(members)}members" if several else name)
        if self.resume and Path(self.config).name == "config.yaml":  # of the run that it lies in
            out = Path(self.config).parent
        out = self.out or out
        from pdjax.output import terminal, trackers

        trackers.use(self.track)
        said = f"waiting for all processes of the run at {self.coordinator}"
        waiting = threading.Timer(1.0, terminal.say, [said])  # errors come before that
        if self.coordinator:
            waiting.start()
        try:
            processes.join(self.coordinator, self.process)
        finally:
            waiting.cancel()
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
            terminal.say(f"written to {out}: members.json, and one run directory for each member")
            return {"members": found}
        tables.show_comparison(found[0])
        terminal.say(
            f"written to {out}: result.json, learning_curve.png, residual/, metrics.jsonl, tb/"
        )
        return found[0]


@dataclasses.dataclass(frozen=True)
class Profile:
    """Measures where a run's time goes, phase by phase, and which settings would be faster."""

    EXAMPLE: ClassVar[str] = "pdjax profile peg_fast --set base_policy.path=base"

    config: str
    """YAML file, or name of a config that comes with pdjax."""
    set: tuple[str, ...] = ()
    """Changes values: section.key=value, with the value in YAML. One --set takes several values;
    --set may be repeated. base_policy.path is required, as for `pdjax train`."""
    repeats: Count = 5
    """Number of measurements of each phase; the table shows their median."""
    out: Path | None = None
    """Picture to write (.png); must not exist."""
    trace: Path | None = None
    """Directory for a trace of one epoch. View it with `tensorboard --logdir DIR` (needs xprof), or
    open its .json.gz at ui.perfetto.dev."""
    advice: Literal["yes", "no"] = "yes"
    """Whether to try other numbers of environments and other batch sizes, which takes about as long
    again."""

    def run(self) -> dict[str, Any]:
        """Measures, prints and draws."""
        from pdjax.config import files as configs
        from pdjax.profile import profile

        config = configs.load(self.config, self.set)
        return profile.profile_run(config, self.repeats, self.out, self.trace, self.advice == "yes")


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluates the base policy and the refined policy of a run on the same episodes."""

    EXAMPLE: ClassVar[str] = "pdjax eval runs/peg_fast-seed0 --episodes 500"

    run_directory: Path
    """Run directory of `pdjax train`, or the folder run/ of a `pdjax quickstart`."""
    episodes: Count = 200
    """Number of episodes; both policies play each of them."""
    seed: Seed = 20_000
    """Seed of the episodes."""
    physics: Physics | None = None
    """Physics engine. Default: as in the run's config."""
    shift: str = ""
    """Perturbations: mass, friction, size, held_out, sensor_noise, camera, action_delay. Join
    several by + to apply them together; `none` = no perturbation; `all` = none, then each one by
    itself. Default: as in training."""
    set: tuple[str, ...] = ()
    """Plays in another simulator: task.name=NAME, whose observations and actions have the same
    sizes, and further settings of the task, such as task.python=venv/bin/python. One --set takes
    several values; --set may be repeated."""
    failures: bool = False
    """Also tells where failed episodes end, by the stages of the task that they reached."""

    def run(self) -> dict[str, Any]:
        """Evaluates and prints."""
        from pdjax.output import tables
        from pdjax.runs import evaluate

        where = (self.run_directory, self.episodes, self.seed, self.physics or "")
        if self.shift == "all":
            if self.set:
                raise ConfigError("--shift all plays in the run's own task; leave out --set")
            if self.failures:
                raise ConfigError("--failures tells of one shift, not of all; name one of them")
            found = evaluate.evaluate_shifts(*where)
            tables.show_shifts(found)
            return {"shifts": found}
        _, summary = evaluate.evaluate_run(
            *where, self.shift, changes=self.set, failures=self.failures
        )
        tables.show_comparison(summary)
        if self.failures:
            tables.show_failures(summary)
        return summary


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compares runs of one task in a table and a picture; runs that differ only by seed form one
    group."""

    EXAMPLE: ClassVar[str] = (
        "pdjax compare runs/peg_fast-seed0 runs/peg_fast-seed1 runs/peg_fast-seed2"
    )

    runs: tuple[Path, ...]
    """Run directories of `pdjax train`, finished or still running. Runs form a group if all
    settings except seeds and paths are equal and their base policies have the same kind and chunk
    length. A group is named by the settings that set it apart; --json lists all of them. Give three
    or more seeds per group: one seed has no interval, and the interval of two is only their
    range."""
    out: Path = Path("compare.png")
    """Picture to write (.png); must not exist. Curves end where the shortest run of a group
    ends."""
    threshold: Share = 0.9
    """success_once to reach: the table shows decisions and minutes until the first interim
    evaluation that reaches it."""

    def run(self) -> dict[str, Any]:
        """Reads, prints and draws."""
        from pdjax.runs import compare

        return compare.show_comparison(self.runs, self.out, self.threshold)


@dataclasses.dataclass(frozen=True)
class Render:
    """Renders a video of the base policy and the refined policy, side by side on the same
    episodes."""

    EXAMPLE: ClassVar[str] = "pdjax render runs/peg_fast-seed0 --out peg.mp4"

    run_directory: Path
    """Run directory of `pdjax train`, or the folder run/ of a `pdjax quickstart`."""
    out: Path
    """Video file to write (.mp4 or .gif); must not exist."""
    episodes: Count = 3
    """Number of episodes, shown one after another."""
    seed: Seed = 20_000
    """Seed of the episodes."""
    grid: str = "1x1"
    """ROWSxCOLUMNS, such as 4x4, at most 10x10: shows this many episodes of the refined policy at
    once instead."""

    def run(self) -> dict[str, Any]:
        """Plays, draws and writes."""
        from pdjax.output import terminal
        from pdjax.runs import render

        match = re.fullmatch(r"([0-9]{1,2})x([0-9]{1,2})", self.grid)
        grid = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= min(grid) <= max(grid) <= MOST_CELLS:
            raise ConfigError(
                f"--grid got {short(repr(self.grid))}, expected ROWSxCOLUMNS such as 4x4, each at"
                f" most {MOST_CELLS}"
            )
        result = render.render_run(self.run_directory, self.out, self.episodes, self.seed, grid)
        terminal.say(f"written to {self.out}")
        return result


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Trains over a space of settings with Ray Tune, on this machine or a cluster, and reports the
    best.

    `pdjax sweep report DIR` reports a sweep again, finished or still running.
    """

    EXAMPLE: ClassVar[str] = "pdjax sweep sweep.yaml --dry-run"

    POSITIONALS: ClassVar[int] = 2

    spec: str
    """YAML file of the sweep: config, space, search and resources of each trial; see below. Or
    `paper` or `fast`, which come with pdjax. Or `report`."""
    directory: Path | None = None
    """After `report`: directory of the sweep."""
    out: Path | None = None
    """Directory of the sweep; new or empty. Default: runs/SPEC."""
    address: str | None = None
    """Ray cluster, HOST:PORT. Default: a cluster of this machine's cores and GPUs, for as long as
    the sweep lasts. All machines of a cluster must share the folders that the sweep reads and
    writes."""
    resume: bool = False
    """Continues the sweep in --out, whatever stopped it. Starts the sweep if there is none."""
    dry_run: bool = False
    """Only prints the trials, and estimates their time and memory on this machine."""

    @property
    def is_resumable(self) -> bool:
        """Whether --resume continues what a signal stops."""
        return not self.dry_run

    def run(self) -> dict[str, Any]:
        """Sweeps or reports."""
        if (self.spec == "report") != (self.directory is not None):
            raise ConfigError(
                f"sweep got {short(self.spec)} and {self.directory or 'no directory'}, expected"
                " SPEC.yaml alone, or report and the directory of a sweep"
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
