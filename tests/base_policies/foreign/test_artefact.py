"""Artefacts of jax.export from strangers: judged before anything is compiled."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax._src.export import _export as of_jax

from pdjax.base_policies.foreign import artefact, exported, trial
from pdjax.config.options import ConfigError
from tests.probe import make_constant_policy


def chunk(obs):
    return jnp.tanh(obs[:, :, :1])


def write(path, function, rows="n", shape=(2, 3), constraints=(), allowed=()):
    n = export.symbolic_shape(rows, constraints=constraints)[0]
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in allowed]
    program = export.export(jax.jit(function), disabled_checks=checks)
    content = program(jax.ShapeDtypeStruct((n, *shape), jnp.float32)).serialize()
    path.write_bytes(content)
    return path


def calls(target):
    """A policy that calls `target` in the body of a loop in a function of its own."""

    @jax.jit
    def inner(obs):
        like = jax.ShapeDtypeStruct(obs.shape, obs.dtype)
        step = lambda index, x: jax.ffi.ffi_call(target, like)(x, index=np.uint64(0))  # noqa: E731
        return jax.lax.fori_loop(0, 2, step, obs)

    return lambda obs: chunk(inner(obs))


@pytest.mark.parametrize(
    "target",
    [
        "xla_buffer_python_cpu_callback",
        "xla_ffi_python_cpu_callback",
        "pdjax_host_call",
        "no_such_target",
        "tpu_custom_call",
        "shape_assertion2",
    ],
)
def test_calls_that_reach_beyond_the_program_are_refused(target, tmp_path):
    path = write(tmp_path / "evil.jaxexport", calls(target), allowed=[target])
    with pytest.raises(ConfigError, match=f"may not be run: it contains a call of {target}, "):
        artefact.read_policy(path)


def test_what_jax_guarantees_is_let_through_less_what_brings_machine_code():
    theirs = of_jax._CUSTOM_CALL_TARGETS_GUARANTEED_STABLE
    machine_code = {"tpu_custom_call", "mosaic_gpu_v2", "tf.call_tf_function"}
    refused = {target for target in theirs if not artefact.CALLS.fullmatch(target)}
    assert refused == machine_code & theirs


def test_a_policy_with_linear_algebra_and_random_numbers_is_read(tmp_path):
    def function(obs):
        noise = jax.random.normal(jax.random.key(0), (3, 3))
        solved = jnp.linalg.solve(jnp.eye(3) + 0.01 * noise, obs[..., None])[..., 0]
        values = jnp.linalg.eigh(solved[..., None] * solved[..., None, :])[0]
        return chunk(solved + jax.lax.top_k(values, 3)[0])

    found = artefact.read_policy(write(tmp_path / "linear.jaxexport", function))
    assert (found.obs_shape, found.chunk_shape) == ((2, 3), (2, 1))


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (chunk, (2, 1)),
        (lambda obs: (chunk(obs), {"value": obs.sum((1, 2))}), (2, 1)),
        (lambda obs: [(chunk(obs), obs)], (2, 1)),
        (lambda obs: {"action": chunk(obs)}, (2, 1)),
        (lambda obs: chunk(obs)[:, 0], (1,)),
        (lambda obs: chunk(obs).astype(jnp.float16), (2, 1)),
        (lambda obs: chunk(obs).astype(jnp.bfloat16), (2, 1)),
    ],
)
def test_the_chunk_is_the_first_output_in_any_float(function, shape, tmp_path):
    loaded = exported.load(write(tmp_path / "policy.jaxexport", function))
    assert loaded.chunk_shape == shape
    obs = jnp.array(np.random.default_rng(0).normal(size=(4, 2, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 4)
    found = jax.vmap(lambda obs, key: loaded.apply((), (), obs, key)[0])(obs, keys)
    expected = np.tanh(obs[:, :, :1]) if len(shape) == 2 else np.tanh(obs[:, 0, :1])
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-2)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda obs: {"a": chunk(obs), "b": obs}, "returns {'a': ShapedArray"),
        (lambda obs: None, "returns None for a chunk, expected one array with n rows"),
        (lambda obs: (), "returns () for a chunk, expected one array"),
        (lambda obs: obs.sum(), "has a chunk of shape () for all environments, expected (n, ...)"),
        (lambda obs: chunk(obs)[:1], "has a chunk of shape (1, 2, 1) for all environments"),
        (lambda obs: chunk(obs)[None], "has a chunk of shape (1, n, 2, 1) for all"),
        (lambda obs: obs[:, None], "returns chunks of shape (1, 2, 3) and dtype float32"),
        (lambda obs: chunk(obs).astype(int), "returns chunks of shape (2, 1) and dtype int32"),
        (lambda obs: chunk(obs)[:, :0], "has a chunk of shape (n, 0, 1) for all environments"),
    ],
)
def test_other_outputs_are_refused(function, words, tmp_path):
    with pytest.raises(ConfigError) as caught:
        artefact.read_policy(write(tmp_path / "policy.jaxexport", function))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": "2*n"}, "only takes a batch of 2*n; export it with a symbolic first dimension"),
        ({"shape": (2, 3, 1)}, "takes obs_history of shape (n, 2, 3, 1)"),
    ],
)
def test_other_inputs_are_refused(changes, words, tmp_path):
    path = write(tmp_path / "policy.jaxexport", lambda obs: obs[:, :1, :1], **changes)
    with pytest.raises(ConfigError) as caught:
        artefact.read_policy(path)
    assert words in str(caught.value)


# Reads files one after the other, and says of each what is wrong with it.
READING = """
import json, signal, sys
from pathlib import Path
from pdjax.base_policies.foreign import artefact

for name in sys.argv[1:]:
    signal.alarm(20)
    try:
        artefact.read_policy(Path(name))
        print(json.dumps(""), flush=True)
    except ValueError as error:
        print(json.dumps(str(error)), flush=True)
"""


def read_all(files):
    """Returns what is wrong with each file, and those that end the process or hold it up."""
    told, ended = [], []
    while files:
        argv = [sys.executable, "-c", READING, *map(str, files)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600)
        assert done.stderr == "" or done.returncode < 0  # MLIR would print for itself
        said = [json.loads(line) for line in done.stdout.splitlines()]
        told += said
        assert len(said) == len(files) or done.returncode < 0
        ended += files[len(said) : len(said) + 1]
        files = files[len(said) + 1 :]
    return told, ended


def test_damaged_files_are_told_with_jaxs_own_reason(tmp_path, monkeypatch):
    content = write(tmp_path / "policy.jaxexport", chunk).read_bytes()
    files = []
    for damaged in (b"", b"junk", content[: len(content) // 2], *flips(content, 40)):
        files.append(tmp_path / f"{len(files)}.jaxexport")
        files[-1].write_bytes(damaged)
    told, ended = read_all(files)
    told = [text for text in told if text]  # a flipped bit may also change a name, or nothing
    assert len(told) > 10
    assert all("\n" not in text and len(text) < 300 for text in told)
    # A flipped bit can also send MLIR's reader in a circle; `pdjax wrap` tries each file first.
    monkeypatch.setattr(trial, "BUILD_S", 2)
    for path in ended:
        with pytest.raises(ConfigError, match=r"takes too long|crashed its process"):
            trial.try_file("export", path, (1, 3), (2,))


def flips(content, count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
        yield bytes(flipped)


def test_memory_of_another_shape_is_refused(tmp_path):
    exported.export_policy(make_constant_policy(), tmp_path / "base", "Point")
    other = make_constant_policy()._replace(init_carry=lambda key: jnp.zeros(2, jnp.int32))
    other = other._replace(apply=lambda params, carry, obs, key: (obs[:, :1], carry))
    exported.export_policy(other, tmp_path / "other", "Point")
    name = exported.INIT_CARRY
    (tmp_path / "base" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(ConfigError, match="returns another memory than the policy takes"):
        exported.load(tmp_path / "base" / exported.POLICY)
