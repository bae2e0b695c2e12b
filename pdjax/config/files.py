"""Run configs as files: presets, shipped configs, members, overrides, and a run's own copy.

Reads YAML into the dataclasses of `schema` and writes them back.
"""

import dataclasses
import json
import operator
import typing
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml

from pdjax.config import options, plain_yaml
from pdjax.config.options import ConfigError
from pdjax.config.presets import PRESETS
from pdjax.config.schema import Config, describe, validate
from pdjax.config.seeds import shift_seed
from pdjax_envs import task_files, writing
from pdjax_envs.names import suggest
from pdjax_envs.reading import is_file, short

SUITES = ("fast", "paper")  # folders of configs that are trained together
MOST_MEMBERS = 1_000  # of one program; far more than it can hold together
MOST_PARTS = 5  # of a dotted key
TASK = "task"  # folder in a run's directory with its copy of the task's file


def preset(name: str) -> Config:
    """Returns the full config of a preset.

    Raises:
      ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(
            f"unknown preset {short(repr(name))}; choose one of: {', '.join(PRESETS)}; or a"
            " config that is shipped with pdjax"
        )
    return options.build(Config, options.merge(dataclasses.asdict(Config()), PRESETS[name]))


def load(name_or_path: str, overrides: typing.Sequence[str] = ()) -> Config:
    """Reads a run config and applies overrides.

    Args:
      name_or_path: a YAML file, a preset, or the name of a config that is shipped with pdjax
        (`configs()`). With `preset: NAME` a file starts from a preset or from a shipped config.
      overrides: texts of the form `section.key=value`, with the value in YAML.

    Raises:
      ConfigError: the file does not exist or is not YAML, a key is unknown, a value has the wrong
        type or is out of range, or the config has members.
    """
    values = _read(name_or_path, overrides)
    if values.pop("members", None):
        raise ConfigError(
            f"{short(name_or_path)} has members, which only `pdjax train` accepts; give a config"
            " without members"
        )
    return _make(values)


def load_members(
    name_or_path: str,
    overrides: typing.Sequence[str] = (),
    seeds: int = 0,
    changes: typing.Mapping[str, Any] | None = None,
) -> list[Config]:
    """Reads a run config and returns one config for each of its members.

    Args:
      name_or_path: see `load`. Below `members`, the file may give a list of values for a key; the
        first member takes the first value of each list, and so on.
      overrides: see `load`.
      seeds: number of members that differ only in their seeds, which count up; 0 leaves the
        members to the file.
      changes: dotted key -> value, applied after the overrides.

    Returns:
      The members' configs, or a single config if the file has no members.

    Raises:
      ConfigError: see `load`; or the lists differ in length.
    """
    values = _read(name_or_path, overrides)
    for name, value in (changes or {}).items():
        values = options.merge(values, _nest(name, value))
    given: Any = values.pop("members", None) or {}
    if not isinstance(given, dict):
        raise ConfigError(
            f"members got {short(repr(given))}, expected keys, each with a list of values"
        )
    lists: dict[str, Any] = options.flatten(typing.cast("dict[str, Any]", given))
    config = _make(values)
    if seeds:
        if lists:
            raise ConfigError(f"{short(name_or_path)} already has members; leave out --members")
        if seeds > MOST_MEMBERS:
            raise ConfigError(f"{seeds:,} members, expected at most {MOST_MEMBERS:,}")
        lists["seed"] = [shift_seed(config.seed, index) for index in range(seeds)]
    if not lists:
        return [config]
    lengths = {name: len(lists[name]) for name in lists if isinstance(lists[name], list)}
    if len(lengths) < len(lists) or len(set(lengths.values())) > 1 or 0 in lengths.values():
        got = short(", ".join(f"{n}: {lengths.get(n, 'no list')}" for n in lists), 160)
        raise ConfigError(f"members must list the same number of values for every key, got {got}")
    count = next(iter(lengths.values()))
    if count > MOST_MEMBERS:
        raise ConfigError(f"{count:,} members, expected at most {MOST_MEMBERS:,}")
    found: list[Config] = []
    for index in range(count):
        changed = values
        for name, given in lists.items():
            changed = options.merge(changed, _nest(name, given[index]))
        found.append(_make(changed))
    return found


def _read(name_or_path: str, overrides: typing.Sequence[str]) -> dict[str, Any]:
    """Merges a preset, a file and overrides into nested plain values; does not check them."""
    path = Path(name_or_path)
    if name_or_path in PRESETS and not is_file(path):
        merged = dataclasses.asdict(preset(name_or_path))
    else:
        merged = _read_file(path if is_file(path) else _find(name_or_path))
    for override in overrides:
        merged = options.merge(merged, parse_override(override))
    return merged


def _read_file(path: Path) -> dict[str, Any]:
    """Merges a file into the preset or the shipped config that it starts from."""
    data = plain_yaml.read(path, "config", "sections of keys")
    start = str(data.pop("preset", "pd"))
    if start not in PRESETS and start in configs():
        return options.merge(_read_file(configs()[start]), data)
    return options.merge(dataclasses.asdict(preset(start)), data)


def _find(name: str) -> Path:
    """Returns the file of a shipped config."""
    named = configs()
    if name not in named:
        known = [*known_configs(), *PRESETS]
        if name.partition("/")[0] in SUITES:
            known = list(named)
        hint = suggest(name, known, "`pdjax train --help`")
        raise ConfigError(f"no config {short(repr(name))}: neither a file nor a name; {hint}")
    return named[name]


def change(config: Config, sections: typing.Mapping[str, Any]) -> Config:
    """Returns a config with some values changed.

    Args:
      config: the config to start from.
      sections: a mapping for each section to change, such as {"train": {"num_envs": 32}}, and
        values of top-level keys, such as {"seed": 1}.

    Raises:
      ConfigError: an unknown key, or a value of the wrong type or out of range.
    """
    return _make(options.merge(dataclasses.asdict(config), sections))


def check_of_task(changes: typing.Sequence[str]) -> None:
    """Checks that SECTION.KEY=VALUE settings are all of the section `task`.

    Raises:
      ConfigError: one is not.
    """
    for change in changes:
        if not change.startswith("task."):
            raise ConfigError(
                f"--set got {short(repr(change))}, expected keys of the task here, such as"
                " task.python=venv/bin/python"
            )


def _make(values: typing.Mapping[str, Any]) -> Config:
    config = options.build(Config, values)
    validate(config)
    return config


def _nest(name: str, value: Any) -> dict[str, Any]:
    """Turns a dotted key and its value into nested plain values."""
    parts = name.split(".")
    if len(parts) > MOST_PARTS:
        raise ConfigError(f"unknown config key {short(repr(name))}; expected section.key")
    for part in reversed(parts):
        value = {part: value}
    return value


def load_of_run(directory: Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Reads the config of a run's directory and points it to what the run holds copies of.

    These are the base policy and, if the task is in a file, the task.

    Raises:
      ConfigError: the directory is not a run; or see `load`.
    """
    path = directory / "config.yaml"
    if not is_file(path):
        raise ConfigError(
            f"{short(str(directory))} is no run: expected config.yaml as `pdjax train` writes it"
        )
    own = f"base_policy.path={json.dumps(str(directory / 'base_policy'))}"
    try:
        config = load(str(path), [own])
    except ConfigError as error:
        named = short(str(path)) in str(error)
        raise error if named else ConfigError(f"{short(str(path))}: {error}") from None
    if overrides:  # apart from the file, which is not to blame for them
        config = load(str(path), [own, *overrides])
    return with_own_task(config, directory)


def with_own_task(config: Config, directory: Path) -> Config:
    """Points a config to a run's copy of the task's file, if the task is in one."""
    source = task_files.split(config.task.name)
    copy = directory / TASK / source[0].name if source else None
    if source is None or copy is None or not is_file(copy):
        return config
    task = dataclasses.replace(config.task, name=f"{copy}:{source[1]}")
    return dataclasses.replace(config, task=task)


def configs() -> dict[str, Path]:
    """Returns the files of the shipped run configs by name.

    A name is that of a single config (`peg_fast`), or of a suite and one of its configs
    (`paper/peg_bet`).
    """
    found = {path.stem: path for path in _shipped("configs")}
    for suite in SUITES:
        found |= {f"{suite}/{path.stem}": path for path in _shipped(suite)}
    return found


def known_configs() -> list[str]:
    """Returns the names of the shipped configs for display; abbreviates those of the suites."""
    return [*(path.stem for path in _shipped("configs")), "fast/TASK_KIND", "paper/TASK_KIND"]


def suites() -> dict[str, Path]:
    """Returns the files of the shipped sweeps by name."""
    return {path.stem: path for path in _shipped("suites")}


def _shipped(folder: str) -> list[Path]:
    """Lists the YAML files in a folder of `experiments/`, in a checkout or an installed wheel."""
    package = Path(str(resources.files("pdjax")))
    roots = (package / "experiments", package.parent / "experiments")
    return sorted(next((r for r in roots if r.is_dir()), roots[0]).glob(f"{folder}/*.yaml"))


def save(config: Config, path: Path) -> None:
    """Writes a config to a YAML file, from which `load` reads it back unchanged."""
    data = json.loads(json.dumps(dataclasses.asdict(config)))  # YAML knows lists, not tuples
    writing.write_text(path, yaml.safe_dump(data, sort_keys=False))


def flat(config: Config) -> dict[str, Any]:
    """Returns the values of a config by dotted key."""
    return {option.name: operator.attrgetter(option.name)(config) for option in describe()}


def differences(first: Config, second: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the differences of two configs: dotted key -> (first value, second value)."""
    pairs = zip(flat(first).items(), flat(second).values(), strict=True)
    return {name: (old, new) for (name, old), new in pairs if old != new}


def parse_override(text: str) -> dict[str, Any]:
    """Parses `section.key=value`, with the value in YAML, into nested plain values.

    Raises:
      ConfigError: the value is missing, is not YAML or is a whole section.
    """
    problem = f"--set {short(repr(text))}"
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"{problem} has no value; expected section.key=value")
    tree: Any = plain_yaml.parse(value, f"{problem}: cannot read the value {short(repr(value))}")
    if isinstance(tree, dict):
        first = next(iter(cast("dict[Any, Any]", tree)), "key")
        raise ConfigError(
            f"{problem} gives a whole section; set each value by itself, such as"
            f" {short(name, 40)}.{short(str(first), 40)}=VALUE"
        )
    return _nest(name, tree)
