"""The script that uses pdjax from other software, and the page with its table."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks/clients.py"


@pytest.fixture(scope="module")
def clients():
    spec = importlib.util.spec_from_file_location("clients", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["clients"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["clients"]


def test_the_page_has_a_row_of_each_client_and_none_failed(clients):
    table = clients.PAGE.read_text().partition(clients.BEGIN)[2].partition(clients.END)[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    expected = [(client.package, client.done) for client in clients.CLIENTS]
    assert [(row[0], row[2]) for row in rows] == expected
    assert not [row for row in rows if "failed" in row[3] or "not tried" in row[3]]


def test_a_client_whose_package_is_missing_is_left_out_with_the_reason(clients):
    client = clients.Client("x", "no-such-package", "", lambda: "", ("nor-this",))
    found, _, failed = clients.try_client(client)
    assert found == "not tried: needs no-such-package, nor-this" and not failed


def test_a_client_that_fails_or_hangs_is_told(clients, monkeypatch, tmp_path):
    monkeypatch.setattr(clients, "__file__", str(tmp_path / "script.py"))
    client = clients.Client("x", "jax", "", lambda: "")
    for code, result, failed in (
        ("raise ValueError('so')", "**failed**: ValueError: so", True),
        ("import time; time.sleep(60)", "**failed**: not done after 2 s", True),
        ("print('noise'); print('fine')", "fine", False),
    ):
        (tmp_path / "script.py").write_text(code)
        monkeypatch.setattr(clients, "LIMIT_S", 2 if "sleep" in code else 60)
        found, _, fails = clients.try_client(client)
        assert (found, fails) == (result, failed)


@pytest.mark.slow
def test_every_client_works():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=7_200, check=False
    )
    assert done.returncode == 0 and "failed" not in done.stdout, done.stdout
