"""Comparing runs: what makes a group, what it is called, what is told of it."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from pdjax.commands import cli
from pdjax.config import files as configs
from pdjax.config import options
from pdjax.runs import compare as comparison

# success_once of the interim evaluations, one every 100 decisions; the base policy's first
STEADY = [0.5, 0.7, 0.9, 0.95]
FALLING = [0.5, 0.9, 0.6, 0.8]


def write_run(directory, scores, overrides=(), refined=None, minute=1.0, about=None):
    """A run directory with what `pdjax compare` reads; `refined` None = not finished.

    Interim evaluations come once a `minute`, the first after half of it.
    """
    directory.mkdir(parents=True)
    (directory / "base_policy").mkdir()
    (directory / "base_policy" / "policy.json").write_text(json.dumps(about or {"kind": "mlp"}))
    config = configs.load("door_fast", [f"base_policy.path={directory.name}", *overrides])
    configs.save(config, directory / "config.yaml")
    lines = [{"group": "train", "decision_steps": 50, "wall_s": 1.0, "train_success": 1.0}]
    for index, score in enumerate(scores):
        wall_s = 60 * minute * (index + 0.5)
        lines.append(
            {
                "group": "eval",
                "decision_steps": 100 * index,
                "wall_s": wall_s,
                "success_once": score,
            }
        )
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(text + '{"group": "eval", "deci')  # being written
    if refined is not None:
        result = {
            "base_success": 0.5,
            "refined_success": refined,
            "base_smoothness": 0.3,
            "refined_smoothness": 0.1 * refined,
        }
        (directory / "result.json").write_text(json.dumps(result))
    return directory


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def six(folder):
    """Two groups of three runs; the third of the second is still running."""
    dawn = ["sac.gamma=0.9"]
    return [
        write_run(folder / "a0", STEADY, ["seed=0"], 0.9),
        write_run(folder / "a1", STEADY, ["seed=1", "eval.seed=7"], 1.0, minute=2.0),
        write_run(folder / "a2", FALLING, ["seed=2"], 0.8),
        write_run(folder / "b0", STEADY, ["seed=0", *dawn], 0.7),
        write_run(folder / "b1", STEADY, ["seed=1", *dawn], 0.9),
        write_run(folder / "b2", [0.5, 0.4], ["seed=2", *dawn]),
    ]


def compare(capsys, *argv):
    assert cli.main(["compare", *map(str, argv), "--json"]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_groups_and_their_figures(six, capsys):
    found, said = compare(capsys, *six)
    assert found["task"] == "AdroitDoor" and found["picture"] == "compare.png"
    a, b = found["groups"]
    assert (a["name"], b["name"]) == ("sac.gamma=0.99", "sac.gamma=0.9")
    assert a["runs"] == [str(run) for run in six[:3]]
    assert (a["finished"], b["finished"]) == (3, 2)
    assert (a["settings"], b["settings"]) == ({"sac.gamma": 0.99}, {"sac.gamma": 0.9})
    assert a["base_success"] == pytest.approx(0.5)
    assert a["refined_success"] == pytest.approx(0.9)  # of 0.9, 1.0, 0.8
    assert a["refined_ci"] == pytest.approx([0.8, 1.0])  # all three draws alike: 1/27 each
    assert b["refined_success"] == pytest.approx(0.8)  # the running one has none yet
    assert a["refined_smoothness"] == pytest.approx(0.09)
    # 0.9 is reached after 200, 200 and 100 decisions, and 2.5, 5 and 1.5 minutes
    assert (a["decisions_to_threshold"], a["minutes_to_threshold"]) == (200, 2.5)
    assert b["decisions_to_threshold"] is None  # not by the one that runs
    assert a["largest_fall"] == pytest.approx(0.3)  # 0.9 -> 0.6
    assert b["largest_fall"] == pytest.approx(0.1)  # below the base policy
    for text in (
        "3 of 3",
        "2 of 3",
        "80.0% - 100.0%",
        "0.3000 -> 0.0900",
        "2.5",
        "decisions to 0.9",
    ):
        assert text in said


def test_another_threshold(six, capsys):
    found, _ = compare(capsys, *six, "--threshold", "0.7")
    # after 100 decisions each: 1.5, 3 and 1.5 minutes
    assert found["groups"][0]["decisions_to_threshold"] == 100
    assert found["groups"][0]["minutes_to_threshold"] == 1.5


def test_one_run_has_no_interval(folder, capsys):
    run = write_run(folder / "a", STEADY, refined=0.9)
    found, said = compare(capsys, run, "--out", "one.png")
    (group,) = found["groups"]
    assert group["name"] == "all runs" and group["refined_ci"] is None
    assert next(line for line in said.splitlines() if "interval" in line).split()[-2] == "-"


def test_base_policies_whose_chunks_have_other_lengths_are_apart(folder):
    long = {"kind": "bet", "imitation": {"policy": {"act_horizon": 4}}}  # as pdjax writes it
    short = {"kind": "bet", "imitation": {"policy": {"act_horizon": 1}}}
    runs = [
        write_run(folder / "a", STEADY, about=long),
        write_run(folder / "b", STEADY, about=short),
        write_run(folder / "c", STEADY, about={"kind": "export", "act_horizon": 4}),
        write_run(folder / "d", STEADY, ["base_policy.act_horizon=1"], about=long),
    ]
    groups = comparison.group([comparison.read(run) for run in runs])
    assert [[run.directory.name for run in group] for group in groups] == [["a"], ["b", "d"], ["c"]]
    assert comparison.name_groups([group[0].settings for group in groups[:2]]) == [
        "base_policy.act_horizon=4",
        "base_policy.act_horizon=1",
    ]


def test_what_is_drawn_is_the_mean_on_a_shared_grid(six):
    runs = [comparison.read(run) for run in six]
    bands = comparison.bands([run.curve for run in runs[:3]])
    grid, mean, (low, high) = bands["decisions"]
    np.testing.assert_allclose(grid, [0, 100, 200, 300])
    np.testing.assert_allclose(mean, np.mean([STEADY, STEADY, FALLING], axis=0))
    np.testing.assert_allclose([low[2], high[2]], [0.6, 0.9])
    # In minutes the second is at 1, 3, 5, 7, the others at 0.5 ... 3.5: from 1 to 3.5 in common.
    grid, mean, _ = bands["minutes"]
    np.testing.assert_allclose(grid, [1, 1.5, 2.5, 3, 3.5])
    # at 2.5: 0.9 and 0.6, and of the second 0.5 + 0.75 * 0.2
    np.testing.assert_allclose(mean[2], (0.9 + 0.65 + 0.6) / 3)
    assert bands["base"] == pytest.approx(0.5) and bands["runs"] == 3
    alone = comparison.bands([runs[0].curve])
    assert alone["minutes"][2] is None


def test_the_picture_has_a_colour_for_each_group(six, capsys):
    compare(capsys, *six[:3], "--out", "one.png")
    compare(capsys, *six, "--out", "two.png")
    blue, orange = np.array([31, 119, 180]) / 255, np.array([255, 127, 14]) / 255  # C0, C1
    has = lambda picture, color: (np.abs(picture[..., :3] - color) < 0.02).all(-1).any()  # noqa: E731
    one, two = image.imread("one.png"), image.imread("two.png")
    assert has(one, blue) and not has(one, orange)
    assert has(two, blue) and has(two, orange)


def of(overrides, kind="mlp"):
    return {"base_policy": kind} | comparison.settings(configs.load("door_fast", overrides))


def preset(name, **changes):
    section = {"sac": dataclasses.replace(configs.preset(name).sac, **changes)}
    return {"base_policy": "mlp"} | comparison.settings(
        dataclasses.replace(configs.preset(name), **section)
    )


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        ([of([])], ["all runs"]),
        ([of([]), of(["sac.n_step=1"])], ["sac.n_step=5", "sac.n_step=1"]),
        ([of([]), of([], "bet")], ["base_policy=mlp", "base_policy=bet"]),
        (
            [of([]), of(["task.shift=mass"]), of(["sac.hidden=[8]"])],
            [
                'task.shift="" sac.hidden=[256, 256]',
                "task.shift=mass sac.hidden=[256, 256]",
                'task.shift="" sac.hidden=[8]',
            ],
        ),
        ([preset("pd"), preset("dawn")], ["preset=pd", "preset=dawn"]),
        ([preset("pd"), preset("dawn", gamma=0.5)], ["preset=pd", "preset=dawn sac.gamma=0.5"]),
        ([preset("pd"), preset("dawn", gamma=0.5, n_step=7)], ["preset=pd", "preset=dawn +2 more"]),
        (
            [
                preset("dawn"),
                preset("resfit"),
                preset("resfit", gamma=0.5, tau=0.5, n_step=7, num_critics=3),
            ],
            [
                "preset=dawn",
                "preset=resfit",
                "preset=resfit sac.gamma=0.5 sac.tau=0.5 sac.num_critics=3 +1 more",
            ],
        ),
        (  # all from one preset, which is not the first, and which they need not be told apart by
            [preset("fast"), preset("fast", gamma=0.5, tau=0.5, num_critics=3, n_step=7)],
            ["preset=fast", "sac.gamma=0.5 sac.tau=0.5 sac.num_critics=3 +1 more"],
        ),
    ],
)
def test_a_name_is_what_sets_a_group_apart(groups, names):
    assert comparison.name_groups(groups) == names


def test_names_that_would_be_equal_are_numbered():
    changes = {"gamma": 0.5, "tau": 0.5, "num_critics": 3}
    groups = [preset("resfit", **changes, n_step=count) for count in (7, 8)]
    _, first, second = comparison.name_groups([preset("pd"), *groups])
    assert second == f"{first} #2"


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: RUNS"),
        (["a0", "nowhere"], "nowhere is no run: expected config.yaml as `pdjax train` writes it"),
        (["a0", "a1", "a0/"], "a0 is named twice; name each run once"),
        (["a0", "other"], "a0 is a run of AdroitDoor, other one of AdroitPen; compare runs of one"),
        (["a0", "young"], "young has no interim evaluation; wait for its first, or train with"),
        (["a0", "--out", "x.jpg"], "x.jpg must end in .png"),
        (["a0", "--out", "kept.png"], "kept.png exists already; choose another --out"),
        (["a0", "--threshold", "2"], "--threshold got '2', expected number 0 to 1"),
    ],
)
def test_mistakes(six, folder, capsys, argv, message):
    write_run(folder / "other", STEADY, ["task.name=AdroitPen"], 0.9)
    write_run(folder / "young", [])
    Path("kept.png").touch()
    before = everything(folder)
    assert cli.main(["compare", *argv]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert everything(folder) == before


def test_runs_are_named_without_end():
    (runs, *_) = options.describe(cli.COMMANDS["compare"])
    command, _ = cli._parse(["compare", "a", "b", "c", "--threshold", "0.5"])
    assert runs.name == "runs" and command.runs == (Path("a"), Path("b"), Path("c"))


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("decision_steps", "1" + "0" * 400, "a number from 0 on"),
        ("decision_steps", "-1", "a number from 0 on"),
        ("wall_s", "1e999", "a number from 0 on"),
        ("success_once", "NaN", r"a number in \[0, 1\]"),
        ("success_once", "-1e300", r"a number in \[0, 1\]"),
        ("success_once", "5e300", r"a number in \[0, 1\]"),
        ("return", "-1e300", "a number"),
    ],
)
def test_numbers_that_no_evaluation_gives_are_refused(folder, capsys, name, number, expected):
    run = write_run(folder / "run", [0.2, 0.4])
    record = {"group": "eval", "decision_steps": 300, "wall_s": 1.0, "success_once": 0.5}
    line = json.dumps(record | {name: "here"}).replace('"here"', number)
    (run / "metrics.jsonl").write_text(f"{line}\n")
    assert cli.main(["compare", "run", "--out", "a.png"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert re.search(f"line 1 has a wrong value: {name} is .*, expected {expected};", said), said
    assert not (folder / "a.png").exists()
