"""README and docs/ agree with the code: commands parse, links resolve, names exist."""

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import pdjax
from pdjax.commands import cli, table
from pdjax.commands.runs import Profile, Train
from pdjax.config import files as configs
from pdjax.config import options, schema
from pdjax.sweep import spec as sweep_spec
from pdjax.training.schedule import make_schedule
from pdjax_envs import registry

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "experiments/results/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
CONFIGS = sorted((ROOT / "experiments").glob("*/*.yaml"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
FOLDERS = ("pdjax/", "envs/", "tests/", "benchmarks/", "experiments/", "docs/", ".ci/", ".github/")
MAX_README = 140


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def prose(text):
    """Text without its code blocks."""
    return BLOCK.sub("", text)


def inline_code(text):
    """Contents of `...`, each on one line."""
    return [" ".join(code.split()) for code in CODE.findall(prose(text))]


def anchors(text):
    """Anchors of a page: its headings as GitHub writes them, and explicit ones."""
    titles = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


def broken_links(path, text):
    """Relative links of a page whose file or anchor does not exist."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    return broken


def missing_paths(text):
    """Paths of the repository that a page names in `...` and that do not exist."""
    named = [code.removeprefix("python ").split(" ")[0] for code in inline_code(text)]
    named = [
        name for name in named if name.startswith(FOLDERS) and not re.search("[A-Z*]{2}", name)
    ]
    return [name for name in named if not (ROOT / name).exists()]


def command_lines(text):
    """Command lines of pdjax in a page's blocks, to be copied as they are."""
    lines = []
    for language, block in BLOCK.findall(text):
        if language in ("", "sh", "bash"):
            joined = block.replace("\\\n", " ")
            lines += re.findall(r"^(pdjax [^#\n]*)", joined, re.MULTILINE)
    return lines


def named_commands(text):
    """Commands of pdjax in a page's `...`, perhaps without arguments; patterns are left out."""
    lines = [code for code in inline_code(text) if re.match("pdjax [a-z]", code)]
    return [line for line in lines if not re.search(r"\.\.\.|\|", line)]


def unknown_flags(line):
    """Flags of a command line that its command does not take; the command if there is none."""
    _, name, *rest = shlex.split(line)
    if name not in table.COMMANDS:
        return [name]
    flags = {f"--{option.name}" for option in options.describe(table.COMMANDS[name])}
    flags = {flag.replace("_", "-") for flag in flags} | {"--help", "--json"}
    return [word for word in rest if word.startswith("--") and word not in flags]


def unknown_keys(command):
    """Keys of `--set` that no config has."""
    known = {option.name for option in schema.describe()}
    return {pair.split("=")[0] for pair in command.set} - known


def wrong_names(source):
    """Imports, names of pdjax and keywords of its functions that do not exist."""
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            wrong += [alias.name for alias in node.names if not _importable(alias.name)]
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "relative import"
            if _importable(node.module):
                module = importlib.import_module(node.module)
                wrong += [alias.name for alias in node.names if not hasattr(module, alias.name)]
            else:
                wrong.append(node.module)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pdjax":
            wrong += [] if hasattr(pdjax, node.attr) else [f"pdjax.{node.attr}"]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("pdjax."):
            function = getattr(pdjax, ast.unparse(node.func).removeprefix("pdjax."), None)
            if function is not None and not _takes(function, node):
                wrong.append(ast.unparse(node))
    return wrong


def _importable(name):
    if name.split(".")[0] in ("torch", "stable_baselines3"):  # extras
        return True
    return importlib.util.find_spec(name) is not None


def _takes(function, call):
    keywords = {keyword.arg: None for keyword in call.keywords}
    try:
        inspect.signature(function).bind(*call.args, **keywords)
    except TypeError:
        return False
    return True


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= MAX_README
    assert sum("pip install -e '.[dev]' && pytest" in line for line in lines) == 1
    assert sum("pip install -e . && pdjax quickstart" in line for line in lines) == 1


@each(PAGES)
def test_links_resolve(path):
    assert not broken_links(path, path.read_text())


@each([path for path in PAGES if path.parent.name != "tasks"])  # they name files of the originals
def test_named_files_exist(path):
    assert not missing_paths(path.read_text())


@each([path for path in PAGES if named_commands(path.read_text())])
def test_commands_that_a_page_names_exist(path):
    for line in named_commands(path.read_text()):
        assert not unknown_flags(line), line


@each([path for path in PAGES if command_lines(path.read_text())])
def test_commands_that_a_page_shows_parse(path):
    for line in command_lines(path.read_text()):
        command, _ = cli._parse(shlex.split(line)[1:])
        if isinstance(command, Train | Profile):
            assert not unknown_keys(command), line


@each([path for path in CONFIGS if path.parent.name in ("configs", "suites")])
def test_the_command_in_a_config_parses(path):
    (line,) = re.findall(r"# command:  (pdjax [^;\n]+)", path.read_text())
    command, _ = cli._parse(shlex.split(line)[1:])
    if isinstance(command, Train):
        assert command.config == path.stem
        assert not unknown_keys(command)


@each([path for path in CONFIGS if path.parent.name in ("fast", "paper")])
def test_the_command_in_a_suites_config_makes_its_base_policy(path):
    made = r"# base: +python experiments/bases.py (\w+) --policy (\w+)"
    ((task, kind),) = re.findall(made, path.read_text())
    written = yaml.safe_load(path.read_text())["base_policy"]["path"]
    assert written == f"runs/bases/{task}/{kind}_seed0"


@each([path for path in PAGES if "```python" in path.read_text()])
def test_code_on_a_page_names_what_exists(path):
    blocks = [block for language, block in BLOCK.findall(path.read_text()) if language == "python"]
    assert not [wrong for block in blocks for wrong in wrong_names(block)]


def test_the_library_guide_names_everything_public():
    page = (ROOT / "docs/python.md").read_text()
    assert {name for name in pdjax.__all__ if f"`{name}`" not in page} == set()


def test_importing_pdjax_imports_no_jax_as_the_guide_says():
    code = "import sys, pdjax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def ci_checks():
    """Commands of .ci/run after the tests."""
    lines = (ROOT / ".ci/run").read_text().split("set -x\n")[1].splitlines()
    return [line for line in lines if line]


def test_ci_runs_its_script_on_the_oldest_and_the_newest_python():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    steps = [step.get("uses", step.get("run")).split("@")[0] for step in job["steps"]]
    assert steps == ["actions/checkout", "actions/setup-python", ".ci/run"]
    project = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r"Python :: (3\.\d+)", project)
    assert job["strategy"]["matrix"]["python"] == [named[0], named[-1]]
    assert f'requires-python = ">={named[0]}"' in project


def test_hooks_and_contributing_have_the_checks_of_ci():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"] for hook in hooks] == ci_checks()
    assert all(hook["language"] == "system" for hook in hooks)
    blocks = [block for _, block in BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text())]
    assert blocks[1].splitlines() == ["pytest", *ci_checks()]


def read_decisions():
    """number -> (file, title, date, status) of all decisions in docs/decisions."""
    found = {}
    for path in (ROOT / "docs/decisions").glob("*.md"):
        pattern = r'<a id="(\d+)"></a>\n\n## (\d+)\. (.*)\n\n([\d-]+) · (.*)\n'
        for anchor, number, title, date, status in re.findall(pattern, path.read_text()):
            assert anchor == number and int(number) not in found
            found[int(number)] = (path.name, title, date, re.sub(r"\]\([^)]*\)|\[", "", status))
    return found


def test_the_index_lists_every_decision():
    found, listed = read_decisions(), {}
    index = (ROOT / "docs/decisions/README.md").read_text()
    for row in re.findall(r"^\| (\d+) \|(.*)\|$", index, re.MULTILINE):
        title, area, date, status = (cell.strip() for cell in row[1].split(" | "))
        link = re.fullmatch(r"\[(.*)\]\((.*)\)", title)
        assert link, title
        title, target = link.groups()
        if area != "findings":
            assert target == f"{area}.md#{row[0]}"
            listed[int(row[0])] = (f"{area}.md", title, date, re.sub(r"\]\([^)]*\)|\[", "", status))
    assert listed == found and len(found) > 70
    headings = sum(
        len(re.findall(r"^## \d+\. ", path.read_text(), re.MULTILINE))
        for path in (ROOT / "docs/decisions").glob("*.md")
    )
    assert headings == len(found)
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", index, re.MULTILINE)] == [
        *range(1, max(found) + 1)
    ]


def test_superseded_decisions_name_a_later_one():
    found = read_decisions()
    for number, (*_, status) in found.items():
        assert re.fullmatch(r"accepted|superseded( in part)? by \d+", status), number
        if by := re.search(r"\d+", status):
            assert number < int(by[0]) and int(by[0]) in found


# The checks themselves: each sees what it is there to see.


def test_broken_links_and_missing_files_are_found():
    page = ROOT / "docs/index.md"
    text = "# A b\n[x](gone.md) [y](#a-b) [z](#c) [w](commands.md#nowhere) [v](https://a.b/c)"
    text += "\n[u](commands.md)"
    page_text = page.read_text()
    assert broken_links(page, text) == ["gone.md", "#a-b", "#c", "commands.md#nowhere"]
    assert "documentation" in anchors(page_text)
    named = "`pdjax/gone.py` `pdjax/types.py` `experiments/NAME.jsonl` `python benchmarks/no.py`"
    assert missing_paths(named) == ["pdjax/gone.py", "benchmarks/no.py"]


def test_commands_and_wrong_names_are_found():
    page = "`pdjax eval\nRUN` `pdjax`\n```\npdjax envs   # tasks\npdjax train c --set a.b=1\n```\n"
    assert named_commands(page) == ["pdjax eval RUN"]
    assert command_lines(page) == ["pdjax envs   ", "pdjax train c --set a.b=1"]
    assert unknown_flags("pdjax train c --memory-gib 3 --no --json") == ["--no"]
    assert unknown_flags("pdjax trian c") == ["trian"]
    assert unknown_keys(cli._parse(["train", "c", "--set", "a.b=1", "sac.gamma=1"])[0]) == {"a.b"}
    source = "import gone\nfrom pdjax import nothing\npdjax.no()\npdjax.load_config(naem=1)"
    assert wrong_names(source) == ["gone", "nothing", "pdjax.no"]
    assert wrong_names("pdjax.evaluate(run, epsodes=1)") == ["pdjax.evaluate(run, epsodes=1)"]
    assert not wrong_names("import pdjax\npdjax.evaluate(run, episodes=1)")


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("maker", ROOT / "docs/make_task_pages.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_a_tasks_page_is_what_its_code_says(maker, name):
    written = (maker.PAGES / f"{name}.md").read_text()
    expected = maker.page(registry.make_task(name))
    assert written == expected, "run `python docs/make_task_pages.py`"
    assert (maker.PAGES / f"{name}.jpg").is_file()


@pytest.mark.parametrize("name", ["slurm_train.sh", "kubernetes_train.yaml", "tpu_pod.sh"])
def test_what_a_cluster_file_sets_can_be_trained(name):
    text = (ROOT / "docs/clusters" / name).read_text().replace("\\\n", " ")
    changes = re.findall(r"\s([a-z_]+\.[a-z_]+=\w+)", text)
    config = configs.load("fast/peg_diffusion", changes)
    assert len(changes) > 5 and make_schedule(config).updates > 0
    assert config.train.replay_capacity // config.train.num_envs > config.sac.n_step
    assert not config.train.num_envs % 32 and not config.sac.batch_size % 32  # on 32 devices


def test_cluster_files_of_kubernetes_are_yaml():
    for path in (ROOT / "docs/clusters").glob("*.yaml"):
        kinds = [document["kind"] for document in yaml.safe_load_all(path.read_text())]
        assert len(kinds) == 2


def test_the_sweep_in_the_docs_is_one(tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/sweeps.md").read_text(), re.DOTALL)
    members, sweep = blocks
    (tmp_path / "members.yaml").write_text(members)
    assert len(configs.load_members(str(tmp_path / "members.yaml"))) == 4
    (tmp_path / "sweep.yaml").write_text(sweep)
    assert sweep_spec.read(tmp_path / "sweep.yaml").settings.samples == 20


def absolute_paths(text):
    """Absolute paths in recorded rows, which would say nothing on another machine."""
    return re.findall(r"""(?<=["'= :])/[A-Za-z]\w*/\S*""", text)


@pytest.mark.parametrize("folder", ["experiments/results", "benchmarks/results"])
def test_rows_name_no_place_of_one_machine(folder):
    rows = sorted((ROOT / folder).rglob("*.json*"))
    assert rows
    assert {row.name: found for row in rows if (found := absolute_paths(row.read_text()))} == {}


def test_absolute_paths_are_found():
    assert absolute_paths('"pdjax train --set task.python=/opt/x/python --out a/b"')
    assert not absolute_paths('"pdjax train --out runs/a/b", "commands": "50 / 7", 3/4')
