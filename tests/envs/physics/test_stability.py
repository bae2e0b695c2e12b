"""ManiSkill scenes stay sane under random actions: 1,000 episodes each, as a slow test."""

import copy

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pdjax_envs import registry
from pdjax_envs.physics.engine import apply_overrides

EPISODES = 1000
LOOKED_AT, EVERY = 100, 5  # episodes whose contacts are looked at, after every so many steps
SPEED = 60.0  # m/s and rad/s, largest of any joint
PENETRATION = 0.03  # m, deepest
NAMES = [name for name, module in registry.BUILT_IN.items() if ".maniskill." in module]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_random_actions_break_nothing(name):
    env = registry.make(name, "native", terminate_on_success=False)
    reset_key, action_key = jax.random.split(jax.random.key(0))

    def control_step(states, step):
        key = jax.random.fold_in(action_key, step)
        actions = jax.random.uniform(key, (EPISODES, env.task.act_dim), minval=-1.0)
        states, outcome = jax.vmap(env.step, (None, 0, 0))(env.model, states, actions)
        fine = jnp.isfinite(outcome.obs).all() & ~outcome.overflow.any()
        speed = jnp.abs(states.physics.qvel).max()
        return states, (fine, speed, states.physics.qpos[:LOOKED_AT])

    @jax.jit
    def play():
        keys = jax.random.split(reset_key, EPISODES)
        states, _ = jax.vmap(env.reset, (None, 0))(env.model, keys)
        return jax.lax.scan(control_step, states, jnp.arange(env.task.episode_steps))

    states, (fine, speed, qpos) = play()
    assert fine.all()
    assert speed.max() < SPEED
    overrides = jax.device_get(states.episode.overrides)
    depths = [
        deepest(env.task.scene, {field: rows[index] for field, rows in overrides.items()}, places)
        for index, places in enumerate(np.asarray(qpos[::EVERY]).swapaxes(0, 1))
    ]
    assert max(depths) < PENETRATION


def deepest(scene, overrides, places):
    """The deepest penetration, m, in one environment at joint positions (steps, nq)."""
    model = copy.copy(scene.model)
    apply_overrides(model, scene, overrides)
    data, depth = mujoco.MjData(model), 0.0
    for qpos in places:
        data.qpos[:] = qpos
        mujoco.mj_fwdPosition(model, data)
        depth = max(depth, -min(data.contact.dist, default=0.0))
    return depth
