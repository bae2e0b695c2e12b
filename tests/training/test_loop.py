"""The loop around the epochs: a run that is stopped loses nothing, and the guard acts."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pdjax.base_policies.foreign import exported
from pdjax.commands import cli
from pdjax.learner.sac import make_hyperparams
from pdjax.output.checkpoint import CheckpointError, Checkpoints, TryAgainError
from pdjax.training import loop
from pdjax.training.run_in_progress import Member, Steps
from pdjax.training.stopping import Stopped
from tests.output.test_checkpoint import contents, damage
from tests.probe import make_constant_policy, make_point_task, registered
from tests.profile.test_profile import TINY
from tests.training.test_epoch import build, small_config

EPOCH, TOTAL = 64, 640
HERE = Path(__file__).parent


def run_config(total=TOTAL, interim_episodes=8, **sections):
    config = small_config(total_decisions=total)
    changes = {
        "eval": {"interim_every": 2 * EPOCH, "interim_episodes": interim_episodes},
        "checkpoint": {"every": 2 * EPOCH},
    } | sections
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in changes.items()
        },
    )


def make_steps(*of_each, velocity=0.2):
    """The functions of a small real run, or of several in one program: a point and its goal."""
    rollout, sac, frozen, trainer, _ = build(of_each[0], velocity)
    several = len(of_each) > 1
    train_epoch = trainer.train_members if several else trainer.train_epoch
    init, epoch = jax.jit(trainer.init), jax.jit(train_epoch, donate_argnums=1)

    def start(member):
        own = of_each[member]
        return init(frozen, make_hyperparams(own, 2), jax.random.key(own.seed))

    def play(seed, episodes, actor, residual_scale=0.0):
        choose = partial(sac.act_deterministic, actor)
        return rollout.evaluate(frozen, choose, residual_scale, jax.random.key(seed), episodes)

    one = play_all = jax.jit(play, static_argnums=1)
    if several:

        def play_all(seed, episodes, *members):
            return jax.vmap(partial(one, seed, episodes))(*members)

    like = jax.eval_shape(partial(start, 0))
    return Steps(start, like, lambda state: epoch(frozen, state), one, play_all)


def refine(config, steps, directory):
    """A single run."""
    (progress,) = loop.refine([Member(config, Path(directory))], steps)
    return progress


def same(first, second):
    def words(leaf):
        leaf = (
            jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        )
        return np.asarray(leaf).tobytes()

    return jax.tree.map(words, first) == jax.tree.map(words, second)


def records(directory, name="metrics.jsonl"):
    path = directory / name
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "wall_s"} for line in lines]


@pytest.fixture(scope="module")
def config():
    return run_config()


@pytest.fixture(scope="module")
def steps(config):
    return make_steps(config)


@pytest.fixture(scope="module")
def whole(config, steps, tmp_path_factory):
    """A run that nothing interrupts: its last progress and its records."""
    directory = tmp_path_factory.mktemp("whole")
    progress = refine(config, steps, directory)
    assert progress.state.sac.gradient_steps > 0
    return progress, records(directory)


def failing(steps, epochs, error):
    """`steps` whose training breaks down after some epochs."""
    left = [epochs]

    def train_epoch(state):
        if not left[0]:
            raise error
        left[0] -= 1
        return steps.train_epoch(state)

    return steps._replace(train_epoch=train_epoch)


@pytest.mark.parametrize("epochs", [0, 1, 2, 5, 9])
def test_a_run_that_broke_down_ends_as_one_that_did_not(config, steps, whole, tmp_path, epochs):
    with pytest.raises(RuntimeError):
        refine(config, failing(steps, epochs, RuntimeError()), tmp_path)
    resumed = refine(config, steps, tmp_path)
    assert same(resumed, whole[0])
    assert records(tmp_path) == whole[1]


@pytest.fixture
def broken(config, steps, tmp_path):
    """The directory of a run that broke down after 6 epochs, saved after 4 and after 6."""
    with pytest.raises(RuntimeError):
        refine(config, failing(steps, 6, RuntimeError()), tmp_path / "run")
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {str(4 * EPOCH), str(6 * EPOCH)}
    return tmp_path / "run"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_passed_over_and_kept(config, steps, whole, broken, capsys):
    newest = broken / "checkpoints" / str(6 * EPOCH)
    damage(newest)
    before = contents(newest)
    resumed = refine(config, steps, broken)
    said = " ".join(capsys.readouterr().err.split())
    assert f"kept as {6 * EPOCH}.unreadable; going on from {4 * EPOCH} decisions" in said
    assert same(resumed, whole[0]) and records(broken) == whole[1]
    assert contents(newest.with_name(f"{6 * EPOCH}.unreadable")) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_no_checkpoint_can_be_read_nothing_changes(config, steps, broken):
    for path in (broken / "checkpoints").iterdir():
        damage(path)
    before = contents(broken)
    with pytest.raises(CheckpointError, match=r"none of the checkpoints in .* can be read"):
        refine(config, steps, broken)
    assert contents(broken) == before


def test_a_run_of_other_shapes_is_refused_and_left_alone(config, steps, broken):
    before = contents(broken)
    newer = steps.like._replace(decision_steps=jax.ShapeDtypeStruct((2,), jnp.int32))
    with pytest.raises(CheckpointError, match=r"decision_steps is int32\(\), expected int32\(2,\)"):
        refine(config, steps._replace(like=newer), broken)
    assert contents(broken) == before


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_without_memory_or_disk_a_run_waits_for_better_times(
    config, steps, whole, broken, monkeypatch, error
):
    def fail(self, *args, **kwargs):
        raise error

    before = contents(broken)
    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "restore", fail)
        with pytest.raises(TryAgainError, match="nothing was changed, so try again"):
            refine(config, steps, broken)
    assert contents(broken) == before
    assert same(refine(config, steps, broken), whole[0]) and records(broken) == whole[1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_command_refuses_in_one_line_and_changes_no_byte(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exported.export_policy(make_constant_policy(0.2), Path("base"), "Point")
    tiny = [*TINY, "train.total_decisions=128", "train.learning_starts=64"]
    argv = ["train", "peg_fast", "--out", "run", "--set", *tiny]
    with registered(make_point_task()):
        assert cli.main(argv) == 0
        Path("run/result.json").unlink()  # as if killed while the result was evaluated
        for path in Path("run/checkpoints").iterdir():
            damage(path)
        Path("run/audit.jsonl").write_text('{"decision_steps": 64}\n')  # as the guard does
        before = contents(Path("run"))
        assert {"starts.jsonl", "metrics.jsonl", "audit.jsonl"} <= before.keys()
        capsys.readouterr()
        assert cli.main([*argv[:4], "--resume", *argv[4:]]) == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("pdjax:")]
    assert "none of the checkpoints in" in line
    assert contents(Path("run")) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(config, steps, whole, tmp_path, number):
    def train_epoch(state):
        os.kill(os.getpid(), number)
        return steps.train_epoch(state)

    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"{number.name} after {EPOCH} of {TOTAL}"):
        refine(config, steps._replace(train_epoch=train_epoch), tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(EPOCH)]
    assert signal.getsignal(number) == before
    assert same(refine(config, steps, tmp_path), whole[0])


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(
    config, steps, whole, tmp_path, monkeypatch, capsys
):
    def full(self, step, tree, wait=False):
        return "No space left on device"

    monkeypatch.setattr(Checkpoints, "save", full)
    assert same(refine(config, steps, tmp_path), whole[0])
    assert "No space left on device" in capsys.readouterr().err


def test_the_deployed_actor_is_no_residual_where_none_beat_the_base(tmp_path):
    # At velocity 1 the goal is always reached; the guard has nothing to refine.
    config = run_config()
    progress = refine(config, make_steps(config, velocity=1.0), tmp_path)
    assert progress.stopped and progress.state.decision_steps == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(progress.best_actor))
    (record,) = records(tmp_path, "audit.jsonl")
    assert (record["rule"], record["done"]) == ("perfect_base", "stop")


def test_a_hopeless_base_is_given_up(tmp_path):
    # It moves away from the goal, and the residual is too small to turn it round.
    config = run_config(decorator={"residual_scale": 0.01}, guard={"hopeless_decisions": 200})
    progress = refine(config, make_steps(config, velocity=-1.0), tmp_path)
    assert progress.stopped and progress.state.decision_steps == 4 * EPOCH  # at an evaluation
    assert records(tmp_path, "audit.jsonl")[-1]["rule"] == "hopeless_base"


def test_a_number_that_is_not_finite_rolls_back(config, steps, tmp_path):
    broken = [3]

    def train_epoch(state):
        state, metrics = steps.train_epoch(state)
        broken[0] -= 1
        if broken[0]:
            return state, metrics
        poison = jax.tree.map(lambda leaf: leaf * jnp.nan, state.sac.actor)
        state = state._replace(sac=state.sac._replace(actor=poison))
        return state, metrics | {"actor_loss": jnp.nan}

    progress = refine(config, steps._replace(train_epoch=train_epoch), tmp_path)
    audit = records(tmp_path, "audit.jsonl")
    assert [
        (r["rule"], r["done"], r["decision_steps"]) for r in audit if r["rule"] == "non_finite"
    ] == [("non_finite", "roll_back", 3 * EPOCH)]
    assert audit[0]["numbers"] == {"actor_loss": None}  # JSON has no NaN
    assert progress.rollbacks == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(progress.state.sac.actor))
    np.testing.assert_allclose(progress.state.hyperparams.actor_lr, 0.5 * config.sac.actor_lr)
    assert progress.state.decision_steps == TOTAL  # the budget counts what was spent


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("error", [None, OSError(5, "Input/output error")])
def test_a_best_state_that_cannot_be_read_ends_the_run_and_stays(
    config, steps, tmp_path, monkeypatch, error
):
    left, before = [3], {}

    def fail(self, *args, **kwargs):
        raise error

    def train_epoch(state):
        state, metrics = steps.train_epoch(state)
        left[0] -= 1
        if left[0]:
            return state, metrics
        deadline = time.monotonic() + 60  # it is written in the background
        while not (tmp_path / "best" / str(2 * EPOCH)).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        if error is None:
            damage(tmp_path / "best" / str(2 * EPOCH))
        else:
            monkeypatch.setattr(ocp.Checkpointer, "restore", fail)
        before.update(contents(tmp_path / "best"))
        return state, metrics | {"actor_loss": jnp.nan}

    kind = CheckpointError if error is None else TryAgainError
    with pytest.raises(kind, match=r"best.* nothing was changed"):
        refine(config, steps._replace(train_epoch=train_epoch), tmp_path)
    assert before and contents(tmp_path / "best") == before


def test_a_diverging_step_size_is_brought_back_and_then_stopped(tmp_path):
    config = run_config(total=20 * EPOCH, sac={"critic_lr": 1e4})
    progress = refine(config, make_steps(config), tmp_path)
    audit = records(tmp_path, "audit.jsonl")
    bad = [record["done"] for record in audit if record["action"] == "roll_back"]
    assert bad == ["roll_back"] * config.guard.max_rollbacks + ["stop"]
    assert progress.stopped and progress.state.decision_steps < config.train.total_decisions
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(progress.best_actor))


def test_a_disabled_guard_only_writes(tmp_path):
    config = run_config(guard={"enabled": False})
    progress = refine(config, make_steps(config, velocity=1.0), tmp_path)
    assert progress.state.decision_steps == TOTAL and not progress.stopped
    assert records(tmp_path, "audit.jsonl")[0]["done"] == "note"


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    """`kill -9` at random moments of runs in processes of their own, resumed each time."""
    config = run_config(total=100 * EPOCH)
    whole = refine(config, make_steps(config), tmp_path / "whole")
    rng, kills, runs = np.random.default_rng(0), 0, 0
    while kills < 20:
        directory = tmp_path / str(runs)
        call = (
            f"refine(c := run_config(total=100 * EPOCH), make_steps(c), Path({str(directory)!r}))"
        )
        program = [sys.executable, "-c", f"from test_loop import *; {call}"]
        process = subprocess.Popen(program, cwd=HERE, stderr=subprocess.DEVNULL)
        try:
            assert process.wait(timeout=rng.uniform(5, 20)) == 0
            runs += 1  # it came to its end: the next one starts anew
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    for run in range(runs + 1):
        assert same(refine(config, make_steps(config), tmp_path / str(run)), whole)
        assert records(tmp_path / str(run)) == records(tmp_path / "whole")


@pytest.mark.parametrize("interim_episodes", [0, 8])
def test_a_residual_that_diverged_is_never_kept(tmp_path, interim_episodes, capsys):
    # The step after the last losses overflows, so that every metric is still finite.
    config = run_config(total=2 * EPOCH, interim_episodes=interim_episodes)
    steps = make_steps(config)

    def train_epoch(state):
        state, metrics = steps.train_epoch(state)
        poison = jax.tree.map(lambda leaf: leaf * jnp.nan, state.sac.mean_actor)
        return state._replace(sac=state.sac._replace(mean_actor=poison)), metrics

    progress = refine(config, steps._replace(train_epoch=train_epoch), tmp_path)
    assert not any(leaf.any() for leaf in jax.tree.leaves(progress.best_actor))
    said = " ".join(capsys.readouterr().err.split())
    if interim_episodes:
        (record,) = [r for r in records(tmp_path, "audit.jsonl") if r["rule"] == "non_finite"]
        assert record["numbers"] == {"residual_policy": None}
    else:
        assert "the residual policy diverged" in said
