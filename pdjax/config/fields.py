"""Every knob of a run: frozen dataclasses with unit, presets with source, YAML in and out.

One place, so that help texts, defaults, files and code cannot disagree. A config is plain data:
it is validated once, when a run is built, and never changed afterwards.
"""

import dataclasses
from typing import Annotated, Literal

from pdjax.config import schema
from pdjax.config.schema import (
    ConfigError,
    Count,
    Natural,
    NonNegative,
    Positive,
    Range,
    Seed,
    Share,
)

Physics = Literal["auto", "native", "mjx", "warp"]


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Which simulation a policy acts in."""

    name: str = "PegInsertionSide"
    """Task name, one of `pdjax envs`."""
    physics: Physics = "auto"
    """Physics engine; auto = native on a CPU, warp on an NVIDIA GPU where it is installed, else
    mjx."""
    reward: Literal["success", "sparse", "dense"] = "success"
    """What training maximises: success = 1 where the task is solved, else 0; sparse and dense as
    the task's original package defines them, where it does."""
    terminate_on_success: bool = True
    """Whether success ends a training episode; evaluation always plays to the time limit."""
    shift: str = ""
    """Perturbations drawn anew for each episode, joined by +: mass, friction, size, held_out,
    sensor_noise, camera, action_delay; empty = none. Evaluation during and after training meets
    them too."""


@dataclasses.dataclass(frozen=True)
class BasePolicyConfig:
    """The frozen policy that is refined."""

    path: str = ""
    """Directory written by `pdjax imitate`, `pdjax import` or `pdjax wrap`."""
    act_horizon: Natural = 0
    """Control steps executed of each predicted chunk; 0 = as the policy was trained."""


@dataclasses.dataclass(frozen=True)
class DecoratorConfig:
    """How the residual is added to the base action."""

    residual_scale: Share = 0.1
    """Largest change of an action by the residual, as a share of [-1, 1]; the paper's alpha."""
    exploration_steps: Natural = 30_000
    """Decisions over which the residual is progressively let in; the paper's H; 0 = at once."""
    actor_input: Literal["obs", "obs_base_action"] = "obs"
    """What the residual policy reads."""
    gate: Literal["random", "uncertain"] = "random"
    """Where the residual is let in: random = by chance; uncertain = in the same share of
    environments, but where two draws of the base policy differ most (a second call of it; for
    stochastic ones)."""
    residual_limits: Annotated[tuple[float, ...], Range(0, 1)] = ()
    """Share of residual_scale that each number of an action may use; empty = all of it."""
    residual_per: Literal["chunk", "control_step"] = "chunk"
    """How often the residual policy is asked; control_step = anew at each step of the base policy's
    chunk, which then counts as one decision (the base policy is called at each, too)."""
    critic_input: Literal["sum", "res", "concat"] = "sum"
    """Action that the critics read: base + scaled residual (unclipped), residual, or both."""
    hold_residual: bool = False
    """One residual for all control steps of a chunk, instead of one for each."""
    task_features: bool = False
    """Let the learner also read the task's features, where it has any: relations between objects,
    computed from the same observation on the scale that matters (see `Task.features`)."""
    normalize_obs: bool = False
    """Whiten the learner's observations by the base policy's data statistics."""


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """The learner."""

    gamma: Share = 0.97
    """Discount per decision."""
    tau: Share = 0.01
    """Share of the critics that the target critics take over in each update."""
    batch_size: Count = 1024
    """Transitions per gradient step."""
    actor_lr: Positive = 1e-4
    """Adam step size of the residual policy."""
    critic_lr: Positive = 1e-4
    """Adam step size of the critics."""
    temperature_lr: Positive = 1e-4
    """Adam step size of the log temperature."""
    max_grad_norm: Positive = 50.0
    """Global gradient norm above which gradients are scaled down."""
    hidden: Annotated[tuple[int, ...], Range(1)] = (256, 256, 256)
    """Widths of the hidden layers, actor and critics."""
    num_critics: Count = 2
    """Critics in the ensemble."""
    min_of: Natural = 0
    """Critics, drawn anew for each update, of which targets take the least; 0 = all. Where it is
    fewer than all, the actor follows the mean of all (REDQ, arXiv:2101.05982)."""
    actor_every: Count = 1
    """Updates of the critics for each of actor and temperature (TD3, arXiv:1802.09477)."""
    actor_average: Share = 0.0
    """Decay per update of the averaged residual policy that is evaluated and kept; 0 = the latest.
    Successive policies wander between equals; their average succeeds more steadily."""
    head_gain: NonNegative = 0.01
    """Orthogonal gain of the residual policy's last layers; 0 = its mean starts at no residual."""
    critic_layer_norm: bool = False
    """LayerNorm after each hidden layer of the critics."""
    initial_temperature: Positive = 1.0
    """SAC's alpha at the start."""
    entropy_backup: bool = True
    """Whether critic targets include the entropy bonus; without, Q is the plain return."""
    target_entropy_scale: float = 1.0
    """Target entropy = -this * numbers in a chunk; the same for every critic_input."""
    log_std_min: float = -20.0
    """Lower bound of the residual policy's log standard deviation (by tanh)."""
    log_std_max: float = 2.0
    """Upper bound of the same."""
    residual_penalty: float = 0.0
    """Weight of the mean squared residual in the actor's loss: the residual stays small where the
    critics see no gain."""
    penalty_half_life: NonNegative = 0.0
    """Gradient steps in which half of the way from residual_penalty to final_penalty is gone, since
    the critics see more and more; 0 = it stays as it is."""
    final_penalty: NonNegative = 0.0
    """What residual_penalty tends to, with a penalty_half_life."""
    smoothness_penalty: float = 0.0
    """Weight of the mean squared change of the residual between a transition's two ends."""
    n_step: Count = 1
    """Decisions of reward before the target bootstraps."""
    reward_offset: float = -1.0
    """Added to the reward of each decision."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop around the learner. Budgets count decision steps over all environments."""

    num_envs: Count = 16
    """Environments stepped together."""
    devices: Natural = 0
    """Devices over which environments, replay and batches are split; 0 = all that JAX finds."""
    total_decisions: Count = 1_000_000
    """Decisions of the whole run."""
    decisions_per_epoch: Count = 4_096
    """Decisions of one jitted epoch, after which metrics are read."""
    decisions_per_round: Count = 64
    """Decisions collected between two rounds of updates."""
    halve_at: Annotated[tuple[int, ...], Range(1)] = ()
    """Of several members in one program: decisions at which, by the interim evaluation then or
    next, the worse half of them ends; empty = all train to the end."""
    learning_starts: Natural = 8_000
    """Decisions before the first update."""
    prefill: Literal["uniform", "base", "policy"] = "uniform"
    """Residuals before learning starts: uniform in [-1, 1], none, or drawn from the untrained
    residual policy; all gated."""
    updates_per_decision: Positive = 0.25
    """Gradient steps per decision."""
    replay_capacity: Count = 1_000_000
    """Decisions that the replay holds; `pdjax train --plan` says what they take."""
    replay_dtype: Literal["float32", "bfloat16"] = "float32"
    """In which observations and actions are kept; bfloat16 halves their memory and rounds actions
    and whitened observations to one part in 256: see `replay.make_packing`."""
    demos: str = ""
    """Demonstrations to learn from besides, as for `pdjax imitate`; read if demo_share > 0."""
    demo_share: Annotated[float, Range(0, 0.9)] = 0.0
    """Share of each batch that is drawn from them, with what the base policy would have done there;
    their residual, the difference, may lie beyond the bounds."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation: fixed seeds, one episode per environment, never mixed with training."""

    episodes: Count = 200
    """Episodes of the final evaluation, the same seeds for base and refined."""
    interim_episodes: Natural = 64
    """Episodes of each evaluation during training; 0 = none."""
    interim_every: Count = 16_384
    """Decisions between two evaluations during training."""
    seed: Seed = 10_000
    """Seed of the evaluation episodes."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints of everything that a run depends on, so that it can be resumed."""

    every: Count = 16_384
    """Decisions between two checkpoints; the last state is always saved."""
    keep: Count = 2
    """Newest checkpoints that are kept."""


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """When a run is brought back or stopped; `pdjax/training/guard.py` has its rules."""

    enabled: bool = True
    """Whether verdicts are carried out; without, they are only written to audit.jsonl."""
    q_factor: Positive = 10.0
    """Times the largest return that rewards, and entropy where it is counted, allow which the
    critics may claim."""
    below_base_margin: Share = 0.05
    """How far the 95 % interval of the gain must lie below zero."""
    saturation: Share = 0.5
    """Largest share of residual numbers beyond 0.95 in size."""
    anomalies: Share = 0.01
    """Largest share of control steps with an anomaly: a joint faster than 200 rad/s or m/s, as
    hard contacts make it, or more than 0.5 rad or m beyond its limit, or numbers not finite."""
    drift: Share = 0.05
    """Largest growth of the share of observed numbers beyond 10 standard deviations."""
    hopeless_decisions: Natural = 50_000
    """Decisions without any success, from a base policy without any, before the run stops."""
    max_rollbacks: Count = 3
    """Rollbacks after which the run stops."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    task: TaskConfig = TaskConfig()
    base_policy: BasePolicyConfig = BasePolicyConfig()
    decorator: DecoratorConfig = DecoratorConfig()
    sac: SACConfig = SACConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = dataclasses.field(default_factory=GuardConfig)
    seed: Seed = 0
    """Seed of everything random in training."""


def describe() -> list[schema.Option]:
    """Every key of a config with its type, range, default and meaning."""
    return schema.describe(Config)


def validate(config: Config) -> None:
    """Checks ranges and relations.

    Raises:
      ConfigError: the first value that cannot work.
    """
    schema.check(config)
    if config.sac.log_std_min >= config.sac.log_std_max:
        raise ConfigError(
            f"sac.log_std_min={config.sac.log_std_min} must be below"
            f" sac.log_std_max={config.sac.log_std_max}"
        )
    if config.sac.min_of > config.sac.num_critics:
        raise ConfigError(
            f"sac.min_of={config.sac.min_of} must be <= sac.num_critics={config.sac.num_critics}"
        )
    if config.sac.final_penalty and not config.sac.penalty_half_life:
        raise ConfigError(
            f"sac.final_penalty={config.sac.final_penalty} is what sac.residual_penalty falls to:"
            " set sac.penalty_half_life, the gradient steps in which half of the way is gone"
        )
