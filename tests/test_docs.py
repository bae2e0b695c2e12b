"""The pages in docs/ say what the code says."""

import importlib.util
from pathlib import Path

import pytest

from pdjax_envs import registry

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("maker", ROOT / "docs/make_task_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_a_tasks_page_is_what_its_code_says(maker, name):
    written = (maker.PAGES / f"{name}.md").read_text()
    expected = maker.page(registry.make_task(name))
    assert written == expected, "run `python docs/make_task_pages.py`"
    assert (maker.PAGES / f"{name}.jpg").is_file()
