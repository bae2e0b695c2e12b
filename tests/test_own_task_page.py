"""Runs docs/own_task.md: its commands in order, with fewer decisions; whole in the slow tests."""

import json
import re
import shlex
from pathlib import Path

import pytest

from pdjax.commands import cli
from pdjax.prepare import check_task
from pdjax_envs import registry

PAGE = (Path(__file__).parents[1] / "docs/own_task.md").read_text()
CODE = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL))
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    shlex.split(line)[1:]
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("pdjax ")
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name, code in CODE.items():
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*argv):
    assert cli.main(list(argv)) == 0, argv


def test_the_commands_work_in_their_order(here, monkeypatch):
    assert [command[0] for command in COMMANDS] == [
        "envs",
        "envs",
        "wrap",
        "screen",
        "train",
        "render",
    ]
    new, check, wrap, screen, train, _ = COMMANDS
    run(*new)
    lowered = check_task.Finding("engine", "ok", "")  # tested by itself
    monkeypatch.setattr(check_task, "_lowers", lambda name, engine: lowered)
    run(*check)
    run(*wrap, "--episodes", "8")
    run(*screen, "--episodes", "8")
    short = ["train.total_decisions=1024", "train.learning_starts=512", "eval.episodes=8"]
    short += ["eval.interim_every=512", "eval.interim_episodes=8", "sac.batch_size=32"]
    run(*train, *short)
    assert json.loads(Path("runs/push/result.json").read_text())["gradient_steps"] > 0


def test_the_panda_example_is_a_task(here):
    task = registry.make_task("panda_push.py:make_task")
    assert (task.name, task.act_dim, task.obs_dim) == ("PandaPush", 4, 9 + 3 + 3 + 4 + 3)


@pytest.mark.slow
def test_the_page_gains_what_it_says(here):
    for command in COMMANDS[:-1]:
        run(*command)
    result = json.loads(Path("runs/push/result.json").read_text())
    assert result["gain"] > 0.3 and result["refined_success"] > 0.9
