"""Options as frozen dataclasses: one place for an option's type, range, default and help text.

Both a run's config and the flags of the command line are such dataclasses, so files, flags, help
texts and code cannot disagree. This module knows no particular option and imports no JAX.
"""

import ast
import dataclasses
import functools
import inspect
import math
import struct
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from pdjax.config.seeds import SEEDS
from pdjax_envs.names import suggest
from pdjax_envs.reading import InputError, short

T = TypeVar("T")

UNIONS = (Union, UnionType)  # origins of `X | None`: the first for a Literal X, the second else
MOST_NUMBERS = 1_000  # in one option
MOST_HORIZON = 1_000  # observations or control steps of one decision
SMALLEST = 2.0**-126  # number above 0 that 32 bits hold with full precision; XLA takes others as 0


class ConfigError(InputError):
    """A user's mistake. The message is one line: what was got, what was expected, what to do."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`, both included; with `above`, `low` itself is excluded.

    NaN and infinity are never in a range.
    """

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
Horizon = Annotated[int, Range(1, MOST_HORIZON)]
Width = Annotated[int, Range(1, 65_536)]
Layers = Annotated[int, Range(1, 100)]
Seed = Annotated[int, Range(0, SEEDS - 1)]
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]


class Option(NamedTuple):
    """One field of a dataclass.

    Attributes:
      name: the field's name, with dots below the first level.
      kind: the field's type without annotations.
      range: allowed values of a number, or of each number of a tuple.
      default: the default value, or `dataclasses.MISSING` if the user must give one.
      doc: the docstring below the field, joined to one line.
    """

    name: str
    kind: Any
    range: Range
    default: Any
    doc: str

    def expected(self) -> str:
        """Describes the allowed values in words."""
        return _expected(self.kind, self.range)


class _Field(NamedTuple):
    """A field's name, type without annotations, annotations and default."""

    name: str
    kind: Any
    extras: tuple[Any, ...]
    default: Any


def describe(cls: type) -> list[Option]:
    """Returns all options of a dataclass in order of definition, nested ones in place."""
    return list(_describe(cls))


@functools.cache
def _describe(cls: type) -> tuple[Option, ...]:
    docs = _docstrings(cls)
    options: list[Option] = []
    for name, kind, extras, default in _fields(cls):
        if _is_dataclass(kind):
            options += [o._replace(name=f"{name}.{o.name}") for o in describe(kind)]
            continue
        allowed = next((extra for extra in extras if isinstance(extra, Range)), FINITE)
        options.append(Option(name, kind, allowed, default, docs.get(name, "")))
    return tuple(options)


def marked(cls: type, mark: type[T]) -> dict[str, T]:
    """Finds the fields of a dataclass whose annotation contains an instance of a class.

    Args:
      cls: the dataclass; nested ones are searched too.
      mark: the class to look for.

    Returns:
      Dotted field name -> the instance, in order of definition.
    """
    found: dict[str, T] = {}
    for name, kind, extras, _ in _fields(cls):
        if _is_dataclass(kind):
            found |= {f"{name}.{below}": value for below, value in marked(kind, mark).items()}
        for extra in extras:
            if isinstance(extra, mark):
                found[name] = extra
    return found


def _fields(cls: type) -> Iterator[_Field]:
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        kind, extras = hints[field.name], ()
        if get_origin(kind) is Annotated:
            kind, *extras = get_args(kind)
        yield _Field(field.name, kind, tuple(extras), field.default)


def _is_dataclass(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _docstrings(cls: type) -> dict[str, str]:
    """Reads the string literal below each field, which Python itself discards."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                docs[name] = " ".join(text.split())
            case _:
                pass
    return docs


def _expected(kind: Any, allowed: Range) -> str:
    if kind in (int, float):
        noun = "integer" if kind is int else "number"
        return noun if allowed == FINITE else f"{noun} {allowed}"
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"[{_expected(get_args(kind)[0], allowed)}, ...]"
    if get_origin(kind) in UNIONS:
        return _expected(get_args(kind)[0], allowed)
    return {bool: "true | false", str: "text", Path: "path"}[kind]


def convert(option: Option, value: Any, source: str) -> Any:
    """Converts a plain value to an option's type.

    Args:
      option: the option, with its type and range.
      value: a value from YAML, or the text of a flag.
      source: name of the value in the error message.

    Raises:
      ConfigError: the value has the wrong type or is out of range.
    """
    problem = f"{source} got {short(repr(value))}, expected"
    try:
        found: Any = _convert(option.kind, option.range, value)
        if found == () != option.default:
            raise ValueError  # an empty list is allowed only if it is the default
    except OverflowError:
        raise ConfigError(f"{problem} {option.expected()} that 32 bits can hold") from None
    except (TypeError, ValueError):
        raise ConfigError(f"{problem} {option.expected()}") from None
    count = len(found) if get_origin(option.kind) is tuple else 1
    if count > MOST_NUMBERS:
        raise ConfigError(f"{problem} at most {MOST_NUMBERS:,} values, not {count:,}")
    return found


def _convert(kind: Any, allowed: Range, value: Any) -> Any:
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        items = cast("Iterable[Any]", value)
        return tuple(_convert(get_args(kind)[0], allowed, item) for item in items)
    if get_origin(kind) in UNIONS:
        return _convert(get_args(kind)[0], allowed, value)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError
        return value
    if kind is Path:
        return Path(value)
    if kind in (int, float) and not isinstance(value, bool):
        if isinstance(value, str) and not value.isascii():  # float reads the digits of all scripts
            raise ValueError
        # YAML 1.1 reads 1e6 as text and 1 as an integer
        number = float(value) if isinstance(value, str) or kind is float else value
        if kind is int:
            number = int(number) if number == int(number) else math.nan
        _check_bits(kind, number)
        if number not in allowed:
            raise ValueError
        return number
    if not isinstance(value, kind) or kind in (int, float):
        raise TypeError
    return value


def _check_bits(kind: type, number: float) -> None:
    """Raises OverflowError if arrays of 32 bits, JAX's default, cannot hold a number."""
    if kind is int and abs(number) >= 2**31:
        raise OverflowError
    if kind is float and math.isfinite(number):
        struct.pack("<f", number)
        if 0 < abs(number) < SMALLEST:
            raise OverflowError


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """Builds a dataclass from nested plain values; absent keys keep their defaults.

    Raises:
      ConfigError: a key is unknown, or a value has the wrong type or is out of range.
    """
    return _build(cls, values, {option.name: option for option in describe(cls)}, "")


def _build(cls: Any, values: Mapping[str, Any], options: dict[str, Option], prefix: str) -> Any:
    known = {field.name: field for field in dataclasses.fields(cls)}
    built: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in known:
            hint = suggest(name, [f"{prefix}{k}" for k in known], "--help")
            raise ConfigError(f"unknown config key {short(repr(name))}; {hint}")
        if name in options:
            built[key] = convert(options[name], value, f"config key {name}")
        elif _is_tree(value):
            built[key] = _build(known[key].type, value, options, f"{name}.")
        else:
            raise ConfigError(
                f"config key {name} got {short(repr(value))}, expected a section of keys"
            )
    return cls(**built)


def check(instance: Any) -> None:
    """Checks the values of a dataclass that code built directly.

    Raises:
      ConfigError: a value has the wrong type or is out of range; names the first one.
    """
    build(cast("type[Any]", type(instance)), dataclasses.asdict(instance))


def check_lengths(instance: Any, allowed: Mapping[str, tuple[int, ...]]) -> None:
    """Checks the lengths of tuples.

    Args:
      instance: a dataclass.
      allowed: field name -> the lengths that the field may have.

    Raises:
      ConfigError: a field has another length; names the first one.
    """
    for name, lengths in allowed.items():
        if (count := len(getattr(instance, name))) not in lengths:
            raise ConfigError(
                f"{name} has {count} numbers, expected {' or '.join(map(str, lengths))}"
            )


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested plain values with changes applied; `build` later rejects unknown keys."""
    merged = dict(base)
    for key, value in changes.items():
        below: Any = base.get(key)
        merged[key] = merge(below, value) if _is_tree(value) and _is_tree(below) else value
    return merged


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested plain values as a flat dict with dotted keys."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        found |= flatten(value, f"{key}.") if _is_tree(value) else {key: value}
    return found


def _is_tree(value: Any) -> bool:
    return isinstance(value, Mapping)
