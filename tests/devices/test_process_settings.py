"""What the program silences, what it lets through, and that a library leaves its process alone."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from pdjax import api
from pdjax.devices import process_settings

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


STRICT = {
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
}
ADD = "import jax.numpy as jnp; found = jnp.ones(2) + jnp.arange(2) + jnp.ones((2, 2))"


def run(code, **env):
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | env
    )


def test_commands_compute_by_the_same_rules_whatever_the_shell_says():
    code = WARN.format(code=f"{ADD}; print(found.dtype)")
    assert run(code, **STRICT).stdout == "float32\n"
    assert run(ADD, **STRICT).returncode == 1  # the rules matter


def test_the_library_computes_by_these_rules_and_changes_none_of_the_callers():
    for rule in (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        with rule:
            with process_settings.plain_numbers():
                found = jnp.ones(2) + jnp.arange(2) + jnp.ones((2, 2))
            assert found.dtype == jnp.float32
    with jax.enable_x64(True), process_settings.plain_numbers():
        pass
    assert jnp.ones(2).dtype == jnp.float32
    with jax.enable_x64(True):
        api.load_config()
        assert jnp.ones(2).dtype == jnp.float64


def test_every_function_of_the_library_that_computes_has_these_rules(monkeypatch):
    seen = []

    def fail(*_, **__):
        seen.append((jax.config.jax_enable_x64, jax.config.jax_numpy_rank_promotion))
        raise ZeroDivisionError

    monkeypatch.setattr(api.imitation, "train_base_policy", fail)
    monkeypatch.setattr(api.wrapping, "wrap", fail)
    monkeypatch.setattr(api.registry, "make", fail)
    monkeypatch.setattr(api.training, "run", fail)
    monkeypatch.setattr(api.configs, "load_of_run", lambda directory: api.Config())
    monkeypatch.setattr(api.evaluation, "evaluate_run", fail)
    monkeypatch.setattr(api.exporting, "export_run", fail)
    calls = [
        lambda: api.imitate("d", "t", "o"),
        lambda: api.wrap("p", "t", "o"),
        lambda: api.screen("b", "t"),
        lambda: api.train("fast", out="o"),
        lambda: api.resume("r"),
        lambda: api.evaluate("r"),
        lambda: api.export("r", "o"),
    ]
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        for call in calls:
            with pytest.raises(ZeroDivisionError):
                call()
    assert seen == [(False, "allow")] * len(calls)


COMMAND = "import sys; from pdjax.commands import cli; sys.exit(cli.main(['envs', 'AdroitDoor']))"
PLAY = """
import sys
from pdjax.commands import cli, demonstrations
def work(self):
    from pdjax_envs import registry
    registry.resolve_engine("auto")
demonstrations.Envs.run = work
sys.exit(cli.main(["envs"]))
"""


@pytest.mark.parametrize(
    ("code", "env", "message"),
    [
        (
            COMMAND,
            {"JAX_ENABLE_CHECKS": "maybe"},
            "JAX does not start: invalid truth value 'maybe'",
        ),
        (PLAY, {"JAX_PLATFORMS": "cuda"}, "JAX finds no device for JAX_PLATFORMS=cuda"),
        (PLAY, {"JAX_PLATFORMS": "nonsense"}, "JAX finds no device for JAX_PLATFORMS=nonsense"),
    ],
)
def test_a_wrong_variable_of_jax_is_one_clear_line(code, env, message):
    done = run(code, **env)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert message in done.stderr
    assert len(done.stderr) <= 301


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(process_settings.Path, "home", homeless)
    process_settings._keep_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


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
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "stable_baselines3":  # an extra
            raise
after = settings()
print(json.dumps([len(names), {n: [before[n], after[n]] for n in before if before[n] != after[n]}]))
"""


def test_importing_every_module_changes_nothing_in_the_process():
    count, changed = json.loads(output_of(IMPORT).splitlines()[-1])
    assert count > 100
    assert changed == {}
