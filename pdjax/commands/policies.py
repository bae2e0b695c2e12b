"""Commands about policies: training a base policy, taking one's own, judging it before refining,
and exporting what came of it.

Apart from `commands` for size; the same rules hold.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pdjax.base_policies import settings
from pdjax.base_policies.foreign.description import Device
from pdjax.base_policies.settings import NOISE_STEPS
from pdjax.config import schema
from pdjax.config.fields import Physics
from pdjax.config.files import parse_override
from pdjax.config.schema import Count, Natural, Range, Seed


@dataclasses.dataclass(frozen=True)
class Imitate:
    """Trains a policy on demonstrations: a base policy to refine."""

    demos: Path
    """Demonstrations: HDF5 of `pdjax demos`, ManiSkill, D4RL or Minari, or a pickle of DAPG."""
    task: str
    """Task that the demonstrations are of."""
    out: Path
    """Directory to write, new or empty."""
    policy: Literal["diffusion", "diffusion_unet", "bet", "act", "mlp"] = "diffusion"
    """What to train: a diffusion policy with an MLP or, dearer, with the U-Net of Diffusion Policy;
    a Behavior Transformer; ACT; a Gaussian or mixture MLP. Each has its own settings, see below."""
    set: tuple[str, ...] = ()
    """Change values, each as key=value or section.key=value with the value in YAML; several after
    one --set, or --set repeated."""
    steps: Natural = 0
    """Gradient steps; 0 = as the policy's settings say."""
    seed: Seed = 0
    """Seed of initialisation, shuffling and noise."""
    eval_every: Natural = 0
    """Gradient steps between two evaluations in the simulator; the best policy is kept, and
    training can be resumed from the latest; 0 = none, and the last policy is kept."""
    eval_episodes: Natural = 100
    """Episodes to evaluate the finished policy on; 0 = none."""
    resume: bool = False
    """Go on where an interrupted training with --eval-every last evaluated; begin where there is
    none, and print its result where it is finished; all else as before."""
    physics: Physics = "auto"
    """Physics engine of the evaluations."""

    def run(self) -> dict[str, Any]:
        """Trains, evaluates and writes."""
        from pdjax.prepare import imitate

        flags = {"steps": self.steps, "seed": self.seed, "eval_every": self.eval_every}
        changes = {name: value for name, value in flags.items() if value}
        for text in self.set:
            changes = schema.merge(changes, parse_override(text))
        config = settings.recipe(self.policy, changes)
        return imitate.train_base_policy(
            self.demos, self.task, self.out, config, self.eval_episodes, self.physics, self.resume
        )


@dataclasses.dataclass(frozen=True)
class Wrap:
    """Makes a base policy of your own one: jax.export, TorchScript, JAX, NumPy or torch code."""

    policy: str
    """FILE.jaxexport (pdjax.base_policies.exported.export_policy writes one), FILE.pt (TorchScript,
    never a pickle), or FILE.py:NAME or MODULE:NAME, which name an object with init_carry and apply
    (JAX), one with init_carry and act (NumPy, with memory), a torch.nn.Module, or a NumPy function
    of obs_history (num_envs, obs_horizon, obs_dim) that gives (num_envs, act_horizon, act_dim);
    a function without arguments makes it. docs/base_policies.md has an example of each."""
    task: str
    """Task that it acts in, see `pdjax envs`."""
    out: Path
    """Directory to write, new or empty; a FILE is copied into it."""
    obs_horizon: Natural = 0
    """Latest observations that it reads; 0 = as it says itself, else 1."""
    action_low: float = -1.0
    """The action that means -1; actions are scaled from this range to [-1, 1], then clipped."""
    action_high: float = 1.0
    """The action that means 1."""
    device: Device = "cpu"
    """Where a torch policy computes."""
    episodes: Count = 20
    """Episodes to try it on, from which the learner's observation statistics come."""
    seed: Seed = 0
    """Seed of these episodes."""
    physics: Physics = "auto"
    """Physics engine of the trial."""

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
        return wrap.wrap(self.policy, self.task, self.out, self.declared(), play)


@dataclasses.dataclass(frozen=True)
class Import:
    """Makes a base policy of a PyTorch checkpoint: policy_decorator's diffusion and BeT, LeRobot's
    diffusion and ACT."""

    checkpoint: Path
    """FILE.pt of policy_decorator's offline scripts, with its args.json beside it or one folder up
    (needs torch); or a folder of LeRobot, with config.json and model.safetensors. No code in it is
    run."""
    task: str
    """Task that it acts in, see `pdjax envs`; its observations are the policy's, in their order."""
    out: Path
    """Directory to write, new or empty."""
    demos: Path | None = None
    """Demonstrations that it was trained on, from which the learner's observation statistics come;
    else they come from the checkpoint where it has them, else from the trial."""
    ddim_steps: Annotated[int, Range(0, NOISE_STEPS)] = 0
    """Denoising steps of a diffusion policy; 0 = as the checkpoint's own sampler where that is
    DDIM, else 4 of policy_decorator's and 10 of LeRobot's."""
    episodes: Count = 20
    """Episodes to try it on."""
    seed: Seed = 0
    """Seed of these episodes."""
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
    """Says whether a base policy is worth refining, with which residual_scale and by which command:
    plays it alone and under random residuals."""

    base: Path
    """Directory of `pdjax imitate`, `pdjax wrap` or `pdjax import`."""
    task: str
    """Task to refine it on, see `pdjax envs`."""
    out: Path = Path("screen.png")
    """Picture to write, .png; must not exist."""
    episodes: Count = 200
    """Episodes for each scale of the residual; from 125 on a perfect base can be told."""
    seed: Seed = 40_000
    """Seed of the episodes."""
    physics: Physics = "auto"
    """Physics engine."""

    def run(self) -> dict[str, Any]:
        """Plays, draws and prints."""
        from pdjax.prepare import screen

        return screen.screen_policy(
            self.base, self.task, self.out, self.episodes, self.seed, self.physics
        )


@dataclasses.dataclass(frozen=True)
class Export:
    """Writes the refined policy of a run for deployment: one file that needs JAX but not pdjax,
    with a fail-safe, and a directory that may be a base policy again."""

    run_directory: Path
    """Finished run directory of `pdjax train`, or run/ in one of `pdjax quickstart`."""
    out: Path
    """Directory to write, new or empty: policy.jaxexport (for CPU, CUDA and TPU, any number of
    robots), init_carry.jaxexport, policy.json, and a README.md that says how to call them. As
    base_policy.path it can be screened and refined further."""
    episodes: Count = 100
    """Episodes that the base policy plays, to learn how far its observations stray, then the
    refined policy, then what was written. The fail-safe switches the residual off where a larger
    share of numbers than that, and guard.drift of the run's config on top, is beyond 10 standard
    deviations of the base's data, or where a number is not finite; it counts how often."""
    seed: Seed = 50_000
    """Seed of these episodes."""
    physics: Physics | None = None
    """Physics engine of the trial; default as in the run's config."""

    def run(self) -> dict[str, Any]:
        """Writes, reads back, tries and prints."""
        from pdjax.output import tables
        from pdjax.runs import export

        found = export.export_run(
            self.run_directory, self.out, self.episodes, self.seed, self.physics or ""
        )
        tables.show_exported(found)
        return found
