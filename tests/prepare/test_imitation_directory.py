"""Training with evaluation on the way: the best is kept, and a resumed one equals one in a go."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pdjax.base_policies import imitation, settings
from pdjax.config.options import ConfigError
from pdjax.output import plots, records
from pdjax.output.checkpoint import CheckpointError, TryAgainError
from pdjax.prepare import imitate, imitation_directory
from pdjax.prepare.imitation_directory import Kept
from pdjax_envs.demonstrations.trajectory import Trajectory
from tests.output.test_checkpoint import contents, damage
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
    return imitate.train_base_policy(Path("none.h5"), "Point", out, config, 0, resume=resume)


@pytest.mark.parametrize(("failed", "said"), [(3, "3 of 8 demonstrations do not succeed"), (0, "")])
def test_demonstrations_that_failed_are_told(tmp_path, capsys, monkeypatch, point, failed, said):
    for index, trajectory in enumerate(point):
        flags = np.arange(8) == (8 if index < failed else 5)
        point[index] = dataclasses.replace(trajectory, success=flags)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(imitate, "_train", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "out", config_of("mlp", eval_every=0))
    err = capsys.readouterr().err
    assert said in err if said else "demonstrations" not in err


def interrupt_after(monkeypatch, blocks):
    """As Ctrl-C between two progress lines."""
    make = imitation.make_trainer

    def make_trainer(episodes, config):
        trainer, left = make(episodes, config), [blocks]

        def advance(state, steps):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return trainer.advance(state, steps)

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
    assert sorted(path.name for path in kept) == ["10", "20"]
    assert not (tmp_path / "parts/policy.json").exists()
    train(tmp_path / "parts", config, resume=True)

    assert_same(tmp_path / "whole", tmp_path / "parts")
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {
        "policy.json",
        "imitation.jsonl",
        "params",
        "last",
        "learning_curve.png",
        "result.json",
    }


def assert_same(whole, parts):
    """Two trainings ended with the same records and, bit for bit, the same policies."""
    for name in ("policy.json", "imitation.jsonl"):
        assert (whole / name).read_text() == (parts / name).read_text()
    for folder in ("params", "last"):
        jax.tree.map(np.testing.assert_array_equal, read(whole, folder), read(parts, folder))


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A training that was stopped after 26 steps, evaluated and saved at 10 and 20."""
    with monkeypatch.context() as patch:
        interrupt_after(patch, 13)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", config_of("mlp"))
    return tmp_path / "parts"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_kept_aside_even_when_the_policy_is_finished(
    broken, tmp_path, capsys
):
    damage(broken / "training/checkpoints/20")
    before = contents(broken / "training/checkpoints/20")
    train(broken, config_of("mlp"), resume=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "kept as 20.unreadable; going on from step 10" in said
    train(tmp_path / "whole", config_of("mlp"))
    assert_same(tmp_path / "whole", broken)
    assert contents(broken / "training/checkpoints/20.unreadable") == before
    left = [str(path.relative_to(broken)) for path in (broken / "training").rglob("*")]
    assert min(left, key=len) == "training/checkpoints" and "training/config.json" not in left
    assert train(broken, config_of("mlp"), resume=True)["steps"] == 40  # finished


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_no_checkpoint_can_be_read_nothing_changes(broken):
    for step in (10, 20):
        damage(broken / "training/checkpoints" / str(step))
    before = contents(broken)
    with pytest.raises(
        CheckpointError, match=r"none of the checkpoints in .* can be read"
    ) as caught:
        train(broken, config_of("mlp"), resume=True)
    assert "\n" not in str(caught.value) and contents(broken) == before


def test_a_training_of_other_shapes_is_refused_and_left_alone(broken, monkeypatch):
    before = contents(broken)
    with monkeypatch.context() as patch:  # as if a newer version kept more
        wider = lambda *values: Kept(*values)._replace(success=np.zeros(2, np.float32))  # noqa: E731
        patch.setattr(imitation_directory, "Kept", wider)
        with pytest.raises(
            CheckpointError, match=r"success is float32\(\), expected float32\(2,\)"
        ):
            train(broken, config_of("mlp"), resume=True)
    assert contents(broken) == before


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_without_memory_or_disk_a_training_waits_for_better_times(
    broken, tmp_path, monkeypatch, error
):
    def fail(self, *args, **kwargs):
        raise error

    before = contents(broken)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "restore", fail)
        with pytest.raises(TryAgainError, match="nothing was changed, so try again"):
            train(broken, config_of("mlp"), resume=True)
    assert contents(broken) == before
    train(broken, config_of("mlp"), resume=True)
    train(tmp_path / "whole", config_of("mlp"))
    assert_same(tmp_path / "whole", broken)


def test_odd_numbers_of_steps_are_kept_exactly(tmp_path, monkeypatch, caplog):
    odd = config_of("mlp", steps=101, eval_every=17)  # blocks of 5 steps
    with jax.log_compiles(), caplog.at_level("WARNING", logger="jax"):
        assert train(tmp_path / "whole", odd)["steps"] == 101
    compiled = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
    assert len([text for text in compiled if "_advance" in text]) == 2
    curve = records.read_records(tmp_path / "whole/imitation.jsonl")
    evaluated = [r["step"] for r in curve if "success_once" in r]
    assert evaluated == [17, 34, 51, 68, 85, 101]
    steps = [record["step"] for record in curve]
    assert steps[:5] == [5, 10, 15, 17, 22] and steps[-2:] == [100, 101]
    # Resumed in the middle of a block, it is still the same.
    with monkeypatch.context() as patch:
        interrupt_after(patch, 10)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", odd)
    kept = (tmp_path / "parts/training/checkpoints").iterdir()
    assert sorted(path.name for path in kept) == ["17", "34"]
    train(tmp_path / "parts", odd, resume=True)
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_a_part_of_a_block_takes_as_many_steps(point):
    episodes = [(t.obs, t.actions) for t in point]
    at_once, by_parts = (
        imitation.make_trainer(episodes, config_of("mlp", steps=101)) for _ in range(2)
    )
    assert at_once.block == 5
    state, losses = at_once.advance(at_once.init())
    apart, found = by_parts.init(), []
    for steps in (1, 3, 1):
        apart, loss = by_parts.advance(apart, steps)
        found.append(loss["train_loss"] * steps)
    assert int(apart.step) == 5 == int(state.step)
    np.testing.assert_array_equal(jax.random.key_data(state.key), jax.random.key_data(apart.key))
    np.testing.assert_allclose(sum(found) / 5, losses["train_loss"], rtol=1e-5)
    for mine, theirs in zip(*(jax.tree.leaves(s.params) for s in (apart, state)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
    ends = []
    imitation.train(episodes, config_of("mlp", steps=101), lambda step, _: ends.append(step))
    assert ends[-2:] == [100, 101]


def read(directory, folder):
    policy, _ = imitation.load(directory)
    return imitation_directory.checkpoint.restore(directory / folder, policy.params)


def play_scores(monkeypatch, scores):
    """Makes evaluations give these scores; returns the parameters that they were of."""
    left, seen = iter(scores), []

    def play(seed, episodes, *, base_params):
        assert (episodes, seed) == (4, imitate.INTERIM_SEED)
        seen.append(jax.device_get(base_params))
        score = next(left)
        return SimpleNamespace(success_once=np.array([score]), score=score)

    monkeypatch.setattr(imitate, "make_play", lambda playing: play)
    return seen


def test_the_best_by_success_is_kept_and_of_equals_the_longest_trained(tmp_path, monkeypatch):
    seen = play_scores(monkeypatch, [0.5, 0.75, 0.75, 0.25])
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
    with pytest.raises(ConfigError, match="the demonstrations are not the same"):
        train(out, config, resume=True)
    point.append(kept)
    result = train(out, config, resume=True)
    assert result["steps"] == 40
    monkeypatch.setattr(imitate, "_train", None)  # must not train again
    assert train(out, config, resume=True) == result
    with pytest.raises(ConfigError, match="batch_size was 16 and is 8"):
        train(out, config_of("mlp", batch_size=8), resume=True)


def test_training_stops_where_it_is_good_enough(tmp_path, monkeypatch):
    play_scores(monkeypatch, [0.25, 0.5])
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
