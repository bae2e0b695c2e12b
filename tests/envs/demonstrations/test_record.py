"""Demonstrations: recording, ManiSkill's file layout, and every way a file can be wrong."""

import dataclasses
import json
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax_envs import registry
from pdjax_envs.demonstrations import record, store
from pdjax_envs.demonstrations.store import DataError, Trajectory
from pdjax_envs.reading import InputError
from pdjax_envs.task import Expert
from tests.probe import make_point_env

EPISODES = 8


@pytest.fixture(scope="module")
def peg():
    env = registry.make("PegInsertionSide", "native")
    return env.task, record.record(env, EPISODES, seed=3, noise=0.03)


def make_expert_env(start_late=False, succeeds=True):
    """The point environment with an expert; `start_late` depends on the episode's key."""

    def init(key):
        return jax.random.randint(key, (), 0, 4) if start_late else jnp.int32(0)

    def act(carry, obs, key):
        del key
        speed = jnp.sign(obs[1] - obs[0]) if succeeds else 0.0
        return jnp.where(carry > 0, 0.0, speed)[None], carry - 1

    def disturb(action, obs, key, noise):
        del obs
        return jnp.clip(action + noise * jax.random.normal(key, action.shape), -1, 1)

    env = make_point_env(episode_steps=12)
    task = dataclasses.replace(env.task, expert=lambda: Expert(init, act, disturb))
    return env._replace(task=task)


def equal(first, second):
    first, second = dataclasses.asdict(first), dataclasses.asdict(second)
    same = lambda a, b: np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype  # noqa: E731
    return jax.tree.all(jax.tree.map(same, first, second))


def test_the_expert_of_peg_insertion_is_recorded_up_to_its_first_success(peg):
    task, (found, rate) = peg
    assert len(found) == EPISODES
    assert 0.5 < rate <= 1
    for trajectory in found:
        steps = len(trajectory.actions)
        assert trajectory.obs.shape == (steps + 1, task.obs_dim)
        assert trajectory.actions.shape == (steps, task.act_dim)
        assert np.abs(trajectory.actions).max() <= 1
        assert trajectory.success[-1]
        assert not trajectory.success[:-1].any()
    seeds = [trajectory.seed for trajectory in found]
    assert sorted(set(seeds)) == seeds
    assert seeds[0] >= 3
    # other seeds, other pegs
    assert not np.array_equal(found[0].obs[0], found[1].obs[0])


def test_peg_demonstrations_are_the_same_again_from_the_same_seed(peg):
    _, (found, rate) = peg
    env = registry.make("PegInsertionSide", "native")
    again, rate_again = record.record(env, EPISODES, seed=3, noise=0.03)
    assert rate == rate_again
    assert all(map(equal, found, again))


def test_a_file_comes_back_bitwise(peg, tmp_path):
    task, (found, _) = peg
    store.write(tmp_path / "demos.h5", task, found)
    assert all(map(equal, store.read(tmp_path / "demos.h5", task), found))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demos.h5", "demos.json"]


def test_the_users_files_beside_it_stay(peg, tmp_path):
    task, (trajectories, _) = peg
    for name in ("a.h5.partial", "a.json.partial"):
        (tmp_path / name).write_text("mine")
    store.write(tmp_path / "a.h5", task, trajectories)
    assert {path.name: path.read_text() for path in tmp_path.glob("*.partial")} == {
        "a.h5.partial": "mine",
        "a.json.partial": "mine",
    }


def test_the_layout_is_maniskills(peg, tmp_path):
    task, (found, _) = peg
    store.write(tmp_path / "demos.h5", task, found)
    with h5py.File(tmp_path / "demos.h5") as file:
        assert sorted(file) == [f"traj_{index}" for index in range(EPISODES)]
        group: Any = file["traj_0"]
        steps = len(group["actions"])
        arrays = {name: group[name] for name in group if name != "init_state"}
        assert {name: array.shape for name, array in arrays.items()} == {
            "obs": (steps + 1, task.obs_dim),
            "actions": (steps, task.act_dim),
            "executed_actions": (steps, task.act_dim),
            "success": (steps,),
            "env_states": (steps + 1, task.scene.model.nq + task.scene.model.nv),
        }
        dtypes = {name: str(array.dtype) for name, array in arrays.items()}
        assert dtypes.pop("success") == "bool"
        assert set(dtypes.values()) == {"float32"}
        state = np.concatenate([group["init_state/qpos"], group["init_state/qvel"]])
        np.testing.assert_array_equal(state, group["env_states"][0])
    sidecar = json.loads((tmp_path / "demos.json").read_text())
    assert sidecar["env_info"]["env_id"] == "PegInsertionSide"
    assert sidecar["env_info"]["max_episode_steps"] == task.episode_steps
    assert sidecar["env_info"]["env_kwargs"]["obs_mode"] == "state"
    assert sidecar["env_info"]["env_kwargs"]["control_mode"] == task.control_mode
    assert [e["episode_id"] for e in sidecar["episodes"]] == list(range(EPISODES))
    first = sidecar["episodes"][0]
    assert first["elapsed_steps"] == steps
    assert first["episode_seed"] == first["reset_kwargs"]["seed"] == found[0].seed
    assert first["info"] == {"success": True}


def test_recording_cuts_each_episode_at_its_own_success():
    found, rate = record.record(make_expert_env(start_late=True), 16, seed=0)
    assert rate == 1
    lengths = {len(trajectory.actions) for trajectory in found}
    assert len(lengths) > 2  # late starters take longer
    for trajectory in found:
        positions = trajectory.obs[:, 0]
        assert abs(positions[-1] - 0.5) < 0.05
        assert (abs(positions[:-1] - 0.5) >= 0.05).all()


def test_an_expert_that_never_succeeds_ends_the_recording():
    with pytest.raises(DataError, match="the expert of Point failed in all of 80 attempts"):
        record.record(make_expert_env(succeeds=False), 4)


def test_a_task_without_an_expert_is_refused():
    with pytest.raises(DataError, match="Point has no scripted expert; bring your own"):
        record.record(make_point_env(), 4)


# Files that are wrong. The point task observes 3 numbers and takes 1.

POINT = make_point_env().task


def make_trajectory(steps=5):
    rng = np.random.default_rng(steps)
    return Trajectory(
        obs=rng.uniform(-1, 1, (steps + 1, 3)).astype(np.float32),
        actions=rng.uniform(-1, 1, (steps, 1)).astype(np.float32),
        success=np.arange(steps) == steps - 1,
        env_states=np.zeros((steps + 1, 2), np.float32),
        seed=steps,
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "demos.h5"
    store.write(path, POINT, [make_trajectory(4), make_trajectory(5)])
    return path


def replace(group, name, value):
    if name in group:
        del group[name]
    if value is not None:
        group[name] = value


def refuse(path, message):
    with pytest.raises(InputError, match=message) as caught:
        store.read(path, POINT)
    assert "\n" not in str(caught.value)
    assert path.stem[-20:] in str(caught.value)
    assert len(str(caught.value)) < 320


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("obs", np.zeros((6, 4)), r"traj_1/obs has shape \(6, 4\), expected \(T \+ 1, 3\)"),
        ("obs", np.zeros(6), r"traj_1/obs has shape \(6,\), expected"),
        ("obs", np.zeros((5, 3)), "traj_1 has 5 observations for 5 actions"),
        ("obs", np.full((6, 3), np.nan), r"traj_1 holds NaN, or numbers beyond 1e\+10; drop"),
        ("obs", None, "traj_1 has no array `obs`; expected ManiSkill's layout; replay"),
        ("actions", np.zeros((5, 2)), r"traj_1/actions has shape \(5, 2\), expected \(T, 1\)"),
        ("actions", np.zeros((0, 1)), "traj_1 has 6 observations for 0 actions"),
        ("actions", np.full((5, 1), 1.5), r"traj_1/actions reach 1.5, expected \[-1, 1\]"),
        ("actions", np.full((5, 1), np.inf), "traj_1 holds NaN, or numbers beyond"),
        ("init_state/qpos", np.full(1, 1e30), r"numbers beyond 1e\+10; .* initial qpos, step 0"),
        ("actions", [b"text"] * 5, "traj_1/actions holds object, expected numbers"),
        ("success", True, r"traj_1 has success of shape \(\), expected \(5,\)"),
        (
            "executed_actions",
            np.ones((5, 2)),
            r"executed actions of shape \(5, 2\), expected \(5, 1",
        ),
        ("actions", 0.5, r"traj_1/actions has shape \(\), expected \(T, 1\)"),
        ("success", np.ones(3, bool), r"traj_1 has success of shape \(3,\), expected \(5,\)"),
    ],
)
@pytest.mark.parametrize("with_sidecar", [True, False])
def test_a_wrong_episode_is_refused_by_name(file, name, value, message, with_sidecar):
    if not with_sidecar:
        file.with_suffix(".json").unlink()
    with h5py.File(file, "a") as content:
        replace(content["traj_1"], name, value)
    refuse(file, message)


def test_observations_in_groups_are_refused(file):
    with h5py.File(file, "a") as content:
        del content["traj_0/obs"]
        content.create_group("traj_0/obs")["agent"] = np.zeros((5, 3))
    refuse(file, "traj_0 has no array `obs`")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_a_file_cut_short_is_refused(file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refuse(file, "is not a readable demonstration file .*; it may be cut short: write it again")


def test_a_file_that_is_no_hdf5_is_refused(file):
    file.write_text("hello\n" * 100)
    refuse(file, "is not a readable demonstration file")


def test_a_missing_file_is_refused(tmp_path):
    refuse(tmp_path / "none.h5", "no demonstrations at .*; write some with `pdjax demos TASK`")
    refuse(tmp_path / ("n" * 300), "no demonstrations at")  # longer than any name can be
    refuse(tmp_path, "no demonstrations at .*: a folder without data/main_data.hdf5")


def test_a_file_without_episodes_is_refused(file):
    with h5py.File(file, "w") as content:
        content["traj_x"] = 1
    refuse(file, "holds no episodes: it has traj_x; expected traj_0")


def change_sidecar(file, change):
    sidecar = file.with_suffix(".json")
    content = json.loads(sidecar.read_text())
    change(content)
    sidecar.write_text(json.dumps(content))


def test_demonstrations_of_another_task_are_refused(file):
    change_sidecar(file, lambda content: content["env_info"].update(env_id="StackCube-v0"))
    refuse(file, "holds demonstrations of StackCube, expected Point; pass --task")


def test_the_version_of_a_maniskill_task_does_not_matter(file):
    change_sidecar(file, lambda content: content["env_info"].update(env_id="Point-v1"))
    assert len(store.read(file, POINT)) == 2


def test_demonstrations_of_another_control_mode_are_refused(file):
    change_sidecar(
        file, lambda content: content["env_info"]["env_kwargs"].update(control_mode="pd_joint_pos")
    )
    refuse(file, "demonstrations of control mode pd_joint_pos, expected velocity; convert")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"env_info": {"env_id": 3}}', '{"episodes": []}'])
def test_a_broken_sidecar_is_refused(file, text):
    file.with_suffix(".json").write_text(text)
    refuse(file, "ManiSkill's JSON sidecar")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "control_mode",
            "pd_joint_pos",
            "of control mode pd_joint_pos, expected velocity; convert",
        ),
        ("env_id", "StackCube-v0", "holds demonstrations of StackCube, expected Point; pass"),
    ],
)
def test_what_only_the_episodes_name_counts_too(file, name, value, words):
    def change(content):
        content["env_info"]["env_kwargs"].pop("control_mode")
        content["episodes"][1][name] = value

    change_sidecar(file, change)
    refuse(file, words)


@pytest.mark.parametrize("seed", [-4, 2**31, 2**70, 1.5, True, "7", None])
def test_a_seed_that_is_none_of_ours_is_no_seed(file, seed):
    change_sidecar(file, lambda content: content["episodes"][1].update(episode_seed=seed))
    assert [trajectory.seed for trajectory in store.read(file, POINT)] == [4, -1]


def test_files_of_the_user_beside_the_output_stay(tmp_path):
    mine = [tmp_path / "demos.h5.partial", tmp_path / "demos.json.partial"]
    for path in mine:
        path.write_text("mine")
    store.write(tmp_path / "demos.h5", POINT, [make_trajectory()])
    assert [path.read_text() for path in mine] == ["mine", "mine"]
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["demos.h5", "demos.h5.partial", "demos.json", "demos.json.partial"]


def test_without_a_sidecar_sizes_are_enough(file):
    file.with_suffix(".json").unlink()
    first, second = store.read(file, POINT)
    np.testing.assert_array_equal(first.obs, make_trajectory(4).obs)
    np.testing.assert_array_equal(second.actions, make_trajectory(5).actions)
    assert (first.seed, second.seed) == (-1, -1)


@pytest.mark.parametrize("existing", ["demos.h5", "demos.json"])
def test_nothing_is_overwritten(tmp_path, existing):
    (tmp_path / existing).write_text("precious")
    with pytest.raises(DataError, match=f"{existing} exists already; choose another file"):
        store.write(tmp_path / "demos.h5", POINT, [make_trajectory()])
    assert (tmp_path / existing).read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_write_that_fails_leaves_nothing(tmp_path):
    broken = dataclasses.replace(make_trajectory(), actions=np.array(["no numbers"]))
    with pytest.raises(ValueError, match="could not convert"):
        store.write(tmp_path / "demos.h5", POINT, [make_trajectory(), broken])
    assert list(tmp_path.iterdir()) == []
