"""Pictures are drawn without touching the process that asks for them."""

import json
import subprocess
import sys

from tests.output.test_terminal import SUMMARY, write_run

DRAW = """
import json, sys
from pathlib import Path
import matplotlib
matplotlib.use("svg")
from matplotlib import pyplot as plt
mine = plt.figure()
from pdjax.output import plots
plots.plot_learning_curve(Path(sys.argv[1]), json.loads(sys.argv[2]))
print(matplotlib.get_backend(), plt.get_fignums(), plt.gcf() is mine)
"""


def test_drawing_leaves_the_backend_and_the_figures_of_a_notebook_alone(tmp_path):
    write_run(tmp_path)
    command = [sys.executable, "-c", DRAW, str(tmp_path), json.dumps(SUMMARY)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["svg", "[1]", "True"]
    assert (tmp_path / "learning_curve.png").stat().st_size > 10_000
