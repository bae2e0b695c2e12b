"""Code in a policy's directory: it lies inside, its reader is told, and links bring in nothing."""

import json
import shutil
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.base_policies import load
from pdjax.base_policies.foreign import assemble
from pdjax.commands import cli
from pdjax.config.options import ConfigError
from pdjax.config.schema import BasePolicyConfig
from pdjax.output import terminal
from tests.probe import make_point_task, registered

CODE = """
    import numpy as np

    def act(obs_history):
        return 0.1 * obs_history[:, :, :1]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the code `own.py`, the module `package.inner` and the policy `base`."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "own.py").write_text(textwrap.dedent(CODE))
    (folder / "package").mkdir()
    (folder / "package/__init__.py").touch()
    (folder / "package/inner.py").write_text(textwrap.dedent(CODE))
    with pytest.MonkeyPatch.context() as patch, registered(make_point_task(episode_steps=4)):
        patch.chdir(folder)
        argv = ["wrap", "own.py:act", "--task", "Point", "--out", "base", "--episodes", "2"]
        assert cli.main(argv) == 0
        yield folder


@pytest.fixture
def base(made, tmp_path, monkeypatch):
    """A copy of the policy, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    terminal._say_code.cache_clear()
    return Path(shutil.copytree(made / "base", tmp_path / "base"))


def name_code(base, entry):
    path = base / "policy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"entry": entry}))


@pytest.mark.parametrize(
    "entry",
    [
        "../evil.py:act",
        "sub/evil.py:act",
        "{here}/evil.py:act",
        "evil:act",
        "os:getcwd",
        "link.py:act",
        "base/../own.py:act",
    ],
)
def test_a_description_cannot_name_code_outside_of_its_directory(entry, base):
    for folder in (base.parent, base / "sub"):
        folder.mkdir(exist_ok=True)
        (folder / "evil.py").write_text("raise RuntimeError('it ran')")
    (base / "link.py").symlink_to(base.parent / "evil.py")
    name_code(base, entry.format(here=base.parent))
    with pytest.raises(ConfigError, match=r"names code outside of it, .*; expected FILE\.py:NAME"):
        assemble.load(base)


def test_the_screen_says_once_which_code_will_run(base, capsys):
    screen = ["screen", "base", "--task", "Point", "--episodes", "1"]
    for out in ("a.png", "b.png"):
        assert cli.main([*screen, "--out", out]) == 0
    said = capsys.readouterr().err
    assert said.startswith("running Python code: base/own.py\n")
    assert said.count("running Python code") == 1


def test_a_module_is_taken_by_a_file_in_the_directory(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(made)
    argv = ["wrap", "package.inner:act", "--task", "Point", "--episodes", "1"]
    assert cli.main([*argv, "--out", str(tmp_path / "module")]) == 0
    names = sorted(path.name for path in (tmp_path / "module").iterdir())
    assert names == ["policy.json", "policy.py"]
    found, _ = assemble.load(tmp_path / "module")
    obs = jnp.full((1, 3), 0.5)
    chunk, _ = found.apply((), (), obs, jax.random.key(0))
    np.testing.assert_allclose(chunk, [[0.05]], atol=1e-6)


@pytest.mark.parametrize("name", ["notes.txt", "deep"])
def test_links_in_a_policys_directory_are_refused(name, base, made, capsys):
    (base / "folder").mkdir()
    target = Path("/etc/hostname") if name == "notes.txt" else made
    (base / "folder" / name).symlink_to(target)
    with pytest.raises(ConfigError, match=f"base policy .* holds {name}, a link or special file"):
        load.load_base(BasePolicyConfig(str(base)), make_point_task())


def test_the_directory_itself_may_be_a_link(base):
    Path("elsewhere").symlink_to(base)
    load.load_base(BasePolicyConfig("elsewhere"), make_point_task())


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import sys\nsys.exit(0)", "running own.py failed with sys.exit(0) (own.py:2)"),
        ("import sys\ndef act():\n    sys.exit(0)", "failed with sys.exit(0) (own.py:3)"),
        ("import sys\ndef act(obs):\n    sys.exit(0)", "failed with sys.exit(0) (own.py:3)"),
        ("class act:\n    init_carry, apply, params = len, len, {'a': 'x'}", "the policy's params"),
        (
            "class act:\n    obs_horizon, init_carry, apply = -1, len, len",
            "obs_horizon got -1, exp",
        ),
        ("class P:\n    def __getattr__(s, n):\n        raise ValueError\nact = P()", "own.py:3"),
        ("def act(obs):\n    raise ValueError('no\\nway')", "ValueError: no way (own.py:2)"),
    ],
)
def test_whatever_the_code_does_wrap_ends_in_one_line(
    code, words, made, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(code)
    assert cli.main(["wrap", "own.py:act", "--task", "Point", "--out", "new"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and len(said) < 300, said
    assert not Path("new").exists()


def test_a_code_that_fails_in_play_is_the_users_mistake(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = (
        CODE + "\n    import sys\n    calls = []\n\n    def late(obs):\n        calls.append(0)\n"
    )
    code += "        len(calls) > 6 and sys.exit(0)\n        return act(obs)\n"
    Path("own.py").write_text(textwrap.dedent(code))
    assert cli.main(["wrap", "own.py:late", "--task", "Point", "--out", "new"]) == 2
    said = capsys.readouterr().err
    assert said == "pdjax: the base policy failed in play: sys.exit(0) (own.py:12)\n"
    assert not Path("new").exists()


def test_a_trial_that_cannot_fit_is_refused_before_it_begins(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    argv = ["wrap", "own.py:act", "--task", "Point", "--out", "new", "--episodes", "2000000000"]
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert "of memory, but only" in said and said.count("\n") == 1
