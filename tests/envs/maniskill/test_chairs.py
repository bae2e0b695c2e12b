"""The family of chairs: its split, and overrides against chairs that MuJoCo compiles itself."""

import copy

import mujoco
import numpy as np
import pytest

from pdjax_envs import registry
from pdjax_envs.maniskill import chairs, push_chair
from pdjax_envs.physics.engine import apply_overrides

ALL = (*chairs.TRAINING, *chairs.HELD_OUT)
DERIVED = ("body_subtreemass", "body_invweight0", "dof_M0", "dof_invweight0")


@pytest.fixture(scope="module")
def scene():
    return registry.make_task("PushChair").scene


def overridden(scene, seed, seat_damping=10.0):
    """The task's model as the chair of a seed."""
    state = {"qpos": 0, "qvel": 0, "chair": seed, "seat_damping": seat_damping}
    model = copy.copy(scene.model)
    apply_overrides(model, scene, push_chair.make_start(state).episode.overrides)
    return model


def compiled(seed):
    """A chair on a floor, as MuJoCo compiles it, with the task's options."""
    chair, spec = chairs.make_chair(seed), mujoco.MjSpec()
    spec.option.timestep = 0.005
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=(4, 4, 0.1), contype=1)
    chairs.add_chair(spec, chair)
    model = spec.compile()
    damping = chair.caster_damping
    model.dof_damping[:] = [damping, damping, 0, 0, 0, damping * chair.base_radius**2, 10]
    return model


def alone(model, qpos, qvel):
    """A model's data with the chair at `qpos` (8,) and `qvel` (7,)."""
    data = mujoco.MjData(model)
    data.qpos[-8:], data.qvel[-7:] = qpos, qvel
    data.qpos[: model.nq - 8] = model.qpos0[: model.nq - 8]
    if model.nq > 8:
        data.qpos[0] = 9.0  # the robot stands far away
    return data


def test_the_split_is_fixed():
    assert len(chairs.TRAINING) == 5 and len(chairs.HELD_OUT) == 3
    assert not set(chairs.TRAINING) & set(chairs.HELD_OUT)
    # By NumPy's RandomState(0).uniform(): 0.548814, 0.715189, 0.602763 of their ranges.
    first = chairs.make_chair(0)
    np.testing.assert_allclose(first[:3], [0.4348814, 0.2257595, 0.2301382], atol=1e-6)
    heights = [chairs.make_chair(seed).height for seed in ALL]
    np.testing.assert_array_equal(chairs.heights(), np.array(heights, np.float32))
    assert len(set(heights)) == 8
    with_arm_rests = [seed for seed in ALL if chairs.make_chair(seed).arm_height > 0]
    assert with_arm_rests == [0, 1, 2, 4, 7]  # both kinds on both sides of the split


@pytest.mark.parametrize("seed", ALL)
def test_chairs_stay_in_their_ranges(seed):
    chair = chairs.make_chair(seed)
    assert set(chairs.RANGES) == set(chair._fields)
    for name, (low, high) in chairs.RANGES.items():
        value = getattr(chair, name)
        assert low <= value <= high or (name, value) == ("arm_height", 0)


@pytest.mark.parametrize("seed", ALL)
def test_explicit_constants_are_what_mujoco_derives(scene, seed):
    ours, theirs = overridden(scene, seed), overridden(scene, seed)
    for field in DERIVED:  # forgotten, so that they must be derived
        getattr(theirs, field)[:] = getattr(scene.model, field)
    mujoco.mj_setConst(theirs, mujoco.MjData(theirs))
    # The world's subtree holds the chair too; only sensors of the scene's momentum read it.
    theirs.body_subtreemass[0] = ours.body_subtreemass[0]
    for field in DERIVED:
        np.testing.assert_allclose(getattr(ours, field), getattr(theirs, field), rtol=2e-5)


@pytest.mark.parametrize("seed", ALL)
def test_shapes_are_where_the_compiled_chair_has_them(scene, seed):
    qpos = np.array([0.3, -0.2, 0.5, 0.8, 0.1, -0.2, 0.55, 0.7])
    qpos[3:7] /= np.linalg.norm(qpos[3:7])
    ours, theirs = (alone(m, qpos, np.zeros(7)) for m in (overridden(scene, seed), compiled(seed)))
    for data in (ours, theirs):
        mujoco.mj_kinematics(data.model, data)
    names = [theirs.model.geom(index).name for index in range(1, theirs.model.ngeom)]
    assert len(names) == 18
    for name in names:
        a, b = ours.geom(name), theirs.geom(name)
        np.testing.assert_allclose(a.xpos, b.xpos, atol=1e-6)
        np.testing.assert_allclose(a.xmat, b.xmat, atol=1e-6)
        for field in ("size", "rbound", "friction"):
            found, expected = (getattr(d.model.geom(name), field) for d in (ours, theirs))
            np.testing.assert_allclose(found, expected, atol=1e-6)
    for name in ("chair", "chair_seat"):
        np.testing.assert_allclose(ours.body(name).xipos, theirs.body(name).xipos, atol=1e-6)


@pytest.mark.parametrize("seed", ALL)
def test_an_overridden_chair_moves_like_the_compiled_one(scene, seed):
    chair = chairs.make_chair(seed)
    qpos = [0, 0, chair.height + 0.02, 1, 0, 0, 0, 0.5]
    qvel = [0.4, 0.2, 0, 0.3, 0, 1.0, -2.0]
    both = [alone(m, qpos, qvel) for m in (overridden(scene, seed), compiled(seed))]
    touching = 0
    for _ in range(60):  # it falls by 2 cm, rolls and turns
        for data in both:
            mujoco.mj_step(data.model, data)
        touching += both[1].ncon > 0
    # Overrides are float32.
    np.testing.assert_allclose(both[0].qpos[-8:], both[1].qpos, atol=1e-4)
    np.testing.assert_allclose(both[0].qvel[-7:], both[1].qvel, atol=1e-3)
    assert both[1].qpos[0] > 0.05 and touching > 20  # it has moved, on its casters


def test_a_chair_rolls_to_a_stop():
    # m v' = -mu m g - c v: from 0.3 m/s it takes t = m/c ln(1 + c v / (mu m g)).
    chair, model = chairs.make_chair(0), compiled(0)
    mass = chair.base_mass + chair.seat_mass
    resistance = chair.caster_friction * mass * 9.81
    stops = mass / chair.caster_damping * np.log1p(chair.caster_damping * 0.3 / resistance)
    data = alone(model, [0, 0, chair.height, 1, 0, 0, 0, 0], np.zeros(7))
    for _ in range(100):  # it settles on its casters
        mujoco.mj_step(model, data)
    data.qvel[0] = 0.3
    steps = round(0.9 * stops / 0.005)
    for _ in range(steps):
        mujoco.mj_step(model, data)
    assert data.qvel[0] > 0.01
    for _ in range(steps // 3):
        mujoco.mj_step(model, data)
    assert abs(data.qvel[0]) < 0.002


@pytest.mark.parametrize("seed", ALL)
def test_chairs_stand_still_and_upright(seed):
    model, height = compiled(seed), chairs.make_chair(seed).height
    data = alone(model, [0, 0, height, 1, 0, 0, 0, 1.0], np.zeros(7))
    for _ in range(400):
        mujoco.mj_step(model, data)
    np.testing.assert_allclose(data.qpos, [0, 0, height, 1, 0, 0, 0, 1.0], atol=2e-3)
    assert np.abs(data.qvel).max() < 1e-3
