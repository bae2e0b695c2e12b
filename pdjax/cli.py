"""Text to calls: parses commands, prints results, turns mistakes into one line. Nothing else.

Exit codes: 0 done, 1 failed, 2 bad input.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

_DESCRIPTION = "Refine a frozen robot policy online with a bounded residual policy, trained in JAX."

PhysicsName = Literal["auto", "native", "mjx"]
JsonFlag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True)
class Envs:
    """Lists the tasks: what they observe, how they act, how long an episode lasts."""

    json: JsonFlag = False
    """Print one JSON object on the last line of stdout."""


@dataclasses.dataclass(frozen=True)
class Demos:
    """Records successful episodes of a task's scripted expert (ManiSkill HDF5 and JSON sidecar)."""

    task: tyro.conf.Positional[str]
    """Task name, see `pdjax envs`."""
    out: Path
    """HDF5 file to write; must not exist."""
    episodes: int = 100
    """Successful episodes to record."""
    seed: int = 0
    """Seed of the first episode."""
    noise: float = 0.03
    """Standard deviation of noise on the executed actions (share of [-1, 1]); recorded is what the
    expert wanted."""
    physics: PhysicsName = "auto"
    """Physics engine; auto = native on a CPU, mjx on an accelerator."""
    json: JsonFlag = False
    """Print one JSON object on the last line of stdout."""


@dataclasses.dataclass(frozen=True)
class Imitate:
    """Trains a diffusion policy on demonstrations: a base policy to refine."""

    demos: tyro.conf.Positional[Path]
    """HDF5 file of `pdjax demos`, or of ManiSkill."""
    task: str
    """Task that the demonstrations are of."""
    out: Path
    """Directory to write; must be empty or new."""
    steps: int = 6_000
    """Gradient steps."""
    batch_size: int = 256
    """Windows per gradient step."""
    act_horizon: int = 4
    """Control steps executed of each prediction."""
    pred_horizon: int = 8
    """Actions predicted at once."""
    hidden: int = 256
    """Width of the denoiser."""
    seed: int = 0
    """Seed of initialisation, shuffling and noise."""
    eval_episodes: int = 100
    """Episodes to evaluate the trained policy on; 0 = none."""
    physics: PhysicsName = "auto"
    """Physics engine of that evaluation."""
    json: JsonFlag = False
    """Print one JSON object on the last line of stdout."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Refines a frozen base policy: trains a bounded residual policy and evaluates both, paired."""

    config: tyro.conf.Positional[str]
    """YAML file, or the name of a config that comes with pdjax."""
    out: Path | None = None
    """Run directory, new or empty; default runs/CONFIG-seedN."""
    set: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Change one value, as section.key=value; repeat for more."""
    json: JsonFlag = False
    """Print one JSON object on the last line of stdout."""


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluates base and refined policy of a run on the same episodes."""

    run: tyro.conf.Positional[Path]
    """Run directory of `pdjax train` or `pdjax quickstart`."""
    episodes: int = 200
    """Episodes, each played by both policies."""
    seed: int = 20_000
    """Seed of the episodes."""
    physics: PhysicsName = "auto"
    """Physics engine."""
    json: JsonFlag = False
    """Print one JSON object on the last line of stdout."""


@dataclasses.dataclass(frozen=True)
class Render:
    """Renders base and refined policy side by side on the same episodes."""

    run: tyro.conf.Positional[Path]
    """Run directory of `pdjax train` or `pdjax quickstart`."""
    out: Path
    """Video file to write, .mp4 or .gif; must not exist."""
    episodes: int = 3
    """Episodes, one after another."""
    seed: int = 20_000
    """Seed of the episodes."""
    json: JsonFlag = False
    """Print one JSON object on the last line of stdout."""


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """Demonstrations, imitation, refinement and paired evaluation on PegInsertionSide, in minutes."""

    out: Path | None = None
    """Directory to write, new or empty; default runs/quickstart-seedN."""
    seed: int = 0
    """Seed of everything random."""
    json: JsonFlag = False
    """Print one JSON object on the last line of stdout."""


Command = (
    Annotated[Envs, tyro.conf.subcommand("envs")]
    | Annotated[Demos, tyro.conf.subcommand("demos")]
    | Annotated[Imitate, tyro.conf.subcommand("imitate")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Render, tyro.conf.subcommand("render")]
    | Annotated[Quickstart, tyro.conf.subcommand("quickstart")]
)


def _envs(args: Envs) -> dict[str, Any]:
    from pdjax import report
    from pdjax_envs import registry

    tasks = [registry.make_task(name) for name in registry.task_names()]
    rows = [
        [t.name, str(t.obs_dim), str(t.act_dim), f"{t.episode_steps} at {t.control_hz:g} Hz",
         "yes" if t.expert else "no", t.summary]
        for t in tasks
    ]  # fmt: skip
    header = ["task", "observation", "action", "control steps", "expert", ""]
    report.show_table("Tasks", header, rows)
    return {
        "tasks": [
            {
                "name": t.name,
                "summary": t.summary,
                "observation": dict(t.observation),
                "action": dict(t.action),
                "episode_steps": t.episode_steps,
                "control_hz": t.control_hz,
                "expert": t.expert is not None,
            }
            for t in tasks
        ]
    }


def _demos(args: Demos) -> dict[str, Any]:
    from pdjax import runner

    return runner.record_demonstrations(args.task, args.out, args.episodes, args.seed, args.noise,
                                        args.physics)  # fmt: skip


def _imitate(args: Imitate) -> dict[str, Any]:
    from pdjax import runner
    from pdjax.base_policies.diffusion import DiffusionConfig
    from pdjax.base_policies.imitation import ImitationConfig

    shape = DiffusionConfig(
        act_horizon=args.act_horizon, pred_horizon=args.pred_horizon, hidden=args.hidden
    )
    config = ImitationConfig(
        policy=shape, steps=args.steps, batch_size=args.batch_size, seed=args.seed
    )
    return runner.imitate(args.demos, args.task, args.out, config, args.eval_episodes, args.physics)


def _train(args: Train) -> dict[str, Any]:
    from pdjax import config as configs
    from pdjax import report, runner

    config = configs.load(args.config, args.set)
    out = args.out or Path("runs") / f"{Path(args.config).stem}-seed{config.seed}"
    result = runner.run(config, out)
    report.show_comparison(result.summary)
    report.say(f"written to {out}: result.json, learning_curve.png, residual/, metrics.jsonl, tb/")
    return result.summary


def _eval(args: Eval) -> dict[str, Any]:
    from pdjax import report, runner

    summary = runner.evaluate_run(args.run, args.episodes, args.seed, args.physics)
    report.show_comparison(summary)
    return summary


def _render(args: Render) -> dict[str, Any]:
    from pdjax import report, runner

    result = runner.render_run(args.run, args.out, args.episodes, args.seed)
    report.say(f"written {args.out}")
    return result


def _quickstart(args: Quickstart) -> dict[str, Any]:
    from pdjax import quickstart

    return quickstart.quickstart(args.out or Path("runs") / f"quickstart-seed{args.seed}", args.seed)


_HANDLERS: dict[type, Any] = {
    Envs: _envs, Demos: _demos, Imitate: _imitate, Train: _train, Eval: _eval, Render: _render,
    Quickstart: _quickstart,
}  # fmt: skip


def _mistakes() -> tuple[type[Exception], ...]:
    """Errors that are the user's to mend; each message is one line."""
    from pdjax.checkpoint import CheckpointError
    from pdjax.config import ConfigError
    from pdjax_envs.demonstrations import DataError
    from pdjax_envs.registry import UnknownName

    return (CheckpointError, ConfigError, DataError, UnknownName)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    args: Any = tyro.cli(Command, prog="pdjax", description=_DESCRIPTION, args=argv)  # type: ignore
    from pdjax import report, startup

    startup.prepare()
    try:
        result = _HANDLERS[type(args)](args)
    except _mistakes() as error:
        report.say(f"pdjax: {error}")
        return 2
    except KeyboardInterrupt:
        report.say("pdjax: interrupted")
        return 1
    except Exception as error:
        if type(error).__name__ != "RenderError":
            raise
        report.say(f"pdjax: {error}")
        return 1
    if args.json:
        report.emit_json(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
