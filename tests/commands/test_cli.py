"""The command line: help that teaches, mistakes in one line that change nothing, strict JSON."""

import importlib.metadata
import json
import shlex
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.base_policies import imitation, settings
from pdjax.base_policies.kinds import diffusion
from pdjax.commands import cli, demonstrations, table
from pdjax.config import files as configs
from pdjax.config import options, schema
from pdjax.config.presets import PRESETS
from pdjax.output import checkpoint
from pdjax.runs.video import RenderError
from pdjax.training import build

TASK, OBS_DIM, ACT_DIM = "PegInsertionSide", 50, 7


def make_base_policy(directory, task=TASK, obs_dim=OBS_DIM):
    """An untrained diffusion policy, as `pdjax imitate` would write it."""
    shape = diffusion.DiffusionConfig(hidden=8, blocks=1)
    config = imitation.ImitationConfig(diffusion=shape)
    denoiser = diffusion.make_denoiser(obs_dim, ACT_DIM, shape)
    params = denoiser.init(jax.random.key(0))
    policy = diffusion.make_policy(shape, ACT_DIM, params, jnp.zeros(obs_dim), jnp.ones(obs_dim))
    directory.mkdir()
    imitation.save(directory, policy, config, task)


def make_run(directory):
    """A finished run with small networks, as `pdjax train` would write it."""
    directory.mkdir()
    make_base_policy(directory / "base_policy")
    base = f"base_policy.path={directory / 'base_policy'}"
    config = configs.load("peg_fast", [base, "sac.hidden=[8]"])
    sac = build.build(config).sac
    checkpoint.save(directory / "residual", sac.init(jax.random.key(0)).actor)
    configs.save(config, directory / "config.yaml")


def make_demos(path):
    """One episode of nothing, of the task's sizes."""
    with h5py.File(path, "w") as file:
        group = file.create_group("traj_0")
        group["obs"] = np.zeros((4, OBS_DIM), np.float32)
        group["actions"] = np.zeros((3, ACT_DIM), np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    make_base_policy(folder / "base")
    make_run(folder / "run")
    make_demos(folder / "demos.h5")
    (folder / "demos.json").write_text('{"env_info": {"env_id": "PegInsertionSide-v0"}}')
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """The working folder, filled with fresh copies."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def everything(folder):
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refuse(capsys, folder, argv, message):
    """Asserts that a command ends in one line and exit code 2, with nothing changed."""
    before = everything(folder)
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("pdjax: ")
    assert len(captured.err) <= 301
    assert message in captured.err
    assert everything(folder) == before


DEMOS = ["demos", TASK, "--out", "new/x.h5"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            [],
            "no command; choose one of: quickstart, envs, demos, data, imitate, wrap, import, ",
        ),
        (["trian"], "invalid choice: 'trian'"),
        (["--json", "envs"], "envs does not take '--json' here; write it after the command"),
        (["envs", "StackCub"], "unknown task 'StackCub'; did you mean StackCube?"),
        (["envs", "StackCube", "extra"], "envs got 'extra' after 'StackCube', expected one task"),
        (["demos"], "the following arguments are required: TASK, --out; see `pdjax demos --help`"),
        (["demos", TASK, "--out"], "argument --out: expected one argument"),
        ([*DEMOS, "--episodes", "abc"], "--episodes got 'abc', expected integer >= 1"),
        ([*DEMOS, "--episodes", "0"], "--episodes got '0', expected integer >= 1"),
        ([*DEMOS, "--episodes", "1.5"], "--episodes got '1.5', expected integer >= 1"),
        ([*DEMOS, "--noise", "nan"], "--noise got 'nan', expected number 0 to 1"),
        ([*DEMOS, "--seed", "-1"], "--seed got '-1', expected integer 0 to 2147483647"),
        ([*DEMOS, "--physics", "foo"], "--physics got 'foo', expected auto | native"),
        ([*DEMOS, "--episdes", "3"], "demos does not take '--episdes' here; did you mean --epis"),
        (["demos", "Peg", "--out", "new/x.h5"], "unknown task 'Peg'; known: AdroitDoor, "),
        (["demos", "PegInsertionSid", "--out", "x.h5"], f"did you mean {TASK}?"),
        (["demos", TASK, "--out", "x.txt"], "x.txt must end in .h5 or .hdf5"),
        (["demos", TASK, "--out", "demos.h5"], "demos.h5 exists already; choose another --out"),
        (["demos", TASK, "--out", "demos.hdf5"], "demos.json exists already; choose another"),
        (["demos", TASK, "--out", "demos.h5/x.h5"], "cannot write to demos.h5/x.h5: Not a dir"),
        (["quickstart", "--seed", "2147483648"], "--seed got '2147483648', expected integer 0 to"),
        ([*DEMOS, "--episodes", "2e9"], "2,000,000,000 demonstrations of PegInsertionSide needs"),
        (
            ["demos", "Fetch-v4", "--out", "x.h5"],
            "or brax:NAME, playground:NAME, gymnasium:ID (other",
        ),
        (["x" * 5_000], "invalid choice: 'xxx"),
        (["envs", "y" * 5_000], "unknown task 'yyy"),
        (["envs", "AdroitDoor", f"--{'z' * 5_000}"], "envs does not take '--zzz"),
        ([*DEMOS, "--episodes", "1e18"], "got '1e18', expected integer >= 1 that 32 bits can hold"),
        ([*DEMOS, "--episodes", "9" * 5_000], "expected integer >= 1 that 32 bits can hold"),
        (["quickstart", "--out", "run"], "run is not empty; choose another --out or remove it"),
    ],
)
def test_mistakes_in_arguments(capsys, here, argv, message):
    refuse(capsys, here, argv, message)


TRAIN = ["train", "peg_fast", "--out", "new/run", "--set", "base_policy.path=base"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train"], "required: CONFIG"),
        (
            ["train", "nope"],
            "no config 'nope': neither a file nor a name; known: door_dawn, door_fast, door_pd,"
            " door_resfit, fast_long, hammer_fast, peg_fast, peg_long, relocate_fast,"
            " fast/TASK_KIND, paper/TASK_KIND, pd, dawn, resfit, fast",
        ),
        (["train", "peg_fats"], "did you mean peg_fast?"),
        (["train", "demos.h5"], "cannot read config demos.h5"),
        (["train", "peg_fast"], "base_policy.path is empty; set it to a directory of `pdjax imit"),
        ([*TRAIN, "sac.gama=1"], "unknown config key 'sac.gama'; did you mean sac.gamma?"),
        ([*TRAIN, "seed=1", "sac.gamma=2"], "config key sac.gamma got 2, expected number 0 to 1"),
        ([*TRAIN, "--set", "seed=x"], "config key seed got 'x', expected integer"),
        ([*TRAIN, "--set", "seed"], "--set 'seed' has no value; expected section.key=value"),
        ([*TRAIN, "--set"], "argument --set: expected one argument"),
        ([*TRAIN, "task.name=Foo"], "unknown task 'Foo'"),
        ([*TRAIN, "--members", "-1"], "--members got '-1', expected integer >= 0"),
        ([*TRAIN, "members.seed=[1,1]"], "members 0 and 1 are the same run; change a value of"),
        ([*TRAIN, "members.sac.n_step=[1,3]"], "members differ in sac.n_step (1 and 3), which one"),
        ([*TRAIN, "--out", "base", "--members", "2"], "base is not empty; choose another --out"),
        (
            [*TRAIN, "task.name=TurnFaucet", "task.reward=dense"],
            "task TurnFaucet has no reward 'dense'",
        ),
        ([*TRAIN, "task.shift=mas"], "unknown shift 'mas'; did you mean mass?"),
        ([*TRAIN, "base_policy.path=nowhere"], "no usable base policy in nowhere: expected"),
        ([*TRAIN, "base_policy.act_horizon=8"], "pred_horizon=8 must be >= obs_horizon - 1 + act"),
        ([*TRAIN, "train.num_envs=7"], "decisions_per_round=256 must be a multiple of train.num_e"),
        ([*TRAIN, "train.replay_capacity=9"], "train.replay_capacity=9 holds 0 decisions of each"),
        ([*TRAIN, "--out", "base"], "base is not empty; choose another --out or remove it"),
        ([*TRAIN, "--out", "a" * 5_000], "File name too long; choose another name"),
        (["export", "x" * 5_000, "--out", "new"], "File name too long; choose another name"),
        (["eval", "x" * 5_000], "is no run: expected config.yaml"),
        ([*TRAIN, "--out", "loop/run"], "loop"),
        (
            [*TRAIN, "--out", "demos.h5"],
            "cannot write to demos.h5: Not a directory; choose another",
        ),
        ([*TRAIN, "--out", "base/new"], "base/new is inside the base policy's directory"),
        ([*TRAIN, "--members", "3000000000"], "expected integer >= 0 that 32 bits can hold"),
        ([*TRAIN, "--members", "2000000000"], "2,000,000,000 members, expected at most 1,000"),
        ([*TRAIN, "--coordinator", "x"], "--coordinator got 'x', expected HOST:PORT with"),
        ([*TRAIN, "sac.batch_size=1e9"], "sac.batch_size=1000000000 alone needs "),
        ([*TRAIN, "eval.episodes=1e9"], "eval.episodes=1000000000 alone needs "),
        (
            [*TRAIN, "train.total_decisions=4096"],
            "train.learning_starts=6,144 is beyond the 4,096 ",
        ),
        ([*TRAIN, "sac={gamma: 0.5}"], "gives a whole section; set each value by itself, such as"),
        (
            [*TRAIN, "--memory-gib", "1e300"],
            "--memory-gib got '1e300', expected number >= 0 that 32",
        ),
        ([*TRAIN, "train.replay_dtype=half"], "expected float32 | bfloat16"),
        ([*TRAIN, "--memory-gib", "-1"], "--memory-gib got '-1', expected number >= 0"),
        ([*TRAIN, "--memory-gib", "1e-2"], "no train.replay_capacity fits, or lower train.num_"),
        (
            [*TRAIN, "train.replay_capacity=1e9", "--memory-gib", "40"],
            "the replay's 1,000,000,000 decisions take",
        ),
        (
            [*TRAIN, "train.replay_capacity=1e9", "--plan", "--memory-gib", "40"],
            ": lower train.replay_capacity to ",
        ),
    ],
)
def test_mistakes_in_training(capsys, here, argv, message):
    refuse(capsys, here, argv, message)


def test_a_base_policy_of_another_task_is_refused(capsys, here):
    path = here / "base" / "policy.json"
    path.write_text(path.read_text().replace(TASK, "StackCube"))
    refuse(
        capsys,
        here,
        TRAIN,
        "was trained for StackCube (obs_dim 50, act_dim 7), but task.name is",
    )


def test_a_base_policy_of_the_tasks_family_is_taken(here):
    make_base_policy(here / "family", "TurnFaucet", 40)
    other = ["base_policy.path=family", "task.name=TurnFaucetHeldOut", "sac.hidden=[8]"]
    assert build.build(configs.load("peg_fast", other)).env.task.name == "TurnFaucetHeldOut"


def test_a_base_policy_of_other_shapes_is_refused_by_name(capsys, here):
    path = here / "base" / "policy.json"
    path.write_text(path.read_text().replace('"hidden": 8', '"hidden": 16'))
    refuse(capsys, here, TRAIN, "is float32(16,), expected float32(32,)")


IMITATE = ["imitate", "demos.h5", "--task", TASK, "--out", "new/base"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["imitate", "demos.h5"], "required: --task, --out"),
        (["imitate", "none.h5", *IMITATE[2:]], "no demonstrations at none.h5; write some with"),
        (["imitate", "base", *IMITATE[2:]], "no demonstrations at base"),
        ([*IMITATE[:3], "Foo", *IMITATE[4:]], "unknown task 'Foo'"),
        ([*IMITATE[:-1], "base"], "base is not empty; choose another --out or remove it"),
        ([*IMITATE, "--set", "diffusion.act_horizon=9"], "pred_horizon=8 must be >= obs_horizon"),
        ([*IMITATE, "--set", "steps=0"], "config key steps got 0, expected integer >= 1"),
        ([*IMITATE, "--set", "bet.heads=3", "--policy", "bet"], "width got 128, expected a multi"),
        ([*IMITATE, "--set", "bet.head=3"], "unknown config key 'bet.head'; did you mean bet.head"),
        ([*IMITATE, "--policy", "gpt"], "--policy got 'gpt', expected diffusion | diffusion_unet"),
        ([*IMITATE, "--set", "batch_size=1e9"], "batch_size=1,000,000,000 needs "),
        (
            [*IMITATE, "--eval-episodes", "1e9"],
            "playing 1,000,000,000 episodes of PegInsertionSide",
        ),
        ([*IMITATE, "--set", "bet.bins=1e6", "--policy", "bet"], "expected integer 1 to 4096"),
        ([*IMITATE, "--eval_every", "8"], "did you mean --eval-every?"),
    ],
)
def test_mistakes_in_imitation(capsys, here, argv, message):
    refuse(capsys, here, argv, message)


def test_demonstrations_that_cannot_be_used_are_refused(capsys, here):
    (here / "demos.json").write_text('{"env_info": {"env_id": "StackCube-v0"}}')
    refuse(capsys, here, IMITATE, f"holds demonstrations of StackCube, expected {TASK}; pass --ta")
    (here / "demos.json").unlink()
    with h5py.File("demos.h5", "a") as file:
        del file["traj_0/actions"]
        file["traj_0/actions"] = np.zeros((3, 6))
    refuse(capsys, here, IMITATE, "demos.h5:traj_0/actions has shape (3, 6), expected (T, 7)")
    content = (here / "demos.h5").read_bytes()
    (here / "demos.h5").write_bytes(content[: len(content) // 2])
    refuse(capsys, here, IMITATE, "demos.h5 is not a readable demonstration file")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["eval", "nowhere"], "nowhere is no run: expected config.yaml as `pdjax train` writes it"),
        (["eval", "base"], "base is no run"),
        (["eval", "run", "--episodes", "0"], "--episodes got '0', expected integer >= 1"),
        (["eval", "run", "--physics", "foo"], "--physics got 'foo', expected auto | native | mjx"),
        (["eval", "nowhere", "--physics", "native"], "nowhere is no run"),
        (["render", "run", "--out", "x.avi"], "x.avi must end in .mp4 or .gif"),
        (["render", "run"], "required: --out"),
        (["render", "run", "--out", "x.mp4", "--grid", "4"], "--grid got '4', expected ROWSxCOL"),
        (["render", "run", "--out", "x.mp4", "--grid", "11x1"], "such as 4x4, each at most 10"),
        (
            ["render", "run", "--out", "x.mp4", "--grid", "\u0663x1"],
            "--grid got '\u0663x1', expected ROWSxC",
        ),
        (["render", "run", "--out", "x.mp4", "--grid", "0x1"], "--grid got '0x1', expected ROWSxC"),
        (["render", "base", "--out", "new/x.mp4"], "base is no run"),
        (["eval", "run", "--episodes", "1e9"], "playing 1,000,000,000 episodes of PegInsertionSi"),
        (["render", "run", "--out", "x.mp4", "--episodes", "1e9"], "playing 1,000,000,000 episod"),
    ],
)
def test_mistakes_with_runs(capsys, here, argv, message):
    refuse(capsys, here, argv, message)


def test_a_run_that_does_not_fit_its_config_is_refused(capsys, here):
    text = (here / "run" / "config.yaml").read_text()
    assert "  - 8\n" in text
    (here / "run" / "config.yaml").write_text(text.replace("  - 8\n", "  - 16\n"))
    refuse(capsys, here, ["eval", "run"], "expected float32(16,); use the config it was made with")
    (here / "run" / "config.yaml").write_text(text.replace("gamma:", "gama:"))
    refuse(capsys, here, ["eval", "run"], "unknown config key 'sac.gama'")
    (here / "run" / "config.yaml").write_text(text)
    shutil.rmtree(here / "run" / "residual")
    refuse(capsys, here, ["eval", "run"], "no checkpoint at")


def test_an_existing_video_is_kept(capsys, here):
    (here / "x.mp4").write_text("precious")
    refuse(capsys, here, ["render", "run", "--out", "x.mp4"], "x.mp4 exists already")


@pytest.fixture
def overrides(monkeypatch):
    """What reaches the loading of configs from --set."""
    seen = []

    def load(name, values, seeds):
        seen.append((name, list(values)))
        raise schema.ConfigError("seen")

    monkeypatch.setattr(configs, "load_members", load)
    return seen


@pytest.mark.parametrize(
    "argv",
    [
        ["c", "--set", "a.b=1", "d=2"],
        ["c", "--set", "a.b=1", "--set", "d=2"],
        ["c", "--set=a.b=1", "--set=d=2"],
        ["--set", "a.b=1", "d=2", "c"],
        ["--set", "a.b=1", "c", "--set", "d=2"],
        ["--set", "a.b=1", "d=2", "--out", "x", "c"],
    ],
)
def test_several_values_are_set_in_every_usual_way(overrides, argv):
    assert cli.main(["train", *argv]) == 2
    assert overrides == [("c", ["a.b=1", "d=2"])]


def help_of(capsys, *argv):
    with pytest.raises(SystemExit) as done:
        cli.main([*argv, "--help"])
    assert done.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_help_names_every_command_and_the_exit_codes(capsys):
    text = help_of(capsys)
    squeezed = " ".join(text.split())
    for name, cls in table.COMMANDS.items():
        summary = " ".join((cls.__doc__ or "?").split("\n\n")[0].split())
        assert f" {name} {summary}" in squeezed
    assert "0 done, 1 failed, 2 bad input" in text
    assert max(map(len, text.splitlines())) <= 100


def test_help_lists_the_commands_in_the_order_of_a_users_work(capsys):
    text = help_of(capsys)
    titles = ["start here:", "prepare a base", "train a residual", "use a run:", "many runs:"]
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert places[1] < text.index("  imitate ") < places[2] < text.index("  train ") < places[3]


@pytest.mark.parametrize("name", table.COMMANDS)
def test_help_of_a_command_shows_an_example_that_parses(capsys, name):
    command = table.COMMANDS[name]
    assert f"\nexample:\n  {command.EXAMPLE}\n" in help_of(capsys, name)
    program, *argv = shlex.split(command.EXAMPLE)
    assert program == "pdjax"
    found, _ = cli._parse(argv)
    assert type(found) is command


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["--version"])
    assert done.value.code == 0
    captured = capsys.readouterr()
    assert captured.out == f"pdjax {importlib.metadata.version('pdjax')}\n"
    assert captured.err == ""


@pytest.mark.parametrize("name", table.COMMANDS)
def test_help_of_a_command_explains_every_flag(capsys, name):
    text = " ".join(help_of(capsys, name).split())
    for option in options.describe(table.COMMANDS[name]):
        assert option.doc, f"{option.name} has no docstring"
        assert option.doc in text
        if isinstance(option.default, int | float) and not isinstance(option.default, bool):
            assert f"default {option.default}" in text
    assert "--json" in text


@pytest.mark.parametrize("name", ["eval", "export", "demos"])
def test_help_names_the_choices_of_a_flag(capsys, name):
    assert "--physics {auto,native,mjx,warp}" in " ".join(help_of(capsys, name).split())


def test_help_of_training_lists_every_key_config_and_preset(capsys):
    text = help_of(capsys, "train")
    for option in schema.describe():
        default = json.dumps(option.default)
        assert f"{option.name} ({option.expected()}, default {default})" in text
    assert "sac.gamma (number 0 to 1, default 0.97)" in text
    squeezed = " ".join(text.split())
    assert all(option.doc in squeezed for option in schema.describe())
    assert all(name in text for name in [*configs.known_configs(), *PRESETS])


@pytest.mark.parametrize("arguments", [["train", "--help"], ["imitate", "--help"], ["--version"]])
def test_help_loads_neither_jax_nor_a_simulator(arguments):
    code = (
        "import sys; from pdjax.commands import cli\n"
        f"try: cli.main({arguments})\n"
        "except SystemExit as done: print('ended with', done.code, file=sys.stderr)\n"
        "sys.exit(int(bool({'jax', 'mujoco', 'matplotlib', 'scipy'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "ended with 0\n")


def test_the_policies_of_imitate_are_the_recipes():
    (policy,) = (o for o in options.describe(table.Imitate) if o.name == "policy")
    assert list(typing.get_args(policy.kind)) == list(settings.RECIPES)
    for name in settings.RECIPES:
        assert settings.recipe(name, {"steps": 5}).steps == 5


def test_help_of_imitate_lists_every_key_and_recipe(capsys):
    text = " ".join(help_of(capsys, "imitate").split())
    for option in options.describe(settings.ImitationConfig):
        default = json.dumps(option.default)
        assert f"{option.name} ({option.expected()}, default {default}) {option.doc}" in text
    assert all(f"{name}: {{" in text for name in settings.RECIPES)


def test_envs_prints_one_json_object_on_stdout_and_a_table_on_stderr(capsys):
    assert cli.main(["envs", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    (task,) = (t for t in json.loads(captured.out)["tasks"] if t["name"] == TASK)
    assert sum(task["observation"].values()) == OBS_DIM
    assert sum(task["action"].values()) == ACT_DIM
    assert task["episode_steps"] == 200
    assert task["expert"] is True
    assert TASK in captured.err


def test_without_json_stdout_stays_empty(capsys):
    assert cli.main(["envs"]) == 0
    assert capsys.readouterr().out == ""


def make_envs_do(monkeypatch, work):
    monkeypatch.setattr(demonstrations.Envs, "run", lambda self: work())


def test_what_libraries_print_does_not_reach_stdout(capsys, monkeypatch):
    make_envs_do(monkeypatch, lambda: print("noise") or {"value": 1})
    assert cli.main(["envs", "--json"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ('{"value": 1}\n', "noise\n")


def fail_with(error):
    def work():
        raise error

    return work


def test_an_unforeseen_failure_is_one_line_and_a_traceback_in_a_file(capsys, monkeypatch):
    make_envs_do(monkeypatch, fail_with(RuntimeError("first\nsecond")))
    assert cli.main(["envs", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "pdjax: failed with RuntimeError: first second; traceback in " in captured.err
    log = Path(captured.err.split("traceback in ")[1].strip())
    assert "Traceback" in log.read_text()
    log.unlink()


def test_the_end_of_a_long_mistake_stays_because_it_says_what_to_do(capsys, monkeypatch):
    make_envs_do(monkeypatch, fail_with(options.ConfigError("bad " * 500 + "; lower it")))
    assert cli.main(["envs"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("pdjax: bad bad") and line.endswith("bad ; lower it\n")
    assert len(line) <= 301


def test_a_rendering_that_is_not_possible_is_one_line(capsys, monkeypatch):
    make_envs_do(monkeypatch, fail_with(RenderError("cannot render; install EGL")))
    assert cli.main(["envs"]) == 1
    assert capsys.readouterr().err == "pdjax: cannot render; install EGL\n"


def test_an_interruption_is_one_line(capsys, monkeypatch):
    make_envs_do(monkeypatch, fail_with(KeyboardInterrupt()))
    assert cli.main(["envs"]) == 1
    assert capsys.readouterr().err == "pdjax: interrupted\n"


def test_an_interruption_that_hits_a_destructor_is_not_lost():
    code = (
        "import signal, sys, time; from pdjax.commands import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & switches it off
        "sys.unraisablehook = cli._unraisable\n"
        "class Interrupted:\n"
        "    def __del__(self): raise KeyboardInterrupt\n"
        "end = time.monotonic() + 20\n"
        "try:\n"
        "    Interrupted()\n"
        "    while time.monotonic() < end: time.sleep(0.01)\n"
        "except KeyboardInterrupt: sys.exit(7)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")


RAISES_IN_A_DESTRUCTOR = """
import sys
from pdjax.commands import cli
sys.unraisablehook = cli._unraisable
class Raises:
    def __init__(self, error): self.error = error
    def __del__(self): raise self.error
Raises(ZeroDivisionError("our own arithmetic"))
Raises(RuntimeError("Event loop is closed"))
"""


def test_an_exception_in_a_destructor_is_shown_unless_it_is_a_known_notice():
    command = [sys.executable, "-c", RAISES_IN_A_DESTRUCTOR]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "ZeroDivisionError: our own arithmetic" in done.stderr
    assert "Event loop" not in done.stderr
