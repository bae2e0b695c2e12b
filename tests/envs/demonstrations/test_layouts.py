"""Demonstrations of other projects: every layout into one type."""

import collections
import itertools
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pdjax_envs import registry
from pdjax_envs.demonstrations import pickles, store
from pdjax_envs.demonstrations.trajectory import DataError
from tests.layouts import make_episode, numbers, write_d4rl, write_dapg, write_minari
from tests.probe import make_point_env

PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "dapg"
POINT = make_point_env().task  # observes 3 numbers, takes 1
read: Any = store.read  # of any type, since the tests know which optional arrays are there

published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="published DAPG files are not in ../shared/data/dapg"
)


def test_minari_episodes_keep_their_last_observation(tmp_path):
    first, second = read(write_minari(tmp_path / "main_data.hdf5"), POINT)
    np.testing.assert_array_equal(first.obs, numbers(4, 3).astype(np.float32))
    np.testing.assert_array_equal(second.actions, numbers(2, 1).astype(np.float32))
    assert first.success.tolist() == [False, False, True]  # the reset's flag left out
    assert second.rewards.tolist() == [0, 1]
    assert first.seed == second.seed == -1  # Gymnasium's seeds are not ours
    assert second.init_state["qpos"].tolist() == [np.float32(0.1)]


def test_d4rl_steps_are_cut_where_episodes_end(tmp_path):
    path = write_d4rl(tmp_path / "door.hdf5")
    obs, actions = (a.astype(np.float32) for a in (numbers(7, 3), numbers(7, 1)))
    first, second = read(path, POINT)
    # rows 0-2 and 3-6; the actions of rows 2 and 6 led to observations that are not in the file
    np.testing.assert_array_equal(first.obs, obs[:3])
    np.testing.assert_array_equal(first.actions, actions[:2])
    np.testing.assert_array_equal(second.obs, obs[3:])
    np.testing.assert_array_equal(second.actions, actions[3:6])
    assert first.success.tolist() == [False, True]
    assert not second.success.any()
    assert second.rewards.tolist() == [3, 4, 5]
    assert (first.init_state["qpos"].tolist(), second.init_state["qpos"].tolist()) == ([0], [3])


def test_d4rl_files_may_lack_timeouts_and_infos(tmp_path):
    path = write_d4rl(tmp_path / "x.h5")
    with h5py.File(path, "a") as file:
        del file["timeouts"], file["infos"]
    first, second = read(path, POINT)  # the rest after the last end counts
    assert (len(first.actions), len(second.actions)) == (2, 3)
    assert first.success is first.init_state is None


@pytest.mark.parametrize("protocol", range(6))
def test_dapg_pickles_of_any_usual_protocol(tmp_path, protocol):
    path = write_dapg(tmp_path / "x.pickle", [make_episode(), make_episode(6)], protocol)
    first, second = read(path, POINT)
    np.testing.assert_array_equal(first.obs, numbers(4, 3).astype(np.float32))
    np.testing.assert_array_equal(second.actions, numbers(6, 1)[:5].astype(np.float32))
    assert first.rewards.tolist() == [0, 1, 2]
    assert first.init_state["qpos"].tolist() == [0.25]
    assert first.success is None  # Point's rewards do not tell


@pytest.mark.parametrize("protocol", range(6))
def test_episodes_are_read_as_people_write_them(tmp_path, protocol):
    episode = make_episode()
    expected = read(write_dapg(tmp_path / "x.pickle"), POINT)[0]
    ways = [
        [collections.OrderedDict(episode)],
        (episode,),
        [episode | {"env_infos": {"time": np.arange(4.0)}, "terminated": True}],
        [episode | {"init_state_dict": {"qpos": [np.float64(0.25)], "qvel": [0]}}],
        [episode | {"observations": list(episode["observations"])}],
    ]
    for episodes in ways:
        (found,) = read(write_dapg(tmp_path / "x.pickle", episodes, protocol), POINT)
        np.testing.assert_array_equal(found.obs, expected.obs)
        assert found.init_state["qpos"].tolist() == [0.25]


def test_a_folder_of_minari_or_its_name_is_taken(tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "door/test-v0/data").mkdir(parents=True)
    path = write_minari(root / "door/test-v0/data/main_data.hdf5")
    expected = read(path, POINT)[0].obs
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    for name in (root / "door/test-v0", path.parent, "root/door/test-v0", "door/test-v0"):
        np.testing.assert_array_equal(read(Path(name), POINT)[0].obs, expected)
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"no demonstrations at door/test-v0; .* local root"):
        read(Path("door/test-v0"), POINT)
    (tmp_path / ".minari").mkdir()
    root.rename(tmp_path / ".minari/datasets")
    np.testing.assert_array_equal(read(Path("door/test-v0"), POINT)[0].obs, expected)
    path = tmp_path / ".minari/datasets/door/test-v0/data/main_data.hdf5"
    path.rename(path.with_name("0.arrow"))
    with pytest.raises(DataError, match=r"no demonstrations at .*: a folder without data"):
        read(tmp_path / ".minari/datasets/door/test-v0", POINT)


def test_d4rl_episodes_of_a_single_row_are_left_out(tmp_path):
    found = read(write_d4rl(tmp_path / "x.h5", lengths=(3, 1, 4, 1)), POINT)
    assert [len(trajectory.actions) for trajectory in found] == [2, 3]


def test_arrays_of_pickles_come_back_in_their_order_and_type(tmp_path):
    path = tmp_path / "x.pickle"
    arrays = [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=np.int16),
        np.array([True, False]),
        np.zeros((0, 3)),
    ]
    for protocol, array in itertools.product(range(6), arrays):
        path.write_bytes(pickle.dumps(array, protocol))
        found = pickles.array(pickles.load(path, pickles.DATA))
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype


def test_the_layout_is_told_from_the_content_not_the_name(tmp_path):
    for write in (write_minari, write_d4rl, write_dapg):
        assert read(write(tmp_path / "misleading.txt"), POINT)


@pytest.mark.parametrize("write", [write_minari, write_d4rl, write_dapg])
def test_actions_beyond_the_range_are_clipped_and_counted(tmp_path, write):
    path = write(tmp_path / "file")
    if write is write_dapg:
        episode = make_episode()
        episode["actions"][:2, 0] = [1.37, -2]
        write_dapg(path, [episode])
    else:
        with h5py.File(path, "a") as file:
            actions: Any = file["episode_0/actions" if write is write_minari else "actions"]
            actions[:2, 0] = [1.37, -2]
    first = read(path, POINT)[0]
    assert first.actions[:2, 0].tolist() == [1, -1]
    assert first.clipped == 2


def test_what_was_imported_is_written_and_read_again(tmp_path):
    found = read(write_dapg(tmp_path / "x.pickle"), POINT)
    store.write(tmp_path / "x.h5", POINT, found)
    (again,) = read(tmp_path / "x.h5", POINT)
    np.testing.assert_array_equal(again.rewards, found[0].rewards)
    np.testing.assert_array_equal(again.init_state["qpos"], found[0].init_state["qpos"])
    assert again.success is again.executed is None


@published
def test_the_published_human_demonstrations_of_door():
    task = registry.make_task("AdroitDoor")
    found = read(PUBLISHED / "door-v0_demos.pickle", task)
    assert len(found) == 25
    assert {trajectory.obs.shape[1] for trajectory in found} == {39}
    assert {trajectory.actions.shape[1] for trajectory in found} == {28}
    assert len(found[0].obs) == 300
    angle = 28  # of the door, in the observation; success is 1.35 rad or more
    opened = [(t.obs[1:, angle] >= 1.35).tolist() for t in found]
    assert [t.success.tolist() for t in found] == opened  # from rewards, from observations
    assert sum(map(any, opened)) == 7
    assert found[0].init_state["door_body_pos"].shape == (3,)
    assert sum(t.clipped for t in found) > 0


def test_errors_of_the_reader_are_data_errors(tmp_path):
    with pytest.raises(DataError, match="no demonstrations at"):
        read(tmp_path / "none.pickle", POINT)
