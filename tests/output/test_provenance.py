"""Which commits a run records, and what asking for them may start."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import pdjax
from pdjax.output import provenance

PROVENANCE = Path("pdjax/output/provenance.py")


def git(folder, *arguments):
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with one committed file."""
    git(tmp_path, "init", "-q")
    (tmp_path / "README.md").write_text("a project of its own\n")
    git(tmp_path, "add", "README.md")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def copy_to(folder):
    """Copies this file of pdjax to where an installation or a checkout in `folder` has it."""
    path = folder / PROVENANCE
    path.parent.mkdir(parents=True)
    shutil.copy(provenance.__file__, path)
    return path


def test_an_installed_pdjax_does_not_take_the_commit_of_the_users_repository(repository):
    file = copy_to(repository / ".venv/lib/python3.11/site-packages")
    assert provenance.commit(file.parent) is not None  # Git finds the user's repository
    assert provenance.own_commit(file) is None
    git(repository, "add", "-f", ".venv")  # not even if the user committed the environment
    git(repository, "commit", "-q", "-m", "environment")
    assert provenance.own_commit(file) is None


def test_a_checkout_of_pdjax_gives_its_commit(repository):
    file = copy_to(repository)
    assert provenance.own_commit(file) is None  # lies there, but belongs to no commit
    git(repository, "add", "pdjax")
    git(repository, "commit", "-q", "-m", "pdjax")
    head = git(repository, "rev-parse", "--short", "HEAD")
    assert provenance.own_commit(file) == head
    file.write_text("changed")
    assert provenance.own_commit(file) == f"{head}-dirty"


def test_what_is_recorded_names_the_version(monkeypatch, repository):
    monkeypatch.chdir(repository)
    found = provenance.describe()
    assert found["commit"] == git(repository, "rev-parse", "--short", "HEAD")
    assert found["versions"]["pdjax"]
    checkout = Path(pdjax.__file__ or "").parents[1] / ".git"
    assert (found["pdjax_commit"] is not None) == checkout.exists()


def test_git_starts_no_monitor_that_the_repository_names(repository):
    monitor = repository / "monitor"
    monitor.write_text(f"#!/bin/sh\ntouch {repository}/started\n")
    monitor.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(monitor))
    git(repository, "status")
    assert (repository / "started").exists()  # the setting works
    (repository / "started").unlink()
    assert provenance.commit(repository)
    assert not (repository / "started").exists()


def starts(repository, name, rest=""):
    """A program that leaves `started` in the repository; returns its path."""
    program = repository / name
    program.write_text(f"#!/bin/sh\ntouch {repository}/started\n{rest}\n")
    program.chmod(0o755)
    return str(program)


def test_git_starts_no_filter_and_no_hook_that_the_repository_names(repository):
    (repository / ".gitattributes").write_text("*.md filter=a=b diff=d\n")
    git(repository, "add", ".gitattributes")
    git(repository, "commit", "-q", "-m", "attributes")
    for key in ("filter.a=b.clean", "diff.d.textconv", "diff.external", "core.sshCommand"):
        git(repository, "config", key, starts(repository, "program", "cat"))
    (repository / "hooks").mkdir()
    for hook in ("post-index-change", "fsmonitor-watchman"):
        starts(repository, f"hooks/{hook}")
    git(repository, "config", "core.hooksPath", str(repository / "hooks"))
    os.utime(repository / "README.md", (1, 1))  # so that Git reads the file again
    subprocess.run(["git", "status"], cwd=repository, check=True, capture_output=True)
    assert (repository / "started").exists()  # the settings work
    (repository / "started").unlink()
    os.utime(repository / "README.md", (2, 2))
    head = git(repository, "-c", "core.hooksPath=/dev/null", "rev-parse", "--short", "HEAD")
    assert provenance.commit(repository) == head
    (repository / "README.md").write_text("changed\n")
    assert provenance.commit(repository) == f"{head}-dirty"
    assert not (repository / "started").exists()


def test_git_starts_no_monitor_of_a_submodule(repository, tmp_path_factory):
    inner = tmp_path_factory.mktemp("inner")
    git(inner, "init", "-q")
    git(inner, "commit", "-q", "--allow-empty", "-m", "inner")
    git(
        repository,
        "-c",
        "protocol.file.allow=always",
        "submodule",
        "--quiet",
        "add",
        str(inner),
        "sub",
    )
    git(repository, "commit", "-q", "-m", "submodule")
    git(repository / "sub", "config", "core.fsmonitor", starts(repository, "monitor"))
    git(repository, "config", "submodule.sub.ignore", "none")
    git(repository, "status")
    assert (repository / "started").exists()  # the setting works
    (repository / "started").unlink()
    assert provenance.commit(repository)
    assert not (repository / "started").exists()


def test_git_gets_a_limited_time(repository, monkeypatch):
    slow = repository / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text("#!/bin/sh\nexec sleep 30\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(provenance, "GIT_SECONDS", 0.2)
    assert provenance.commit(repository) is None


def test_a_folder_outside_any_repository_has_no_commit(tmp_path):
    assert provenance.commit(tmp_path) is None
