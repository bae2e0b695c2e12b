"""Probe environments with known answers, stepped without a simulator."""

import contextlib

import jax
import jax.numpy as jnp

from pdjax.types import BasePolicy
from pdjax_envs import register, unregister
from pdjax_envs.physics.engine import Engine, PhysicsState
from pdjax_envs.task import Episode, Start, Task, make_env

SPEED = 0.1  # position per control step at action 1


@contextlib.contextmanager
def registered(task):
    """Makes a task available by name while the context lasts."""
    register(task)
    try:
        yield task
    finally:
        unregister(task.name)


def make_point_env(episode_steps=8, tolerance=0.05, goal=0.5, **kinds):
    """The environment of `make_point_task`; `kinds` go to `task.make_env`."""
    task = make_point_task(episode_steps, tolerance, goal)
    return make_env(task, task.engine, **kinds)


def make_point_task(episode_steps=8, tolerance=0.05, goal=0.5):
    """A point on a line: starts at a random place in [-0.1, 0.1], succeeds near the goal.

    Observation: (position, goal, steps taken); action: (velocity,); dense reward: the position.
    Its physics is its own.
    """

    def sample_start(key):
        position = jax.random.uniform(key, (1,), minval=-0.1, maxval=0.1)
        return make_start({"qpos": position, "qvel": jnp.zeros(1)})

    def make_start(state):
        return Start(Episode({}, jnp.float32(goal)), state["qpos"], state["qvel"])

    def reset(model, overrides, qpos, qvel):
        del model, overrides
        return PhysicsState(qpos, qvel, {}, jnp.zeros((), bool), jnp.zeros(()))

    def step(model, overrides, state, ctrl):
        del model, overrides
        return PhysicsState(state.qpos + SPEED * ctrl, ctrl, {}, state.overflow, state.raw + 1)

    def success(episode, physics):
        return jnp.abs(physics.qpos[0] - episode.params) < tolerance

    def observe(episode, physics):
        return jnp.stack([physics.qpos[0], episode.params, physics.raw])

    return Task(
        name="Point",
        summary="move a point to a goal",
        engine=Engine("probe", (), reset, step),
        observation=(("position", 1), ("goal", 1), ("steps", 1)),
        meanings={"position": "of the point", "goal": "to reach", "steps": "control steps taken"},
        action=(("velocity", 1),),
        control_mode="velocity",
        episode_steps=episode_steps,
        control_hz=10.0,
        sample_start=sample_start,
        make_start=make_start,
        observe=observe,
        rewards={"dense": lambda episode, physics: {"position": physics.qpos[0]}},
        success=success,
    )


def make_constant_policy(velocity=0.0, act_horizon=2, obs_horizon=2):
    """Always moves at `velocity`; its carry counts its own calls since the episode's start."""

    def apply(params, carry, obs_history, key):
        del obs_history, key
        return jnp.full((act_horizon, 1), params["velocity"]), carry + 1

    return BasePolicy(
        init_carry=lambda key: jnp.zeros((), jnp.int32),
        apply=apply,
        params={"velocity": jnp.float32(velocity)},
        obs_dim=3,
        act_dim=1,
        obs_horizon=obs_horizon,
        act_horizon=act_horizon,
        obs_mean=jnp.zeros(3),
        obs_std=jnp.ones(3),
    )


def make_counting_policy(act_horizon=2):
    """Its action is a hundredth of its own call count: a carry that leaks would show."""

    def apply(params, carry, obs_history, key):
        del obs_history, key
        return jnp.full((act_horizon, 1), 0.01 * carry) * params["gain"], carry + 1

    constant = make_constant_policy(act_horizon=act_horizon)
    return constant._replace(
        init_carry=lambda key: jnp.ones((), jnp.int32),
        apply=apply,
        params={"gain": jnp.float32(1.0)},
    )
