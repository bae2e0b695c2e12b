"""Reads and checks a sweep's file, and lists its trials if the search knows them beforehand.

Pure data. Every value that a space can give is checked here, before anything starts; `tune` runs
the trials.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pdjax.config import files as configs
from pdjax.config import options, plain_yaml, schema
from pdjax.config.options import ConfigError, Count, Natural, NonNegative, Range, Seed
from pdjax.config.schema import Config
from pdjax_envs.names import suggest
from pdjax_envs.reading import is_file, short

MOST_TRIALS = 10_000  # of one sweep; each has a directory
MOST_VALUES = 1_000  # of all keys of a space together; each makes a config that is checked

KINDS = {  # kind of a range -> its values
    "grid": "[value, ...], all are tried",
    "choice": "[value, ...], one is drawn",
    "uniform": "[low, high]",
    "loguniform": "[low, high], both above 0",
    "randint": "[low, high], integers, high is not drawn",
}

EXAMPLE = """\
config: peg_fast
set: [base_policy.path=base]
space:
  decorator.residual_scale: {uniform: [0.05, 0.3]}
  sac.actor_lr: {loguniform: [1e-4, 1e-3]}
  sac.n_step: {choice: [1, 3, 5]}
members: 2          # seeds of each trial, in one program
search: optuna
samples: 20
asha_grace: 32768
"""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a sweep's file may set besides `space` and `members`."""

    config: tuple[str, ...]
    """YAML files or names of configs that come with pdjax; every one is tried."""
    set: tuple[str, ...] = ()
    """Values for all trials, as section.key=value, such as base_policy.path=DIR."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """How to search the space: grid = every combination; random = `samples` draws; optuna =
    `samples` proposals of its tree-structured Parzen estimator, which learns from earlier ones."""
    samples: Annotated[int, Range(1, MOST_TRIALS)] = 1
    """Number of trials, for random and optuna."""
    asha_grace: Natural = 0
    """Decisions that every trial may train (ASHA, arXiv:1810.05934). At this number, and again
    each time it has grown by the factor `asha_reduction`, only the best 1 / asha_reduction of the
    trials continue. 0 = all trials train to the end."""
    asha_reduction: Annotated[int, Range(2)] = 3
    """Factor of ASHA, see `asha_grace`."""
    cpus: Count = 1
    """Number of CPU cores for each trial."""
    gpus: NonNegative = 0.0
    """Number of GPUs for each trial; 0.5 = two trials share a GPU."""
    tpus: Natural = 0
    """Number of TPU chips for each trial."""
    concurrent: Natural = 0
    """Largest number of trials at a time; 0 = as many as the resources allow."""
    restarts: Natural = 3
    """How often a trial continues from its checkpoint after its worker was lost or failed."""
    track: Literal["none", "wandb", "mlflow"] = "none"
    """Tracker to report every trial to, see `pdjax train --help`."""
    seed: Seed = 0
    """Seed of the random draws and of optuna."""


class Dimension(NamedTuple):
    """One key of a space: its name, the kind of its range (see KINDS) and the range's values."""

    key: str
    kind: str
    values: list[Any]


class Spec(NamedTuple):
    """A sweep: its settings, its space, and what sets the members of a trial apart."""

    settings: Settings
    space: tuple[Dimension, ...]
    members: Any


def find(name_or_path: str) -> Path:
    """Returns the path of a sweep's file: the given one, or one that comes with pdjax."""
    path = Path(name_or_path)
    return path if is_file(path) else configs.suites().get(name_or_path, path)


def read(path: Path) -> Spec:
    """Reads and checks a sweep's file.

    Raises:
      ConfigError: no such file, not YAML, an unknown key, a value that a config cannot have, an
        empty space, or a space that the search cannot take.
    """
    data = plain_yaml.read(path, "sweep", "config and space")
    known = [*(field.name for field in dataclasses.fields(Settings)), "space", "members"]
    for name in data:
        if name not in known:
            hint = suggest(str(name), known, "`pdjax sweep --help`")
            raise ConfigError(f"unknown key {short(repr(name))} in {short(str(path))}; {hint}")
    space, members = data.pop("space", None) or {}, data.pop("members", None) or 0
    for name in ("config", "set"):
        data[name] = [data[name]] if isinstance(data.get(name), str) else data.get(name, [])
    if not data["config"]:
        raise ConfigError(
            f"sweep {short(str(path))} names no config; expected `config:`, a file or a name"
        )
    settings = options.build(Settings, data)
    if not isinstance(space, Mapping):
        raise ConfigError(
            f"space got {short(repr(space))}, expected keys of a config with a range each"
        )
    spec = Spec(settings, tuple(_dimension(*item) for item in space.items()), members)
    if not spec.space and len(settings.config) == 1:
        raise ConfigError(
            f"sweep {short(str(path))} has an empty space and one config: nothing to sweep;"
            " train it with `pdjax train`"
        )
    _judge_search(spec)
    _judge_size(spec)
    for values in _corners(spec):
        make_members(spec, values)
    return spec


def check_bases(spec: Spec) -> None:
    """Checks that every base policy exists; each trial checks whether it fits its task.

    Raises:
      ConfigError: the first base policy that does not exist.
    """
    from pdjax.base_policies import load  # brings JAX, which help does without

    for values in _corners(spec):
        path = make_members(spec, values)[0].base_policy.path
        if not load.is_policy(Path(path)):
            raise ConfigError(
                f"base policy {short(repr(path))} of {values['config']} does not exist; make it,"
                " or name another one with `set: [base_policy.path=DIR]`"
            )


def trials(spec: Spec) -> list[dict[str, Any]] | None:
    """Returns what each trial sets, `config` first; None if the search decides on the way."""
    if spec.settings.search != "grid":
        return None
    names = ["config", *(dimension.key for dimension in spec.space)]
    ranges = [spec.settings.config, *(dimension.values for dimension in spec.space)]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*ranges)]


def make_members(spec: Spec, values: Mapping[str, Any]) -> list[Config]:
    """Returns the configs of a trial's members; a single config without members.

    Args:
      spec: the sweep.
      values: what the trial sets: `config` and the keys of the space.

    Raises:
      ConfigError: a config is not valid.
    """
    own = {name: value for name, value in values.items() if name != "config"}
    seeds = spec.members if isinstance(spec.members, int) else 0
    if not isinstance(spec.members, int):
        own["members"] = spec.members
    found = configs.load_members(values["config"], spec.settings.set, seeds, own)
    from pdjax.training import members  # brings JAX, which help does without

    members.check(found)
    return found


def example(spec: Spec) -> dict[str, Any]:
    """Returns what one trial of a sweep sets, whatever the search."""
    return _corners(spec)[0]


def _dimension(key: Any, given: Any) -> Dimension:
    """Reads one key of a space.

    Raises:
      ConfigError: no such key, or not a range.
    """
    known = {option.name: option for option in schema.describe()}
    if key not in known:
        hint = suggest(str(key), known, "`pdjax train --help`")
        raise ConfigError(f"unknown key {short(repr(key))} in space; {hint}")
    if isinstance(given, list):
        given = {"grid": given}
    got = f"space of {key} got {short(repr(given))}"
    if not isinstance(given, Mapping) or len(given) != 1 or next(iter(given)) not in KINDS:
        kinds = ", ".join(KINDS)
        raise ConfigError(f"{got}, expected a list, or one of {kinds} and its values")
    kind, values = next(iter(given.items()))
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{got}, which is empty; expected {KINDS[kind]}")
    numbers = _numbers(values)
    if kind in ("uniform", "loguniform", "randint"):
        are_numbers = all(isinstance(value, int | float) for value in numbers)
        if len(numbers) != 2 or not are_numbers or not numbers[0] < numbers[1]:
            raise ConfigError(f"{got}, expected {KINDS[kind]}, low < high")
        if kind == "loguniform" and numbers[0] <= 0:
            raise ConfigError(f"{got}, expected {KINDS[kind]}")
    is_number = known[key].kind in (int, float)
    return Dimension(key, kind, numbers if is_number else values)


def _numbers(values: list[Any]) -> list[Any]:
    """Turns text into numbers where possible: YAML 1.1 reads 1e-4, without a dot, as text."""
    found = []
    for value in values:
        try:
            found.append(float(value) if isinstance(value, str) else value)
        except ValueError:
            found.append(value)
    return found


def _judge_search(spec: Spec) -> None:
    """Raises ConfigError if a search cannot take the space."""
    search = spec.settings.search
    for key, kind, _ in spec.space:
        if search == "grid" and kind != "grid":
            raise ConfigError(
                f"space of {key} is {kind}, which `search: grid` cannot enumerate; use"
                " `search: random` or `optuna`, or list values"
            )
        if search == "optuna" and kind == "grid":
            raise ConfigError(
                f"space of {key} is a grid, which `search: optuna` cannot take; use choice"
            )


def _judge_size(spec: Spec) -> None:
    """Raises ConfigError if a space has too many values to check, or a grid too many trials."""
    count = sum(len(dimension.values) for dimension in spec.space)
    count *= len(spec.settings.config)
    if count > MOST_VALUES:
        raise ConfigError(
            f"the space has {count:,} values over all configs, expected at most {MOST_VALUES:,};"
            " list fewer, or use a range such as uniform"
        )
    if spec.settings.search == "grid":
        sizes = [len(dimension.values) for dimension in spec.space]
        trials = len(spec.settings.config) * math.prod(sizes)
        if trials > MOST_TRIALS:
            raise ConfigError(
                f"the grid has {trials:,} trials, expected at most {MOST_TRIALS:,}; list fewer"
                " values, or use `search: random` or `optuna` with `samples`"
            )


def _corners(spec: Spec) -> list[dict[str, Any]]:
    """Returns trials in which every value, or end, of each range occurs, for every config."""
    first = {dimension.key: _ends(dimension)[0] for dimension in spec.space}
    found = [first] + [first | {d.key: end} for d in spec.space for end in _ends(d)]
    return [{"config": config} | values for config in spec.settings.config for values in found]


def _ends(dimension: Dimension) -> list[Any]:
    low, *rest = dimension.values
    return [low, rest[0] - 1] if dimension.kind == "randint" else dimension.values
