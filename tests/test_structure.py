"""The rules of construction, read off the source: who imports whom, and how large things get."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pdjax", "envs/pdjax_envs", "benchmarks", "experiments")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
SHIPPED = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("pdjax", "envs")]

# From the ground up; a module imports from rooms below its own, never from its own or above.
ROOMS = [
    {
        "schema",
        "types",
        "startup",
        "machine",
        "render",
        "presets",
        "curves",
        "roofline",
        "provenance",
    },
    {
        "distributed",
        "trackers",
        "guard",
        "outputs",
        "base_policies.chunking",
        "base_policies.settings",
        "base_policies.trainable",
        "base_policies.attention",
        "base_policies.description",
        "base_policies.sources",
        "base_policies.adaptation",
    },
    {"config", "checkpoint"},
    {
        "decision",
        "decorator",
        "networks",
        "losses",
        "report",
        "sharding",
        "base_policies.unet",
        "base_policies.host",
        "base_policies.exported",
        "base_policies.weights",
    },
    {
        "base_policies.mlp",
        "base_policies.diffusion",
        "base_policies.behavior_transformer",
        "base_policies.act",
    },
    {
        "gradient_step",
        "rollout",
        "replay",
        "tables",
        "plots",
        "base_policies.imitation",
        "base_policies.importers",
        "base_policies.foreign",
    },
    {"sac", "demo_replay", "deployed"},
    {
        "train",
        "evaluation",
        "comparison",
        "stopping",
        "unfinished",
        "base_policies.importers_reference",
        "base_policies.importers_lerobot",
    },
    {"members", "memory", "refinement"},
    {"loop", "programs", "sweep_spec"},
    {"runner", "imitate", "data_check", "wrap", "sweep_report", "sweep_foresight"},
    {"finished", "screen", "import_checkpoint", "phases", "sweep"},
    {"advice"},
    {"quickstart", "policy_commands", "profile"},
    {"run_commands"},
    {"commands"},
    {"cli"},
]
ROOM_OF = {name: index for index, room in enumerate(ROOMS) for name in room}

STEPPING = {"mj_step", "mj_step1", "mj_step2", "mujoco.batch", "mujoco.rollout", "mjx.step"}
TRACKERS = {"tensorboardX", "tensorboard", "matplotlib", "wandb", "mlflow"}
DRAWERS = {"utils", "util", "common", "helpers", "helper", "core", "misc"}
MAX_LINES, MAX_FUNCTION, MAX_PARAMETERS, MAX_NESTING = 300, 60, 7, 3

# What may break a limit, and why.
EXCEPTIONS = {
    "pdjax/config.py": "every knob of a run in one place",
    "envs/pdjax_envs/maniskill/panda.py": "one robot: model, kinematics and controller together",
    "envs/pdjax_envs/maniskill/peg_insertion_side.py": "one task in one file, in the fixed order",
}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "envs" else parts
    return ".".join(part for part in parts if part != "__init__")


def imports(source):
    """Dotted names of all imports, wherever they stand; `from a import b` gives a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(source):
    return {name.split(".")[0] for name in imports(source)}


def rooms_used(source):
    """pdjax modules that a source imports, named as in ROOMS."""
    used = set()
    for name in imports(source):
        package, _, rest = name.partition(".")
        if package == "pdjax" and rest:
            # `from pdjax.config import Config` names something in a module, not a module
            used.add(rest if rest in ROOM_OF else rest.rpartition(".")[0])
    return used - {"", "base_policies"}


def stepping_names(source):
    """Simulator stepping functions that a source names."""
    found = {name for name in imports(source) if name in STEPPING}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            found |= {name for name in STEPPING if dotted.split(".")[-1] == name or dotted == name}
    return found


def functions(source):
    """(name, own lines, parameters, nesting) of every function.

    Docstrings do not count, and lines of inner functions count there.
    """
    found = []

    def visit(node, nesting):
        inner_lines = 0
        for child in ast.iter_child_nodes(node):
            is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            inner_lines += visit(child, nesting + is_function)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            return inner_lines
        lines = node.end_lineno - node.lineno + 1
        if ast.get_docstring(node):
            inner_lines += node.body[0].end_lineno - node.body[0].lineno + 1
        arguments = node.args
        count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)
        count -= bool(arguments.args) and arguments.args[0].arg in ("self", "cls")
        found.append((node.name, lines - inner_lines, count, nesting))
        return lines

    visit(ast.parse(source), 0)
    return found


def too_large(source):
    """What breaks a limit in a source."""
    broken = []
    lines = len(source.splitlines())
    if lines > MAX_LINES:
        broken.append(f"{lines} lines, at most {MAX_LINES}")
    for name, own_lines, parameters, nesting in functions(source):
        if own_lines > MAX_FUNCTION:
            broken.append(f"{name}: {own_lines} lines, at most {MAX_FUNCTION}")
        if parameters > MAX_PARAMETERS:
            broken.append(f"{name}: {parameters} parameters, at most {MAX_PARAMETERS}")
        if nesting > MAX_NESTING:
            broken.append(f"{name}: {nesting} functions deep, at most {MAX_NESTING}")
    return broken


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def in_folder(folder):
    return [path for path in SHIPPED if path.is_relative_to(ROOT / folder)]


@each(in_folder("envs"))
def test_environments_know_nothing_of_the_framework(path):
    assert "pdjax" not in roots(path.read_text())


@each(in_folder("pdjax"))
def test_modules_import_only_from_rooms_below(path):
    name = name_of(path).removeprefix("pdjax").removeprefix(".")
    if name in ("", "base_policies"):
        assert not rooms_used(path.read_text())
        return
    assert name in ROOM_OF, f"give {name} a place in ROOMS"
    above = {used for used in rooms_used(path.read_text()) if ROOM_OF[used] >= ROOM_OF[name]}
    assert not above


def test_checkpoint_and_report_know_no_algorithm():
    assert rooms_used((ROOT / "pdjax/checkpoint.py").read_text()) <= {"distributed"}
    assert rooms_used((ROOT / "pdjax/report.py").read_text()) <= {"outputs", "trackers"}


def test_the_learner_knows_no_rollout_and_no_training():
    assert not rooms_used((ROOT / "pdjax/sac.py").read_text()) & {"train", "rollout", "runner"}


@each(SHIPPED)
def test_only_physics_steps_a_simulator(path):
    if not path.is_relative_to(ROOT / "envs/pdjax_envs/physics"):
        assert not stepping_names(path.read_text())


@each(SHIPPED)
def test_only_report_trackers_and_plots_import_trackers(path):
    if path not in [ROOT / f"pdjax/{name}.py" for name in ("report", "trackers", "plots")]:
        assert not roots(path.read_text()) & TRACKERS


@each(SHIPPED)
def test_only_a_sweep_imports_the_distributed_engine(path):
    if path.stem != "sweep":
        assert "ray" not in roots(path.read_text())


@each(SHIPPED)
def test_nobody_imports_experiments_benchmarks_or_tests(path):
    assert not roots(path.read_text()) & {"experiments", "benchmarks", "tests", "conftest"}


@each(SOURCES)
def test_no_module_is_a_drawer(path):
    assert not set(name_of(path).split(".")) & DRAWERS


@each(SOURCES)
def test_files_and_functions_stay_within_the_limits(path):
    broken = too_large(path.read_text())
    if str(path.relative_to(ROOT)) in EXCEPTIONS:
        assert broken, "within the limits again: take it off EXCEPTIONS"
    else:
        assert not broken


def test_exceptions_exist():
    assert all((ROOT / name).is_file() for name in EXCEPTIONS)


# The checks themselves: each sees what it is there to see.


def test_imports_are_found_wherever_they_stand():
    source = "import pdjax.train\ndef f():\n    from pdjax import sac, config\n"
    assert rooms_used(source) == {"train", "sac", "config"}
    assert rooms_used("from pdjax.base_policies.imitation import save") == {
        "base_policies.imitation"
    }
    assert rooms_used("from pdjax.base_policies import imitation") == {"base_policies.imitation"}
    assert roots("def f():\n    from matplotlib import pyplot") == {"matplotlib"}


def test_stepping_is_found():
    assert stepping_names("import mujoco\nmujoco.mj_step(m, d)") == {"mj_step"}
    assert stepping_names("import mujoco.batch") == {"mujoco.batch"}
    assert stepping_names("from mujoco import mjx\nmjx.step(m, d)") == {"mjx.step"}
    assert stepping_names("from mujoco import batch") == {"mujoco.batch"}
    assert not stepping_names("env.step(model, state, action)")


def test_limits_are_counted():
    body = "    x = 1\n"
    assert too_large("def f():\n" + body * 60) == ["f: 61 lines, at most 60"]
    assert not too_large("def f():\n" + body * 59)
    assert not too_large("def f():\n    def g():\n" + "        x = 1\n" * 50 + body * 50)
    assert not too_large('def f():\n    """\n' + "\n" * 50 + '    """\n' + body * 50)
    assert too_large("def f(a, b, c, d, e, f, g, h): ...") == ["f: 8 parameters, at most 7"]
    assert not too_large("class A:\n    def f(self, a, b, c, d, e, f, g): ...")
    deep = "".join(f"{'    ' * depth}def f{depth}():\n" for depth in range(4)) + " " * 16 + "..."
    assert too_large(deep) == ["f3: 4 functions deep, at most 3"]
    assert too_large("x = 1\n" * 301) == ["301 lines, at most 300"]
