"""Refines a policy that exists only in memory, on a task that exists only in memory, silently."""

import sys

import jax
import jax.numpy as jnp

import pdjax
from pdjax_envs.physics.engine import Engine, PhysicsState
from pdjax_envs.task import Episode, Start, Task

engine = Engine(  # a point on a line, which moves by 0.1 a control step at most
    "line", (), reset=lambda _, __, qpos, qvel: PhysicsState(qpos, qvel, {}, jnp.array(False), ()),
    step=lambda _, __, state, action: state._replace(qpos=state.qpos + 0.1 * action),
)  # fmt: skip
task = Task(
    name="Line", observation=(("position", 1),), action=(("velocity", 1),), episode_steps=12,
    control_hz=10, engine=engine, observe=lambda episode, physics: physics.qpos,
    sample_start=lambda key: Start(Episode({}, ()), jax.random.uniform(key, (1,)), jnp.zeros(1)),
    success=lambda episode, physics: jnp.abs(physics.qpos[0] - 1.5) < 0.05,
)  # fmt: skip
base = pdjax.base_policy(lambda obs: 0.8 * jnp.sign(1.5 - obs[-1:]), obs_dim=1, act_dim=1)
changes = {"train": {"total_decisions": 16_384}, "sac": {"residual_penalty": 0, "hidden": [64, 64]}}
changes["decorator"] = {"residual_scale": 0.3, "exploration_steps": 0}
run = pdjax.train(pdjax.load_config("fast", **changes), base=base, task=task, out=sys.argv[1])
paired = pdjax.evaluate(run, episodes=100)
assert run.curve["success_once"][-1] > run.curve["success_once"][0]  # arrays over decision_steps
assert paired.refined.success_once.mean() > paired.base.success_once.mean()  # episode by episode
