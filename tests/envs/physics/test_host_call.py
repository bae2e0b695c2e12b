"""Calls into Python under lasting names: values, errors, programs that stay on disk."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax_envs.physics import host_call

pytestmark = pytest.mark.skipif(
    not host_call.available(), reason=f"XLA's interface is {host_call._version()}"
)
FLOATS = jax.ShapeDtypeStruct((2,), jnp.float32)
FLAG = jax.ShapeDtypeStruct((), jnp.bool_)
NOTHING = jax.ShapeDtypeStruct((0,), jnp.float32)


def scale(inputs, outputs):
    x, factor = inputs
    outputs[0][...] = x * factor[..., None]
    outputs[1][...] = x.sum(axis=-1) > 0


def test_values_through_nested_vmaps_and_a_loop():
    double = host_call.call(scale, 1, (FLOATS, FLAG, NOTHING))
    x = jnp.arange(-6.0, 6.0).reshape(2, 3, 2)
    out, positive, nothing = jax.jit(jax.vmap(jax.vmap(double)))(x, jnp.full((2, 3), 3.0))
    np.testing.assert_array_equal(out, 3 * x)
    np.testing.assert_array_equal(positive, np.asarray(x).sum(-1) > 0)
    assert nothing.shape == (2, 3, 0)
    step = lambda _, x: double(x, jnp.float32(2))[0]  # noqa: E731
    many = jax.jit(lambda x: jax.lax.fori_loop(0, 10, step, x))
    np.testing.assert_array_equal(many(jnp.ones(2)), 1024.0)


@pytest.mark.parametrize("error", [ValueError("a bad day"), KeyboardInterrupt("a bad day")])
def test_an_error_arrives_with_its_message_and_the_next_call_works(error):
    broken = [error]

    def fragile(inputs, outputs):
        if broken:
            raise broken.pop()
        outputs[0][...] = inputs[0]

    same = jax.jit(host_call.call(fragile, 100 + len(type(error).__name__), (FLOATS,)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bad day"):
        jax.block_until_ready(same(jnp.ones(2)))
    np.testing.assert_array_equal(same(jnp.ones(2))[0], 1.0)


PROGRAM = """
import collections, json, jax
from pdjax_envs import registry

events = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: events.update([name.split("/")[-1]]))
env = registry.make("PegInsertionSide", "native")
keys = jax.random.split(jax.random.key(0), 3)
state, obs = jax.jit(jax.vmap(env.reset, (None, 0)))(env.model, keys)
action = jax.numpy.full((3, 7), 0.1)
compiled = jax.jit(jax.vmap(env.step, (None, 0, 0))).lower(env.model, state, action).compile()
_, out = compiled(env.model, state, action)
temporary = compiled.memory_analysis().temp_size_in_bytes
print(json.dumps({"obs": out.obs.tolist(), "temporary": temporary,
                  "hits": events["cache_hits"], "misses": events["cache_misses"]}))
"""


SHARDED = """
import json, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pdjax_envs import registry

split = NamedSharding(Mesh(jax.devices(), "x"), PartitionSpec("x"))
env = registry.make("AdroitDoor", "native")
keys = jax.random.split(jax.random.key(0), 8)
def play(keys):
    state, _ = jax.vmap(env.reset, (None, 0))(env.model, keys)
    action = jax.numpy.full((8, env.task.act_dim), 0.1)
    return jax.vmap(env.step, (None, 0, 0))(env.model, state, action)[1].obs
one, four = jax.jit(play)(keys), jax.jit(play)(jax.device_put(keys, split))
print(json.dumps({"devices": len(four.sharding.device_set),
                  "off": float(abs(np.asarray(one) - np.asarray(four)).max())}))
"""


def test_native_physics_on_four_devices_is_that_on_one():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=environment,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == 4 and found["off"] < 1e-6


def test_a_later_process_compiles_nothing(tmp_path):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    runs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=environment,
            text=True,
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = runs
    assert first["misses"] > second["misses"] == 0 < second["hits"]
    assert first["obs"] == second["obs"]  # bit for bit
    assert first["temporary"] == second["temporary"] > 0
