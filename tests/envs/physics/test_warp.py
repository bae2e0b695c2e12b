"""The Warp engine against the native one, its shared room for contacts, and who chooses it.

What starts Warp runs in a process of its own, as in `test_mjx.py`; kernels are compiled there into
the clone's `.warp_cache`, which takes most of the time on the first run.
"""

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from pdjax_envs import names, registry
from pdjax_envs.physics import mjx_flags
from pdjax_envs.physics.engine import Buffers, Scene
from tests.envs.physics.test_mjx import (
    ADROIT,
    adroit_agrees,
    compare,
    grid_of_balls,
    overflows,
    run_child,
    small_scene_agrees,
)

run_child = partial(run_child, program=__file__)
needs_warp = pytest.mark.skipif(
    importlib.util.find_spec("warp") is None,
    reason="MuJoCo Warp is not installed; pip install 'mujoco-mjx[warp]'",
)

# DAPG's policies, and their successes in 50 episodes of gymnasium-robotics.
DAPG = Path(__file__).parents[4] / "shared/data/dapg"
PUBLISHED = {"Door": 50, "Hammer": 50, "Pen": 40, "Relocate": 50}
EPISODES = 50

# A ball above a slope that stands still: a body in a body, both turned, with a turned geom.
SLOPE = """
<mujoco>
  <worldbody>
    <body name="base">
      <geom type="box" size=".1 .1 .1" pos="0 0 -1" quat=".8 0 .6 0"/>
      <body pos=".2 0 0" quat=".6 .8 0 0">
        <geom type="box" size=".5 .5 .5" pos="0 0 -.4" quat=".6 -.8 0 0"/>
      </body>
    </body>
    <body pos=".2 .3 .3"><freejoint/><geom size=".1"/></body>
  </worldbody>
</mujoco>
"""


def _child_small():
    """The small scene, alone, in one batch and in nested batches."""
    mjx_flags.prepare()
    from tests.envs.physics.test_native import playing

    engine, arguments, together = small_scene_agrees("warp", {"qpos": 2e-5, "qvel": 5e-4})
    pairs = jax.tree.map(lambda x: x[:4].reshape(2, 2, *x.shape[1:]), arguments)
    nested = jax.jit(jax.vmap(jax.vmap(playing(engine))))(*pairs)
    alone = jax.jit(playing(engine))(*jax.tree.map(lambda x: x[3], arguments))
    jax.tree.map(np.testing.assert_array_equal, alone, jax.tree.map(lambda x: x[3], together))
    jax.tree.map(np.testing.assert_array_equal, alone, jax.tree.map(lambda x: x[1, 1], nested))


def _child_static():
    """Bodies without joints stand where each environment has them."""
    mjx_flags.prepare()
    import mujoco

    from tests.envs.physics.test_native import playing

    model = mujoco.MjModel.from_xml_string(SLOPE)
    rows = {"body_pos": ("base",), "body_quat": ("base",)}
    scene = Scene(model, 20, rows, fields=("geom_xpos", "geom_xmat"))
    rng = np.random.default_rng(0)
    quat = rng.normal(size=(3, 1, 4)) * 0.1 + [1, 0, 0, 0]
    overrides = {
        "body_pos": rng.uniform(-0.05, 0.05, (3, 1, 3)),
        "body_quat": quat / np.linalg.norm(quat, axis=-1, keepdims=True),
    }
    start = np.tile(model.qpos0, (3, 1)), np.zeros((3, model.nv)), np.zeros((3, 0))
    arguments = jax.tree.map(np.float32, (overrides, *start))
    found, expected = (
        jax.jit(jax.vmap(playing(registry.make_engine(scene, name))))(*arguments)
        for name in ("warp", "native")
    )
    for field in scene.fields:
        compare(found.fields[field], expected.fields[field], 1e-5, field)
    compare(found.qpos, expected.qpos, 1e-5, "qpos")
    assert np.ptp(expected.qpos[:, 2]) > 0.01  # the ball lies on it


def _child_overflow():
    """Nine balls make nine contacts and 36 constraints each in two of three environments."""
    mjx_flags.prepare()
    model, start = grid_of_balls(lifted=(1,))
    for buffers, expected in (
        (Buffers(contacts=6, constraints=36), [False, False, False]),  # 18 of 18 contacts
        (Buffers(contacts=5, constraints=36), [True, True, True]),
        (Buffers(contacts=6, constraints=35), [True, False, True]),
    ):
        assert overflows(Scene(model, 2, buffers=buffers), "warp", start) == expected


def _child_adroit(name):
    mjx_flags.prepare()
    # Measured: hands 5e-7, objects 1e-7.
    adroit_agrees(name, "warp", {"start": 1e-6, "hand": 1e-5, "object": 1e-5})


def _child_expert(name, engine):
    """Prints in how many episodes a published policy, without its noise, succeeds."""
    mjx_flags.prepare()
    weights = dict(np.load(DAPG / f"dapg_{name.lower()}.npz"))
    env = registry.make(f"Adroit{name}", engine, terminate_on_success=False)

    def act(obs):
        x = (obs - weights["in_shift"]) / (weights["in_scale"] + 1e-8)
        for layer in "01":
            x = jnp.tanh(weights[f"w{layer}"] @ x + weights[f"b{layer}"])
        return weights["out_shift"] + weights["out_scale"] * (weights["w2"] @ x + weights["b2"])

    def control_step(carry, _):
        states, obs = carry
        actions = jax.vmap(act)(obs)
        states, outcome = jax.vmap(env.step, (None, 0, 0))(env.model, states, actions)
        return (states, outcome.obs), (outcome.success, outcome.overflow)

    @jax.jit
    def play(keys):
        start = jax.vmap(env.reset, (None, 0))(env.model, keys)
        return jax.lax.scan(control_step, start, None, env.task.episode_steps)[1]

    success, overflow = play(jax.random.split(jax.random.key(0), EPISODES))
    assert not overflow.any()
    print(int(success.any(axis=0).sum()))


@needs_warp
@pytest.mark.parametrize("child", [_child_small, _child_static, _child_overflow])
def test_small_scenes(child):
    run_child(child.__name__, limit_s=240)


@needs_warp
@pytest.mark.parametrize(
    "name", ["AdroitDoor", *(pytest.param(name, marks=pytest.mark.slow) for name in ADROIT[1:])]
)
def test_adroit_agrees_with_native(name):
    run_child("_child_adroit", name, limit_s=300)


@pytest.mark.slow
@pytest.mark.skipif(not DAPG.is_dir(), reason=f"no published policies in {DAPG}")
@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
@pytest.mark.parametrize("engine", ["native", "mjx", pytest.param("warp", marks=needs_warp)])
def test_published_experts_succeed_on_all_engines(name, published, engine):
    found = int(run_child("_child_expert", name, engine, limit_s=1200))
    table = [[found, EPISODES - found], [published, EPISODES - published]]
    assert scipy.stats.fisher_exact(table).pvalue > 0.01, f"{found} of {EPISODES}"


@pytest.mark.parametrize(
    ("backend", "device", "installed", "expected"),
    [
        ("cpu", "cpu", True, "native"),
        ("gpu", "NVIDIA H100 80GB HBM3", True, "warp"),
        ("gpu", "NVIDIA H100 80GB HBM3", False, "mjx"),
        ("gpu", "AMD Instinct MI300X", True, "mjx"),
        ("tpu", "TPU v5e", True, "mjx"),
    ],
)
def test_auto_chooses_by_device(monkeypatch, backend, device, installed, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=device)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    assert registry.resolve_engine("auto") == expected


def test_a_missing_warp_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    scene: Any = SimpleNamespace()  # never read
    with pytest.raises(names.UnknownName, match="'warp' is not installed; pip install") as error:
        registry.make_engine(scene, "warp")
    assert "\n" not in str(error.value)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
