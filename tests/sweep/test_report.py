"""A sweep's report, from directories as trials leave them: finished, ended early, failed, lost."""

import json
import re

import pytest
import yaml

from pdjax.commands import cli
from pdjax.config import files as configs
from pdjax.config.options import ConfigError
from pdjax.output import records, terminal
from pdjax.output.run_directory import write_result
from pdjax.sweep import report
from pdjax.sweep import spec as sweep_spec


def write_sweep(out, **spec):
    out.mkdir()
    (out / "sweep.yaml").write_text(yaml.safe_dump(spec))
    return sweep_spec.read(out / "sweep.yaml")


def write_trial(out, spec, name, values, scores, *, refined=None, status="", starts=1):
    """A trial's directory: interim evaluations of each run, and how it ended."""
    directory = out / "trials" / name
    directory.mkdir(parents=True)
    (directory / "trial.json").write_text(json.dumps(values))
    for index in range(starts):
        records.add_record(directory / "starts.jsonl", {"time": index})
    if status:
        (directory / "status.txt").write_text(f"{status}\n")
    members = sweep_spec.make_members(spec, values)
    for index, (config, curve) in enumerate(zip(members, scores, strict=True)):
        run = directory / "run" / (f"member_{index}" if len(members) > 1 else "")
        run.mkdir(parents=True)
        configs.save(config, run / "config.yaml")
        with records.MetricsLog(run) as log:
            for step, score in enumerate(curve):
                numbers = {"success_once": score, "smoothness": 0.1, "wall_s": 60.0 * step}
                log.write("eval", 1_000 * step, numbers)
        if refined is not None:
            write_result(
                run,
                {
                    "task": config.task.name,
                    "seed": config.seed,
                    "base_success": 0.5,
                    "refined_success": refined[index],
                    "base_smoothness": 0.2,
                    "refined_smoothness": 0.1,
                    "decision_steps": 2_000,
                },
            )


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setattr(terminal.console, "_width", 120)  # else tables break words


@pytest.fixture
def seeds(tmp_path):
    """Two settings of two tasks each, two seeds of each; of one setting a seed goes on still."""
    out = tmp_path / "sweep"
    space = {"sac.tau": [0.01, 0.02], "seed": [0, 1]}
    spec = write_sweep(out, config=["peg_fast", "door_fast"], space=space)
    ends = {
        ("peg_fast", 0.01): (0.8, 0.9),
        ("peg_fast", 0.02): (0.9, 0.94),
        ("door_fast", 0.01): (0.99, 0.97),
        ("door_fast", 0.02): (1.0, None),
    }
    for number, ((config, tau), refined) in enumerate(ends.items()):
        for seed, end in enumerate(refined):
            values = {"config": config, "sac.tau": tau, "seed": seed}
            write_trial(
                out,
                spec,
                f"t_{number}{seed}",
                values,
                [[0.5, 0.7, end or 0.6]],
                refined=None if end is None else [end],
            )
    return out


def test_seeds_are_one_setting_and_tasks_are_told_apart(seeds, capsys):
    found = report.write(seeds)
    assert len(found["trials"]) == 8 and len(found["settings"]) == 4
    rows = [(row["task"], row["values"]["sac.tau"], row["status"]) for row in found["settings"]]
    assert rows == [
        ("AdroitDoor", 0.01, "finished"),
        ("AdroitDoor", 0.02, "1 of 2"),
        ("PegInsertionSide", 0.02, "finished"),
        ("PegInsertionSide", 0.01, "finished"),
    ]
    peg = found["settings"][2]
    assert peg["success"] == pytest.approx(0.92) and peg["success_ci"] == pytest.approx([0.9, 0.94])
    assert peg["base_success"] == 0.5 and peg["smoothness"] == 0.1 and len(peg["runs"]) == 2
    said = capsys.readouterr().err
    assert "2 trials" in said and "92.0% [90%, 94%]" in said and "0.2 -> 0.1" in said
    best = {
        task: configs.load(str(seeds / f"best_{task}.yaml"))
        for task in ("AdroitDoor", "PegInsertionSide")
    }
    assert best["AdroitDoor"].sac.tau == 0.01 and best["PegInsertionSide"].sac.tau == 0.02
    for name in ("curves_AdroitDoor.png", "curves_PegInsertionSide.png", "trials.parquet"):
        assert (seeds / name).stat().st_size > 0
    kept = json.loads((seeds / "trials.json").read_text())
    assert len(kept) == 8 and {row["seed"] for row in kept} == {0, 1}


def test_members_early_ends_failures_and_losses_are_told(tmp_path, capsys):
    out = tmp_path / "sweep"
    spec = write_sweep(
        out,
        config="peg_fast",
        members=2,
        search="random",
        samples=4,
        space={"sac.tau": {"uniform": [0.01, 0.1]}},
    )
    write_trial(
        out,
        spec,
        "t_0",
        {"config": "peg_fast", "sac.tau": 0.02},
        [[0.5, 0.9], [0.5, 0.8]],
        refined=[0.9, 0.8],
        starts=3,
    )
    write_trial(
        out,
        spec,
        "t_1",
        {"config": "peg_fast", "sac.tau": 0.03},
        [[0.5, 0.95], [0.5, 0.96]],
        status="ended early",
    )
    write_trial(
        out, spec, "t_2", {"config": "peg_fast", "sac.tau": 0.04}, [[], []], status="failed"
    )
    write_trial(out, spec, "t_3", {"config": "peg_fast", "sac.tau": 0.05}, [[0.5], [0.5]])
    found = report.write(out)
    rows = {row["trial"]: row for row in found["trials"]}
    assert [row["trial"] for row in found["trials"]] == ["t_0", "t_1", "t_3", "t_2"]
    assert [rows[f"t_{i}"]["status"] for i in range(4)] == [
        "finished",
        "ended early",
        "failed",
        "unfinished",
    ]
    assert rows["t_0"]["starts"] == 3 and rows["t_0"]["members"] == 2
    assert rows["t_0"]["success"] == pytest.approx(0.85) and rows["t_2"]["success"] is None
    assert configs.load(str(out / "best.yaml")).sac.tau == 0.02
    said = capsys.readouterr().err
    assert "ended early" in said and "failed" in said and "unfinished" in said
    assert found["settings"][0]["restarts"] == 2 and "restarts" in said


def test_importance_names_what_matters(tmp_path):
    out = tmp_path / "sweep"
    space = {"sac.tau": [0.01, 0.02, 0.03], "sac.gamma": [0.9, 0.95], "seed": [0, 1]}
    spec = write_sweep(out, config="peg_fast", space=space)
    for number, values in enumerate(sweep_spec.trials(spec) or []):
        end = {0.9: 0.2, 0.95: 0.9}[values["sac.gamma"]] + 0.001 * number
        write_trial(out, spec, f"t_{number}", values, [[0.1, end]], refined=[end])
    pytest.importorskip("optuna", reason="importance needs pdjax[sweep]")
    shares = report.write(out)["importance"]
    assert set(shares) == {"sac.tau", "sac.gamma"} and shares["sac.gamma"] > 0.8
    assert (out / "importance.png").stat().st_size > 0


def test_nothing_to_report_yet(tmp_path):
    out = tmp_path / "sweep"
    spec = write_sweep(out, config="peg_fast", space={"sac.tau": [0.01, 0.02]})
    write_trial(out, spec, "t_0", {"config": "peg_fast", "sac.tau": 0.01}, [[]])
    with pytest.raises(ConfigError, match=r"no trial of .* has been evaluated yet"):
        report.write(out)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("trial.json", b"[1]", "holds .1., expected an object"),
        ("trial.json", b"{}", "names no config"),
        ("trial.json", b'{"config": "peg_fa', "cannot read trial"),
        ("trial.json", b'{"config": "peg_fast", "sac.gamma": 0.9}', "it sets sac.gamma, unlike"),
        ("trial.json", b'{"config": "peg_fast"}', "it lacks sac.tau, unlike the space"),
        ("run/config.yaml", b"task: {na", "cannot read config"),
        ("starts.jsonl", b'{"time\n{"time": 1}\n', "line 1 is no JSON"),
        ("status.txt", b"\x9c\x00", "is not UTF-8"),
        ("status.txt", b"won", "says won, expected one of unfinished, ended early, failed"),
        ("run/metrics.jsonl", b"\0" * 64 + b"\n", "line 1 is no JSON"),
        ("run/result.json", b"[1]", "holds .1., expected an object"),
        ("run/result.json", b'{"refined_success": 5e300, "base_success": 0}', "number in .0, 1"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(tmp_path, capsys, name, content, why):
    out = tmp_path / "sweep"
    spec = write_sweep(out, config="peg_fast", space={"sac.tau": [0.01, 0.02]})
    values = {"config": "peg_fast", "sac.tau": 0.01}
    write_trial(out, spec, "t_0", values, [[0.5, 0.9]], refined=[0.9])
    (out / "trials" / "t_0" / name).write_bytes(content)
    before = sorted(out.rglob("*"))
    assert cli.main(["sweep", "report", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(why, line) and name in line, line
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize("name", ["trials.json", "best.yaml", "curves_PegInsertionSide.png"])
def test_a_name_that_is_taken_by_a_directory_is_told_before_anything_is_written(
    tmp_path, capsys, name
):
    out = tmp_path / "sweep"
    spec = write_sweep(out, config="peg_fast", space={"sac.tau": [0.01, 0.02]})
    values = {"config": "peg_fast", "sac.tau": 0.01}
    write_trial(out, spec, "t_0", values, [[0.5, 0.9]], refined=[0.9])
    (out / name).mkdir()
    before = sorted(out.rglob("*"))
    assert cli.main(["sweep", "report", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"cannot write .* is a directory", line) and name in line, line
    assert sorted(out.rglob("*")) == before
