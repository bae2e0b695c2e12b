"""What a run keeps and shows: strict JSON lines, a learning curve with something on it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image

from pdjax.config.schema import ConfigError
from pdjax.output import paths, plots, records, terminal

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
    with records.MetricsLog(directory) as log:
        for index in range(1, 5):
            steps, wall = 1_000 * index, 30.0 * index
            log.write("train", steps, {"train_success": 0.2 * index, "wall_s": wall})
            log.write("eval", steps, {"success_once": 0.2 * index, "wall_s": wall})


def test_metrics_are_lines_of_strict_json(tmp_path):
    bad = {"loss": jnp.float32(0.5), "bad": np.float32(np.nan), "worse": np.inf}
    with pytest.raises(KeyboardInterrupt), records.MetricsLog(tmp_path) as log:
        log.write("train", 10, bad)
        log.write("eval", 20, {"success_once": 1, "note": "text", "last": None})
        raise KeyboardInterrupt  # nothing written is lost
    lines = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"group": "train", "decision_steps": 10, "loss": 0.5, "bad": None, "worse": None},
        {"group": "eval", "decision_steps": 20, "success_once": 1, "note": "text", "last": None},
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


def test_results_are_strict_json(tmp_path):
    paths.write_result(tmp_path, {"gain": np.float32(0.5), "steps": np.nan})
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
