"""The notebooks of examples/ run from top to bottom, as a newcomer would run them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(notebook, kind):
    found = json.loads(notebook.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_outputs_are_kept(notebook, tmp_path):
    shutil.copy(ROOT / "examples/slot.py", tmp_path)
    code = ["".join(cell["source"]) for cell in cells(notebook, "code")]
    (tmp_path / "cells.py").write_text("\n\n".join(code))
    paths = os.pathsep.join([str(ROOT), str(ROOT / "envs")])
    done = subprocess.run(
        [sys.executable, "cells.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    kept = [output for cell in cells(notebook, "code") for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in kept)
    assert not any(output["output_type"] == "error" for output in kept)


def test_there_are_two_notebooks_with_explanations():
    assert len(NOTEBOOKS) == 2
    for notebook in NOTEBOOKS:
        assert len(cells(notebook, "markdown")) >= 4
