"""The native engine inside jit against a plain MuJoCo C loop: the same bits."""

import copy

import jax
import mujoco
import numpy as np

from pdjax_envs import registry
from pdjax_envs.physics.engine import apply_overrides

SEEDS, STEPS = 20, 200


def test_trajectories_are_bit_identical_with_a_plain_c_loop():
    task = registry.make_task("PegInsertionSide")
    model, engine = task.scene.model, registry.make_engine(task.scene, "native")
    start = jax.jit(jax.vmap(task.sample_start))(jax.random.split(jax.random.key(0), SEEDS))
    overrides = start.episode.overrides
    # Random joint targets about the start, so that arm, peg, box and floor meet in many ways.
    noise = np.random.default_rng(0).uniform(-0.6, 0.6, (STEPS, SEEDS, model.nu))
    ctrls = np.asarray(start.qpos[:, : model.nu] + noise, np.float32)

    @jax.jit
    def play(start, ctrls):
        physics = jax.vmap(engine.reset, (None, 0, 0, 0))(
            engine.model, overrides, start.qpos, start.qvel
        )

        def step(physics, ctrl):
            advance = jax.vmap(engine.step, (None, 0, 0, 0))
            physics = advance(engine.model, overrides, physics, ctrl)
            return physics, physics.raw

        return jax.lax.scan(step, physics, ctrls)[1]

    # The carried state starts with time, qpos and qvel, each float64 as two uint32.
    raws = np.ascontiguousarray(play(start, ctrls))
    carried = raws.view(np.float64)[..., : 1 + model.nq + model.nv]
    contacts = 0
    for seed in range(SEEDS):
        own = copy.copy(model)
        apply_overrides(own, task.scene, {k: np.asarray(v[seed]) for k, v in overrides.items()})
        data = mujoco.MjData(own)
        data.qpos[:], data.qvel[:] = start.qpos[seed], start.qvel[seed]
        for step in range(STEPS):
            data.ctrl[:] = ctrls[step, seed]
            for _ in range(task.scene.n_substeps):
                mujoco.mj_step(own, data)
            expected = np.concatenate([[data.time], data.qpos, data.qvel])
            np.testing.assert_array_equal(carried[step, seed], expected)
            contacts += data.ncon
    assert contacts > SEEDS * STEPS  # the comparison covers contacts, not only free flight


def test_overridden_constants_are_those_that_mujoco_derives():
    task = registry.make_task("PegInsertionSide")
    peg = task.scene.model.body("peg").id
    joint = task.scene.model.joint("peg_joint").dofadr[0]
    for key in jax.random.split(jax.random.key(2), 5):
        model = copy.copy(task.scene.model)
        overrides = jax.device_get(task.sample_start(key).episode.overrides)
        apply_overrides(model, task.scene, overrides)
        ours = [
            np.array(model.body_invweight0[peg]),
            np.array(model.body_subtreemass[peg]),
            np.array(model.dof_M0[joint:]),
            np.array(model.dof_invweight0[joint:]),
        ]
        mujoco.mj_setConst(model, mujoco.MjData(model))
        theirs = [
            model.body_invweight0[peg],
            model.body_subtreemass[peg],
            model.dof_M0[joint:],
            model.dof_invweight0[joint:],
        ]
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
