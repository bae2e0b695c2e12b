"""Every knob of a run: frozen dataclasses with type, range, default, unit and meaning.

This is the one place that declares a knob. Help texts, files, overrides, checks and the list of
numbers that a sweep may vary are all derived from it, so they cannot disagree. A config is plain
data: pdjax validates it once, when it builds a run, and never changes it afterwards.

To add a knob, add a field with its meaning below it. To let the members of one program differ in a
number, also mark the field `Sweepable` and give `learner.gradient_step.Hyperparams` an attribute of
the same name; the code reads the number from there.
"""

import dataclasses
from typing import Annotated, Literal

from pdjax.config import options
from pdjax.config.options import (
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
class Sweepable:
    """Marks a number in which the members of one program may differ.

    A compiled program receives such a number as an argument, in `Hyperparams`, and must not read it
    from the config: the config would make it a constant that all members share.

    Attributes:
      is_switch: the value 0 leaves a term out of the program, so either all members have 0 or none.
    """

    is_switch: bool = False


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The simulated task that the policy acts in."""

    name: str = "PegInsertionSide"
    """Name of the task; `pdjax envs` lists all of them."""
    physics: Physics = "auto"
    """Physics engine. auto chooses native on a CPU, warp on an NVIDIA GPU if warp is installed, and
    mjx otherwise."""
    reward: Literal["success", "sparse", "dense"] = "success"
    """Reward that training maximises. success gives 1 when the task is solved, else 0; sparse and
    dense are the rewards of the task's original package, if it defines them."""
    terminate_on_success: bool = True
    """Whether success ends a training episode. Evaluation always plays to the time limit."""
    hold_steps: Count = 1
    """Control steps in a row that the task must be solved before training pays reward=success and
    ends the episode. More than 1 teaches to stay solved; evaluation reports both success_once and
    success_at_end in any case."""
    shift: str = ""
    """Perturbations of the task, drawn anew for each episode and joined by +: mass, friction, size,
    held_out, sensor_noise, camera, action_delay. Empty means none. They apply in training and in
    the evaluations during and after it."""
    workers: Natural = 0
    """For an environment of Gymnasium: worker processes; 0 = one for each core."""
    python: str = ""
    """For an environment of Gymnasium: the interpreter that has it, such as venv/bin/python; empty
    means this one. It needs NumPy and Gymnasium, and not pdjax."""
    options: tuple[str, ...] = ()
    """For an environment of Gymnasium: its keyword arguments, as name=value with the value in
    YAML."""
    success: str = "auto"
    """For an environment of Gymnasium: what says that the task is solved: a key of info,
    terminated, reward>=X, or FILE.py:FUNCTION; auto takes success or is_success of info."""
    episode_steps: Natural = 0
    """For an environment of Gymnasium: time limit in control steps; 0 = its own."""
    features: str = ""
    """Name of a task with the same observations, whose features the learner reads; empty = the
    task's own. An environment of Gymnasium has none of its own."""
    step_timeout: Positive = 60.0
    """For an environment of Gymnasium: seconds that a worker may take for a decision of its
    environments before it is replaced."""
    restarts: Natural = 10
    """For an environment of Gymnasium: how many workers may be replaced before the run ends."""


@dataclasses.dataclass(frozen=True)
class BasePolicyConfig:
    """The frozen policy that pdjax refines."""

    path: str = ""
    """Directory of the base policy, as `pdjax imitate`, `pdjax import` or `pdjax wrap` writes
    it."""
    act_horizon: Annotated[int, Range(0, options.MOST_HORIZON)] = 0
    """Control steps to execute of each chunk that the base policy predicts; 0 keeps the number that
    the policy was trained with."""


@dataclasses.dataclass(frozen=True)
class DecoratorConfig:
    """How the residual is added to the base action.

    A decision is one call of the base policy and the chunk of control steps that it executes.
    """

    residual_scale: Annotated[Share, Sweepable(is_switch=True)] = 0.1
    """Largest change of an action by the residual, as a share of the action range [-1, 1]; the
    paper calls it alpha. Larger values let the residual correct more, but make exploration riskier;
    `pdjax screen` suggests one."""
    exploration_steps: Annotated[Natural, Sweepable()] = 30_000
    """Number of decisions over which the gate opens: the share of decisions that apply the residual
    grows linearly from 0 to 1. The paper calls it H; 0 opens the gate at once."""
    actor_input: Literal["obs", "obs_base_action"] = "obs"
    """Input of the residual policy: the observation, or the observation and the base action."""
    gate: Literal["random", "uncertain"] = "random"
    """How the gate chooses the environments that apply the residual. random draws them; uncertain
    takes the same share of environments, but those where two draws of the base policy differ most
    (this costs a second call of the base policy and only helps a stochastic one)."""
    residual_limits: Annotated[tuple[float, ...], Range(0, 1)] = ()
    """Share of residual_scale that each number of an action may use; empty means all of it."""
    residual_per: Literal["chunk", "control_step"] = "chunk"
    """How often the residual policy is called. chunk calls it once per chunk. control_step calls it
    at every control step, which then counts as one decision; the base policy is also called at
    every control step."""
    critic_input: Literal["sum", "res", "concat"] = "sum"
    """Action that the critics read: sum is base action + scaled residual (not clipped), res is the
    residual, concat is both side by side."""
    hold_residual: bool = False
    """Whether one residual applies to all control steps of a chunk. Otherwise the residual policy
    outputs one residual for each control step."""
    task_features: bool = False
    """Whether the learner also reads the task's features, if it has any: relations between objects,
    computed from the same observation and scaled to the distances that matter (see
    `Task.features`)."""
    only_features: bool = False
    """Whether the learner reads the task's features and not the observation, if the task has any;
    needs task_features. Few numbers that matter are learnt from sooner than many."""
    normalize_obs: bool = False
    """Whether to whiten the learner's observations with the mean and standard deviation of the base
    policy's training data."""


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """The learner: soft actor-critic (SAC) for the residual policy."""

    gamma: Annotated[Share, Sweepable()] = 0.97
    """Discount per decision."""
    tau: Annotated[Share, Sweepable()] = 0.01
    """Share by which the target critics move towards the critics in each gradient step."""
    batch_size: Count = 1024
    """Transitions per gradient step."""
    actor_lr: Annotated[Positive, Sweepable()] = 1e-4
    """Adam step size of the residual policy."""
    critic_lr: Annotated[Positive, Sweepable()] = 1e-4
    """Adam step size of the critics."""
    temperature_lr: Annotated[Positive, Sweepable()] = 1e-4
    """Adam step size of the logarithm of the temperature."""
    max_grad_norm: Positive = 50.0
    """Largest global norm of a gradient; a larger gradient is scaled down to it."""
    hidden: Annotated[tuple[int, ...], Range(1, 65_536)] = (256, 256, 256)
    """Widths of the hidden layers of the residual policy and of each critic."""
    num_critics: Annotated[int, Range(1, 1_000)] = 2
    """Number of critics in the ensemble."""
    min_of: Natural = 0
    """Number of target critics, drawn anew for each gradient step, whose least value is the target;
    0 means all. With fewer than all, the residual policy follows the mean of all critics (REDQ,
    arXiv:2101.05982)."""
    actor_every: Count = 1
    """Gradient steps of the critics for each one of residual policy and temperature (TD3,
    arXiv:1802.09477)."""
    actor_average: Annotated[Share, Sweepable()] = 0.0
    """Decay per gradient step of the moving average of the residual policy. pdjax evaluates and
    saves this average; 0 means the latest policy. Successive policies wander between equally good
    ones, and their average succeeds more steadily."""
    head_gain: NonNegative = 0.01
    """Gain of the orthogonal initialisation of the residual policy's last layers; with 0 its mean
    starts at no residual."""
    critic_layer_norm: bool = False
    """Whether each hidden layer of the critics is followed by LayerNorm."""
    initial_temperature: Annotated[Positive, Sweepable()] = 1.0
    """Temperature at the start; SAC calls it alpha. A higher one explores more."""
    entropy_backup: bool = True
    """Whether the critics' targets include the entropy bonus. Without it, Q is the plain return."""
    target_entropy_scale: Annotated[float, Sweepable()] = 1.0
    """Target entropy, as a factor: the temperature steers the policy's entropy to minus this factor
    times the count of numbers in one residual action, for every critic_input."""
    log_std_min: float = -20.0
    """Lower bound of the logarithm of the residual policy's standard deviation. A tanh keeps the
    network's output within the two bounds."""
    log_std_max: float = 2.0
    """Upper bound of the same logarithm."""
    residual_penalty: Annotated[float, Sweepable()] = 0.0
    """Weight of the mean squared residual in the residual policy's loss. It keeps the residual
    small wherever the critics see no gain."""
    penalty_half_life: Annotated[NonNegative, Sweepable()] = 0.0
    """Gradient steps after which the penalty is halfway from residual_penalty to final_penalty. The
    critics become more reliable over time, so the penalty may fall; 0 keeps it constant."""
    final_penalty: Annotated[NonNegative, Sweepable()] = 0.0
    """Penalty that residual_penalty tends to; needs penalty_half_life."""
    smoothness_penalty: Annotated[float, Sweepable(is_switch=True)] = 0.0
    """Weight of the mean squared change of the residual over a transition, which spans n_step
    decisions, in the residual policy's loss."""
    noise_correlation: Annotated[float, Range(0, 0.999)] = 0.0
    """Correlation of the exploration noise of one decision with that of the decision before in the
    same environment. White noise (0) cancels out over the decisions of an episode; correlated noise
    pushes one way for 1 / (1 - correlation) decisions or so, and its effect can be learnt."""
    n_step: Count = 1
    """Decisions of reward that a target sums before it continues with the critics' value."""
    reward_offset: Annotated[float, Sweepable()] = -1.0
    """Number added to the reward of each decision; -1 makes every decision before success cost
    1."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop. All budgets count decisions, summed over all environments."""

    num_envs: Count = 16
    """Number of environments that step in parallel."""
    devices: Natural = 0
    """Number of devices that share environments, replay and batches; 0 takes all that JAX finds."""
    total_decisions: Count = 1_000_000
    """Decisions of the whole run."""
    decisions_per_epoch: Count = 4_096
    """Decisions of one epoch. An epoch is one call of a compiled program, after which pdjax reads
    the metrics."""
    decisions_per_round: Count = 64
    """Decisions to collect between two rounds of gradient steps."""
    halve_at: Annotated[tuple[int, ...], Range(1)] = ()
    """For several members in one program: numbers of decisions at which the worse half of the
    members stops. The interim evaluation at that point, or the next one, decides; empty trains all
    members to the end."""
    learning_starts: Natural = 8_000
    """Decisions to collect before the first gradient step."""
    prefill: Literal["uniform", "base", "policy"] = "uniform"
    """Residuals before learning starts: uniform draws them from [-1, 1], base uses none, policy
    draws them from the untrained residual policy. The gate applies to all of them."""
    retry_share: Share = 0.0
    """Share of the failed episodes that are tried again, from a random moment of them and with the
    time that was left there. Evaluation always plays whole episodes."""
    overlap: bool = True
    """For an environment of Gymnasium: whether to learn from one round while the workers play the
    next, so that the acting policy is one round old."""
    updates_per_decision: Positive = 0.25
    """Gradient steps per decision."""
    replay_capacity: Count = 1_000_000
    """Decisions that the replay holds; `pdjax train --plan` prints how much memory they need."""
    replay_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of observations and actions in the replay. bfloat16 halves their memory and
    rounds actions and whitened observations to one part in 256; see `replay.make_packing`."""
    demos: str = ""
    """Demonstrations to learn from in addition to the replay, in the same form as for
    `pdjax imitate`. Read only if demo_share is above 0."""
    demo_share: Annotated[float, Range(0, 0.9)] = 0.0
    """Share of each batch that comes from the demonstrations, together with the action that the
    base policy would have chosen there. The residual is their difference and may exceed the
    bounds."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation: fixed seeds, one episode per environment, never mixed with training."""

    episodes: Count = 200
    """Episodes of the final evaluation; base and refined policy play the same seeds."""
    interim_episodes: Natural = 64
    """Episodes of each evaluation during training; 0 turns these evaluations off."""
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
    """Number of checkpoints to keep; older ones are deleted."""


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """When the guard rolls a run back or stops it; `pdjax/training/guard.py` lists its rules."""

    enabled: bool = True
    """Whether the guard acts on its verdicts; otherwise it only writes them to audit.jsonl."""
    q_factor: Positive = 10.0
    """Largest value that the critics may claim, as a multiple of the largest return that the
    rewards, and the entropy if it counts, allow."""
    below_base_margin: Share = 0.05
    """How far below zero the whole 95 % interval of the gain over the base policy must lie before
    the guard acts."""
    saturation: Share = 0.5
    """Largest acceptable share of residual numbers with a size above 0.95."""
    anomalies: Share = 0.01
    """Largest acceptable share of control steps with an anomaly: a joint faster than 200 rad/s or
    m/s (hard contacts cause this), a joint more than 0.5 rad or m beyond its limit, or a number
    that is not finite."""
    drift: Share = 0.05
    """Largest acceptable growth of the share of observed numbers that lie more than 10 standard
    deviations from the mean of the base policy's data."""
    hopeless_decisions: Natural = 50_000
    """Decisions without any success after which the run stops, if the base policy had none
    either."""
    max_rollbacks: Count = 3
    """Number of rollbacks after which the run stops."""


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
    guard: GuardConfig = GuardConfig()
    seed: Annotated[Seed, Sweepable()] = 0
    """Seed of everything random in training."""


_MARKS = options.marked(Config, Sweepable)
SWEEPABLE: tuple[str, ...] = tuple(_MARKS)
"""Dotted keys of the numbers in which the members of one program may differ."""
SWITCHES: tuple[str, ...] = tuple(name for name, mark in _MARKS.items() if mark.is_switch)
"""Those of them for which 0 compiles another program than any other value."""


def describe() -> list[options.Option]:
    """Returns every key of a config with its type, range, default and meaning."""
    return options.describe(Config)


def validate(config: Config) -> None:
    """Checks ranges and the relations between values.

    Raises:
      ConfigError: a value cannot work; names the first one.
    """
    options.check(config)
    if config.sac.log_std_min >= config.sac.log_std_max:
        raise ConfigError(
            f"sac.log_std_min={config.sac.log_std_min} must be below"
            f" sac.log_std_max={config.sac.log_std_max}"
        )
    if config.sac.min_of > config.sac.num_critics:
        raise ConfigError(
            f"sac.min_of={config.sac.min_of} must be <= sac.num_critics={config.sac.num_critics}"
        )
    if config.decorator.only_features and not config.decorator.task_features:
        raise ConfigError(
            "decorator.only_features=true needs decorator.task_features=true: without features the"
            " learner would read nothing"
        )
    if config.sac.final_penalty and not config.sac.penalty_half_life:
        raise ConfigError(
            f"sac.final_penalty={config.sac.final_penalty} is the value that sac.residual_penalty"
            " tends to; also set sac.penalty_half_life, the gradient steps to get halfway there"
        )
