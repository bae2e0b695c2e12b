"""DAPG policies as experts: read without running anything in them, and they act as published."""

import dataclasses
import json
import os
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.commands import cli
from pdjax_envs import registry
from pdjax_envs.adroit import dapg, rewards
from pdjax_envs.demonstrations import pickles
from pdjax_envs.demonstrations import record as demonstrations
from pdjax_envs.demonstrations.trajectory import DataError
from pdjax_envs.reading import InputError
from tests import mjrl_pickle
from tests.probe import make_point_env

PUBLISHED = Path(__file__).parents[4] / "shared" / "data" / "dapg"
TASKS = {
    "door": "AdroitDoor",
    "hammer": "AdroitHammer",
    "pen": "AdroitPen",
    "relocate": "AdroitRelocate",
}
POINT = make_point_env().task

published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="published DAPG files are not in ../shared/data/dapg"
)


@pytest.fixture
def weights():
    return mjrl_pickle.make_weights(obs_dim=3, act_dim=1)


@pytest.fixture
def files(tmp_path, weights):
    """The same policy as a pickle and as an .npz."""
    (tmp_path / "point.pickle").write_bytes(mjrl_pickle.dumps(weights))
    np.savez(tmp_path / "point.npz", **weights)
    return tmp_path / "point.pickle", tmp_path / "point.npz"


def actions_of(expert, obs):
    act = lambda row: expert.act((), row, jax.random.key(0))[0]  # noqa: E731
    return np.asarray(jax.vmap(act)(jnp.asarray(obs, jnp.float32)))


def test_a_pickle_and_an_npz_of_the_same_weights_act_the_same_bit_for_bit(files):
    obs = np.random.default_rng(1).normal(size=(50, 3))
    first, second = (actions_of(dapg.make_expert(path, POINT), obs) for path in files)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_any_protocol_hold_the_same_weights(tmp_path, weights, protocol):
    path = tmp_path / "point.pickle"
    path.write_bytes(mjrl_pickle.dumps(weights, protocol=protocol))
    policy = dapg.read(path)
    np.testing.assert_array_equal(policy.layers[0][0], weights["w0"])
    np.testing.assert_array_equal(policy.log_std, weights["log_std"].astype(np.float32))


def test_another_function_between_the_layers_is_refused(tmp_path, weights):
    (tmp_path / "x.pickle").write_bytes(mjrl_pickle.dumps(weights, activation="relu"))
    refuse(tmp_path / "x.pickle", "its layers are joined by relu, expected tanh")


def test_actions_follow_the_published_formula(files, weights):
    obs = np.random.default_rng(2).normal(size=(50, 3))
    x = (obs - weights["in_shift"]) / (weights["in_scale"] + 1e-8)
    for layer in (0, 1):
        x = np.tanh(x @ weights[f"w{layer}"].T + weights[f"b{layer}"])
    mean = weights["out_shift"] + weights["out_scale"] * (x @ weights["w2"].T + weights["b2"])
    assert (np.abs(mean) < 1).any()
    found = actions_of(dapg.make_expert(files[0], POINT), obs)
    np.testing.assert_allclose(found, np.clip(mean, -1, 1), atol=1e-5)


def test_the_noisy_expert_samples_with_the_policys_own_deviation(files, weights, key):
    weights["log_std"][:] = np.log(0.05)
    weights["w2"][:], weights["b2"][:] = 0, 0  # mean: out_shift, whatever is observed
    weights["out_shift"][:] = 0.25
    np.savez(files[1], **weights)
    expert = dapg.make_expert(files[1], POINT, noisy=True)
    act = lambda key: expert.act((), jnp.zeros(3), key)[0]  # noqa: E731
    drawn = np.asarray(jax.vmap(act)(jax.random.split(key, 4000)))
    assert abs(drawn.mean() - 0.25) < 0.004  # 5 standard errors: 5 * 0.05 / sqrt(4000)
    assert abs(drawn.std() - 0.05) < 0.004


def test_a_disturbance_has_the_size_asked_for_and_stays_in_range(files, key):
    expert = dapg.make_expert(files[0], POINT)
    disturb = lambda key: expert.disturb(jnp.full(1, 0.9), jnp.zeros(3), key, 0.5)  # noqa: E731
    drawn = np.asarray(jax.vmap(disturb)(jax.random.split(key, 1000)))
    assert drawn.max() == 1
    assert abs(np.median(drawn) - 0.9) < 0.1
    assert drawn.std() > 0.2


def test_an_expert_may_be_passed_in_place_of_the_tasks_own(files, weights):
    weights["w2"][:], weights["b2"][:], weights["out_shift"][:] = 0, 0, 1.0  # full speed ahead
    np.savez(files[1], **weights)
    env = make_point_env(episode_steps=12)
    expert = dapg.make_expert(files[1], env.task)
    found, rate = demonstrations.record(env, 3, seed=5, expert=expert)
    assert rate == 1
    assert [trajectory.seed for trajectory in found] == [5, 6, 7]
    for trajectory in found:
        np.testing.assert_array_equal(trajectory.actions, 1)
        assert trajectory.executed is None  # nothing was disturbed
        assert trajectory.init_state is not None
        np.testing.assert_array_equal(trajectory.init_state["qpos"], trajectory.obs[0, :1])


# Files that are wrong, or worse.


class Malicious:
    """A pickle of it runs a command when it is loaded as pickles usually are."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def refuse(path, message):
    with pytest.raises(InputError, match=message) as caught:
        dapg.make_expert(path, POINT)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    path, mark = tmp_path / "policy.pickle", tmp_path / "mark"
    path.write_bytes(pickle.dumps({"model": Malicious(mark)}))
    refuse(
        path, r"is a pickle that names (posix|nt)\.system, which no DAPG policy needs; none of it"
    )
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # the attack itself works
    assert mark.exists()


def test_a_tensor_that_hides_a_malicious_pickle_is_refused_and_not_run(tmp_path, weights):
    path, mark = tmp_path / "policy.pickle", tmp_path / "mark"
    hidden = pickle.dumps(Malicious(mark))
    path.write_bytes(mjrl_pickle.dumps(weights, storage_of_w0=hidden))
    refuse(path, r"names (posix|nt)\.system")
    assert not mark.exists()


def test_names_on_the_list_are_not_called_either(tmp_path):
    path = tmp_path / "policy.pickle"
    path.write_bytes(b"cbuiltins\ngetattr\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00uppertR.")
    assert pickle.loads(path.read_bytes())() == "A"
    record = pickles.load(path, frozenset({"builtins.getattr"}))
    assert (record.named, record.args, record.state) == ("builtins.getattr", ("a", "upper"), None)
    refuse(path, "is not a readable DAPG policy")


def test_policies_of_other_sizes_are_refused(files):
    task = dataclasses.replace(POINT, action=(("velocity", 2),))
    with pytest.raises(
        DataError,
        match="takes 3 observed numbers and gives 1 actions, but Point"
        " has 3 and 2; pass the policy of that task",
    ):
        dapg.make_expert(files[0], task)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", [0, 1])
def test_a_policy_cut_short_is_refused(files, kind, share):
    content = files[kind].read_bytes()
    files[kind].write_bytes(content[: int(share * len(content))])
    refuse(files[kind], "is not a readable DAPG policy .*; download it again")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("w1", np.zeros((5, 4))),
        ("b2", np.zeros(2)),
        ("in_scale", np.zeros(4)),
        ("log_std", np.float32(0)),
        ("w0", np.full((5, 3), np.nan)),
        ("in_shift", np.array([{}, None], object)),
        ("b1", None),
    ],
)
def test_weights_that_do_not_fit_are_refused(files, weights, name, value):
    weights[name] = value
    np.savez(files[1], **{n: a for n, a in weights.items() if a is not None})
    refuse(files[1], "is not a readable DAPG policy|cannot read policy .* Object arrays")


@pytest.mark.parametrize("way", ["encrypted", "header", "claims", "long"])
def test_arrays_that_cannot_be_read_are_refused(tmp_path, files, way):
    content = bytearray(files[1].read_bytes())
    if way == "encrypted":
        for start in (content.index(b"PK\3\4") + 6, content.index(b"PK\1\2") + 8):
            content[start] |= 1
    elif way == "header":
        content = content.replace(b"'fortran_order': False", b"'fortran_order': Fals(")
    elif way == "claims":
        content = content.replace(b"(5, 3), }   ", b"(5, 3000), }")
    path = files[1].with_name("x" * 300 if way == "long" else "x.npz")
    if way != "long":
        path.write_bytes(content)
    refuse_in_one_line(path)


def refuse_in_one_line(path):
    with pytest.raises(InputError, match=r"no policy at|cannot read policy") as caught:
        dapg.make_expert(path, POINT)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 320


def test_other_files_are_refused(tmp_path):
    refuse(tmp_path / "none.pickle", "no policy at")
    (tmp_path / "text.pickle").write_text("hello\n")
    refuse(tmp_path / "text.pickle", "is not a readable DAPG policy")
    (tmp_path / "list.pickle").write_bytes(pickle.dumps([1, 2]))
    refuse(tmp_path / "list.pickle", "is not a readable DAPG policy")


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        ("dapg", "--expert got 'dapg', expected dapg:FILE or dapg-noisy:FILE"),
        ("dagp:x.pickle", "--expert got 'dagp:x.pickle', expected dapg:FILE"),
        ("dapg:none.pickle", "no policy at none.pickle"),
        ("dapg:point.pickle", "takes 3 observed numbers and gives 1 actions, but PegInsertionSide"),
        ("dapg:bad.pickle", "is a pickle that names posix.system, which no DAPG policy needs"),
    ],
)
def test_experts_that_cannot_be_used_end_in_one_line(capsys, monkeypatch, files, expert, message):
    folder = files[0].parent
    (folder / "bad.pickle").write_bytes(pickle.dumps(Malicious(folder / "mark")))
    monkeypatch.chdir(folder)
    before = sorted(folder.iterdir())
    assert cli.main(["demos", "PegInsertionSide", "--out", "x.h5", "--expert", expert]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert sorted(folder.iterdir()) == before


# The published files.


@published
@pytest.mark.parametrize("name", TASKS)
def test_published_pickles_equal_their_arrays(name):
    task = registry.make_task(TASKS[name])
    paths = [PUBLISHED / f"{name}-v0.pickle", PUBLISHED / f"dapg_{name}.npz"]
    first, second = (dapg.read(path) for path in paths)
    assert len(first.layers) == 3
    assert jax.tree.all(jax.tree.map(np.array_equal, first, second))
    obs = np.random.default_rng(0).normal(size=(20, task.obs_dim))
    first, second = (actions_of(dapg.make_expert(path, task), obs) for path in paths)
    np.testing.assert_array_equal(first, second)


@published
def test_the_published_door_policy_records_a_set_that_replays_exactly(capsys, tmp_path):
    path = str(tmp_path / "door.h5")
    expert = f"dapg:{PUBLISHED / 'door-v0.pickle'}"
    assert (
        cli.main(
            [
                "demos",
                "AdroitDoor",
                "--expert",
                expert,
                "--out",
                path,
                "--episodes",
                "12",
                "--physics",
                "native",
                "--json",
            ]
        )
        == 0
    )
    recorded = json.loads(capsys.readouterr().out)
    assert recorded["expert_success"] >= 0.9  # published figure: 1.00 of 50 episodes
    assert recorded["expert"] == expert
    assert cli.main(["data", "check", path, "--physics", "native", "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert (checked["task"], checked["episodes"]) == ("AdroitDoor", 12)
    assert checked["success_rate"] == 1
    assert len(checked["replay"]) == 10
    assert max(row["max_drift"] for row in checked["replay"]) == 0


@published
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_success_told_from_rewards_is_the_tasks_own(name, kind):
    env = registry.make(TASKS[name], "native", reward=kind, terminate_on_success=False)
    expert = dapg.make_expert(PUBLISHED / f"{name}-v0.pickle", env.task)

    def play(model, key):
        def step(carry, _):
            state, obs = carry
            action, _ = expert.act((), obs, key)  # the key is not used
            state, out = env.step(model, state, action)
            return (state, out.obs), (out.reward, out.success)

        return jax.lax.scan(step, env.reset(model, key), length=80)[1]

    keys = jax.random.split(jax.random.key(1), 4)
    with jax.debug_key_reuse(False):
        reward, success = jax.jit(jax.vmap(play, (None, 0)))(env.model, keys)
    assert 0 < success.mean() < 1
    for row, flags in zip(np.asarray(reward), np.asarray(success)):
        np.testing.assert_array_equal(rewards.success(TASKS[name], row), flags)


def test_success_is_told_from_rewards_of_adroit_only():
    dense = np.array([-0.3, 1.9, 9.98, 19.97, 9.9], np.float32)  # as published for Door
    found = rewards.success("AdroitDoor", dense)
    assert found is not None and found.tolist() == [False, False, False, True, False]
    sparse = np.array([-0.1, 10.0, -0.1], np.float32)
    found = rewards.success("AdroitDoor", sparse)
    assert found is not None and found.tolist() == [False, True, False]
    assert rewards.success("PegInsertionSide", dense) is None
