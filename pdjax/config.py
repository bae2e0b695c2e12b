"""Every knob of a run: frozen dataclasses with unit and source, presets, YAML in and out.

One place, so that help texts, defaults, files and code cannot disagree. A config is plain data:
it is validated once, when a run is built, and never changed afterwards.
"""

import dataclasses
import typing
from pathlib import Path
from typing import Any, Literal

import dacite
import yaml

PD_SOURCE = "arXiv:2412.13630, policy_decorator online/pi_dec_diffusion_maniskill2.py"


class ConfigError(ValueError):
    """A user's mistake: one line that says what was got, what was expected, what to do."""


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Which simulation a policy acts in."""

    name: str = "PegInsertionSide"
    """Task name, one of `pdjax envs`."""
    physics: Literal["auto", "native", "mjx"] = "auto"
    """Physics engine; auto = native without an accelerator, mjx with one."""


@dataclasses.dataclass(frozen=True)
class BasePolicyConfig:
    """The frozen policy that is refined."""

    path: str = ""
    """Directory written by `pdjax imitate`."""
    act_horizon: int = 0
    """Control steps executed of each predicted chunk; 0 = as the policy was trained."""


@dataclasses.dataclass(frozen=True)
class DecoratorConfig:
    """How the residual is added to the base action."""

    residual_scale: float = 0.1
    """Largest change of an action by the residual, as a share of [-1, 1]; the paper's alpha."""
    exploration_steps: int = 30_000
    """Decisions over which the residual is progressively let in; the paper's H; 0 = at once."""
    actor_input: Literal["obs", "obs_base_action"] = "obs"
    """What the residual policy reads."""
    critic_input: Literal["sum", "res", "concat"] = "sum"
    """Action that the critics read: base + scaled residual (unclipped), residual, or both."""
    normalize_obs: bool = False
    """Whiten the learner's observations by the base policy's data statistics."""


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """The learner."""

    gamma: float = 0.97
    """Discount per decision."""
    tau: float = 0.01
    """Share of the critics that the target critics take over in each update."""
    batch_size: int = 1024
    """Transitions per gradient step."""
    actor_lr: float = 1e-4
    """Adam step size of the residual policy."""
    critic_lr: float = 1e-4
    """Adam step size of the critics."""
    temperature_lr: float = 1e-4
    """Adam step size of the log temperature."""
    max_grad_norm: float = 50.0
    """Global gradient norm above which gradients are scaled down."""
    hidden: tuple[int, ...] = (256, 256, 256)
    """Widths of the hidden layers, actor and critics."""
    num_critics: int = 2
    """Critics in the ensemble; targets take their minimum."""
    critic_layer_norm: bool = False
    """LayerNorm after each hidden layer of the critics."""
    initial_temperature: float = 1.0
    """SAC's alpha at the start."""
    target_entropy_scale: float = 1.0
    """Target entropy = -this * numbers in a chunk; the same for every critic_input."""
    log_std_min: float = -20.0
    """Lower bound of the residual policy's log standard deviation (by tanh)."""
    log_std_max: float = 2.0
    """Upper bound of the same."""
    n_step: int = 1
    """Decisions of reward before the target bootstraps."""
    reward_offset: float = -1.0
    """Added to the reward of each decision."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop around the learner. Budgets count decision steps over all environments."""

    num_envs: int = 16
    """Environments stepped together."""
    total_decisions: int = 1_000_000
    """Decisions of the whole run."""
    decisions_per_epoch: int = 4_096
    """Decisions of one jitted epoch, after which metrics are read."""
    decisions_per_round: int = 64
    """Decisions collected between two rounds of updates."""
    learning_starts: int = 8_000
    """Decisions before the first update."""
    prefill: Literal["uniform", "base"] = "uniform"
    """Residuals before learning starts: uniform in [-1, 1] (and gated), or none."""
    updates_per_decision: float = 0.25
    """Gradient steps per decision."""
    replay_capacity: int = 1_000_000
    """Decisions that the replay holds."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation: fixed seeds, one episode per environment, never mixed with training."""

    episodes: int = 200
    """Episodes of the final evaluation, the same seeds for base and refined."""
    interim_episodes: int = 64
    """Episodes of each evaluation during training; 0 = none."""
    interim_every: int = 16_384
    """Decisions between two evaluations during training."""
    seed: int = 10_000
    """Seed of the evaluation episodes."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    task: TaskConfig = TaskConfig()
    base_policy: BasePolicyConfig = BasePolicyConfig()
    decorator: DecoratorConfig = DecoratorConfig()
    sac: SACConfig = SACConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    seed: int = 0
    """Seed of everything random in training."""
