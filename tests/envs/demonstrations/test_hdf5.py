"""HDF5 from outside: what points elsewhere, claims too much or is no number is refused."""

import fcntl
import zlib

import h5py
import numpy as np
import pytest

from pdjax_envs.demonstrations import hdf5, store
from pdjax_envs.demonstrations.trajectory import DataError
from pdjax_envs.reading import InputError
from tests.layouts import write_d4rl, write_minari
from tests.probe import make_point_env

POINT = make_point_env().task  # observes 3 numbers, takes 1
OBS = np.zeros((4, 3), np.float32)


def soft_link(group):
    group["elsewhere"], group["obs"] = OBS, h5py.SoftLink("/traj_0/elsewhere")


def external_link(group):
    group["obs"] = h5py.ExternalLink("other.h5", "/obs")


def external_storage(group):
    external = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    group.create_dataset("obs", (4, 3), np.float32, external=external)


def virtual(group):
    layout = h5py.VirtualLayout((4, 3), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "obs", (4, 3))
    group.create_virtual_dataset("obs", layout)


def claimed(group):
    group.create_dataset("obs", (10**13, 3), np.float32, chunks=(10**4, 3))


def never_written(group):
    group.create_dataset("obs", (4, 3), np.float32)


def cut_short(group):
    made = group.create_dataset("obs", (40, 3), np.float32, chunks=(4, 3))
    made[:20] = 0


def bomb(group):
    """Pieces of 48 bytes; one of them decompresses to 16 MiB."""
    made = group.create_dataset("obs", (4, 3), np.float32, chunks=(4, 3), compression="gzip")
    made.id.write_direct_chunk((0, 0), zlib.compress(bytes(16 << 20)))


def large_bomb(group):
    """A piece of 8 MiB that decompresses to 2 GiB."""
    made = group.create_dataset(
        "obs", (1 << 19, 4), np.float32, chunks=(1 << 19, 4), compression="gzip"
    )
    packer = zlib.compressobj()
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    made.id.write_direct_chunk((0, 0), block + block[2:] * 2047)  # one header


def twice_compressed(group):
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((4, 3))
    settings.set_deflate(1)
    settings.set_deflate(1)
    space = h5py.h5s.create_simple((4, 3))
    h5py.h5d.create(group.id, b"obs", h5py.h5t.NATIVE_FLOAT, space, settings)


def unknown_filter(group):
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((4, 3))
    settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)  # zstd, from a plugin
    space = h5py.h5s.create_simple((4, 3))
    h5py.h5d.create(group.id, b"obs", h5py.h5t.NATIVE_FLOAT, space, settings)


def text(group):
    group["obs"] = ["a", "b"]


def compound(group):
    group["obs"] = np.zeros(4, [("x", "f4"), ("y", "f4")])


def complex_numbers(group):
    group["obs"] = np.zeros((4, 3), np.complex64)


def empty(group):
    group["obs"] = h5py.Empty("f4")


HOSTILE = {
    soft_link: "traj_0/obs is a link, expected an array",
    external_link: "traj_0/obs is a link, expected an array",
    external_storage: "traj_0/obs keeps its numbers elsewhere, in other files",
    virtual: "traj_0/obs keeps its numbers elsewhere, in other files",
    claimed: "traj_0/obs needs .* GiB of memory",
    never_written: "traj_0/obs was never written",
    cut_short: "traj_0/obs has 5 of 10 pieces: the rest was never written",
    bomb: "traj_0/obs has a piece that holds more than it says",
    large_bomb: "traj_0/obs has a piece that holds more than it says",
    twice_compressed: "traj_0/obs is compressed several times",
    unknown_filter: r"traj_0/obs is compressed by filters \[32015\]",
    text: "traj_0/obs holds object, expected numbers",
    compound: "traj_0/obs holds .*, expected numbers",
    complex_numbers: "traj_0/obs holds complex64, expected numbers",
    empty: "traj_0/obs holds float32, expected numbers",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_hostile_array_is_refused_before_it_is_loaded(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    with h5py.File("other.h5", "w") as other:
        other["obs"] = OBS
    with h5py.File("x.h5", "w") as file:
        file["traj_0/actions"] = np.zeros((3, 1))
        make(file["traj_0"])
    with pytest.raises(InputError, match=HOSTILE[make]) as caught:
        store.read(tmp_path / "x.h5", POINT)
    assert len(str(caught.value)) < 320 and "\n" not in str(caught.value)


@pytest.mark.parametrize("compression", ["gzip", "lzf", None])
def test_every_usual_way_of_storing_is_read(tmp_path, compression):
    expected = np.random.default_rng(0).normal(size=(1000, 30))
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset(
            "a", data=expected, compression=compression, chunks=True, shuffle=True, fletcher32=True
        )
        file["whole"], file["flags"] = expected.astype("f2"), expected > 0
        file["none"] = np.zeros((0, 3))
    with hdf5.opened(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(hdf5.array(file, "a"), expected.astype(np.float32))
        np.testing.assert_array_equal(hdf5.array(file, "whole"), expected.astype("f2"))
        np.testing.assert_array_equal(hdf5.array(file, "flags", bool), expected > 0)
        none = hdf5.array(file, "none")
        assert none is not None and none.shape == (0, 3)
        assert hdf5.array(file, "missing") is None


def test_numbers_beyond_float32_become_infinite_and_are_refused(tmp_path):
    path = write_minari(tmp_path / "x.h5")
    with h5py.File(path, "a") as file:
        file["episode_0"].attrs["options/initial_state_dict/qpos"] = np.array([1e200])
    with pytest.raises(DataError, match="the first is in initial qpos, step 0"):
        store.read(path, POINT)
    with h5py.File(path, "a") as file:
        file["episode_0"].attrs["options/initial_state_dict/qpos"] = "a text"
    with pytest.raises(DataError, match="qpos holds object, expected numbers"):
        store.read(path, POINT)


def test_flags_that_are_no_flags_are_refused(tmp_path):
    path = write_d4rl(tmp_path / "x.h5")
    with h5py.File(path, "a") as file:
        del file["timeouts"]
        file["timeouts"] = np.full(7, np.nan)
    with pytest.raises(DataError, match="timeouts holds NaN or infinity, expected yes or no"):
        store.read(path, POINT)


def test_groups_in_a_circle_are_no_trouble(tmp_path):
    path = write_minari(tmp_path / "x.h5")
    with h5py.File(path, "a") as file:
        del file["episode_0/infos"]
        file["episode_0/infos"] = file["/"]
        file["episode_1/itself"] = file["episode_1"]
    assert [len(trajectory.actions) for trajectory in store.read(path, POINT)] == [3, 2]


def test_a_file_that_another_program_writes_is_told_as_locked(tmp_path):
    path = write_minari(tmp_path / "x.h5")
    with path.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"x\.h5 is locked: another program has it open"):
            store.read(path, POINT)
    assert store.read(path, POINT)
