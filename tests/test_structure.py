"""The rules of construction, read off the source: who imports whom, and how large things get."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("pdjax", "envs/pdjax_envs", "benchmarks", "experiments")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
SHIPPED = [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("pdjax", "envs")]

# From the top down: a module imports from its own folder and from layers below it, never from a
# layer above and never from another folder of its own layer.
LAYERS = [
    {"commands"},
    {"api", "profile", "sweep"},
    {"prepare", "training", "runs"},
    {"rollout"},
    {"base_policies"},
    {"learner", "output"},
    {"devices"},
    {"modules"},
    {"types", "config"},
]
LAYER_OF = {name: index for index, layer in enumerate(LAYERS) for name in layer}

STEPPING = {"mj_step", "mj_step1", "mj_step2", "mujoco.batch", "mujoco.rollout", "mjx.step"}
TRACKERS = {"tensorboardX", "tensorboard", "matplotlib", "wandb", "mlflow"}
DRAWERS = {"utils", "util", "common", "helpers", "helper", "core", "misc"}
MAX_LINES, MAX_FUNCTION, MAX_NESTING = 400, 80, 3

# The limits are advice: what has a reason to break one is listed here with it.
EXCEPTIONS = {
    "envs/pdjax_envs/maniskill/panda.py": "one robot: model, kinematics and controller together",
    "envs/pdjax_envs/workers/worker.py": "one script, which other interpreters start",
}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "envs" else parts
    return ".".join(part for part in parts if part != "__init__")


def folder_of(path):
    """The layer's name that a file of pdjax belongs to; "" for pdjax itself."""
    return path.relative_to(ROOT / "pdjax").with_suffix("").parts[0].removeprefix("__init__")


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


def without_type_checking(source):
    """The source without its `if TYPE_CHECKING:` blocks, which no program runs."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = [ast.Pass()]
    return ast.unparse(tree)


def cycle(sources):
    """Modules that import one another in a circle, first and last the same; [] without a circle.

    Imports inside functions count too. `sources` maps each module's dotted name to its source.
    """
    graph = {}
    for name, source in sources.items():
        found = imports(without_type_checking(source))
        # `from a import b` names the module a.b, or a name in the module a.
        homes = {dotted if dotted in sources else dotted.rpartition(".")[0] for dotted in found}
        graph[name] = homes & sources.keys() - {name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def roots(source):
    return {name.split(".")[0] for name in imports(source)}


def folders_used(source):
    """Folders of pdjax that a source imports from, named as in LAYERS."""
    names = [name.split(".") for name in imports(source)]
    return {parts[1] for parts in names if parts[0] == "pdjax" and len(parts) > 1}


def imports_upwards(folder, source):
    """Folders that a source in `folder` imports from although they are not below it."""
    used = folders_used(source) & LAYER_OF.keys()
    return {name for name in used - {folder} if LAYER_OF[name] <= LAYER_OF[folder]}


def stepping_names(source):
    """Simulator stepping functions that a source names."""
    found = {name for name in imports(source) if name in STEPPING}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            dotted = ast.unparse(node)
            found |= {name for name in STEPPING if dotted.split(".")[-1] == name or dotted == name}
    return found


def span(node):
    """Lines from a node's first to its last."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def functions(source):
    """(name, lines, nesting) of every function; closures count, its docstring does not."""
    found = []

    def visit(node, nesting):
        for child in ast.iter_child_nodes(node):
            visit(child, nesting + isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = span(node)
            if ast.get_docstring(node):
                lines -= span(node.body[0])
            found.append((node.name, lines, nesting))

    visit(ast.parse(source), 0)
    return found


def too_large(source):
    """What breaks a limit in a source."""
    broken = []
    lines = len(source.splitlines())
    if lines > MAX_LINES:
        broken.append(f"{lines} lines, at most {MAX_LINES}")
    for name, own_lines, nesting in functions(source):
        if own_lines > MAX_FUNCTION:
            broken.append(f"{name}: {own_lines} lines, at most {MAX_FUNCTION}")
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
def test_modules_import_from_layers_below(path):
    folder = folder_of(path)
    if folder:
        assert folder in LAYER_OF, f"give {folder} a place in LAYERS"
        assert not imports_upwards(folder, path.read_text())


def test_every_folder_has_a_layer():
    found = {path.parent.name for path in (ROOT / "pdjax").glob("*/__init__.py")}
    assert found <= LAYER_OF.keys()


@each(in_folder("pdjax/learner"))
def test_the_learner_sees_arrays_only(path):
    assert folders_used(path.read_text()) <= {"learner", "config", "types", "modules"}


@pytest.mark.parametrize("name", ["checkpoint", "terminal", "records", "paths"])
def test_output_knows_no_algorithm(name):
    source = (ROOT / f"pdjax/output/{name}.py").read_text()
    assert folders_used(source) <= {"output", "devices", "config"}


@pytest.mark.parametrize("folder", ["envs/pdjax_envs", "pdjax"])
def test_no_modules_import_one_another_in_a_circle(folder):
    assert not cycle({name_of(path): path.read_text() for path in in_folder(folder)})


@each(SHIPPED)
def test_only_physics_steps_a_simulator(path):
    if not path.is_relative_to(ROOT / "envs/pdjax_envs/physics"):
        assert not stepping_names(path.read_text())


@each(SHIPPED)
def test_only_output_imports_trackers(path):
    if not path.is_relative_to(ROOT / "pdjax/output"):
        assert not roots(path.read_text()) & TRACKERS


@each(SHIPPED)
def test_only_a_sweep_imports_the_distributed_engine(path):
    if path != ROOT / "pdjax/sweep/tune.py":
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
    source = "import pdjax.training.run\ndef f():\n    from pdjax import types, config\n"
    assert folders_used(source) == {"training", "types", "config"}
    assert folders_used("from pdjax.base_policies.load import load_base") == {"base_policies"}
    assert roots("def f():\n    from matplotlib import pyplot") == {"matplotlib"}


def test_imports_upwards_are_found():
    source = "from pdjax.training import build\nfrom pdjax.learner import sac"
    assert imports_upwards("rollout", source) == {"training"}
    assert imports_upwards("runs", source) == {"training"}
    assert not imports_upwards("training", source)
    assert imports_upwards("output", source) == {"training", "learner"}


def test_circles_are_found():
    lazily = "def f():\n    from p.a import x\n"
    found = cycle({"p.a": "import p.b", "p.b": "from p import c", "p.c": lazily})
    assert found[0] == found[-1] and set(found) == {"p.a", "p.b", "p.c"} and len(found) == 4
    assert not cycle({"p.a": "import p.b", "p.b": "from p import c", "p.c": "import jax"})
    assert cycle({"p": "from p.a import x", "p.a": "from p import y"})  # a package's own names
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p import a\n"
    assert not cycle({"p.a": "import p.b", "p.b": typed})


def test_stepping_is_found():
    assert stepping_names("import mujoco\nmujoco.mj_step(m, d)") == {"mj_step"}
    assert stepping_names("import mujoco.batch") == {"mujoco.batch"}
    assert stepping_names("from mujoco import mjx\nmjx.step(m, d)") == {"mjx.step"}
    assert stepping_names("from mujoco import batch") == {"mujoco.batch"}
    assert not stepping_names("env.step(model, state, action)")


def test_limits_are_counted():
    body = "    x = 1\n"
    assert too_large("def f():\n" + body * 80) == ["f: 81 lines, at most 80"]
    assert not too_large("def f():\n" + body * 79)
    closure = "def f():\n    def g():\n" + "        x = 1\n" * 50 + body * 50
    assert too_large(closure) == ["f: 102 lines, at most 80"]
    assert not too_large('def f():\n    """\n' + "\n" * 80 + '    """\n' + body * 50)
    deep = "".join(f"{'    ' * depth}def f{depth}():\n" for depth in range(4)) + " " * 16 + "..."
    assert too_large(deep) == ["f3: 4 functions deep, at most 3"]
    assert too_large("x = 1\n" * 401) == ["401 lines, at most 400"]
