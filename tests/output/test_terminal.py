"""What a run keeps and shows: strict JSON lines, a learning curve, and silence that loses none."""

import io
import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image
from rich.console import Console

from pdjax.config.options import ConfigError
from pdjax.devices import processes
from pdjax.output import paths, plots, records, run_directory, terminal, trackers
from pdjax_envs.reading import InputError

SUMMARY = {
    "task": "Point",
    "seed": 0,
    "episodes": 50,
    "base_success": 0.4,
    "refined_success": 0.9,
    "refined_ci": [0.79, 0.96],
    "gain": 0.5,
}


def strict(text):
    """Parses JSON without the NaN and Infinity that Python would let through."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def write_run(directory):
    directory.mkdir(exist_ok=True)
    with records.MetricsLog(directory) as log:
        for index in range(1, 5):
            steps, wall = 1_000 * index, 30.0 * index
            log.write("train", steps, {"train_success": 0.2 * index, "wall_s": wall})
            log.write("eval", steps, {"success_once": 0.2 * index, "wall_s": wall})


def test_metrics_are_lines_of_strict_json(tmp_path):
    bad = {"loss": jnp.float32(0.5), "bad": np.float32(np.nan), "worse": np.inf}
    with pytest.raises(KeyboardInterrupt), records.MetricsLog(tmp_path) as log:
        log.write("train", 10, bad)
        log.write("eval", 20, {"success_once": 1, "wall_s": 2.0, "last": None})
        raise KeyboardInterrupt  # nothing written is lost
    lines = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"group": "train", "decision_steps": 10, "loss": 0.5, "bad": None, "worse": None},
        {"group": "eval", "decision_steps": 20, "success_once": 1, "wall_s": 2.0, "last": None},
    ]
    assert records.read_metrics(tmp_path, "eval") == lines[1:]
    (events,) = (tmp_path / "tb").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_a_run_without_metrics_has_none(tmp_path):
    assert records.read_metrics(tmp_path, "train") == []


def colored(picture):
    """Share of pixels that are neither white, black nor grey."""
    return np.mean(picture[..., :3].max(axis=-1) - picture[..., :3].min(axis=-1) > 0.2)


def test_a_learning_curve_is_drawn(tmp_path):
    write_run(tmp_path)
    path = plots.plot_learning_curve(tmp_path, SUMMARY)
    assert path == tmp_path / "learning_curve.png"
    picture = image.imread(path)
    assert picture.shape[0] > 400
    (tmp_path / "bare").mkdir()
    bare = image.imread(plots.plot_learning_curve(tmp_path / "bare", SUMMARY))
    # the curve and the final result add colour to a plot of the base policy's line alone
    assert 0 < colored(bare) < 0.8 * colored(picture)


def test_json_for_programs_is_one_strict_line_on_stdout(capsys):
    terminal.emit_json(
        {"rate": np.float32(0.5), "ci": (jnp.float32(0.25), np.nan), "ids": np.arange(2)}
    )
    captured = capsys.readouterr()
    assert captured.out.endswith("\n")
    assert captured.out.count("\n") == 1
    assert strict(captured.out) == {"rate": 0.5, "ci": [0.25, None], "ids": [0, 1]}
    assert captured.err == ""


def speak():
    """Everything that is for people, in every way that there is."""
    terminal.say("a line")
    terminal.say_unsaved("a problem")
    terminal.show_table("title", ["name", "number"], [["a", "1"]])
    with terminal.progress("refining", 2, "decisions") as bar:
        bar.update(1, "note")
        bar.update(2, "note")


@pytest.fixture(params=[False, True], ids=["file", "terminal"])
def console(request, monkeypatch):
    """Speaks to a file, or to a terminal with live progress bars."""
    console = Console(
        file=terminal.console.file, force_terminal=request.param, markup=False, emoji=False
    )
    monkeypatch.setattr(terminal, "console", console)


def test_silence_nests_and_ends_where_it_began(console, capsys):
    speak()
    assert capsys.readouterr().err.count("refining") >= 1
    with terminal.quiet():
        speak()
        with terminal.quiet():
            speak()
        speak()
        with pytest.raises(KeyError), terminal.quiet():
            raise KeyError
        speak()
    assert capsys.readouterr() == ("", "")
    with pytest.raises(KeyError), terminal.quiet():
        raise KeyError
    speak()
    assert "a line" in capsys.readouterr().err


def test_silence_leaves_what_others_print_alone(console, capsys):
    out, err = sys.stdout, sys.stderr
    with terminal.quiet(), terminal.progress("refining", 2, "decisions") as bar:
        bar.update(1)
        assert (sys.stdout, sys.stderr) == (out, err)
        print("the caller's own")
        terminal.emit_json({"a": 1})  # for programs
    assert capsys.readouterr() == ('the caller\'s own\n{"a": 1}\n', "")


def test_a_muted_process_stays_so_after_a_quiet_block(console, capsys):
    terminal.mute()
    with terminal.quiet():
        pass
    speak()
    assert capsys.readouterr() == ("", "")


class Heard(list):
    """A tracker that keeps the steps that it is given."""

    def log(self, scalars, step):
        self.append(step)

    def close(self, failed):
        self.append("closed")


def test_silence_loses_no_record(tmp_path, monkeypatch, capsys):
    heard = Heard()
    monkeypatch.setattr(trackers, "follow", lambda directory, say: heard)
    write_run(tmp_path / "loud")
    loud, heard[:] = list(heard), []
    with terminal.quiet():
        write_run(tmp_path / "quiet")
        records.drop_records(tmp_path / "quiet" / "metrics.jsonl", "decision_steps", 3_000)
    assert list(heard) == loud and len(loud) == 9
    lines = [
        (tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("loud", "quiet")
    ]
    assert len(lines[0]) == 8 and lines[1] == lines[0][:6]
    (events,) = (tmp_path / "quiet" / "tb").iterdir()
    assert b"eval/success_once" in events.read_bytes()
    assert capsys.readouterr() == ("", "")


def test_only_the_writer_of_several_processes_records(tmp_path, monkeypatch):
    write_run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(processes, "is_writer", lambda: False)
    monkeypatch.setattr(trackers, "follow", lambda directory, say: pytest.fail("is no writer"))
    write_run(tmp_path)
    records.drop_records(tmp_path / "metrics.jsonl", "decision_steps", 0)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_people_are_spoken_to_on_stderr_word_for_word(capsys):
    terminal.say("runs/[bold]x[/bold] in [0, 1] " + "long " * 40)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "runs/[bold]x[/bold] in [0, 1] " + "long " * 40 + "\n"


def test_a_table_keeps_whole_names(capsys):
    terminal.show_table("Tasks", ["task", "summary"], [["PegInsertionSide", "word " * 40]])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "PegInsertionSide" in captured.err


def test_without_a_terminal_progress_ends_in_one_plain_line(capsys):
    with terminal.progress("refining", 10, "decisions") as bar:
        for done in range(11):
            bar.update(done, "note")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("refining: 10/10 decisions")
    assert lines[0].endswith("note")


def test_no_time_left_is_negative(capsys):
    with terminal.progress("refining", 2_000, "decisions") as bar:
        bar.update(4_096)
    with terminal.progress("refining", 2_000, "decisions", begin=1_000) as bar:
        bar.update(2_000)
    first, second = capsys.readouterr().err.splitlines()
    assert ", 0 s left" in first and ", 0 s left" in second


def test_a_picture_may_lie_in_a_folder_that_is_not_there_yet(tmp_path):
    path = plots.plot_importance(tmp_path / "new" / "deep" / "x.png", "title", {"sac.gamma": 1.0})
    assert image.imread(path).shape[0] > 100


def test_results_are_strict_json(tmp_path):
    run_directory.write_result(tmp_path, {"gain": np.float32(0.5), "steps": np.nan})
    assert strict((tmp_path / "result.json").read_text()) == {"gain": 0.5, "steps": None}


def test_outputs_are_checked_without_making_anything(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").touch()
    before = sorted(tmp_path.rglob("*"))
    paths.check_directory(tmp_path / "new" / "deep")
    paths.check_file(tmp_path / "new" / "a.h5", (".h5",))
    for check, message in [
        (lambda: paths.check_directory(tmp_path / "full"), "full is not empty; choose another"),
        (lambda: paths.check_directory(tmp_path / "file"), "cannot write to .*file: Not a dir"),
        (lambda: paths.new_directory(tmp_path / "file" / "x"), "cannot write to .*Not a dir"),
        (lambda: paths.check_file(tmp_path / "a.txt", (".h5",)), "a.txt must end in .h5"),
        (lambda: paths.check_file(tmp_path / "file" / "a.h5", (".h5",)), "cannot write to"),
    ]:
        with pytest.raises(ConfigError, match=message):
            check()
    assert sorted(tmp_path.rglob("*")) == before
    paths.new_directory(tmp_path / "new" / "deep")
    assert (tmp_path / "new" / "deep").is_dir()


class Unwritable(io.StringIO):
    """A stream whose reader has left, or whose disk is full."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device")])
def test_messages_that_cannot_be_written_end_nothing(error, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Unwritable(error))
    speak()
    monkeypatch.setattr(sys, "stderr", None)  # the process was started without one
    speak()


def test_letters_that_the_terminal_lacks_become_question_marks(monkeypatch):
    bytes_ = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(bytes_, "ascii"))
    terminal.say("runs/é")
    assert bytes_.getvalue() == b"runs/?\n"


SPEAKING = """
import logging, sys, warnings
from pdjax.output import terminal
terminal.forgive()
terminal.say("a line")
print("a print", file=sys.stderr)
warnings.warn("a warning")
logging.error("a log")
if sys.argv[1] == "pipe":
    terminal.emit_json({"a": 1})
terminal.flush()
"""


@pytest.mark.parametrize("target", ["pipe", "/dev/full"])
def test_a_process_with_unwritable_streams_ends_well(target):
    reader, writer = os.pipe()
    os.close(reader)
    if target != "pipe":
        writer = os.open(target, os.O_WRONLY)
    program = [sys.executable, "-c", SPEAKING, target]
    done = subprocess.run(program, stdout=writer, stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == 0


def test_json_for_a_reader_that_has_left_is_dropped(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Unwritable(BrokenPipeError()))
    terminal.emit_json({"a": 1})
    monkeypatch.setattr(sys, "stdout", Unwritable(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="cannot write the result to stdout: No space left"):
        terminal.emit_json({"a": 1})


def test_names_are_shown_letter_by_letter(console, capsys):
    name = ":ant: [bold]x[/bold] [red]"
    terminal.say(name)
    terminal.show_table(name, [name, "b"], [[name, name]])
    with terminal.progress(name, 2, "decisions") as bar:
        bar.update(2, name)
    said = capsys.readouterr().err
    assert said.count(name) >= 6
    assert "\N{ANT}" not in said
