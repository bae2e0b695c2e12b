"""The commands about policies: `imitate`, `wrap`, `import`, `screen` and `export`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pdjax.base_policies import settings
from pdjax.base_policies.foreign.description import Device
from pdjax.base_policies.settings import NOISE_STEPS
from pdjax.commands.worlds import use_workers
from pdjax.config import options
from pdjax.config.files import parse_override
from pdjax.config.options import MOST_HORIZON, Count, Natural, Range, Seed
from pdjax.config.schema import Physics


@dataclasses.dataclass(frozen=True)
class Imitate:
    """Trains a base policy on demonstrations."""

    EXAMPLE: ClassVar[str] = "pdjax imitate demos.h5 --task PegInsertionSide --out base"

    demos: Path
    """Demonstrations: HDF5 of `pdjax demos`, ManiSkill, D4RL or Minari, or a DAPG pickle."""
    task: str
    """Task of the demonstrations."""
    out: Path
    """Directory to write; new or empty."""
    policy: Literal["diffusion", "diffusion_unet", "bet", "act", "mlp"] = "diffusion"
    """Kind of policy: a diffusion policy with an MLP; a diffusion policy with the U-Net of
    Diffusion Policy, which takes longer; a Behavior Transformer; ACT; a Gaussian or mixture MLP.
    Each kind has its own settings, see below."""
    set: tuple[str, ...] = ()
    """Changes settings: key=value or section.key=value, with the value in YAML. One --set takes
    several values; --set may be repeated. Keys that begin with task. are settings of an environment
    of Gymnasium, such as task.python=venv/bin/python; see `pdjax train --help`."""
    steps: Natural = 0
    """Number of gradient steps; 0 = the number in the policy's settings."""
    seed: Seed = 0
    """Seed of initialisation, shuffling and noise."""
    eval_every: Natural = 0
    """Gradient steps between two evaluations in the simulator. The best policy is kept, and an
    interrupted training can be resumed from its latest evaluation. 0 = no evaluations, and the last
    policy is kept."""
    eval_episodes: Natural = 100
    """Number of episodes that evaluate the finished policy; 0 = none."""
    resume: bool = False
    """Continues an interrupted training with --eval-every from its latest evaluation. Starts the
    training if there is none, and prints the result if it is finished. Everything else must be as
    before."""
    physics: Physics = "auto"
    """Physics engine of the evaluations."""

    @property
    def is_resumable(self) -> bool:
        """Whether --resume continues what a signal stops."""
        return self.eval_every > 0

    def run(self) -> dict[str, Any]:
        """Trains, evaluates and writes."""
        from pdjax.prepare import imitate

        flags = {"steps": self.steps, "seed": self.seed, "eval_every": self.eval_every}
        changes = {name: value for name, value in flags.items() if value}
        of_task = [text for text in self.set if text.startswith("task.")]
        use_workers(of_task)
        for text in self.set:
            if text not in of_task:
                changes = options.merge(changes, parse_override(text))
        config = settings.recipe(self.policy, changes)
        return imitate.train_base_policy(
            self.demos, self.task, self.out, config, self.eval_episodes, self.physics, self.resume
        )


@dataclasses.dataclass(frozen=True)
class Wrap:
    """Makes a base policy from a policy of your own: jax.export, TorchScript, JAX, NumPy or torch
    code."""

    EXAMPLE: ClassVar[str] = "pdjax wrap my_policy.py:act --task PegInsertionSide --out base"

    policy: str
    """FILE.jaxexport (`pdjax.export_policy` writes one), FILE.pt (TorchScript, never a pickle), or
    FILE.py:NAME or MODULE:NAME. NAME is an object with init_carry and apply (JAX); an object with
    init_carry and act (NumPy, with memory); a torch.nn.Module; a NumPy function from obs_history
    (num_envs, obs_horizon, obs_dim) to actions (num_envs, act_horizon, act_dim); or a function
    without arguments that returns one of these. docs/base_policies.md has an example of each."""
    task: str
    """Task that the policy acts in; `pdjax envs` lists the tasks."""
    out: Path
    """Directory to write; new or empty. FILE is copied into it."""
    obs_horizon: Annotated[int, Range(0, MOST_HORIZON)] = 0
    """Number of latest observations that the policy reads; 0 = the number that the policy itself
    declares, else 1."""
    action_low: float = -1.0
    """Your policy's action that becomes -1. Actions are scaled from the range between --action-low
    and --action-high to [-1, 1], then clipped."""
    action_high: float = 1.0
    """Your policy's action that becomes 1."""
    device: Device = "cpu"
    """Device that a torch policy computes on."""
    episodes: Count = 20
    """Number of trial episodes; their observations give the statistics that normalise the learner's
    observations."""
    seed: Seed = 0
    """Seed of the trial episodes."""
    physics: Physics = "auto"
    """Physics engine of the trial."""
    set: tuple[str, ...] = ()
    """Settings of an environment of Gymnasium, such as task.python=venv/bin/python; see `pdjax
    train --help`."""

    def declared(self) -> dict[str, Any]:
        """What the user says of the policy, as fields of its `Description`."""
        return {
            "obs_horizon": self.obs_horizon,
            "action_low": (self.action_low,),
            "action_high": (self.action_high,),
            "device": self.device,
        }

    def run(self) -> dict[str, Any]:
        """Tries it and writes."""
        from pdjax.prepare import wrap

        play = wrap.Play(self.episodes, self.seed, self.physics)
        use_workers(self.set)
        return wrap.wrap(self.policy, self.task, self.out, self.declared(), play)


@dataclasses.dataclass(frozen=True)
class Import:
    """Makes a base policy from a PyTorch checkpoint of policy_decorator (diffusion, BeT) or LeRobot
    (diffusion, ACT)."""

    EXAMPLE: ClassVar[str] = "pdjax import best.pt --task PegInsertionSide --out base"

    checkpoint: Path
    """FILE.pt of policy_decorator's offline scripts, with its args.json in the same folder or the
    one above; or a LeRobot folder, such as RUN/checkpoints/last/pretrained_model. No code in the
    checkpoint is run, and torch is not needed."""
    task: str
    """Task that the policy acts in; `pdjax envs` lists the tasks. The policy must take the task's
    observations in the task's order."""
    out: Path
    """Directory to write; new or empty."""
    demos: Path | None = None
    """Demonstrations that the policy was trained on; they give the statistics that normalise the
    learner's observations. Without them, the statistics come from the checkpoint if it has any,
    else from the trial."""
    ddim_steps: Annotated[int, Range(0, NOISE_STEPS)] = 0
    """Number of denoising steps of a diffusion policy; 0 = the checkpoint's own number if its
    sampler is DDIM, else 4 for policy_decorator and 10 for LeRobot."""
    episodes: Count = 20
    """Number of trial episodes."""
    seed: Seed = 0
    """Seed of the trial episodes."""
    physics: Physics = "auto"
    """Physics engine of the trial."""

    def run(self) -> dict[str, Any]:
        """Tries it and writes."""
        from pdjax.prepare import import_checkpoint, wrap

        play = wrap.Play(self.episodes, self.seed, self.physics)
        return import_checkpoint.import_checkpoint(
            self.checkpoint, self.task, self.out, play, self.demos, self.ddim_steps
        )


@dataclasses.dataclass(frozen=True)
class Screen:
    """Tests whether a base policy is worth refining, and recommends a residual_scale and a command.

    Plays the base policy alone and under random residuals.
    """

    EXAMPLE: ClassVar[str] = "pdjax screen base --task PegInsertionSide"

    base: Path
    """Directory of `pdjax imitate`, `pdjax wrap` or `pdjax import`."""
    task: str
    """Task to refine the policy on; `pdjax envs` lists the tasks."""
    out: Path | None = None
    """Picture to write (.png); must not exist. By default screen.png, or screen2.png and so on."""
    episodes: Count = 200
    """Number of episodes for each scale of the residual; it takes 125 or more to recognise a
    perfect base policy."""
    seed: Seed = 40_000
    """Seed of the episodes."""
    physics: Physics = "auto"
    """Physics engine; auto = native on a CPU, warp on an NVIDIA GPU if warp is installed, else
    mjx."""

    set: tuple[str, ...] = ()
    """Settings of an environment of Gymnasium, such as task.python=venv/bin/python; see `pdjax
    train --help`."""

    def run(self) -> dict[str, Any]:
        """Plays, draws and prints."""
        from pdjax.prepare import screen

        use_workers(self.set)
        return screen.screen_policy(
            self.base, self.task, self.out, self.episodes, self.seed, self.physics, self.set
        )


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes the refined policy of a run, or a base policy, for deployment: files that need JAX but
    not pdjax.

    The exported policy has a fail-safe, and can also serve as a base policy.
    """

    EXAMPLE: ClassVar[str] = "pdjax export runs/peg_fast-seed0 --out deployed"

    run_directory: Path
    """Finished run directory of `pdjax train`, or the folder run/ of a `pdjax quickstart`; or a
    base policy's directory, to export that policy alone."""
    out: Path
    """Directory to write, new or empty: policy.jaxexport (for CPU, CUDA and TPU, with any number of
    robots), init_carry.jaxexport, policy.json, and a README.md that shows how to call them.
    base_policy.path takes this directory too, to screen and refine the policy further."""
    episodes: Count = 100
    """Number of episodes that the base policy plays, to learn how far its observations stray; then
    the refined policy plays as many, then the exported file. The fail-safe switches the residual
    off when a number of the observation is not finite, or when too large a share of its numbers
    lies more than 10 standard deviations from the base policy's data: the base policy's own largest
    share plus guard.drift of the run's config. It counts how often it does so."""
    seed: Seed = 50_000
    """Seed of these episodes."""
    physics: Physics | None = None
    """Physics engine of the trial. Default: as in the run's config."""
    set: tuple[str, ...] = ()
    """Settings of a base policy's environment of Gymnasium, such as task.python=venv/bin/python; a
    run has its own."""

    def run(self) -> dict[str, Any]:
        """Writes, reads back, tries and prints."""
        from pdjax.output import tables
        from pdjax.runs import export

        use_workers(self.set)
        found = export.export_run(
            self.run_directory, self.out, self.episodes, self.seed, self.physics or ""
        )
        tables.show_exported(found)
        return found
