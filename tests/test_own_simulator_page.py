"""Runs docs/own_simulator.md: its commands in order, with fewer decisions; whole in slow tests."""

import json
import re
import shlex
from pathlib import Path

import pytest

from pdjax.commands import cli
from pdjax.config import files as configs

PAGE = (Path(__file__).parents[1] / "docs/own_simulator.md").read_text()
CODE = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL))
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
COMMANDS, ABOUT_DEMOS = (
    [shlex.split(line)[1:] for line in block.replace("\\\n", " ").splitlines()] for block in BLOCKS
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name, code in CODE.items():
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)


def result():
    return json.loads(Path("runs/reach/result.json").read_text())


def run(*argv):
    assert cli.main(list(argv)) == 0, argv


def test_the_commands_work_in_their_order(here):
    check, wrap, screen, train = COMMANDS
    run(*check)
    run(*wrap, "--episodes", "8")
    run(*screen, "--episodes", "8")
    short = ["train.total_decisions=1024", "train.learning_starts=512", "eval.episodes=8"]
    short += ["eval.interim_every=512", "eval.interim_episodes=8", "sac.batch_size=32"]
    run(*train, *short)
    assert result()["gradient_steps"] > 0
    assert Path("runs/reach/task/reach.py").read_text() == CODE["reach.py"]


def test_an_expert_is_recorded_and_imitated(here):
    demos, check, imitate = ABOUT_DEMOS
    run(*demos)
    run(*check)
    run(*imitate, "--eval-episodes", "100")
    assert json.loads(Path("cloned/result.json").read_text())["base_success"] > 0.9


def test_screen_prints_the_training_of_the_page(here, capsys):
    _, wrap, screen, train = COMMANDS
    run(*wrap)
    capsys.readouterr()
    run(*screen, "--json")
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])["command"]
    theirs, ours = (
        configs.load("peg_fast", words[words.index("--set") + 1 :])
        for words in (shlex.split(printed), train)
    )
    assert theirs == ours


@pytest.mark.slow
def test_the_page_gains(here):
    for command in COMMANDS:
        run(*command)
    assert result()["gain"] > 0.2
