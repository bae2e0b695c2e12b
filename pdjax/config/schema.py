"""Options as frozen dataclasses: one place for type, range, default and help text of each.

Both a run's config and the flags of the command line are such dataclasses, so that files, flags,
help texts and code cannot disagree. Knows no particular option and imports no JAX.
"""

import ast
import dataclasses
import difflib
import inspect
import math
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from pdjax.config.seeds import SEEDS

T = TypeVar("T")


class ConfigError(ValueError):
    """A user's mistake: one line that says what was got, what was expected, what to do."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` (or above it, where `above`) to `high`; never NaN, never infinite."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if math.isinf(self.low):
            return "finite"
        if math.isinf(self.high):
            return f"{'>' if self.above else '>='} {self.low:.12g}"
        return f"{self.low:.12g} to {self.high:.12g}"


FINITE = Range(-math.inf)
Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, SEEDS - 1)]
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]


class Option(NamedTuple):
    """One field of a dataclass.

    Attributes:
      name: with dots below the first level.
      kind: its type without annotations.
      range: of a number, or of each number of a tuple.
      default: `dataclasses.MISSING` where a value has to be given.
      doc: the docstring under the field, as one line.
    """

    name: str
    kind: Any
    range: Range
    default: Any
    doc: str

    def expected(self) -> str:
        """The values that it takes, in words."""
        return _expected(self.kind, self.range)


def describe(cls: type) -> list[Option]:
    """All options of a dataclass in order of definition, those of nested ones in place."""
    docs, hints = _docstrings(cls), get_type_hints(cls, include_extras=True)
    options = []
    for field in dataclasses.fields(cls):
        kind, extras = hints[field.name], ()
        if get_origin(kind) is Annotated:
            kind, *extras = get_args(kind)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            options += [o._replace(name=f"{field.name}.{o.name}") for o in describe(kind)]
            continue
        allowed = next((extra for extra in extras if isinstance(extra, Range)), FINITE)
        options.append(Option(field.name, kind, allowed, field.default, docs.get(field.name, "")))
    return options


def _docstrings(cls: type) -> dict[str, str]:
    """The string literal under each field, which Python itself throws away."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                docs[name] = " ".join(text.split())
    return docs


def _expected(kind: Any, allowed: Range) -> str:
    if kind in (int, float):
        noun = "integer" if kind is int else "number"
        return noun if allowed == FINITE else f"{noun} {allowed}"
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"[{_expected(get_args(kind)[0], allowed)}, ...]"
    if get_origin(kind) is UnionType:
        return _expected(get_args(kind)[0], allowed)
    return {bool: "true | false", str: "text", Path: "path"}[kind]


def convert(option: Option, value: Any, source: str) -> Any:
    """A plain value as the option's type.

    Args:
      option: what is expected.
      value: from YAML, or the text of a flag.
      source: names the value in an error.

    Raises:
      ConfigError: the wrong type or out of range.
    """
    try:
        found = _convert(option.kind, option.range, value)
        if found == () != option.default:
            raise ValueError  # what is never empty by itself needs a number
        return found
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{source} got {value!r}, expected {option.expected()}") from None


def _convert(kind: Any, allowed: Range, value: Any) -> Any:
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(_convert(get_args(kind)[0], allowed, item) for item in value)
    if get_origin(kind) is UnionType:
        return _convert(get_args(kind)[0], allowed, value)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError
        return value
    if kind is Path:
        return Path(value)
    if kind in (int, float) and not isinstance(value, bool):
        # YAML 1.1 reads 1e6 as text and 1 as an integer
        number = float(value) if isinstance(value, str) or kind is float else value
        if kind is int:
            number = int(number) if number == int(number) else math.nan
        if number not in allowed:
            raise ValueError
        return number
    if not isinstance(value, kind) or kind in (int, float):
        raise TypeError
    return value


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from nested plain values; what is absent keeps its default.

    Raises:
      ConfigError: an unknown key, a value of the wrong type or out of range.
    """
    return _build(cls, values, {option.name: option for option in describe(cls)}, "")


def _build(cls: Any, values: Mapping[str, Any], options: dict[str, Option], prefix: str) -> Any:
    known = {field.name: field for field in dataclasses.fields(cls)}
    built = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            hint = suggest(name, [f"{prefix}{k}" for k in known])
            raise ConfigError(f"unknown config key {name!r}; {hint}")
        if name in options:
            built[key] = convert(options[name], value, f"config key {name}")
        elif isinstance(value, Mapping):
            built[key] = _build(known[key].type, value, options, f"{name}.")
        else:
            raise ConfigError(f"config key {name} got {value!r}, expected a section of keys")
    return cls(**built)


def check(instance: Any) -> None:
    """Checks the values of a dataclass that was made in code.

    Raises:
      ConfigError: the first value of the wrong type or out of range.
    """
    build(type(instance), dataclasses.asdict(instance))


def check_lengths(instance: Any, allowed: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ConfigError at the first field whose length is not among those allowed for it."""
    for name, lengths in allowed.items():
        if (count := len(getattr(instance, name))) not in lengths:
            raise ConfigError(
                f"{name} has {count} numbers, expected {' or '.join(map(str, lengths))}"
            )


def read_yaml(path: Path, name: str, expected: str) -> dict[str, Any]:
    """The mapping that a YAML file holds; `name` and `expected` say in an error what it should be.

    Raises:
      ConfigError: no such file, not YAML, or something else in it.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        first = str(error).splitlines()[0]
        raise ConfigError(f"cannot read {name} {path}: {first}; expected a YAML file") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{name} {path} holds {type(data).__name__}, expected {expected}")
    return data


def suggest(name: str, known: Iterable[str]) -> str:
    """A hint after an unknown name: the one that was meant, or all there are."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested plain values with some of them changed; new keys are kept for `build` to judge."""
    merged = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        merged[key] = merge(base[key], value) if nested else value
    return merged


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain values by dotted keys."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        deeper = isinstance(value, dict)
        found |= flatten(value, f"{prefix}{name}.") if deeper else {f"{prefix}{name}": value}
    return found
