"""Whatever comes in, a command answers in one line or works: no traceback, no damage, no delay.

Each case goes through `cli.main`, the function that `pdjax` itself calls. The same examples come
every time; `pytest -m slow -n 0 tests/fuzz` tries others, twenty times as many, and cases that
compile (`--hypothesis-seed=N` repeats them).
"""

import contextlib
import io
import resource
import shutil
import sys
import time

import h5py
import jax
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pdjax.base_policies import load
from pdjax.base_policies.foreign import exported
from pdjax.commands import cli, table
from pdjax.config import options, schema
from pdjax.config.schema import BasePolicyConfig
from pdjax.output import checkpoint
from pdjax_envs import registry
from pdjax_envs.reading import InputError
from tests import layouts, mjrl_pickle
from tests.commands.test_cli import everything, make_base_policy, make_demos, make_run
from tests.fuzz import damage
from tests.probe import make_constant_policy, make_point_task, registered
from tests.runs.test_compare import write_run

SECONDS, BYTES, CHARACTERS = 10, 1 << 30, 320
TASK = "PegInsertionSide"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Good files of every kind."""
    folder = tmp_path_factory.mktemp("good")
    make_base_policy(folder / "base")
    make_run(folder / "played")
    write_run(folder / "run", [0.5, 0.75, 1.0], refined=0.9)
    make_demos(folder / "peg.h5")
    (folder / "peg.json").write_text('{"env_info": {"env_id": "PegInsertionSide-v0"}}')
    layouts.write_minari(folder / "minari.hdf5", obs_dim=39, act_dim=28)
    layouts.write_d4rl(folder / "d4rl.hdf5", obs_dim=39, act_dim=28)
    layouts.write_dapg(folder / "dapg.pickle", [layouts.make_episode(4, 39, 28)])
    np.savez(folder / "expert.npz", **mjrl_pickle.make_weights(39, 28))
    tree = {"a": np.arange(40.0).reshape(5, 8), "b": {"key": np.arange(3)}}
    checkpoint.save(folder / "checkpoint", tree)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def attempt(folder, argv, seconds=SECONDS):
    """Runs a command; asserts that it works, or refuses in one line and changes nothing."""
    before, started = everything(folder), time.monotonic()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(argv)
    said = err.getvalue()
    assert code in (0, 2), said
    assert "Traceback" not in said
    if code == 2:
        assert said.startswith("pdjax: ") and said.count("\n") == 1 and len(said) < CHARACTERS, said
        assert out.getvalue() == ""
        assert everything(folder) == before
    assert time.monotonic() - started < seconds, said
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown * (1 if sys.platform == "darwin" else 1024) < BYTES
    return code


def configs(good, here):
    def case(data):
        (here / "c.yaml").write_bytes(data)
        attempt(here, ["train", "c.yaml", "--set", "base_policy.path=nowhere", "task.name=none"])

    return damage.yaml_texts(), case


def overrides(good, here):
    def case(pair):
        name, value = pair
        text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
        changes = [f"{name}={text}", "base_policy.path=nowhere", "task.name=none"]
        attempt(here, ["train", "peg_fast", "--plan", "--set", *changes])

    return st.tuples(damage.keys, damage.values), case


def command_lines(good, here):
    known = {
        name: options.describe(cls)
        for name, cls in table.COMMANDS.items()
        if name not in ("quickstart", "envs")  # these need nothing that may be missing
    }

    def case(argv):
        with contextlib.suppress(SystemExit):  # --help
            attempt(here, argv)

    return damage.flags(known), case


def sweeps(good, here):
    def case(data):
        (here / "s.yaml").write_bytes(b"config: peg_fast\nset: {task.name: none}\n" + data)
        attempt(here, ["sweep", "s.yaml", "--dry-run"])

    return damage.yaml_texts(), case


def damage_one(good, here, names, act):
    """Cases in which one file of a directory or a single file is damaged."""
    data = {name: (good / name).read_bytes() for name in names}

    def case(found):
        name, content = found
        top = name.split("/")[0]
        for path in here.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        copy = shutil.copytree if (good / top).is_dir() else shutil.copy
        copy(good / top, here / top)
        (here / name).write_bytes(content)
        act(name)

    one = lambda name: st.tuples(st.just(name), damage.damaged(data[name], whole=True))  # noqa: E731
    return st.sampled_from(names).flatmap(one), case


def records(good, here):
    names = [f"run/{name}" for name in ("result.json", "metrics.jsonl", "config.yaml")]
    return damage_one(good, here, names, lambda _: attempt(here, ["compare", "run"]))


def demonstrations(good, here):
    def act(name):
        task = TASK if name == "peg.h5" else "AdroitDoor"
        attempt(here, ["data", "check", name, "--task", task, "--replay", "0"])

    return damage_one(good, here, ["peg.h5", "minari.hdf5", "d4rl.hdf5", "dapg.pickle"], act)


def strange_demonstrations(good, here):
    """HDF5 files that are whole, but hold what nobody expects."""

    @st.composite
    def contents(draw):
        names = ["obs", "actions", "success", "env_states", "rewards", "dones", "executed_actions"]
        shape = st.lists(st.sampled_from([0, 1, 3, 4, 7, 50, 39]), max_size=3).map(tuple)
        kind = st.sampled_from(["f4", "f8", "i8", "u1", "?", "S3", "f2"])
        fill = st.sampled_from([0, 1, -1, np.nan, np.inf, 1e30])
        array = st.tuples(shape, kind, fill)
        episode = st.dictionaries(st.sampled_from(names), array, max_size=4)
        group = st.sampled_from(["traj_0", "traj_x", "data", "episode_0", "metadata", ""])
        return draw(st.dictionaries(group, episode, max_size=2))

    def case(found):
        path = here / "x.h5"
        with h5py.File(path, "w") as file:
            for group, arrays in found.items():
                for name, (shape, kind, fill) in arrays.items():
                    with np.errstate(all="ignore"):
                        array = np.full(shape, fill).astype(kind)
                    file[f"{group}/{name}"] = array
        attempt(here, ["data", "check", "x.h5", "--task", TASK, "--replay", "0"])

    return contents(), case


def experts(good, here):
    out = ["--episodes", "1", "--out", "o.h5"]

    def act(name):
        with contextlib.suppress(FileNotFoundError):
            (here / "o.h5").unlink()
        attempt(here, ["demos", "none", "--expert", f"dapg:{name}", *out])

    return damage_one(good, here, ["expert.npz"], act)


def base_policies(good, here):
    files = [p.relative_to(good) for p in (good / "base").rglob("*") if p.is_file()]
    task = registry.make_task(TASK)

    def act(name):
        with contextlib.suppress(InputError):
            load.load_base(BasePolicyConfig("base"), task)

    return damage_one(good, here, sorted(map(str, files)), act)


def checkpoints(good, here):
    files = [p.relative_to(good) for p in (good / "checkpoint").rglob("*") if p.is_file()]
    like = {"a": np.zeros((5, 8)), "b": {"key": np.zeros(3, int)}}
    right = jax.tree.leaves(checkpoint.restore(good / "checkpoint", like))

    def act(name):
        try:
            found = jax.tree.leaves(checkpoint.restore(here / "checkpoint", like))
        except checkpoint.CheckpointError as error:
            assert "\n" not in str(error) and len(str(error)) < CHARACTERS + 200
            return
        assert all(np.array_equal(a, b) for a, b in zip(found, right, strict=True))

    return damage_one(good, here, sorted(map(str, files)), act)


def plans(good, here):
    """Numbers in an otherwise good config, up to the memory plan."""
    names = [option.name for option in schema.describe() if option.kind in (int, float)]
    base = f"base_policy.path={good / 'base'}"

    def case(pair):
        name, number = pair
        attempt(here, ["train", "peg_fast", "--plan", "--set", base, f"{name}={number}"], 120)

    return st.tuples(st.sampled_from(names), st.sampled_from(damage.NUMBERS)), case


def artefacts(good, here):
    """Programs whose bytes are damaged; XLA itself reads them, in a process of its own."""

    def act(name):
        shutil.rmtree(here / "out", ignore_errors=True)
        attempt(here, ["wrap", name, "--task", "Point", "--episodes", "2", "--out", "out"], 120)

    with registered(make_point_task()):
        exported.export_policy(make_constant_policy(0.5), good / "point", "Point")
        shutil.copy(good / "point" / "policy.jaxexport", good / "policy.jaxexport")
    strategy, case = damage_one(good, here, ["policy.jaxexport"], act)

    def with_task(found):
        with registered(make_point_task()):
            case(found)

    return strategy, with_task


COUNTS = {
    configs: 120,
    overrides: 120,
    command_lines: 120,
    sweeps: 60,
    records: 40,
    demonstrations: 60,
    strange_demonstrations: 60,
    experts: 30,
    base_policies: 30,
    checkpoints: 40,
}

MORE = {make: 20 * count for make, count in COUNTS.items()} | {plans: 40, artefacts: 40}


def fuzz(make, good, here, count, **more):
    strategy, case = make(good, here)
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    chosen = settings(
        max_examples=count, database=None, deadline=None, suppress_health_check=quiet, **more
    )
    chosen(given(strategy)(case))()


@pytest.mark.parametrize("make", COUNTS, ids=lambda make: make.__name__)
def test_the_same_cases_every_time(make, good, here):
    phases = [Phase.generate]  # a failure is shown as it was found: making it smaller takes minutes
    fuzz(make, good, here, COUNTS[make], derandomize=True, phases=phases)


@pytest.mark.slow
@pytest.mark.parametrize("make", MORE, ids=lambda make: make.__name__)
def test_other_cases(make, good, here):
    fuzz(make, good, here, MORE[make])
