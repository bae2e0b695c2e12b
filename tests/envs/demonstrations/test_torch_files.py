"""Files of torch.save: read without torch, and without running or reserving anything."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from pdjax_envs.demonstrations import torch_files
from pdjax_envs.demonstrations.pickles import Damaged, Forbidden
from pdjax_envs.reading import InputError
from tests import torch_archive
from tests.torch_archive import tensor

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


def read(path, name="a"):
    saved = torch_files.load(path)
    return torch_files.array(saved.value[name], saved.storages)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.pt"


@pytest.mark.parametrize("kind", torch_archive.STORAGES)
def test_every_type_of_numbers_is_read(path, kind):
    array = np.array([[0, 1, 1], [1, 0, 0]], kind)
    torch_archive.write(path, {"a": array, "b": torch_archive.parameter(ROWS)})
    found = read(path)
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(read(path, "b"), ROWS)


def test_what_else_a_checkpoint_holds_is_left_alone(path):
    more = {"step": 3, "lr": np.float32(0.1), "betas": (0.9, 0.999), "names": ["a"], "none": None}
    saved = torch_files.load(torch_archive.write(path, {"model": {"a": ROWS}, "optimiser": more}))
    assert saved.value["optimiser"]["betas"] == (0.9, 0.999)
    found = torch_files.array(saved.value["model"]["a"], saved.storages)
    np.testing.assert_array_equal(found, ROWS)


def test_bfloat16_is_the_upper_half_of_a_float32(path):
    halves = np.array([0x3F80, 0xC000, 0x3E80], np.uint16)  # 1, -2, 0.25
    torch_archive.write(path, {"a": tensor(halves, "BFloat16Storage")})
    assert read(path).tolist() == [1, -2, 0.25]


def test_strides_and_offsets_are_followed(path):
    made = {
        "transposed": tensor(ROWS, shape=(3, 2), strides=(1, 3)),
        "column": tensor(ROWS, shape=(2,), strides=(3,), offset=1),
        "repeated": tensor(ROWS, shape=(4, 2), strides=(0, 1)),
        "number": tensor(ROWS, shape=(), strides=(), offset=5),
        "none": tensor(ROWS, shape=(0, 3), strides=(3, 1)),
    }
    torch_archive.write(path, made)
    np.testing.assert_array_equal(read(path, "transposed"), ROWS.T)
    assert read(path, "column").tolist() == [1, 4]
    assert read(path, "repeated").tolist() == [[0, 1]] * 4
    assert read(path, "number") == 5
    assert read(path, "none").shape == (0, 3)


@pytest.mark.parametrize(
    "lie",
    [
        {"shape": (3, 3)},
        {"offset": 1},
        {"offset": -1},
        {"shape": (2, 3), "strides": (-3, 1)},
        {"shape": (2, 3), "strides": (1,)},
        {"shape": (-2, -3)},
        {"shape": (2**60, 2**60), "strides": (0, 0)},
        {"shape": (2**40,), "strides": (0,)},
        {"shape": (1,) * 40, "strides": (1,) * 40},
        {"shape": (2.0, 3.0), "strides": (3, 1)},
        {"kind": "DoubleStorage"},
    ],
)
def test_a_tensor_that_claims_more_than_its_storage_is_refused(path, lie):
    torch_archive.write(path, {"a": tensor(ROWS, **lie)})
    with pytest.raises((Damaged, InputError)):
        read(path)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch mark",)


@pytest.mark.parametrize("is_old", [False, True])  # from before torch 1.6: pickles in a row
def test_code_is_refused_and_not_run(path, monkeypatch, is_old):
    monkeypatch.chdir(path.parent)
    torch_archive.write(path, {"a": ROWS, "b": Malicious()})
    if is_old:
        before = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        path.write_bytes(b"".join(pickle.dumps(value, 2) for value in (*before, Malicious())))
    with pytest.raises(Forbidden, match=r"(posix|nt)\.system"):
        torch_files.load(path)
    assert not (path.parent / "mark").exists()


def test_members_with_other_paths_are_neither_used_nor_unpacked(path):
    evil = {"../../mark": b"x", "data/../../mark": b"x", "code/__torch__.py": b"1/0"}
    torch_archive.write(path, {"a": ROWS}, evil)
    before = sorted(path.parent.parent.iterdir())
    np.testing.assert_array_equal(read(path), ROWS)
    assert sorted(path.parent.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"data.pkl": None}, r"has no data\.pkl"),
        ({"data.pkl": b"\x80\x02N"}, "ended|truncated|exhausted|IndexError|ValueError"),
        ({"constants.pkl": b""}, "TorchScript program; use `pdjax wrap`"),
        ({"byteorder": b"big"}, "not little-endian"),
        ({"data/0": None}, "KeyError"),
        ({"data/0": bytes(20)}, "reaches beyond its 5 numbers"),
    ],
)
def test_archives_that_are_not_whole_are_damaged(path, members, words):
    torch_archive.write(path, {"a": ROWS}, members)
    with pytest.raises(Damaged, match=words):
        read(path)


def test_an_archive_that_decompresses_to_more_than_the_memory_is_refused(path, monkeypatch):
    monkeypatch.setattr("pdjax_envs.reading.free_memory", lambda: 20 << 20)
    torch_archive.write(
        path, {"a": np.zeros(8 << 20, np.float32)}, compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="GiB of memory"):
        torch_files.load(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_damaged(path, share):
    content = torch_archive.write(path, {"a": ROWS}).read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(Damaged):
        torch_files.load(path)
