"""What is written is complete or absent, and nothing else is touched."""

import os

import pytest

from pdjax_envs import writing


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "result.json"
    writing.write_json(path, {"a": 1})
    writing.write_json(path, {"a": 2})
    assert path.read_text() == '{\n  "a": 2\n}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, name):
    path = tmp_path / "result.json"
    writing.write_text(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="No space left"):
        writing.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_value_that_strict_json_cannot_hold_changes_nothing(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        writing.write_json(tmp_path / "result.json", {"a": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_directory_appears_complete_or_not_at_all(tmp_path):
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(KeyError), writing.directory_aside(tmp_path / "run") as written:
        (written / "config.yaml").write_text("a: 1")
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["run.partial"]
    with writing.directory_aside(tmp_path / "run") as written:
        (written / "below").mkdir()
        (written / "below" / "config.yaml").write_text("a: 1")
    assert (tmp_path / "run" / "below" / "config.yaml").read_text() == "a: 1"
    assert (tmp_path / "run.partial" / "thesis.txt").read_text() == "mine"
    with pytest.raises(OSError, match="not empty"), writing.directory_aside(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / "below" / "config.yaml").is_file()
