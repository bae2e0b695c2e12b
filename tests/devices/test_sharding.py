"""Four devices do what one does, and everything stays where it belongs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from pdjax.config.schema import ConfigError
from pdjax.devices.sharding import make_mesh
from tests.training.test_epoch import small_config

PROGRAM = """
import dataclasses, json
import jax, numpy as np
from tests.training.test_epoch import build, small_config
from pdjax.training import epoch as train
from pdjax.devices.sharding import copy_to_all, make_mesh

config = small_config()
results = {}
for devices in (1, 4):
    chosen = dataclasses.replace(config, train=dataclasses.replace(config.train, devices=devices))
    mesh = make_mesh(chosen)
    assert mesh.size == devices
    rollout, sac, frozen, trainer, state = build(chosen, mesh=mesh)
    frozen = copy_to_all(mesh, jax.device_put(frozen, jax.devices()[0]))  # as read from disk
    there = jax.tree.broadcast(train.placement(mesh), state)
    key = jax.random.key(3)
    state = jax.jit(trainer.init, out_shardings=there)(frozen, state.hyperparams, key)
    epoch = jax.jit(trainer.train_epoch, donate_argnums=1)  # places nothing itself
    for _ in range(3):
        state, metrics = epoch(frozen, state)
    specs = jax.tree.map(lambda leaf, wanted: leaf.sharding.is_equivalent_to(wanted, leaf.ndim),
                         state, there)
    assert all(jax.tree.leaves(specs)), specs
    assert state.replay.storage.obs.addressable_shards[0].data.shape[1] == 8 // devices
    def choose(obs, base): return sac.act_deterministic(state.sac.actor, obs, base)
    played = jax.jit(lambda key: rollout.evaluate(frozen, choose, 0.5, key, 8, True))(key)
    assert metrics["gradient_steps"] > 0
    results[devices] = jax.tree.map(np.asarray, (state.sac, state.replay.storage, metrics, played))
worst = 0.0
for one, four in zip(*(jax.tree.leaves(results[n]) for n in (1, 4))):
    scale = 1 + np.abs(np.asarray(one, float)).max()
    worst = max(worst, np.abs(np.asarray(one, float) - np.asarray(four, float)).max() / scale)
print(json.dumps({"worst": worst, "steps": int(results[4][0].gradient_steps)}))
"""


def test_four_devices_equal_one():
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), *sys.path])
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["steps"] > 0
    assert found["worst"] < 1e-4


def test_what_cannot_be_dealt_out_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"train.devices=9, but JAX finds 1"):
        make_mesh(small_config(devices=9))
    monkeypatch.setattr(jax, "devices", lambda: [jax.local_devices()[0]] * 3)
    with pytest.raises(ConfigError, match=r"train.num_envs=8 must be a multiple of the 3 devices"):
        make_mesh(small_config())
