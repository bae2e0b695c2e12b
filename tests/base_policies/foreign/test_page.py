"""The examples in docs/base_policies.md, run as they stand there."""

import re
import shlex
from pathlib import Path

import pytest

from pdjax.base_policies import load
from pdjax.base_policies.foreign import assemble
from pdjax.commands import cli
from pdjax.commands.policies import Wrap
from pdjax.prepare import wrap
from pdjax_envs import registry

PAGE = (Path(__file__).parents[3] / "docs/base_policies.md").read_text()
CODE = dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"`(pdjax wrap [^`P][^`]*)`", PAGE)


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name, code in CODE.items():
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_example_has_its_command():
    assert len(CODE) == len(COMMANDS) == 6


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_gives_chunks_for_the_task_it_names(command, here):
    if "torch" in command or "policy.pt" in command:
        pytest.importorskip("torch")
    for writes, file in (("export_policy.py", ".jaxexport"), ("torchscript_policy.py", ".pt ")):
        if file in command:
            exec(CODE[writes], {})
    command, _ = cli._parse(shlex.split(command)[1:])
    assert isinstance(command, Wrap)
    task = registry.make_task(command.task)
    about, files, parts = wrap.read_source(command.policy, task, command.declared())
    base = assemble.assemble(parts, about)
    assert base.act_horizon in (1, 2) and base.act_dim == 7
    assert all(path.exists() for path in files.values())


def test_the_policy_from_memory_is_one_in_the_program():
    [code] = re.findall(r"```python\n(import jax.numpy.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(code, names)
    base = names["base"]
    assert (base.obs_dim, base.act_dim, base.act_horizon) == (50, 7, 2)
    assert not load.through_host(base)
