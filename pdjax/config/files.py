"""Run configs as files: presets, shipped configs, members, overrides, and the copy in a run.

Reads YAML into the dataclasses of `fields` and writes them back.
"""

import dataclasses
import json
import operator
import typing
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from pdjax.config import schema
from pdjax.config.fields import Config, describe, validate
from pdjax.config.presets import PRESETS
from pdjax.config.schema import (
    ConfigError,
)
from pdjax.config.seeds import shift_seed


def preset(name: str) -> Config:
    """A preset's full config.

    Raises:
      ConfigError: no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"unknown preset {name!r}; choose one of: {', '.join(PRESETS)}; or a"
            " config that comes with pdjax"
        )
    return schema.build(Config, schema.merge(dataclasses.asdict(Config()), PRESETS[name]))


def load(name_or_path: str, overrides: typing.Sequence[str] = ()) -> Config:
    """Reads a run config and applies overrides.

    Args:
      name_or_path: a YAML file, or the name of one that comes with pdjax (`configs()`). It starts
        from a preset, or from another such config, by `preset: NAME`.
      overrides: `section.key=value` each, the value in YAML.

    Raises:
      ConfigError: no such file, not YAML, an unknown key, a value of wrong type or out of range; or
        it has members.
    """
    values = _read(name_or_path, overrides)
    if values.pop("members", None):
        raise ConfigError(
            f"{name_or_path} has members, which only `pdjax train` takes; give a config without"
        )
    return _make(values)


def load_members(
    name_or_path: str, overrides: typing.Sequence[str] = (), seeds: int = 0
) -> list[Config]:
    """Reads a run config and what its members set, each another value: one config for each.

    Args:
      name_or_path: see `load`; below `members` it may list values for each of some keys.
      overrides: see `load`.
      seeds: that many members which differ by their seeds only, counting up; 0 = as the file says.

    Returns:
      A config of each member; one without members.

    Raises:
      ConfigError: see `load`; or lists of unequal lengths.
    """
    values = _read(name_or_path, overrides)
    given = values.pop("members", None) or {}
    if not isinstance(given, dict):
        raise ConfigError(f"members got {given!r}, expected keys with a list of values each")
    lists, config = schema.flatten(given), _make(values)
    if seeds:
        if lists:
            raise ConfigError(f"{name_or_path} has members already; leave --members out")
        lists = {"seed": [shift_seed(config.seed, index) for index in range(seeds)]}
    if not lists:
        return [config]
    lengths = {name: len(found) for name, found in lists.items() if isinstance(found, list)}
    if len(lengths) < len(lists) or len(set(lengths.values())) > 1 or 0 in lengths.values():
        got = ", ".join(f"{n}: {lengths.get(n, 'no list')}" for n in lists)
        raise ConfigError(f"members must list as many values of each key, got {got}")
    count = next(iter(lengths.values()))
    found = []
    for index in range(count):
        changed = values
        for name, of_each in lists.items():
            changed = schema.merge(changed, _nest(name, of_each[index]))
        found.append(_make(changed))
    return found


def _read(name_or_path: str, overrides: typing.Sequence[str]) -> dict[str, Any]:
    """Nested plain values of a preset, a file and overrides; not yet judged."""
    path = Path(name_or_path)
    if not path.is_file():
        named = configs()
        if name_or_path not in named:
            hint = schema.suggest(name_or_path, named if "/" in name_or_path else known_configs())
            raise ConfigError(f"no config {name_or_path!r}: neither a file nor a name; {hint}")
        path = named[name_or_path]
    data = schema.read_yaml(path, "config", "sections of keys")
    start = str(data.pop("preset", "pd"))
    if start not in PRESETS and start in configs():
        merged = schema.merge(_read(start, ()), data)
    else:
        merged = schema.merge(dataclasses.asdict(preset(start)), data)
    for override in overrides:
        merged = schema.merge(merged, parse_override(override))
    return merged


def _make(values: typing.Mapping[str, Any]) -> Config:
    config = schema.build(Config, values)
    validate(config)
    return config


def _nest(name: str, value: Any) -> dict[str, Any]:
    """A dotted key and its value as nested plain values."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def load_of_run(directory: Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Reads the config of a run's directory, with its own copy of the base policy.

    Raises:
      ConfigError: the directory is no run; or see `load`.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{directory} is no run: expected config.yaml as `pdjax train` writes it")
    own = f"base_policy.path={json.dumps(str(directory / 'base_policy'))}"
    return load(str(path), [own, *overrides])


def configs() -> dict[str, Path]:
    """Run configs that come with pdjax, by name: `peg_fast`, or `paper/peg_bet` of a suite."""
    found = {path.stem: path for path in _shipped("configs")}
    for suite in ("fast", "paper"):
        found |= {f"{suite}/{path.stem}": path for path in _shipped(suite)}
    return found


def known_configs() -> list[str]:
    """Their names for people: those of the suites, two for each task, in short."""
    return [*(path.stem for path in _shipped("configs")), "fast/TASK_KIND", "paper/TASK_KIND"]


def suites() -> dict[str, Path]:
    """Sweeps that come with pdjax, by name."""
    return {path.stem: path for path in _shipped("suites")}


def _shipped(folder: str) -> list[Path]:
    """YAML files of a folder of `experiments/`, in a checkout or in an installed wheel."""
    package = Path(str(resources.files("pdjax")))
    roots = (package / "experiments", package.parent / "experiments")
    return sorted(next((r for r in roots if r.is_dir()), roots[0]).glob(f"{folder}/*.yaml"))


def save(config: Config, path: Path) -> None:
    """Writes a config that `load` reads back unchanged."""
    data = json.loads(json.dumps(dataclasses.asdict(config)))  # YAML knows lists, not tuples
    path.write_text(yaml.safe_dump(data, sort_keys=False))


def flat(config: Config) -> dict[str, Any]:
    """Dotted key -> value."""
    return {option.name: operator.attrgetter(option.name)(config) for option in describe()}


def differences(first: Config, second: Config) -> dict[str, tuple[Any, Any]]:
    """What differs between two configs: dotted key -> (value in the first, in the second)."""
    pairs = zip(flat(first).items(), flat(second).values(), strict=True)
    return {name: (old, new) for (name, old), new in pairs if old != new}


def parse_override(text: str) -> dict[str, Any]:
    """`section.key=value`, the value in YAML, as nested plain values.

    Raises:
      ConfigError: no value, or one that is not YAML.
    """
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {text!r} has no value; expected section.key=value")
    try:
        tree: Any = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(
            f"--set {text!r}: cannot read the value {value!r}; expected YAML"
        ) from None
    return _nest(name, tree)
