"""Reads YAML that holds plain values: the one loader for files of settings and for `--set`.

Stricter than YAML: no tags, no key twice in one mapping, and a limit on depth and size in which
each use of an alias counts as a copy. So a small file cannot become a large value.
"""

from pathlib import Path
from typing import Any, cast

import yaml

from pdjax.config.options import ConfigError
from pdjax_envs.reading import MOST_DEPTH, InputError, read_text, reason, short

MOST_BYTES = 1 << 20  # of a file
MOST_NODES = 10_000  # mappings, lists, keys and values, aliases expanded
MOST_DIGITS = 400  # characters of an integer

_MERGE = "tag:yaml.org,2002:merge"


def read(path: Path, name: str, expected: str) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping.

    Args:
      path: the file.
      name: what the file is, for the error message.
      expected: what the mapping should contain, for the error message.

    Raises:
      ConfigError: the file does not exist, is not YAML of plain values, or holds something else.
    """
    try:
        text = read_text(path, name, MOST_BYTES)
    except InputError as error:
        raise ConfigError(f"{error}; expected a YAML file") from None
    data = parse(text, f"cannot read {name} {short(str(path))}")
    if not isinstance(data, dict):
        raise ConfigError(
            f"{name} {short(str(path))} holds {type(data).__name__}, expected {expected}"
        )
    return cast("dict[str, Any]", data)


def parse(text: str, problem: str) -> Any:
    """Parses YAML into dicts, lists, text, numbers, booleans, dates and None.

    Args:
      text: the YAML.
      problem: beginning of the error message.

    Raises:
      ConfigError: it is not YAML, has a tag or a key twice, or is too deep or too large.
    """
    try:
        # Besides its own errors, PyYAML lets through those of numbers and dates that do not exist.
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" in line {where.line + 1}" if where else ""
        why = getattr(error, "problem", None) or reason(error)
        raise ConfigError(f"{problem}{line}: {short(why, 100)}; expected YAML") from None


class _Loader(yaml.SafeLoader):
    """Checks depth, size, tags and keys while PyYAML composes nodes, before any value is made."""

    def __init__(self, text: str):
        super().__init__(text)
        self._depth = self._count = 0
        self._sizes: dict[int, int] = {}  # of nodes that are complete, aliases expanded

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = cast("Any", self).peek_event()
        if getattr(event, "tag", None):
            raise self._error(f"the tag {short(event.tag, 40)}; write plain values", event)
        before = self._count
        self._depth, self._count = self._depth + 1, self._count + 1
        if self._depth > MOST_DEPTH:
            raise self._error(f"more than {MOST_DEPTH} levels", event)
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise self._error(f"the alias *{short(event.anchor, 40)} contains itself", event)
            self._count += self._sizes[id(node)]
        if self._count > MOST_NODES:
            raise self._error(f"more than {MOST_NODES:,} values", event)
        self._depth -= 1
        self._sizes.setdefault(id(node), self._count - before)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node: Any = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error("a key that is no text", key)
            name = key.tag if key.tag == _MERGE else cast("Any", self).construct_object(key)
            if name in seen:
                raise self._error(f"the key {short(repr(name), 60)} twice", key)
            seen.add(name)
        return node

    def construct_yaml_int(self, node: Any) -> int:
        if len(node.value) > MOST_DIGITS:
            raise self._error(f"an integer of more than {MOST_DIGITS} digits", node)
        digits = node.value.lstrip("+-").replace("_", "")
        if digits[0] == "0" and digits[1:2].isdigit():
            raise self._error("a number with a leading zero, which YAML reads to base 8", node)
        self._refuse_base_60(node)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: Any) -> float:
        self._refuse_base_60(node)
        return super().construct_yaml_float(node)

    def _refuse_base_60(self, node: Any) -> None:
        if ":" in node.value:
            raise self._error("a number with a colon, which YAML reads to base 60", node)

    def _error(self, what: str, where: Any) -> yaml.MarkedYAMLError:
        return yaml.MarkedYAMLError(problem=f"has {what}", problem_mark=where.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
