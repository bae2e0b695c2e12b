"""`pdjax data check`: its counts, and replays that tell a faithful recording from others."""

import dataclasses
import json

import h5py
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.commands import cli
from pdjax.prepare import check_demonstrations
from pdjax_envs import make
from pdjax_envs.demonstrations import record as demonstrations
from pdjax_envs.demonstrations import store
from pdjax_envs.demonstrations.playback import replay
from pdjax_envs.demonstrations.trajectory import DataError, Trajectory
from tests.envs.demonstrations.test_record import make_expert_env
from tests.probe import SPEED, make_point_task, registered


@pytest.fixture(autouse=True)
def point():
    """The point task by the name Point, beside the real ones."""
    with registered(make_point_task(episode_steps=12)) as task:
        yield task


def record(path, noise=0.0, change=lambda trajectory: trajectory, episodes=5):
    """Writes the episodes of the point's expert, with a change to each."""
    env = make_expert_env(start_late=True)
    found, _ = demonstrations.record(env, episodes, seed=3, noise=noise)
    found = [change(trajectory) for trajectory in found]
    store.write(path, env.task, found)
    return found


def check(path, replays=10, task=None):
    return check_demonstrations.check_demonstrations(path, task, replays)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_recording_replays_exactly_disturbed_or_not(tmp_path, noise):
    found = record(tmp_path / "x.h5", noise)
    assert all((trajectory.executed is not None) == (noise > 0) for trajectory in found)
    summary = check(tmp_path / "x.h5")
    assert summary["task"] == "Point"
    assert [row["max_drift"] for row in summary["replay"]] == [0] * 5
    assert all(row["replayed_success"] for row in summary["replay"])
    assert "the replay equals the recording; 5 of 5 replays succeed" in summary["verdict"]


def test_without_the_executed_actions_a_disturbed_recording_drifts_by_what_it_lost(tmp_path):
    found = record(tmp_path / "full.h5", 0.3)
    forget = lambda trajectory: dataclasses.replace(trajectory, executed=None)  # noqa: E731
    record(tmp_path / "x.h5", 0.3, forget)
    summary = check(tmp_path / "x.h5")
    for row, full in zip(summary["replay"], found):
        # the position is the sum of the velocities; the other two numbers do not depend on them
        lost = np.abs(SPEED * np.cumsum(full.executed - full.actions))
        assert row["drift_at_start"] == 0
        assert row["max_drift"] == pytest.approx(lost.max(), abs=1e-6)
        assert row["mean_drift"] == pytest.approx(lost.sum() / full.obs.size, abs=1e-6)
        assert row["max_drift_part"] == "position"
    assert "replays drift by up to" in summary["verdict"]


def test_without_an_initial_state_the_seed_gives_it(tmp_path):
    forget = lambda trajectory: dataclasses.replace(trajectory, init_state=None)  # noqa: E731
    record(tmp_path / "x.h5", 0.3, forget)
    assert [row["max_drift"] for row in check(tmp_path / "x.h5")["replay"]] == [0] * 5


def test_without_both_nothing_is_replayed(tmp_path):
    forget = lambda t: dataclasses.replace(t, init_state=None, seed=-1, success=None)  # noqa: E731
    record(tmp_path / "x.h5", change=forget)
    summary = check(tmp_path / "x.h5")
    assert (summary["replay"], summary["success_rate"]) == ([], None)
    assert summary["verdict"] == "usable: 5 episodes of Point; nothing was replayed"


def test_another_initial_state_is_seen_at_the_start(tmp_path):
    def move(trajectory):
        state = trajectory.init_state | {"qpos": trajectory.init_state["qpos"] - np.float32(0.25)}
        return dataclasses.replace(trajectory, init_state=state)

    record(tmp_path / "x.h5", change=move)
    summary = check(tmp_path / "x.h5")
    assert all(row["drift_at_start"] == pytest.approx(0.25) for row in summary["replay"])
    assert not any(row["replayed_success"] for row in summary["replay"])
    assert summary["success_rate"] == 1  # the file's flags
    assert "replays start up to 0.25 away from the recording" in summary["verdict"]


def test_where_the_file_has_no_flags_the_replay_tells_success(tmp_path):
    def spoil(trajectory):
        keep = trajectory.seed != 4  # seed 4 stands still; the third number counts the steps
        obs = np.where([keep, keep, True], trajectory.obs, trajectory.obs[0])
        actions = trajectory.actions * keep
        return dataclasses.replace(trajectory, success=None, obs=obs, actions=actions)

    record(tmp_path / "x.h5", change=spoil)
    summary = check(tmp_path / "x.h5", replays=1)
    assert (summary["success_rate"], summary["success_from"]) == (0.8, "replay")
    assert len(summary["replay"]) == 5
    assert check(tmp_path / "x.h5", replays=0)["success_rate"] is None


def test_a_replay_that_is_not_the_recording_does_not_tell_its_success(capsys, tmp_path):
    # good demonstrations whose seeds are another simulator's, without flags
    forget = lambda t: dataclasses.replace(  # noqa: E731
        t, success=None, init_state=None, seed=t.seed + 1000, obs=t.obs + np.float32(0.25)
    )
    record(tmp_path / "x.h5", change=forget)
    summary = check(tmp_path / "x.h5")
    assert len(summary["replay"]) == 5
    assert summary["success_rate"] is None
    assert "success unknown" in capsys.readouterr().err
    assert summary["verdict"].endswith(
        "they do not tell whether the recordings did, and the file does not say"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"executed": np.nan}, "the first is in executed actions, step 0, velocity"),
        ({"init_state": np.nan}, "the first is in initial qpos, step 0"),
        ({"rewards": np.inf}, "the first is in rewards, step 0"),
        ({"env_states": -np.inf}, "the first is in env_states, step 0"),
        ({"executed": 3.0}, "executed_actions reach 3, expected"),
    ],
)
def test_numbers_that_no_robot_had_are_refused_wherever_they_stand(tmp_path, change, words):
    ((name, value),) = change.items()

    def spoil(trajectory):
        shapes = {"executed": trajectory.actions, "rewards": trajectory.success}
        like = shapes.get(name, trajectory.env_states)
        made = np.full(like.shape, value, np.float32)
        made = {**trajectory.init_state, "qpos": made[0]} if name == "init_state" else made
        return dataclasses.replace(trajectory, **{name: made})

    record(tmp_path / "x.h5", change=spoil, episodes=1)
    with pytest.raises(DataError, match=words):
        check(tmp_path / "x.h5", replays=0)


def test_episodes_are_chosen_over_the_whole_file(tmp_path):
    record(tmp_path / "x.h5")
    assert [row["episode"] for row in check(tmp_path / "x.h5", 3)["replay"]] == [0, 2, 4]
    assert check(tmp_path / "x.h5", 0)["replay"] == []


def make_trajectory(obs, actions, **more):
    obs, actions = np.array(obs, np.float32), np.array(actions, np.float32)[:, None]
    return Trajectory(obs, actions, np.zeros(len(actions), bool), obs[:, :0], **more)


def test_lengths_ranges_and_constant_columns(tmp_path, point):
    first = make_trajectory([[0, 0.5, 0], [0.1, 0.5, 1]], [1.0])
    second = make_trajectory([[-0.2, 0.5, 0], [0, 0.5, 1], [0, 0.5, 2], [0, 0.5, 3]], [-0.5, 0, 0])
    store.write(tmp_path / "x.h5", point, [first, second])
    summary = check(tmp_path / "x.h5")
    assert summary["steps"] == {"min": 1, "mean": 2, "max": 3}
    assert summary["success_rate"] == 0
    rows = {row["part"]: row for row in [*summary["observation"], *summary["action"]]}
    assert rows["position"]["min"] == np.float32(-0.2)
    assert rows["position"]["max"] == np.float32(0.1)
    assert rows["goal"]["constant"] == ["goal"]
    assert rows["steps"]["constant"] == []
    assert (rows["velocity"]["min"], rows["velocity"]["max"]) == (-0.5, 1)


def test_episodes_longer_than_the_time_limit_replay_too():
    # 12 control steps are the limit; 15 forward, far past the goal
    start = {"qpos": np.zeros(1, np.float32), "qvel": np.zeros(1, np.float32)}
    long = make_trajectory(np.zeros((16, 3)), np.ones(15), init_state=start)
    (played,) = replay(make("Point"), [long])
    np.testing.assert_allclose(played.obs[:, 0], SPEED * np.arange(16), atol=1e-6)
    assert np.flatnonzero(played.success).tolist() == [4]  # |0.5 - 0.5| < 0.05 there only


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"qpos": np.zeros(1)}, "an initial state is not one of Point: KeyError 'qvel'"),
        ({"qpos": np.zeros(2), "qvel": np.zeros(1)}, "an initial state has sizes .*, expected"),
    ],
)
def test_an_initial_state_that_does_not_fit_is_refused(state, message):
    trajectory = make_trajectory(np.zeros((2, 3)), np.zeros(1), init_state=state)
    with pytest.raises(DataError, match=message) as caught:
        replay(make("Point"), [trajectory])
    assert "\n" not in str(caught.value)


def test_a_file_whose_sizes_fit_no_task_asks_for_one(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["traj_0/obs"], file["traj_0/actions"] = jnp.zeros((3, 4)), jnp.zeros((2, 1))
    with pytest.raises(
        DataError,
        match="observations of 4 and actions of 1 numbers, which fit no task; pass --task",
    ):
        check(tmp_path / "x.h5")


def test_the_command_prints_tables_a_verdict_and_one_json_object(capsys, tmp_path):
    path = str(tmp_path / "x.h5")
    assert (
        cli.main(
            [
                "demos",
                "PegInsertionSide",
                "--episodes",
                "4",
                "--out",
                path,
                "--physics",
                "native",
                "--seed",
                "3",
            ]
        )
        == 0
    )
    capsys.readouterr()
    assert cli.main(["data", "check", path, "--replay", "2", "--physics", "native", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    summary = json.loads(captured.out)
    assert (summary["task"], summary["layout"]) == ("PegInsertionSide", "ManiSkill")
    assert (summary["episodes"], summary["success_rate"]) == (4, 1)
    assert [row["episode"] for row in summary["replay"]] == [0, 3]
    assert all(row["max_drift"] <= check_demonstrations.SAME for row in summary["replay"])
    assert captured.err.strip().endswith(summary["verdict"])
    for word in ("box_hole_pose", "gripper", "4 episodes of", "success 100.0%"):
        assert word in captured.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["data"], "the following arguments are required: {check}, FILE"),
        (["data", "check"], "the following arguments are required: FILE"),
        (["data", "chek", "x.h5"], "ACTION got 'chek', expected check"),
        (["data", "check", "x.h5", "y.h5"], "data does not take 'y.h5' here"),
        (["data", "check", "none.h5"], "no demonstrations at none.h5; write some with"),
        (["data", "check", "x.h5", "--replay", "-1"], "--replay got '-1', expected integer >= 0"),
        (["data", "check", "x.h5", "--task", "Piont"], "unknown task 'Piont'"),
    ],
)
def test_mistakes_end_in_one_line(capsys, monkeypatch, tmp_path, argv, message):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "x.h5", episodes=1)
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
