"""A foreign program is tried in a process of its own: it may loop, swallow memory or crash."""

import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from pdjax.base_policies.foreign import trial
from pdjax.config.options import ConfigError
from tests.base_policies.foreign.test_artefact import chunk, write


def try_it(path):
    trial.try_file("export", path, (2, 3), (1, 3))


def loop(obs):
    def body(carry):
        return carry[0] * carry[0] + 1e-9, carry[1] * 0.5

    first = jnp.abs(obs.sum())
    return jax.lax.while_loop(lambda carry: carry[0] > -1.0, body, (first, chunk(obs)))[1]


def swallow(obs):
    grid = jnp.arange(30_000.0)[:, None] * jnp.arange(20_000.0)  # 2.4 GB
    sums = jnp.cumsum(jnp.sin(grid + obs.sum()), axis=0)
    return chunk(obs) + jnp.sort(sums, axis=1)[0, 0]


def test_a_good_policy_passes(tmp_path):
    try_it(write(tmp_path / "good.jaxexport", chunk))


def test_one_that_loops_for_ever_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "CALL_S", 0.5)
    path = write(tmp_path / "loop.jaxexport", loop)
    with pytest.raises(ConfigError, match=r"takes too long: to call it took over 0\.5 s"):
        try_it(path)


def test_one_that_needs_gigabytes_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "CALL_S", 60.0)
    monkeypatch.setattr(trial, "SPARE", 1 << 28)
    path = write(tmp_path / "swallow.jaxexport", swallow)
    with pytest.raises(ConfigError, match="takes too much memory: to call it took over"):
        try_it(path)


@pytest.mark.parametrize(("least", "most"), [(2, None), (1, 2)])
def test_one_that_takes_some_numbers_of_environments_only_is_refused(least, most, tmp_path):
    constraints = (f"n >= {least}",) if most is None else (f"n <= {most}",)
    path = write(tmp_path / "some.jaxexport", chunk, constraints=constraints)
    with pytest.raises(ConfigError, match=r"failed on zeros for [13] environment\(s\): "):
        try_it(path)


def test_a_process_that_crashes_is_one_line(tmp_path):
    code = "import json, os; print(json.dumps(['read', None]), flush=True); os.abort()"
    (tmp_path / "x").touch()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    with process, pytest.raises(ConfigError, match=r"crashed its process \(SIGABRT\)"):
        trial._supervise(process, tmp_path / "x")


def test_a_process_that_waits_is_ended_by_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "START_S", 0.05)
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], stdout=subprocess.PIPE
    )
    begun = time.monotonic()
    with process:
        with pytest.raises(ConfigError, match=r"takes too long: to start it took over 0\.05 s"):
            trial._supervise(process, tmp_path / "x")
        process.kill()
    assert time.monotonic() - begun < 30


def test_torchscript_that_draws_its_own_numbers_is_refused(tmp_path):
    torch = pytest.importorskip("torch")

    class Noise(torch.nn.Module):
        def forward(self, x):
            return x[:, :, :1] + torch.randn_like(x[:, :, :1])

    path = tmp_path / "noise.pt"
    torch.jit.script(Noise()).save(str(path))
    with pytest.raises(ConfigError, match="answers the same observations differently"):
        trial.try_file("torchscript", path, (2, 3), (1, 3))
