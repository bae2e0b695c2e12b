"""The native engine against a plain MuJoCo C loop, and as a function of its arguments alone."""

import copy
import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pdjax_envs import registry
from pdjax_envs.physics import native
from pdjax_envs.physics.engine import Scene, apply_overrides

SEEDS, STEPS = 20, 200
# time, qpos, qvel, act, history, solver warm start
CARRIED = sum(
    getattr(mujoco.mjtState, f"mjSTATE_{part}").value
    for part in ("TIME", "QPOS", "QVEL", "ACT", "HISTORY", "WARMSTART")
)

# A ball on a plane and a damped slider with an actuator that has a state of its own.
SMALL = """
<mujoco>
  <worldbody>
    <geom name="floor" type="plane" size="1 1 .1"/>
    <body name="ball" pos="0 0 .12">
      <freejoint/>
      <geom name="ball" type="sphere" size=".1" mass="1"/>
      <site name="mark" pos="0 0 .1"/>
    </body>
    <body name="slider" pos="1 0 1">
      <joint name="slide" type="slide" axis="1 0 0" damping="1"/>
      <geom type="box" size=".1 .1 .1" mass="2" contype="0" conaffinity="0"/>
    </body>
  </worldbody>
  <actuator>
    <general joint="slide" dyntype="filterexact" dynprm=".1" gainprm="5"/>
  </actuator>
  <sensor><framelinvel objtype="site" objname="mark"/></sensor>
</mujoco>
"""
SMALL_ROWS = {"site_pos": ("mark",), "geom_size": ("ball",), "dof_damping": ("slide",)}
FIELDS = ("site_xpos", "xquat", "ximat", "sensordata")


@pytest.fixture(scope="module")
def task():
    return registry.make_task("PegInsertionSide")


@pytest.fixture(scope="module")
def small():
    model = mujoco.MjModel.from_xml_string(SMALL)
    return Scene(model, n_substeps=4, override_rows=SMALL_ROWS, fields=FIELDS)


def small_start(count, seed=0):
    """(overrides, qpos, qvel, ctrl) of `count` environments of the small scene."""
    rng = np.random.default_rng(seed)
    overrides = {
        "site_pos": rng.uniform(-0.1, 0.1, (count, 1, 3)),
        "geom_size": rng.uniform(0.05, 0.1, (count, 1, 1)) * [1, 0, 0],
        "dof_damping": rng.uniform(0.5, 2, (count, 1)),
    }
    qpos = np.tile([0, 0, 0.12, 1, 0, 0, 0, 0], (count, 1)) + rng.normal(size=(count, 8)) * 0.01
    values = (overrides, qpos, rng.normal(size=(count, 7)), rng.uniform(-1, 1, (count, 1)))
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), values)


def playing(engine, steps=5):
    """A jitted (overrides, qpos, qvel, ctrl) -> PhysicsState after `steps` control steps."""

    def play(overrides, qpos, qvel, ctrl):
        state = engine.reset(engine.model, overrides, qpos, qvel)
        step = lambda _, state: engine.step(engine.model, overrides, state, ctrl)  # noqa: E731
        return jax.lax.fori_loop(0, steps, step, state)

    return play


def as_float64(raw):
    return np.ascontiguousarray(raw).view(np.float64)


def c_model(scene, overrides, index):
    model = copy.copy(scene.model)
    apply_overrides(model, scene, jax.tree.map(lambda x: np.asarray(x[index]), overrides))
    return model


def c_state(model, data):
    state = np.zeros(mujoco.mj_stateSize(model, CARRIED))
    mujoco.mj_getState(model, data, state, CARRIED)
    return state


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_rollout_is_bit_identical_with_a_c_loop(task):
    scene, expert = task.scene, task.expert()
    env = registry.make("PegInsertionSide", "native")
    assert env.engine == "native"

    def control_step(carry, key):
        state, obs, memory = carry
        keys = jax.random.split(key, SEEDS + 1)
        actions = jax.random.uniform(keys[0], (SEEDS, task.act_dim), minval=-1.0)
        expert_actions, memory = jax.vmap(expert.act)(memory, obs, keys[1:])
        # Half of the robots flail, half grasp and insert: free motion and all kinds of contact.
        actions = jnp.where(jnp.arange(SEEDS)[:, None] % 2, expert_actions, actions)
        ctrl = jax.vmap(task.control)(state.episode, state.physics, actions)
        state, outcome = jax.vmap(env.step, (None, 0, 0))(env.model, state, actions)
        return (state, outcome.obs, memory), (ctrl, state.physics)

    @jax.jit
    def rollout(key):
        reset_key, memory_key, key = jax.random.split(key, 3)
        start, obs = jax.vmap(env.reset, (None, 0))(env.model, jax.random.split(reset_key, SEEDS))
        memory = jax.vmap(expert.init)(jax.random.split(memory_key, SEEDS))
        return start, jax.lax.scan(control_step, (start, obs, memory), jax.random.split(key, STEPS))

    start, (_, (ctrls, physics)) = rollout(jax.random.key(0))
    found, ctrls = as_float64(physics.raw), np.asarray(ctrls, np.float64)
    expected, touching = np.zeros_like(found), 0
    for seed in range(SEEDS):
        model = c_model(scene, start.episode.overrides, seed)
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = start.physics.qpos[seed], start.physics.qvel[seed]
        for step in range(STEPS):
            data.ctrl[:] = ctrls[step, seed]
            for _ in range(scene.n_substeps):
                mujoco.mj_step(model, data)
            expected[step, seed] = c_state(model, data)
            touching += data.ncon > 4  # more than the peg on the floor
    np.testing.assert_array_equal(found.view(np.uint64), expected.view(np.uint64))
    qpos = expected[..., 1 : 1 + scene.model.nq].astype(np.float32)
    np.testing.assert_array_equal(physics.qpos, qpos)
    assert touching > 1000


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_activations_warm_start_and_fields_follow_c(small, monkeypatch, backend):
    # "gpu": the route by value, which accelerators take, here on the CPU
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    engine = native.make_engine(small)
    monkeypatch.undo()
    overrides, qpos, qvel, ctrl = small_start(9)
    state = jax.jit(jax.vmap(playing(engine)))(overrides, qpos, qvel, ctrl)
    for index in range(9):
        model = c_model(small, overrides, index)
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:], data.ctrl[:] = qpos[index], qvel[index], ctrl[index]
        for _ in range(5 * small.n_substeps):
            mujoco.mj_step(model, data)
        np.testing.assert_array_equal(as_float64(state.raw[index]), c_state(model, data))
        assert data.act[0] != 0
        assert np.any(data.qacc_warmstart != 0)
        # C's derived fields are one substep old; the engine's are at the new state.
        mujoco.mj_forward(model, data)
        for field in FIELDS:
            expected = getattr(data, field).astype(np.float32)
            np.testing.assert_array_equal(state.fields[field][index], expected)


def test_reset_computes_fields_at_the_given_state(small):
    engine = native.make_engine(small)
    overrides, qpos, qvel, _ = small_start(3)
    reset = jax.jit(jax.vmap(engine.reset, (None, 0, 0, 0)))
    state = reset(engine.model, overrides, qpos, qvel)
    np.testing.assert_array_equal(state.qpos, qpos)
    for index in range(3):
        model = c_model(small, overrides, index)
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = qpos[index], qvel[index]
        mujoco.mj_forward(model, data)
        for field in FIELDS:
            expected = getattr(data, field).astype(np.float32)
            np.testing.assert_array_equal(state.fields[field][index], expected)


def test_subnormal_numbers_survive(small):
    # XLA flushes them to zero on its threads; C does not, and neither may MuJoCo when called there.
    engine = native.make_engine(Scene(small.model, n_substeps=3))
    tiny = 1e-310
    raws = np.zeros((8, mujoco.mj_stateSize(small.model, CARRIED)))
    raws[:, 1 : 1 + small.model.nq] = small.model.qpos0
    raws[:, 1 + small.model.nq : 1 + small.model.nq + small.model.nv] = tiny
    state = engine.reset(engine.model, {}, jnp.zeros(small.model.nq), jnp.zeros(small.model.nv))
    state = jax.tree.map(lambda x: jnp.stack([x] * 8), state)._replace(raw=raws.view(np.uint32))
    step = jax.jit(jax.vmap(engine.step, (None, None, 0, None)))
    found = as_float64(step(engine.model, {}, state, jnp.zeros(1)).raw)

    data = mujoco.MjData(small.model)
    mujoco.mj_setState(small.model, data, raws[0], CARRIED)
    for _ in range(3):
        mujoco.mj_step(small.model, data)
    assert 0 < data.qvel[6] < 1e-307
    for row in found:
        np.testing.assert_array_equal(row, c_state(small.model, data))


def test_results_depend_on_the_arguments_alone(small):
    engine = native.make_engine(small)
    play = jax.jit(jax.vmap(playing(engine)))
    ours, others, fewer = small_start(6, seed=1), small_start(6, seed=2), small_start(3, seed=3)
    first = play(*ours)
    play(*others)
    few = play(*fewer)
    assert_same(play(*ours), first)
    assert_same(play(*fewer), few)
    # Any subset of the environments gets what it got among the others.
    assert_same(play(*jax.tree.map(lambda x: x[1:4], ours)), jax.tree.map(lambda x: x[1:4], first))
    # Another engine of the same scene, on one thread, agrees too.
    single = native.make_engine(small, num_threads=1)
    assert_same(jax.jit(jax.vmap(playing(single)))(*ours), first)


def test_nested_vmap_equals_flat(small):
    engine = native.make_engine(small)
    arguments = small_start(10)
    flat = jax.jit(jax.vmap(playing(engine)))(*arguments)
    pairs = jax.tree.map(lambda x: x.reshape(2, 5, *x.shape[1:]), arguments)
    nested = jax.jit(jax.vmap(jax.vmap(playing(engine))))(*pairs)
    assert_same(jax.tree.map(lambda x: x.reshape(10, *x.shape[2:]), nested), flat)


def test_one_environment_without_vmap(small):
    engine = native.make_engine(small)
    arguments = small_start(2)
    both = jax.jit(jax.vmap(playing(engine)))(*arguments)
    one = jax.jit(playing(engine))(*jax.tree.map(lambda x: x[1], arguments))
    assert_same(one, jax.tree.map(lambda x: x[1], both))


def test_environments_may_share_overrides(small):
    engine = native.make_engine(small)
    overrides, qpos, qvel, ctrl = small_start(4)
    shared = jax.tree.map(lambda x: x[0], overrides)
    found = jax.jit(jax.vmap(playing(engine), (None, 0, 0, 0)))(shared, qpos, qvel, ctrl)
    repeated = jax.tree.map(lambda x: jnp.stack([x[0]] * 4), overrides)
    assert_same(found, jax.jit(jax.vmap(playing(engine)))(repeated, qpos, qvel, ctrl))


def test_models_whose_state_does_not_cross_are_refused():
    model = SimpleNamespace(npluginstate=1)
    with pytest.raises(ValueError, match="no plugin state"):
        native.make_engine(Scene(model, n_substeps=1))


def test_fields_may_be_as_old_as_c_leaves_them(small):
    engine = native.make_engine(dataclasses.replace(small, fresh_fields=False))
    overrides, qpos, qvel, ctrl = small_start(4)
    state = jax.jit(jax.vmap(playing(engine)))(overrides, qpos, qvel, ctrl)
    for index in range(4):
        model = c_model(small, overrides, index)
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = qpos[index], qvel[index]
        mujoco.mj_forward(model, data)  # as at a reset: it leaves a warm start behind
        data.ctrl[:] = ctrl[index]
        for _ in range(5 * small.n_substeps):
            mujoco.mj_step(model, data)
        np.testing.assert_array_equal(as_float64(state.raw[index]), c_state(model, data))
        for field in FIELDS:
            expected = getattr(data, field).astype(np.float32)
            np.testing.assert_array_equal(state.fields[field][index], expected)


def test_ctrl_is_scaled_in_float64(small):
    center, half_range = np.array([0.1]), np.array([1 / 3])
    engine = native.make_engine(dataclasses.replace(small, ctrl_scale=(center, half_range)))
    overrides, qpos, qvel, ctrl = small_start(4)
    state = jax.jit(jax.vmap(playing(engine)))(overrides, qpos, qvel, ctrl)
    for index in range(4):
        model = c_model(small, overrides, index)
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = qpos[index], qvel[index]
        data.ctrl[:] = center + np.float64(ctrl[index]) * half_range
        for _ in range(5 * small.n_substeps):
            mujoco.mj_step(model, data)
        np.testing.assert_array_equal(as_float64(state.raw[index]), c_state(model, data))


def test_an_overflow_of_contacts_is_reported():
    # A model with memory for a handful of contacts, and balls that all touch the floor.
    balls = "".join(
        f"<body pos='{x} {y} .09'><freejoint/><geom size='.1'/></body>"
        for x in range(8)
        for y in range(8)
    )
    xml = f"""<mujoco><size memory="{{}}"/><worldbody><geom type="plane" size="9 9 .1"/>{balls}
      </worldbody></mujoco>"""
    for memory, expected in (("64K", True), ("10M", False)):
        scene = Scene(mujoco.MjModel.from_xml_string(xml.format(memory)), n_substeps=1)
        engine = native.make_engine(scene)
        start = (jnp.tile(scene.model.qpos0, (3, 1)), jnp.zeros((3, scene.model.nv)))
        states = jax.vmap(engine.reset, (None, None, 0, 0))(engine.model, {}, *start)
        assert not states.overflow.any()
        step = jax.jit(jax.vmap(engine.step, (None, None, 0, None)))
        states = step(engine.model, {}, states, jnp.zeros(0))
        assert states.overflow.tolist() == [expected] * 3


def test_float64_bits_are_exact():
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, -np.nan],
            [np.finfo(np.float32).max, np.finfo(np.float32).tiny, -np.finfo(np.float32).tiny],
            rng.normal(size=1000),
            np.ldexp(rng.normal(size=1000), rng.integers(-120, 120, 1000)),
        ]
    ).astype(np.float32)
    found = as_float64(jax.jit(native.float64_bits)(values))[:, 0]
    np.testing.assert_array_equal(found.view(np.uint64), values.astype(np.float64).view(np.uint64))


def test_float64_bits_of_subnormals_are_zero():
    subnormal = np.array([1e-45, -1e-45, 1e-39], np.float32)
    found = as_float64(native.float64_bits(jnp.asarray(subnormal)))[:, 0]
    np.testing.assert_array_equal(found.view(np.uint64), np.array([0.0, -0.0, 0.0]).view(np.uint64))


def test_explicit_constants_are_what_mujoco_derives(task):
    derived = {"body_invweight0", "dof_invweight0", "dof_M0", "body_subtreemass"}
    assert derived < set(task.scene.override_rows)
    starts = jax.vmap(task.sample_start)(jax.random.split(jax.random.key(5), 20))
    for index in range(20):
        overrides = starts.episode.overrides
        ours = c_model(task.scene, overrides, index)
        theirs = c_model(task.scene, overrides, index)
        for field in derived:  # forgotten, so that they must be derived
            getattr(theirs, field)[:] = getattr(task.scene.model, field)
        mujoco.mj_setConst(theirs, mujoco.MjData(theirs))
        # The world's subtree holds the peg too; only sensors of the whole scene's momentum read it.
        theirs.body_subtreemass[0] = ours.body_subtreemass[0]
        for field in derived:
            np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), rtol=2e-5)
