"""Tasks in files of the user's own, by FILE.py:FUNCTION."""

import pytest

from pdjax_envs import registry, task_files
from pdjax_envs.names import UnknownName
from pdjax_envs.reading import InputError

CODE = '''
import pathlib
import jax.numpy as jnp, mujoco
from pdjax_envs import Task, make_mujoco_task

MODEL = """<mujoco>
<worldbody><body><joint name="x" type="slide"/><geom size="1"/></body></worldbody>
<actuator><motor joint="x" ctrlrange="-1 1"/></actuator></mujoco>"""

def make_task(name="Slider"):
    return make_mujoco_task(
        name, mujoco.MjSpec.from_string(MODEL), episode_steps=5, control_hz=50,
        observe={"x": lambda s: s.qpos("x")}, success=lambda s: s.qpos("x") > 1,
    )

def make_other(): return 3
def make_broken(): raise KeyError("lost")
def make_taken(): return make_task("StackCube")
def make_far():
    import dataclasses
    return dataclasses.replace(make_task(), files=(pathlib.Path("/etc/hostname"),))
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(CODE)
    return tmp_path


def test_a_file_names_a_task_which_then_has_its_own_name_too(here):
    task = registry.make_task("own.py:make_task")
    assert registry.make_task(str(here / "own.py:make_task")) is task
    assert registry.make_task("Slider") is task
    assert registry.family("Slider") == "Slider" and "Slider" not in registry.task_names()
    assert not list(here.glob("__pycache__"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("absent.py:make_task", "no task at absent.py: no such file; `pdjax envs new absent.py`"),
        ("own.py:make_tas", "unknown function of own.py 'make_tas'; did you mean make_task"),
        ("own.py:make_other", r"own.py:make_other\(\) returned 3, expected a pdjax_envs.Task"),
        ("own.py:make_broken", r"make_broken\(\) failed with KeyError: 'lost' \(own.py:\d+\)"),
        ("own.py:make_taken", "names its task 'StackCube', which is another task's name"),
        ("own.py:make_far", "needs /etc/hostname, which is not in the file's folder"),
        ("own.py", "unknown task 'own.py'.*or FILE.py:FUNCTION"),
    ],
)
def test_mistakes_are_one_line_each(here, name, why):
    with pytest.raises(InputError, match=why) as caught:
        registry.make_task(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["syntax error", "import absent_module", "raise SystemExit(3)"])
def test_code_that_fails_is_told_by_its_line(here, text):
    (here / "bad.py").write_text(f"\n{text}\n")
    with pytest.raises(InputError, match=r"running .*bad.py failed with .*"):
        registry.make_task("bad.py:make_task")


def test_names_without_a_file_are_no_sources():
    assert task_files.split("StackCube") is None and task_files.split("brax:ant") is None
    assert task_files.split("a/b.py:make") == (task_files.Path("a/b.py"), "make")
    assert task_files.in_name("a/b.py:make") == "b.py:make"
    assert task_files.in_name("StackCube") == "StackCube"
    with pytest.raises(UnknownName):
        registry.make_task("StackCub")
