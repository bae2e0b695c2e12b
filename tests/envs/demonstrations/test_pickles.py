"""Pickles from outside: nothing runs, and nothing is reserved that the file does not hold."""

import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from pdjax_envs.demonstrations import pickles
from pdjax_envs.demonstrations.pickles import Damaged, Forbidden

# What Python 2 and NumPy 1.11 wrote for np.array([1.0, 2.0]) in protocol 2.
PYTHON_2 = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b"
    b"\x87Rq\x03(K\x01K\x02\x85cnumpy\ndtype\nq\x04U\x02f8K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ"
    b"\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x10" + struct.pack("<2d", 1, 2) + b"tb."
)


def load(tmp_path, content):
    (tmp_path / "x.pickle").write_bytes(content)
    return pickles.load(tmp_path / "x.pickle", pickles.DATA)


def test_a_pickle_of_python_2_is_read(tmp_path):
    np.testing.assert_array_equal(pickles.array(load(tmp_path, PYTHON_2)), [1, 2])


def test_a_large_file_of_something_else_is_not_read_whole(tmp_path):
    path = tmp_path / "x.pickle"
    path.touch()
    os.truncate(path, 3 << 30)  # zeros, which take no disk
    tracemalloc.start()
    try:
        with pytest.raises(Damaged):
            pickles.load(path, pickles.DATA)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x05\x96" + (30 << 30).to_bytes(8, "little") + b"x.",  # a bytearray of 30 GiB
        b"\x80\x04\x8e" + (30 << 30).to_bytes(8, "little") + b"x.",  # bytes
        b"\x80\x04\x95" + (30 << 30).to_bytes(8, "little") + b"N.",  # a frame
        b"\x80\x02Nr\xff\xff\xff\x0f0N.",  # remembered as number 268,435,455 of a list
        b"Np268435455\n0N.",
    ],
)
def test_a_claim_beyond_the_file_reserves_nothing(tmp_path, content):
    tracemalloc.start()
    with pytest.raises(Damaged):
        load(tmp_path, content)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_very_many_instructions_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "_MOST_STEPS", 1000)
    with pytest.raises(Damaged, match="more than 1,000 instructions"):
        load(tmp_path, b"\x80\x04(" + b"\x8f" * 2000 + b"l.")


@pytest.mark.parametrize(
    "content", [b"", b"\x80", b"\x80\x02", b"(lp0\n", b"hello\n", b"\x80\x63."]
)
def test_what_is_no_whole_pickle_is_damaged(tmp_path, content):
    with pytest.raises(Damaged):
        load(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch mark'\ntR.",
        b"\x80\x02c__builtin__\neval\nU\x011\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"(S'touch mark'\nios\nsystem\n.",
        b"\x80\x02ccopyreg\nadd_extension\n.",
        pickle.dumps(print),
    ],
)
def test_other_names_are_refused_in_every_protocol(tmp_path, content):
    with pytest.raises(Forbidden):
        load(tmp_path, content)


def laughs():
    value = [0.0] * 10
    for _ in range(40):
        value = [value] * 10  # 10^41 numbers
    return value


def changed(shape, content=bytes(16)):
    made = pickle.loads(pickle.dumps(np.zeros(2)))
    reduced = made.__reduce__()
    state = (1, shape, np.dtype("f8"), False, content)

    class Lies:
        def __reduce__(self):
            return (*reduced[:2], state)

    return Lies()


@pytest.mark.parametrize(
    "value",
    [
        laughs(),
        [[0.0]],
        [np.zeros(2), np.zeros(3)],
        changed((10**15,)),
        changed((-2, -1)),
        changed((2**40, 2**40)),
        np.array([None]),
        np.zeros(2, complex),
        np.array(["a"]),
        {"a": 1},
        "text",
        None,
    ],
)
def test_what_is_no_array_of_numbers_is_damaged(tmp_path, value):
    allowed = load(tmp_path, pickle.dumps(value, 4))
    with pytest.raises(Damaged):
        pickles.array(allowed)


def test_numbers_lists_and_scalars_are_arrays(tmp_path):
    for protocol in range(6):
        for value in (1, 0.5, True, np.float32(0.1), [1, 2.5], [np.float64(3), 4], []):
            found = pickles.array(load(tmp_path, pickle.dumps(value, protocol)))
            np.testing.assert_array_equal(found, value)
