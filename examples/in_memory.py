"""Refines a policy that exists only in memory, on a task that exists only in memory; says nothing."""

import sys

import jax
import jax.numpy as jnp

import pdjax
from pdjax_envs.physics.engine import Engine, PhysicsState
from pdjax_envs.task import Episode, Start, Task


def move(model, overrides, state, velocity):  # a point on a line, 0.1 a control step at most
    return PhysicsState(state.qpos + 0.1 * velocity, velocity, {}, state.overflow, ())


task = Task(
    name="Line", observation=(("position", 1),), action=(("velocity", 1),), episode_steps=12,
    control_hz=10, observe=lambda episode, physics: physics.qpos,
    sample_start=lambda key: Start(Episode({}, ()), jax.random.uniform(key, 1), jnp.zeros(1)),
    success=lambda episode, physics: jnp.abs(physics.qpos[0] - 1.5) < 0.05,
    engine=Engine("line", (), lambda m, o, q, v: PhysicsState(q, v, {}, jnp.array(False), ()), move),
)  # fmt: skip
base = pdjax.base_policy(lambda obs: 0.8 * jnp.sign(1.5 - obs[-1:]), obs_dim=1, act_dim=1)
config = pdjax.load_config("fast", train={"total_decisions": 16_384}, decorator={"residual_scale": 0.5})
run = pdjax.train(config, base=base, task=task, out=sys.argv[1])
steps, success = run.curve["decision_steps"], run.curve["success_once"]
paired = pdjax.evaluate(run, episodes=100)
assert len(steps) == len(success) > 1 and paired.refined.success_once.mean() > success[0]
