"""What pdjax imports is installed with it, and what is installed is imported or explained."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAMES = {  # of a package -> of its module, if that is another one
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "mujoco-mjx": "mujoco",
    "PyYAML": "yaml",
    "gymnasium-robotics": "gymnasium_robotics",
}
OPTIONAL = {"ray", "optuna", "wandb", "mlflow", "torch", "warp", "pyarrow"}
OPTIONAL |= {"mujoco_playground", "stable_baselines3"}
OPTIONAL |= {"gym"}  # in a worker's own interpreter, in place of gymnasium


def module_of(requirement):
    package = re.split(r"[\[<>=]", requirement)[0]
    return NAMES.get(package, package)


def imported():
    found = set()
    for path in [*(ROOT / "pdjax").rglob("*.py"), *(ROOT / "envs").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"pdjax", "pdjax_envs"}


def test_every_import_is_a_dependency_or_optional():
    declared = {module_of(requirement) for requirement in PROJECT["dependencies"]}
    assert imported() - declared - OPTIONAL == {"jaxlib"}  # comes with jax, in the same version


def test_every_dependency_is_imported_or_explained():
    text = (ROOT / "pyproject.toml").read_text()
    for requirement in PROJECT["dependencies"]:
        if module_of(requirement) not in imported():
            assert re.search(rf'^    # .*\n    "{re.escape(requirement)}"', text, re.MULTILINE), (
                f"{requirement} is imported nowhere; say in a comment above it who needs it"
            )
