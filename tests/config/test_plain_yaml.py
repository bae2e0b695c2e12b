"""The one YAML loader: plain values in, one line about everything else, whatever a file claims."""

import time

import pytest

from pdjax.config import files as configs
from pdjax.config import plain_yaml
from pdjax.config.options import ConfigError

BOMB = "\n".join(
    ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
)
MERGES = "\n".join(
    ["m0: &m0 {k: 1}"]
    + [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 9)]
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{a: [1, 2.5, x, true, null]}", {"a": [1, 2.5, "x", True, None]}),
        ("'b': {c: 1e-4}", {"b": {"c": "1e-4"}}),
        ("a: &x [1, 2]\nb: *x\nc: [*x, *x]", {"a": [1, 2], "b": [1, 2], "c": [[1, 2], [1, 2]]}),
        ("a: &x {k: 1, l: 2}\nb: {<<: *x, k: 3}", {"a": {"k": 1, "l": 2}, "b": {"k": 3, "l": 2}}),
        ("'3'", "3"),
        ("", None),
    ],
)
def test_plain_values_are_read(text, expected):
    assert plain_yaml.parse(text, "x") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sac: {gamma: 0.5}\nseed: 1\nsac: {tau: 0.5}", "in line 3: has the key 'sac' twice"),
        ("sac: {gamma: 0.5, tau: 0.1, 'gamma': 0.9}", "has the key 'gamma' twice"),
        ("{1: a, 0x1: b}", "has the key 1 twice"),
        (BOMB, "has more than 10,000 values"),
        (MERGES, "has more than 10,000 values"),
        ("a: &a [*a]", "the alias \\*a contains itself"),
        ("[" * 3_000, "has more than 50 levels"),
        ("\n".join(" " * n + "a:" for n in range(900)), "has more than 50 levels"),
        (str([0] * 20_000), "has more than 10,000 values"),
        ("a: !!python/object/apply:os.system [ls]", "has the tag tag:yaml.org"),
        ("a: !!set {b}", "has the tag"),
        ("a: !own 1", "has the tag !own"),
        ("a: 2001-99-99", "month must be in 1..12"),
        ("a: " + "9" * 5_000, "an integer of more than 400 digits"),
        ("a: 0x" + "f" * 5_000, "an integer of more than 400 digits"),
        ("a: 1:30", "a number with a colon, which YAML reads to base 60"),
        ("a: -1:30.5", "a number with a colon"),
        ("a: 017", "a number with a leading zero, which YAML reads to base 8"),
        ("? [1, 2]\n: 3", "a key that is no text"),
        ("a: 1\n---\nb: 2", "but found another document"),
        ("a: *b", "undefined alias"),
        ("a: \0", "special characters are not allowed"),
        ("%", "expected YAML"),
    ],
)
def test_everything_else_is_one_short_line_at_once(text, message):
    start = time.process_time()
    with pytest.raises(ConfigError, match=message) as caught:
        plain_yaml.parse(text, "cannot read config x.yaml")
    assert time.process_time() - start < 5
    assert len(str(caught.value)) <= 250
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\n" * 300_000, "it has more than 1,048,576 bytes"),
        (b"a: \xff\xfe", "byte 3 is not UTF-8"),
        (b"[1]", "holds list, expected sections"),
    ],
)
def test_a_file_that_is_no_mapping_in_utf8_is_refused(tmp_path, content, message):
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        plain_yaml.read(tmp_path / "x.yaml", "config", "sections")


def test_files_and_overrides_have_the_same_loader(tmp_path):
    (tmp_path / "x.yaml").write_text("sac: {gamma: 0.5, gamma: 0.6}")
    with pytest.raises(ConfigError, match="has the key 'gamma' twice"):
        configs.load(str(tmp_path / "x.yaml"))
    for value in ("[[[", "!!binary aGk=", "[" * 200, "&a [*a]"):
        with pytest.raises(ConfigError, match="cannot read the value"):
            configs.load("peg_fast", [f"sac.hidden={value}"])
