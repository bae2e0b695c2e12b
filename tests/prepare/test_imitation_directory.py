"""Training with evaluation on the way: the best is kept, and a resumed one equals one in a go."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pdjax.base_policies import imitation, settings
from pdjax.config.schema import ConfigError
from pdjax.output import plots, records
from pdjax.prepare import imitate, imitation_directory
from pdjax_envs.demonstrations.trajectory import Trajectory
from tests.probe import make_point_task, registered

SHAPES = {
    "mlp": {"mlp": {"hidden": [8], "act_horizon": 2}},
    "bet": {
        "bet": {"obs_horizon": 2, "bins": 2, "layers": 1, "heads": 1, "width": 8, "readout": 8}
    },
}


def config_of(kind, **changes):
    training = {"steps": 40, "batch_size": 16, "eval_every": 10, "interim_episodes": 4}
    return settings.recipe(kind, SHAPES[kind] | training | changes)


@pytest.fixture(autouse=True)
def point(monkeypatch):
    """The probe's point in place of a task in a simulator, with demonstrations made up."""
    rng = np.random.default_rng(0)
    obs = [rng.uniform(0, 1, (9, 3)).astype(np.float32) for _ in range(8)]
    nothing = np.zeros((9, 0), np.float32)
    found = [Trajectory(o, 0.5 - o[:-1, :1], None, nothing) for o in obs]
    monkeypatch.setattr(imitate.store, "read", lambda demos, task: found)
    with registered(make_point_task()):
        yield found


def train(out, config, resume=False):
    return imitate.train_base_policy(None, "Point", out, config, 0, resume=resume)


def interrupt_after(monkeypatch, blocks):
    """As Ctrl-C between two progress lines."""
    make = imitation.make_trainer

    def make_trainer(episodes, config):
        trainer, left = make(episodes, config), [blocks]

        def advance(state):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return trainer.advance(state)

        return trainer._replace(advance=advance)

    monkeypatch.setattr(imitation, "make_trainer", make_trainer)


def test_a_resumed_training_equals_one_in_a_go_bit_for_bit(tmp_path, monkeypatch):
    config = config_of("bet")  # it has dropout, and bins that are not trained
    train(tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 13)  # blocks of 2 steps: evaluated at 10 and 20, stopped after 26
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", config)
    kept = (tmp_path / "parts/training/checkpoints").iterdir()
    assert [path.name for path in kept] == ["20"]
    assert not (tmp_path / "parts/policy.json").exists()
    train(tmp_path / "parts", config, resume=True)

    names = ("policy.json", "imitation.jsonl")
    for name in names:
        assert (tmp_path / "whole" / name).read_text() == (tmp_path / "parts" / name).read_text()
    for folder in ("params", "last"):
        whole, parts = (read(tmp_path / run, folder) for run in ("whole", "parts"))
        jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {
        *names,
        "params",
        "last",
        "learning_curve.png",
        "result.json",
    }


def read(directory, folder):
    policy, _ = imitation.load(directory)
    return imitation_directory.checkpoint.restore(directory / folder, policy.params)


def test_the_best_by_success_is_kept_and_of_equals_the_longest_trained(tmp_path, monkeypatch):
    scores = iter([0.5, 0.75, 0.75, 0.25])
    seen = []

    def play(seed, episodes, base_params):
        assert (episodes, seed) == (4, imitate.INTERIM_SEED)
        seen.append(jax.device_get(base_params))
        return SimpleNamespace(success_once=np.array([next(scores)]))

    monkeypatch.setattr(imitate, "make_play", lambda playing: play)
    train(tmp_path / "run", config_of("mlp"))
    jax.tree.map(np.testing.assert_array_equal, read(tmp_path / "run", "params"), seen[2])
    jax.tree.map(np.testing.assert_array_equal, read(tmp_path / "run", "last"), seen[3])
    lines = (tmp_path / "run/imitation.jsonl").read_text().splitlines()
    curve = [json.loads(line) for line in lines]
    assert [r["step"] for r in curve] == list(range(2, 41, 2))
    found = [(r["step"], r["success_once"]) for r in curve if "success_once" in r]
    assert found == [(10, 0.5), (20, 0.75), (30, 0.75), (40, 0.25)]


def test_without_evaluation_the_last_is_kept_as_by_plain_training(tmp_path, point):
    config = config_of("mlp", eval_every=0)
    train(tmp_path / "run", config)
    plain = imitation.train([(t.obs, t.actions) for t in point], config)
    loaded, task = imitation.load(tmp_path / "run")
    assert task == "Point"
    jax.tree.map(np.testing.assert_array_equal, plain.params, loaded.params)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "params",
        "policy.json",
        "imitation.jsonl",
        "learning_curve.png",
        "result.json",
    }


def test_what_cannot_be_resumed_is_refused_and_left_alone(tmp_path, monkeypatch, point):
    config, out = config_of("mlp"), tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 6)
        with pytest.raises(KeyboardInterrupt):
            train(out, config, resume=True)  # begins
    with pytest.raises(ConfigError, match="is not empty"):
        train(out, config)
    with pytest.raises(ConfigError, match=r"cannot resume .*: mlp.hidden was \[8\] and is \[9\]"):
        train(out, config_of("mlp", mlp={"hidden": [9], "act_horizon": 2}), resume=True)
    with pytest.raises(ConfigError, match="batch_size was 16 and is 8"):
        train(out, config_of("mlp", batch_size=8), resume=True)
    kept = point.pop()
    with pytest.raises(ConfigError, match="the demonstrations are others"):
        train(out, config, resume=True)
    point.append(kept)
    result = train(out, config, resume=True)
    assert result["steps"] == 40
    monkeypatch.setattr(imitate, "_train", None)  # must not train again
    assert train(out, config, resume=True) == result
    with pytest.raises(ConfigError, match="batch_size was 16 and is 8"):
        train(out, config_of("mlp", batch_size=8), resume=True)


def test_training_stops_where_it_is_good_enough(tmp_path, monkeypatch):
    scores = iter([0.25, 0.5])

    def play_score(seed, episodes, base_params):
        del seed, episodes, base_params
        return SimpleNamespace(success_once=np.array([next(scores)]))

    monkeypatch.setattr(imitate, "make_play", lambda playing: play_score)
    result = train(tmp_path / "run", config_of("mlp", stop_at=0.5))
    assert result["steps"] == 20
    with pytest.raises(ConfigError, match=r"stop_at=0.5 needs evaluations"):
        config_of("mlp", stop_at=0.5, eval_every=0)


def test_a_curve_line_cut_short_is_dropped(tmp_path):
    path = tmp_path / "imitation.jsonl"
    records.drop_records(path, "step", 0)
    records.add_record(path, {"step": 2})
    records.add_record(path, {"step": 4})
    path.write_text(path.read_text() + '{"st')
    records.drop_records(path, "step", 2)
    records.add_record(path, {"step": 4, "again": True})
    assert path.read_text().splitlines() == ['{"step": 2}', '{"step": 4, "again": true}']


def test_losses_below_nothing_are_drawn_too(tmp_path):
    record = {"step": 1, "train_loss": -1.0, "validation_loss": 2.0, "success_once": 0.5}
    (tmp_path / "imitation.jsonl").write_text(json.dumps(record) + "\n")
    assert plots.plot_imitation(tmp_path, "Point").stat().st_size > 5_000
