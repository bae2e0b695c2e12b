"""Scripted demonstrators succeed, on 200 fresh starts each, and pass through all stages."""

import jax
import jax.numpy as jnp
import pytest

from pdjax_envs import registry

SEEDS = 200
SUCCESS = {
    "PegInsertionSide": 0.95,
    "PushChair": 0.95,
    "PushChairHeldOut": 0.95,
    "StackCube": 0.9,
    "TurnFaucet": 0.95,
    "TurnFaucetHeldOut": 0.95,
}


def test_every_expert_is_tested():
    have = {name for name in registry.task_names() if registry.make_task(name).expert}
    assert have == set(SUCCESS)


@pytest.mark.parametrize("name", SUCCESS)
def test_the_demonstrator_succeeds(name):
    env = registry.make(name, "native")
    assert env.task.expert is not None
    expert = env.task.expert()

    def control_step(carry, key):
        state, obs, memory, done, seen = carry
        act = jax.vmap(expert.act)
        actions, memory = act(memory, obs, jax.random.split(key, SEEDS))
        state, outcome = jax.vmap(env.step, (None, 0, 0))(env.model, state, actions)
        seen = seen | jnp.stack([jax.vmap(stage)(obs) for stage in env.task.stages.values()])
        carry = (state, outcome.obs, memory, done | outcome.success, seen)
        return carry, outcome.bad_action.any()

    @jax.jit
    def demonstrate(key):
        reset_key, memory_key, key = jax.random.split(key, 3)
        state, obs = jax.vmap(env.reset, (None, 0))(env.model, jax.random.split(reset_key, SEEDS))
        memory = jax.vmap(expert.init)(jax.random.split(memory_key, SEEDS))
        none = jnp.zeros((len(env.task.stages), SEEDS), bool)
        carry = (state, obs, memory, jnp.zeros(SEEDS, bool), none)
        steps = env.task.episode_steps
        (*_, done, seen), bad = jax.lax.scan(control_step, carry, jax.random.split(key, steps))
        return done, seen, bad.any()

    done, seen, bad = demonstrate(jax.random.key(3))
    assert not bad
    assert done.mean() >= SUCCESS[name]
    assert seen[:, done].all()
