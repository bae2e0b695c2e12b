"""Checks of a task in the user's hands: what is right passes, and each fault is found."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pdjax.commands import cli
from pdjax.prepare import check_task
from pdjax_envs import registry
from pdjax_envs.task import Task
from tests.probe import make_point_task, registered

LOWERING = {"lowers for mjx", "lowers for warp"}


@pytest.fixture(scope="module")
def push(tmp_path_factory) -> Task:
    folder = tmp_path_factory.mktemp("push")
    assert cli.main(["envs", "new", str(folder / "push.py")]) == 0
    return registry.make_task(f"{folder / 'push.py'}:make_task")


def findings(task, monkeypatch):
    """The findings about a task under a name of its own, without lowering for other engines."""
    monkeypatch.setattr(
        check_task, "_lowers", lambda name, engine: check_task.Finding(engine, "ok", "")
    )
    with registered(dataclasses.replace(task, name="Tried")):
        found = check_task.check_task("Tried", "native")
    verdicts = {one["check"]: one["verdict"] for one in found["findings"]}
    seen = {one["check"]: one["seen"] for one in found["findings"]}
    assert found["passed"] == ("FAIL" not in verdicts.values())
    return verdicts, seen


def test_a_right_task_passes(push, monkeypatch):
    verdicts, seen = findings(push, monkeypatch)
    assert set(verdicts.values()) == {"ok", "note"}
    assert [name for name, verdict in verdicts.items() if verdict == "note"] == ["success"]
    assert seen["shapes and names"] == "14 observed numbers, 2 of the action"
    assert float(seen["MuJoCo's own loop"].split()[5]) < 1e-6


def broken(task, **changes):
    return dataclasses.replace(task, episode_steps=30, **changes)


def test_each_fault_is_found(push, monkeypatch):
    observe = push.observe

    def expect(check, verdict, words, **changes):
        verdicts, seen = findings(broken(push, **changes), monkeypatch)
        assert verdicts[check] == verdict and words in seen[check], (check, verdicts, seen)

    expect(
        "observed numbers",
        "FAIL",
        "finger[0]",
        observe=lambda e, p: observe(e, p).at[0].set(jnp.inf),
    )
    expect(
        "observed numbers",
        "note",
        "constant under random actions: block[1]",
        observe=lambda e, p: observe(e, p).at[5].set(2.0),
    )
    expect(
        "observed numbers",
        "note",
        "beyond 1000: block[1]",
        observe=lambda e, p: observe(e, p).at[5].multiply(3e4),
    )
    expect("doing nothing", "FAIL", "100%", success=lambda e, p: jnp.array(True))
    expect(
        "starts",
        "note",
        "1 different",
        sample_start=lambda key: push.sample_start(jax.random.key(0)),
    )
    expect("shapes and names", "FAIL", "nothing, which is no part", meanings={"nothing": "m"})
    expect(
        "restoring a state",
        "note",
        "largest difference",
        make_start=lambda state: push.make_start({**state, "qpos": 0 * state["qpos"]}),
    )


def test_commands_that_are_not_what_the_simulator_gets_are_found(push, monkeypatch):
    """An engine that differs from MuJoCo's loop, and one with memory of its own."""
    make = registry.make

    def skewed(*args, **kwargs):
        env = make(*args, **kwargs)
        return env._replace(step=lambda model, state, action: env.step(model, state, 0.9 * action))

    monkeypatch.setattr(registry, "make", skewed)
    verdicts, _ = findings(push, monkeypatch)
    assert verdicts["MuJoCo's own loop"] == "FAIL"


def test_too_little_room_is_told_with_a_proposal(push, monkeypatch):
    small = push.scene.buffers._replace(constraints=1)
    scene = dataclasses.replace(push.scene, buffers=small)
    verdicts, seen = findings(broken(push, scene=scene), monkeypatch)
    assert verdicts["buffers"] == "FAIL" and "give buffers=Buffers(contacts=" in seen["buffers"]


def test_other_engines_lower_in_a_process_of_their_own(push, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["envs", "new", "push.py"]) == 0
    found = check_task._lowers("push.py:make_task", "mjx")
    assert found.verdict == "ok", found.seen
    Path("push.xml").write_text("<mujoco/>")
    found = check_task._lowers("push.py:make_task", "mjx")
    assert found.verdict == "note" and "block_x" in found.seen, found.seen


def test_the_command_ends_with_1_where_a_check_fails(monkeypatch, capsys):
    monkeypatch.setattr(
        check_task, "_lowers", lambda name, engine: check_task.Finding(engine, "ok", "")
    )
    with registered(make_point_task()):
        assert cli.main(["envs", "check", "Point"]) == 0
    always = dataclasses.replace(make_point_task(), success=lambda e, p: jnp.array(True))
    with registered(always):
        assert cli.main(["envs", "check", "Point"]) == 1
    assert "some checks FAILED" in capsys.readouterr().err


def test_a_new_task_is_written_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["envs", "new", "two_words.py"]) == 0
    assert registry.make_task("two_words.py:make_task").name == "TwoWords"
    before = Path("two_words.xml").read_bytes()
    for argv, words in (
        (["new", "two_words.py"], "two_words.py exists already"),
        (["new", "x.txt"], "x.txt must end in .py"),
        (["new", "2.py"], "2.py is no name of a Python module"),
        (["new"], "envs new needs FILE.py"),
        (["check"], "envs check needs a task"),
        (["AdroitDoor", "more"], "envs got 'more' after 'AdroitDoor'"),
    ):
        capsys.readouterr()
        assert cli.main(["envs", *argv]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line, line
    assert Path("two_words.xml").read_bytes() == before and len(list(tmp_path.iterdir())) == 2
