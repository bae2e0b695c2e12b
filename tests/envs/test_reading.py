"""The border for files from outside: damaged, huge and malicious ones give one line each."""

import io
import os
import zipfile

import numpy as np
import pytest

from pdjax_envs import reading
from pdjax_envs.reading import InputError


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "Expecting value"),
        (b'{"a": ', "Expecting value"),
        (b"\xc9\x00", "byte 0 is not UTF-8"),
        (b"[1, 2]", "expected an object"),
        (b"[" * 100_000, "nested more than 50 levels deep"),
        (b'{"a":' * 60 + b"1" + b"}" * 60, "nested more than 50 levels deep"),
        (b"\0" * 100, "Expecting value"),
    ],
)
def test_json_that_cannot_be_used(tmp_path, content, words):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as raised:
        reading.read_json_object(path, "result")
    assert len(str(raised.value)) < 300 and "\n" not in str(raised.value)


def test_json_as_deep_as_allowed(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"a":' * 50 + "1" + "}" * 50)
    assert reading.read_json_object(path, "result")["a"]


def test_files_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name, words in {
        "missing": "No such file",
        "a" * 5_000: "File name too long",
        "pipe": "no regular file",
        "loop": "Too many levels of symbolic links",
        ".": "no regular file",
    }.items():
        with pytest.raises(InputError, match=words) as raised:
            reading.read_text(tmp_path / name, "config")
        assert len(str(raised.value)) < 300
    assert not reading.is_file(tmp_path / ("a" * 5_000))
    (tmp_path / "long").write_bytes(b"12345")
    with pytest.raises(InputError, match="more than 4 bytes"):
        reading.read_bytes(tmp_path / "long", "config", 4)


def header(shape, dtype="<f4"):
    """An .npy file that claims a shape and holds nothing."""
    file = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def npz(path, content, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("w0.npy", content)


def test_arrays_are_read_back(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(True), "c": np.zeros((0, 3), "<f4")}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    for name, array in reading.read_npz(tmp_path / "x.npz", "policy").items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype


def test_arrays_that_claim_too_much(tmp_path, monkeypatch):
    npz(tmp_path / "claims.npz", header((10**15,)))
    with pytest.raises(InputError, match="claims more numbers than it holds"):
        reading.read_npz(tmp_path / "claims.npz", "policy")
    np.savez_compressed(tmp_path / "zeros.npz", w0=np.zeros(10**6))  # 8 MB in 8 KB
    monkeypatch.setattr(reading, "free_memory", lambda: 10**7)
    with pytest.raises(InputError, match="GiB of memory, but only"):
        reading.read_npz(tmp_path / "zeros.npz", "policy")


def test_damaged_and_malicious_archives(tmp_path):
    npz(tmp_path / "header.npz", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4',")
    npz(tmp_path / "no.npz", b"no array")
    np.savez(tmp_path / "object.npz", w0=np.array([{"a": 1}], dtype=object))
    npz(tmp_path / "lzma.npz", b"no array", compression=zipfile.ZIP_LZMA)
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "encrypted.npz", w0=np.zeros(3))
    data = bytearray((tmp_path / "encrypted.npz").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    (tmp_path / "encrypted.npz").write_bytes(data)
    whole = (tmp_path / "object.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError, match="cannot read policy") as raised:
            reading.read_npz(path, "policy")
        assert len(str(raised.value)) < 400 and "\n" not in str(raised.value)


def test_what_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(reading, "free_memory", lambda: 2**30)
    reading.check_fits(2**29, "it")
    with pytest.raises(InputError, match=r"it needs 0.6 GiB of memory, but only 1.0 GiB are free"):
        reading.check_fits(int(0.6 * 2**30), "it")
    monkeypatch.setattr(reading, "free_memory", lambda: None)
    reading.check_fits(2**60, "it")


def test_a_long_value_is_shortened_in_the_middle():
    assert reading.short("a" * 50 + "b" * 50, 13) == "aaaaa...bbbbb"
    assert reading.short(["x"]) == "['x']" and reading.short("two\nlines") == "two lines"
