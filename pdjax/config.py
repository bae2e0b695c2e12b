"""Every knob of a run: frozen dataclasses with unit, presets with source, YAML in and out.

One place, so that help texts, defaults, files and code cannot disagree. A config is plain data:
it is validated once, when a run is built, and never changed afterwards.
"""

import dataclasses
import difflib
import typing
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import dacite
import yaml


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


# Presets: what differs from the defaults above, which are those of the paper.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # arXiv:2412.13630; policy_decorator online/pi_dec_diffusion_maniskill2.py
    "pd": {},
    # arXiv:2602.10539: base-only prefill, normalised critics, small temperature, no gate
    "dawn": {
        "decorator": {"exploration_steps": 0},
        "sac": {"critic_layer_norm": True, "initial_temperature": 0.01},
        "train": {"learning_starts": 20_000, "prefill": "base"},
    },
    # Ours, for minutes on a CPU; DECISIONS.md says what each choice brought.
    "fast": {
        "decorator": {
            "residual_scale": 0.1,
            "exploration_steps": 20_000,
            "actor_input": "obs_base_action",
            "normalize_obs": True,
        },
        "sac": {
            "batch_size": 256,
            "actor_lr": 3e-4,
            "critic_lr": 3e-4,
            "temperature_lr": 3e-4,
            "hidden": (256, 256),
            "critic_layer_norm": True,
            "initial_temperature": 0.01,
            "log_std_min": -5.0,
            "n_step": 3,
            "reward_offset": 0.0,
        },
        "train": {
            "num_envs": 64,
            "total_decisions": 98_304,
            "decisions_per_epoch": 4_096,
            "decisions_per_round": 256,
            "learning_starts": 6_144,
            "prefill": "base",
            "updates_per_decision": 0.125,
            "replay_capacity": 300_000,
        },
    },
}


def preset(name: str) -> Config:
    """A preset's full config.

    Raises:
      ConfigError: no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; choose one of: {', '.join(PRESETS)}")
    return _build(_merge(dataclasses.asdict(Config()), PRESETS[name]))


def load(name_or_path: str, overrides: typing.Sequence[str] = ()) -> Config:
    """Reads a run config and applies overrides.

    Args:
      name_or_path: a YAML file, or the name of one that comes with pdjax (`configs()`).
      overrides: `section.key=value` each, the value in YAML.

    Raises:
      ConfigError: no such file, not YAML, an unknown key, a value of the wrong type or out of range.
    """
    path = Path(name_or_path)
    if not path.is_file():
        named = configs()
        if name_or_path not in named:
            close = difflib.get_close_matches(name_or_path, named, n=1)
            hint = f"did you mean {close[0]}?" if close else f"named ones: {', '.join(named)}"
            raise ConfigError(f"no config {name_or_path!r}: neither a file nor a name; {hint}")
        path = named[name_or_path]
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"cannot read config {path}: {first}; expected a YAML file") from None
    if not isinstance(data, dict):
        raise ConfigError(f"config {path} holds {type(data).__name__}, expected sections of keys")
    start = dataclasses.asdict(preset(str(data.pop("preset", "pd"))))
    _check_keys(data, start, "")
    merged = _merge(start, data)
    for override in overrides:
        merged = _merge(merged, _parse_override(override, merged))
    config = _build(merged)
    validate(config)
    return config


def configs() -> dict[str, Path]:
    """Run configs that come with pdjax, by name; the same in a checkout and an installed wheel."""
    package = Path(str(resources.files("pdjax")))
    for folder in (package / "configs", package.parent / "experiments" / "configs"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    return {}


def save(config: Config, path: Path) -> None:
    """Writes a config that `load` reads back unchanged."""
    data = dataclasses.asdict(config)
    data["sac"]["hidden"] = list(config.sac.hidden)
    path.write_text(yaml.safe_dump(data, sort_keys=False))


def validate(config: Config) -> None:
    """Checks ranges and relations.

    Raises:
      ConfigError: the first value that cannot work.
    """
    in_unit = {"decorator.residual_scale", "sac.gamma", "sac.tau"}
    positive = {
        "sac.batch_size", "sac.actor_lr", "sac.critic_lr", "sac.temperature_lr", "sac.num_critics",
        "sac.max_grad_norm", "sac.initial_temperature", "sac.n_step", "train.num_envs",
        "train.total_decisions", "train.decisions_per_epoch", "train.decisions_per_round",
        "train.updates_per_decision", "train.replay_capacity", "eval.episodes",
        "eval.interim_every",
    }  # fmt: skip
    at_least_zero = {
        "decorator.exploration_steps", "train.learning_starts", "eval.interim_episodes", "seed",
        "eval.seed", "base_policy.act_horizon",
    }  # fmt: skip
    for name in sorted(in_unit | positive | at_least_zero):
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
        if name in in_unit and not 0 <= value <= 1:
            raise ConfigError(f"{name}={value} must be in [0, 1]")
        if name in positive and value <= 0:
            raise ConfigError(f"{name}={value} must be above 0")
        if name in at_least_zero and value < 0:
            raise ConfigError(f"{name}={value} must not be negative")
    if config.sac.log_std_min >= config.sac.log_std_max:
        raise ConfigError(
            f"sac.log_std_min={config.sac.log_std_min} must be below"
            f" sac.log_std_max={config.sac.log_std_max}"
        )


def _parse_override(text: str, known: dict[str, Any]) -> dict[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {text!r} has no value; expected section.key=value")
    try:
        tree: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: cannot read the value {value!r}") from None
    for part in reversed(name.split(".")):
        tree = {part: tree}
    _check_keys(tree, known, "")
    return tree


def _check_keys(data: dict[str, Any], known: dict[str, Any], prefix: str) -> None:
    for key, value in data.items():
        name = f"{prefix}{key}"
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"unknown config key {name!r}; {hint}")
        if isinstance(known[key], dict) != isinstance(value, dict):
            expected = "a section of keys" if isinstance(known[key], dict) else "one value"
            raise ConfigError(f"config key {name!r} got {value!r}, expected {expected}")
        if isinstance(value, dict):
            _check_keys(value, known[key], f"{name}.")


def _merge(base: dict[str, Any], changes: typing.Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _merge(base[key], value) if isinstance(value, dict) else value
    return merged


def _build(data: dict[str, Any]) -> Config:
    def as_float(value: Any) -> float:
        # YAML 1.1 reads 1e-4 as text and 1 as an integer
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise dacite.WrongTypeError(float, value)
        try:
            return float(value)
        except ValueError:
            raise dacite.WrongTypeError(float, value) from None

    try:
        return dacite.from_dict(
            Config, data, dacite.Config(strict=True, type_hooks={float: as_float}, cast=[tuple])
        )
    except dacite.WrongTypeError as error:
        expected = getattr(error.field_type, "__name__", str(error.field_type))
        raise ConfigError(
            f"config key {error.field_path or '?'!r} got {error.value!r}, expected {expected}"
        ) from None
    except dacite.DaciteError as error:
        raise ConfigError(f"config does not fit: {error}") from None
