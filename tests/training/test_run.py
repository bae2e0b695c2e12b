"""A run's directory: damaged, locked, removed, full, moved, or of another kind."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.base_policies.foreign import exported
from pdjax.commands import cli
from pdjax.output import checkpoint, lock, paths, records
from pdjax.output.paths import NotSavedError
from pdjax.training import start
from pdjax.training.run_in_progress import Refinement
from tests.output.test_checkpoint import contents
from tests.probe import make_constant_policy, make_point_task, registered
from tests.profile.test_profile import TINY

SMALL = [
    *TINY,
    "train.total_decisions=128",
    "train.learning_starts=32",
    "eval.episodes=8",
    "checkpoint.every=64",
]
NAMES = ("result.json", "metrics.jsonl", "base_policy/policy.json", "config.yaml")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a base policy and a finished run; the tests take copies."""
    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    exported.export_policy(make_constant_policy(0.2), Path("base"), "Point")
    with registered(make_point_task()):
        assert cli.main(["train", "peg_fast", "--out", "run", "--set", *SMALL]) == 0
    os.chdir(before)
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of that folder, which is the working folder."""
    folder = tmp_path / "here"
    shutil.copytree(trained, folder)
    monkeypatch.chdir(folder)
    with registered(make_point_task()):
        yield folder


def ask(capsys, *argv):
    """Exit code, and what was said."""
    capsys.readouterr()
    code = cli.main(list(argv))
    return code, capsys.readouterr().err.splitlines()


def resume(capsys, *more, out="run"):
    return ask(capsys, "train", "peg_fast", "--out", out, "--resume", *more, "--set", *SMALL)


def refused(found):
    """The single line of a command that was refused."""
    code, lines = found
    assert code == 2 and len(lines) == 1 and lines[0].startswith("pdjax: "), lines
    assert len(lines[0]) < 400
    return lines[0]


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b'{"task": "Poi', b"[]", b"\0" * 64, b"\xc9\xff", b"7", b"null"),
        *(b'{"base_success": %b}' % value for value in (b'"x"', b"5e300", b"NaN")),
        b'{"base_success": 0, "refined_success": 0, "decision_steps": 1' + b"0" * 400 + b"}",
    ],
)
def test_a_damaged_result_is_told_and_made_again(here, capsys, text):
    Path("run/result.json").write_bytes(text)
    assert "result" in refused(ask(capsys, "compare", "run", "--out", "a.png"))
    assert not Path("a.png").exists()
    with pytest.MonkeyPatch.context() as patch:  # what follows is the business of `run`
        patch.setattr("pdjax.training.run.build", lambda *_: pytest.fail("goes on"))
        with pytest.raises(pytest.fail.Exception, match="goes on"):
            resume(capsys)
    assert "evaluating it again" in capsys.readouterr().err


def test_a_result_that_lacks_a_figure_is_made_again(here, capsys):
    result = json.loads(Path("run/result.json").read_text())
    Path("run/result.json").write_text(json.dumps(result | {"base_success": 0.5}))
    assert resume(capsys)[0] == 0  # whole
    del result["gain_ci"]
    Path("run/result.json").write_text(json.dumps(result))
    assert start._read_finished(Path("run")) == {}
    assert "the result of run lacks gain_ci; evaluating it again" in capsys.readouterr().err


def test_what_can_be_derived_is_made_again(here, capsys):
    before = json.loads(Path("run/result.json").read_text())
    Path("run/result.json").write_text('{"task": "Poi')
    shutil.rmtree("run/residual")
    Path("run/residual").write_text("a file")
    Path("run/learning_curve.png").unlink()
    Path("run/episodes.npz").write_bytes(b"PK")
    shutil.rmtree("run/tb")
    Path("run/tb").write_text("a file")
    code, lines = resume(capsys)
    assert code == 0 and any("tb failed (File exists)" in line for line in lines)
    after = json.loads(Path("run/result.json").read_text())
    assert {k: v for k, v in after.items() if k != "wall_s"} == {
        k: v for k, v in before.items() if k != "wall_s"
    }
    assert Path("run/learning_curve.png").is_file() and checkpoint.is_intact(Path("run/residual"))
    assert resume(capsys)[1][0] == "run is finished already"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("\0" * 30, "is no JSON"),
        ('{"group": "ev', "is no JSON"),
        ("7", "holds 7, expected an object"),
        ('{"group": "eval"}', "has a wrong value: decision_steps is None, expected a number"),
        (
            '{"group": "eval", "decision_steps": 64, "wall_s": 1, "success_once": "x"}',
            "has a wrong value: success_once is x, expected a number in",
        ),
    ],
)
def test_a_damaged_line_is_named_and_kept_beside_the_rest(here, capsys, line, why):
    path = Path("run/metrics.jsonl")
    lines = path.read_text().splitlines()
    damaged = "\n".join([lines[0], line, *lines[1:]]) + "\n"
    path.write_text(damaged)
    said = refused(ask(capsys, "compare", "run", "--out", "a.png"))
    assert f"run/metrics.jsonl: line 2 {why}" in said
    records.drop_records(path, "decision_steps", 128, records.judge_metrics)
    assert path.read_text().splitlines() == lines
    assert Path("run/metrics.jsonl.unreadable").read_text() == damaged
    assert ask(capsys, "compare", "run", "--out", "a.png")[0] == 0


@pytest.mark.parametrize("tail", [b'{"group": "ev', b"\0" * 50, b"\0" * 50 + b"\n", b"\xff\xfe\n"])
def test_a_damaged_end_is_dropped(here, tail):
    path = Path("run/metrics.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    records.drop_records(path, "decision_steps", 128, records.judge_metrics)
    assert path.read_bytes() == whole
    assert not Path("run/metrics.jsonl.unreadable").exists()


@pytest.mark.parametrize("text", [b"", b"\0" * 40, b"seed: [", b"\xff"])
def test_a_damaged_config_is_one_line(here, capsys, text):
    Path("run/config.yaml").write_bytes(text)
    before = contents(here)
    for found in (
        resume(capsys),
        ask(capsys, "compare", "run"),
        ask(capsys, "eval", "run", "--episodes", "2"),
    ):
        assert "run/config.yaml" in refused(found)
    assert contents(here) == before


def test_a_flipped_bit_is_noticed(here, capsys):
    largest = max(
        (path for path in Path("run/residual").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    said = refused(ask(capsys, "eval", "run", "--episodes", "2"))
    assert "has changed since it was written" in said and "residual" in said


def test_a_changed_base_policy_is_never_mixed_in(here, capsys):
    # The one that the run began with is in the run; another at its old place changes nothing.
    shutil.rmtree("base")
    exported.export_policy(make_constant_policy(0.3), Path("base"), "Point")
    code, lines = resume(capsys)
    assert code == 0 and "base has changed since the run began" in lines[0]
    # Another policy that is named is refused, also if it comes as the run's own.
    exported.export_policy(make_constant_policy(0.3), Path("other"), "Point")
    other = [*SMALL, "base_policy.path=other"]
    argv = ["train", "peg_fast", "--out", "run", "--resume", "--set", *other]
    assert "begun with base_policy.path='base'" in refused(ask(capsys, *argv))
    Path("run/result.json").unlink()
    shutil.rmtree("run/base_policy")
    shutil.copytree("other", "run/base_policy")
    for found in (resume(capsys), ask(capsys, "eval", "run", "--episodes", "2")):
        assert "is not the one that the run began with" in " ".join(found[1]) and found[0] == 2


def test_a_run_goes_on_wherever_it_is(here, capsys, monkeypatch):
    shutil.rmtree("base")
    Path("elsewhere").mkdir()
    shutil.move("run", "elsewhere/moved")
    monkeypatch.chdir("elsewhere")
    Path("moved/result.json").unlink()  # killed while it evaluated
    code, _ = ask(capsys, "train", "moved/config.yaml", "--resume")
    assert code == 0 and Path("moved/result.json").is_file() and not Path("runs").exists()
    assert resume(capsys, out="moved")[1][0] == "moved is finished already"


def test_one_run_and_several_are_not_mixed(here, capsys):
    before = contents(here)
    assert "holds a single run, not 2 members" in refused(resume(capsys, "--members", "2"))
    Path("several").mkdir()
    for index in range(2):
        shutil.copytree("run", f"several/member_{index}")
    assert "holds 2 members, not a single run" in refused(resume(capsys, out="several"))
    assert "holds 2 members, got 3" in refused(resume(capsys, "--members", "3", out="several"))
    shutil.rmtree("several")
    assert contents(here) == before


def test_a_second_process_is_refused_while_the_first_lives(here, capsys):
    Path("run/result.json").unlink()
    program = (
        "import sys, time; from pathlib import Path; from pdjax.output import lock\n"
        "with lock.held(Path('run')): print('held', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        before = contents(here)
        said = refused(resume(capsys))
        assert f"run is in use by process {first.pid} on " in said
        assert contents(here) == before
    finally:
        first.kill()
        first.wait()
    assert json.loads(Path("run/lock").read_text())["pid"] == first.pid  # stale, no obstacle
    own = f"process {os.getpid()} on"
    with lock.held(Path("run")), pytest.raises(ValueError, match=own), lock.held(Path("run")):
        pass  # also within one process
    assert Path("run/lock").read_text() == ""


def test_of_two_starts_one_wins(here, capsys, monkeypatch):
    begin = start.begin

    def late(config, directory, base, locks):
        """Another start is faster by a moment."""
        check = paths.check_directory

        def check_directory(path):
            check(path)
            shutil.copytree("run", path)

        monkeypatch.setattr(paths, "check_directory", check_directory)
        begin(config, directory, base, locks)

    monkeypatch.setattr(start, "begin", late)
    argv = ["train", "peg_fast", "--out", "new", "--set", *SMALL]
    code, lines = ask(capsys, *argv)
    assert code == 2 and "new was made by another process meanwhile" in lines[-1]
    assert contents(Path("new")) == contents(Path("run"))
    assert not [path for path in here.iterdir() if ".pdjax-" in path.name]


def test_the_users_folders_stay(here, capsys):
    for name in ("new.partial", ".pdjax-probe"):
        Path(name).mkdir()
        Path(name, "mine").touch()
    Path("new").mkdir()
    argv = ["train", "peg_fast", "--out", "new", "--set", *SMALL, "train.total_decisions=64"]
    assert ask(capsys, *argv)[0] == 0
    assert Path("new.partial/mine").exists() and Path(".pdjax-probe/mine").exists()


def test_a_removed_directory_ends_its_training(here, capsys, monkeypatch):
    add_epoch = Refinement.add_epoch

    def remove(self, metrics):
        shutil.rmtree("new")
        add_epoch(self, metrics)

    monkeypatch.setattr(Refinement, "add_epoch", remove)
    code, lines = ask(capsys, "train", "peg_fast", "--out", "new", "--set", *SMALL)
    assert code == 1 and not Path("new").exists()
    assert "new was removed or moved while its run trained" in lines[-1]
    assert "ended after 0 decisions" in lines[-1] and "Traceback" not in " ".join(lines)


def test_a_full_disk_is_told_with_the_result(here, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(records, "_append", full)
        patch.setattr("orbax.checkpoint.CheckpointManager.save", full)
        patch.setattr("pdjax_envs.writing._to_disk", lambda path: None)
        patch.setattr("pdjax.output.trackers._TensorBoard", full)
        code, lines = ask(capsys, "train", "peg_fast", "--out", "new", "--set", *SMALL)
    assert code == 1 and "trained and evaluated (gain " in lines[-1]
    for name in ("new/checkpoints/128", "new/metrics.jsonl (its end is missing)"):
        assert name in lines[-1]
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("name", ["save_paired", "plots.plot_learning_curve"])
def test_what_could_not_be_written_at_the_end_is_made_by_resuming(here, capsys, monkeypatch, name):
    def fail(*_):
        raise OSError(5, "Input/output error")

    argv = ["train", "peg_fast", "--out", "new", "--set", *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr(f"pdjax.training.run.{name}", fail)
        code, lines = ask(capsys, *argv)
    assert code == 1 and "Input/output error" in lines[-1] and "--resume" in lines[-1]
    code, _ = ask(capsys, *argv, "--resume")
    assert code == 0
    for made in ("episodes.npz", "learning_curve.png", "result.json"):
        assert Path("new", made).is_file()


def test_records_wait_for_room(tmp_path, monkeypatch, capsys):
    lines = records.Lines(tmp_path / "a.jsonl")
    lines.add({"step": 1})
    write, room = os.write, [3]

    def short(handle, text):
        if not room:
            raise OSError(28, "No space left on device")
        return write(handle, text[: room.pop()])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        lines.add({"step": 2})
        lines.add({"step": np.float32(3)})
        assert lines.flush() == "No space left on device"
    assert records.read_records(tmp_path / "a.jsonl") == [{"step": 1}]
    assert capsys.readouterr().err.count("cannot be written") == 1
    lines.add({"step": jnp.int32(4)})
    assert [r["step"] for r in records.read_records(tmp_path / "a.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to(path)])
def test_checkpoints_that_are_no_folder(tmp_path, make):
    make(tmp_path / "checkpoints")
    with pytest.raises(checkpoint.CheckpointError, match=r"is no directory .* move it away"):
        checkpoint.Checkpoints(tmp_path / "checkpoints", 2).restore({})


def test_not_saved_is_no_success():
    assert cli._explain(NotSavedError("a")) == 1
