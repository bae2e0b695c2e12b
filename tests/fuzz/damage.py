"""What fuzzing feeds in: wrong values, and files damaged as disks and people damage them."""

import yaml
from hypothesis import strategies as st

from pdjax.config import schema

NUMBERS = [0, -1, 1, 2**31 - 1, 2**31, 2**63, 10**18, 10**40, 0.5, -0.0, 1e30, 1e38, 1e308]
WORDS = [
    "",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "null",
    "true",
    "~",
    "[]",
    "{}",
    "x" * 300,
    "\u00e9\u2028",
    "../..",
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=20),
)
values = st.recursive(
    scalars,
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=6), below, max_size=3)
    ),
    max_leaves=6,
)
keys = st.one_of(
    st.sampled_from([option.name for option in schema.describe()]),
    st.sampled_from(
        ["preset", "members", "members.seed", "sac", "train", "a.b.c", ".", "__class__"]
    ),
    st.text(min_size=1, max_size=12),
)


@st.composite
def trees(draw, most=4):
    """A nested mapping with dotted keys resolved, as a config file holds."""
    tree = {}
    for name in draw(st.lists(keys, max_size=most)):
        *above, last = name.split(".")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                break
        else:
            place[last] = draw(values)
    return tree


@st.composite
def yaml_texts(draw):
    """A config file, now and then with damage that only text can have."""
    text = yaml.safe_dump(draw(trees()), allow_unicode=True)
    kind = draw(st.sampled_from(["whole", "whole", "twice", "tab", "deep", "bomb", "tag", "bytes"]))
    if kind == "twice":
        text += text
    if kind == "tab":
        text = text.replace("\n", "\n\t", 1)
    if kind == "deep":
        text += "seed: " + draw(st.sampled_from("[{")) * draw(st.integers(1, 3_000))
    if kind == "bomb":
        levels = draw(st.integers(2, 12))
        text += "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        text += "".join(
            f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, levels)
        )
    if kind == "tag":
        text += 'seed: !!python/object/apply:os.system ["touch pwned"]\n'
    data = text.encode("utf-8", "surrogatepass")
    return draw(damaged(data)) if kind == "bytes" else data


@st.composite
def damaged(draw, data, whole=False):
    """Bytes with one to three faults: a bit flipped, a part cut off, zeroed, doubled or replaced.

    Args:
      data: the bytes of a good file.
      whole: whether the good file itself may come as well.
    """
    found = bytearray(data)
    for _ in range(draw(st.integers(0 if whole else 1, 3))):
        kind = draw(st.sampled_from(["flip", "cut", "zero", "double", "replace", "empty"]))
        first = draw(st.integers(0, max(len(found) - 1, 0)))
        last = min(len(found), first + draw(st.integers(1, 64)))
        if kind == "flip" and found:
            found[first] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del found[first:]
        elif kind == "zero":
            found[first:last] = bytes(last - first)
        elif kind == "double":
            found[first:first] = found[first:last]
        elif kind == "replace":
            found[first:last] = draw(st.binary(max_size=64))
        elif kind == "empty":
            found.clear()
    return bytes(found)


@st.composite
def flags(draw, commands):
    """Words of a command line: a command, its flags and values that nobody meant.

    Args:
      commands: name -> the command's options.
    """
    name = draw(st.sampled_from(sorted(commands)))
    words = [name]
    for option in draw(st.lists(st.sampled_from(commands[name]), max_size=4)):
        words.append("--" + option.name.replace("_", "-"))
        if draw(st.booleans()) or option.kind is not bool:
            words.append(str(draw(scalars)))
    words += draw(
        st.lists(st.sampled_from(["nowhere", "x" * 5_000, "-", "--", "--help=1", ""]), max_size=2)
    )
    return words
