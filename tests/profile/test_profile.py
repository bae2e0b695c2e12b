"""Profiling: phases of a run that learns, shares that add up, and refusals that leave all alone."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pdjax.base_policies.foreign import exported
from pdjax.commands import cli
from pdjax.config import files as configs
from pdjax.config.schema import ConfigError
from pdjax.profile import advice, phases
from pdjax.profile.phases import Phase, Timing, time_phase
from pdjax.training.build import build
from pdjax.training.compiled import prepare
from tests.probe import make_constant_policy, make_point_task, registered

TINY = [
    "task.name=Point",
    "base_policy.path=base",
    "train.num_envs=4",
    "train.decisions_per_round=16",
    "train.decisions_per_epoch=64",
    "sac.batch_size=32",
    "sac.hidden=[16]",
    "eval.interim_episodes=8",
    "train.updates_per_decision=0.25",
]
NAMES = {
    "base policy",
    "residual",
    "control steps",
    "new episodes",
    "updates",
    "replay: draw",
    "replay: insert",
    "evaluation",
    "checkpoint",
    "records",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a base policy of the point task."""
    monkeypatch.chdir(tmp_path)
    exported.export_policy(make_constant_policy(), Path("base"), "Point")
    task = make_point_task(12, 0.1)
    assert task.engine is not None
    # Its own physics, although its name is that of one of ours: there is no scene to time alone.
    engine = task.engine._replace(name="mjx")
    with registered(dataclasses.replace(task, engine=engine)):
        yield tmp_path


def test_a_profile_names_every_phase_and_its_share(here, capsys):
    argv = ["profile", "peg_fast", "--repeats", "2", "--out", "phases.png", "--trace", "trace"]
    assert cli.main([*argv, "--json", "--set", *TINY]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {phase["phase"] for phase in found["phases"]} == NAMES
    between = sum(
        phase["seconds"]
        for phase in found["phases"]
        if phase["phase"] in ("evaluation", "checkpoint", "records")
    )
    whole = found["epoch_s"] + between
    assert found["decisions_per_s"] == pytest.approx(64 / whole)
    assert found["gradient_steps_per_s"] == pytest.approx(16 / whole)
    for phase in found["phases"]:
        assert phase["share"] == pytest.approx(phase["seconds"] / whole)
        assert phase["seconds"] > 0
    inside = sum(phase["seconds"] for phase in found["phases"]) - between
    assert found["explained"] == pytest.approx(inside / found["epoch_s"])
    updates = next(phase for phase in found["phases"] if phase["phase"] == "updates")
    assert updates["flops"] > 0
    assert (here / "phases.png").stat().st_size > 10_000
    assert list((here / "trace").rglob("*.trace.json.gz"))
    # What is there already stays as it is.
    assert cli.main([*argv, "--set", *TINY]) == 2
    assert "phases.png" in capsys.readouterr().err


def test_a_part_of_an_epoch_is_scaled_up(here, monkeypatch):
    run = build(configs.load("peg_fast", TINY))
    state = prepare(run)[0].init(0)
    whole = {phase.name: phase for phase in phases.make_phases(run, state)}
    monkeypatch.setattr(phases, "DECISIONS", 4)
    monkeypatch.setattr(phases, "UPDATES", 8)
    part = {phase.name: phase for phase in phases.make_phases(run, state)}
    assert whole["control steps"].steps == 16  # of each of 4 environments in 64 decisions
    assert whole["control steps"].per_epoch == 1
    assert (part["control steps"].steps, part["control steps"].per_epoch) == (4, 4)
    assert (part["updates"].steps, part["updates"].per_epoch) == (8, 2)


def test_operations_and_bytes_are_those_of_an_epoch():
    weight = jnp.ones((8, 8))

    def multiply(x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ weight), None), x, length=5)[0]

    found = time_phase(Phase("product", multiply, (weight,), per_epoch=3, steps=5), repeats=2)
    assert found.flops == 3 * 5 * 2 * 8**3
    assert found.seconds > 0
    moved = Phase("product", multiply, (weight,), per_epoch=3, steps=5, moved=7)
    assert time_phase(moved, repeats=1).bytes == 3 * 5 * 7


def test_a_phase_that_threads_its_argument_may_donate_it():
    counter = jnp.zeros(1000)
    phase = Phase("count", lambda x: x + 1, (counter,), per_epoch=1, steps=1, threads=True)
    assert time_phase(phase, repeats=3).seconds > 0
    assert counter.is_deleted()


def test_advice_rests_on_what_was_measured(monkeypatch):
    config = configs.load("peg_fast", TINY)  # 4 environments, 0.25 updates a decision, 64 an epoch
    monkeypatch.setattr(advice, "_decision_s", lambda config, num_envs: 0.04 / num_envs)
    monkeypatch.setattr(advice, "_update_s", lambda config, batch_size: 0.8)
    timings = {"updates": Timing(0.64)}  # 10 ms a decision
    found = advice.suggest(config, timings, {"evaluation": 1.0}, epoch_s=1.28)
    envs, updates, batch, evaluation = found
    # 10 ms of playing and 10 of learning become 2.5 and 10.
    assert envs.startswith("train.num_envs=16: playing a decision takes 2.50 ms instead of 10.00")
    assert "1.60x" in envs
    # 0.64 of 2.28 s; half of it away leaves 1.96: 1.16x.
    assert updates.startswith("train.updates_per_decision=0.125: updates take 28%")
    assert "1.16x" in updates
    assert batch.startswith("sac.batch_size=64") and "1.25x" in batch
    assert evaluation.startswith("eval.interim_every=32768: the evaluation takes 44% of the time")
    assert advice.suggest(config, {"updates": Timing(0.0)}, {}, epoch_s=1.28)[1:] == []


def test_numbers_of_environments_that_cannot_be_are_passed_over(monkeypatch):
    def decision_s(config, num_envs):
        if num_envs > 8:
            raise ConfigError("the replay is too small")
        return 0.04 / num_envs

    monkeypatch.setattr(advice, "_decision_s", decision_s)
    config = configs.load("peg_fast", TINY)
    (found,) = advice.suggest(config, {"updates": Timing(0.0)}, {}, epoch_s=1.28)
    assert found.startswith("train.num_envs=8: playing a decision takes 5.00 ms instead of 10.00")
    one = advice.changed(config, "train", num_envs=1)
    assert advice.suggest(one, {"updates": Timing(0.0)}, {}, epoch_s=1.28)
