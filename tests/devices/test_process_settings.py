"""What the program silences, what it lets through, and that a library leaves its process alone."""

import json
import subprocess
import sys

import pytest

WARN = """
import sys, warnings
from pdjax.devices import process_settings
process_settings.prepare()
{code}
"""

# Arithmetic of a module, with the name that the module would have.
DIVIDE = """
import numpy as np
exec("np.ones(1) / np.zeros(1)", {{"np": np, "__name__": "{name}"}})
"""
NOTICE = 'warnings.warn_explicit("notice", {category}, "f.py", 1, module="{name}")'


def output_of(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["pdjax.learner.sac", "pdjax_envs.task", "my_policy", "jaxpolicy"])
def test_warnings_of_our_own_and_of_the_users_arithmetic_are_shown(name):
    code = WARN.format(code=DIVIDE.format(name=name))
    assert "RuntimeWarning: divide by zero" in output_of(code)


def test_a_mean_of_nothing_is_shown():
    """NumPy gives its own module as the place of this one."""
    assert "Mean of empty slice" in output_of(WARN.format(code="import numpy; numpy.mean([])"))


@pytest.mark.parametrize("name", ["jax._src.core", "orbax.checkpoint.manager", "flax", "mlflow.db"])
@pytest.mark.parametrize("category", ["UserWarning", "FutureWarning"])
def test_notices_of_other_libraries_are_not_shown(name, category):
    assert output_of(WARN.format(code=NOTICE.format(name=name, category=category))) == ""


IMPORT = """
import importlib, json, logging, os, pkgutil, signal, sys, warnings
import brax, flax, gymnasium, h5py, jax, matplotlib, mujoco, mujoco.mjx, optax
import orbax.checkpoint, scipy.stats, tensorboardX, yaml

def settings():
    levels = {n: logging.getLogger(n).level for n in ("", "absl", "jax", "orbax", "matplotlib")}
    log = mujoco.MjLogConfig.get()
    return {
        "warnings": [str(rule) for rule in warnings.filters],
        "logging": levels,
        "environment": dict(os.environ),
        "hooks": [repr(hook) for hook in (sys.unraisablehook, sys.excepthook)],
        "signals": [repr(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM)],
        "jax": {name: repr(value) for name, value in jax.config.values.items()},
        "matplotlib": matplotlib.rcParams["backend"],
        "physics": [log.logto_console, log.logto_file],
    }

before = settings()
import pdjax, pdjax_envs
names = [
    found.name
    for package in (pdjax, pdjax_envs)
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
]
for name in names:
    importlib.import_module(name)
after = settings()
print(json.dumps([len(names), {n: [before[n], after[n]] for n in before if before[n] != after[n]}]))
"""


def test_importing_every_module_changes_nothing_in_the_process():
    count, changed = json.loads(output_of(IMPORT).splitlines()[-1])
    assert count > 100
    assert changed == {}
