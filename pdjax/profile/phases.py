"""Makes each phase of an epoch a program of its own, and times it.

A phase is a scan over what an epoch does of it (over a part of that, if it is long), at the run's
sizes and from a state of its training. Separate, because it knows what an epoch does.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdjax.devices import rates
from pdjax.learner.decorator import clip_action, decorate
from pdjax.learner.replay import add
from pdjax.rollout.decision import base_actions, block_size, play_chunk, start_episode
from pdjax.training.build import Run
from pdjax.training.epoch import TrainState
from pdjax_envs import registry

DECISIONS = 32  # of each environment, at most, in one call of a phase
UPDATES = 64  # gradient steps, at most, in one call of a phase
WOBBLE = 1e-6  # change of the input in each step, so that XLA computes every step


class Phase(NamedTuple):
    """A part of an epoch.

    Attributes:
      name: as printed.
      function: a function that JAX can trace.
      arguments: its arguments.
      per_epoch: how many times this work makes up an epoch's.
      steps: length of its outermost scan.
      moved: bytes that one step reads and writes, if XLA counts wrongly: it counts a whole array
        of which only a few rows are taken. 0 = as XLA counts.
      threads: whether the result is the first argument of the next call, and is donated to it.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple
    per_epoch: float
    steps: int
    threads: bool = False
    moved: int = 0


class Timing(NamedTuple):
    """What a phase takes in one epoch: seconds, operations, and at least these bytes, by XLA."""

    seconds: float
    flops: float = 0.0
    bytes: float = 0.0


def make_phases(run: Run, state: TrainState) -> list[Phase]:
    """Makes all phases; `control steps` is `physics` and the task's code together.

    Args:
      run: the run.
      state: of the training after an epoch; the last phase donates its replay.
    """
    return [*rollout_phases(run, state), *learner_phases(run, state)]


def rollout_phases(run: Run, state: TrainState) -> list[Phase]:
    """Makes the phases of `collect.collect`: base policy, residual, control steps, new episodes."""
    schedule, (env, base) = run.trainer.schedule, (run.env, run.base)
    decisions = schedule.decisions * schedule.rounds
    length = min(decisions, DECISIONS)
    often = decisions / length
    frozen, playing, num_envs = run.frozen, state.rollout, run.config.train.num_envs
    keys = jax.random.split(jax.random.key(0), length)
    wobble = WOBBLE * jnp.arange(length, dtype=jnp.float32)
    call = partial(base_actions, base)
    chunk, _ = jax.jit(call)(
        frozen, playing.carry, playing.history, jax.random.split(keys[0], num_envs)
    )

    def act_as_base(frozen, playing, xs):
        def one(carry, x):
            history = playing.history + x[0]
            chunk, carry = call(frozen, carry, history, jax.random.split(x[1], num_envs))
            return carry, chunk

        return jax.lax.scan(one, playing.carry, xs)

    def add_residual(actor, frozen, playing, chunk, xs):
        def one(_, x):
            flat = chunk.reshape(num_envs, -1) + x[0]
            seen = run.rollout.see(frozen, playing.history[:, -1] + x[0])
            noise = jax.random.normal(x[1], (num_envs, len(run.sac.limits)))
            residual = run.sac.act(actor, seen, flat, noise)
            return None, clip_action(decorate(flat, residual, state.hyperparams.residual_scale))

        return jax.lax.scan(one, None, xs)[1]

    def step_tasks(frozen, playing, chunk, xs):
        def one(carry, x):
            played = jax.vmap(play_chunk, (None, None, 0, 0, 0))(
                env, frozen, carry[0], carry[1], chunk + x
            )
            return played[:2], played[2]

        return jax.lax.scan(one, (playing.env, playing.history), xs)

    def start(frozen, keys):
        def one(_, key):
            keys = jax.random.split(key, block_size(num_envs))  # as many as in most decisions
            return None, jax.vmap(lambda k: start_episode(env, base, frozen, k))(keys)

        return jax.lax.scan(one, None, keys)[1]

    phases = [
        Phase("base policy", act_as_base, (frozen, playing, (wobble, keys)), often, length),
        Phase(
            "residual",
            add_residual,
            (state.sac.actor, frozen, playing, chunk, (wobble, keys)),
            often,
            length,
        ),
        Phase("control steps", step_tasks, (frozen, playing, chunk, wobble), often, length),
        Phase("new episodes", start, (frozen, keys), often, length),
    ]
    if run.env.task.engine is None and run.env.task.scene is not None:
        phases.append(_physics_phase(run, state, chunk, length, often))
    return phases


def _physics_phase(run: Run, state: TrainState, chunk, length: int, often: float) -> Phase:
    """Makes the phase of the simulator alone, under the controls of one chunk."""
    task, engine = run.env.task, run.env.engine
    physics = registry.make_engine(task.adapt(task.scene, engine), engine)
    playing = state.rollout.env
    steps = length * run.base.act_horizon
    ctrl = jax.vmap(task.control)(playing.episode, playing.physics, chunk[:, 0])

    def step(model, playing, ctrl, wobble):
        def one(state, x):
            arguments = (model, playing.episode.overrides, state, ctrl + x)
            return jax.vmap(physics.step, (None, 0, 0, 0))(*arguments), None

        return jax.lax.scan(one, playing.physics, wobble)[0]

    wobble = WOBBLE * jnp.arange(steps, dtype=jnp.float32)
    return Phase("physics", step, (physics.model, playing, ctrl, wobble), often, steps)


def learner_phases(run: Run, state: TrainState) -> list[Phase]:
    """Makes the phases after collecting: writing rows, drawing batches, gradient steps."""
    schedule, rounds = run.trainer.schedule, run.trainer.schedule.rounds
    updates = schedule.updates * rounds
    length = min(updates, UPDATES)
    keys = jax.random.split(jax.random.key(1), length)
    rows = jax.tree.map(lambda leaf: leaf[: schedule.decisions], state.replay.storage)
    draw = jax.jit(run.trainer.draw_batch)
    batch = draw(run.frozen, state, keys[0])

    def insert(replay, rows):
        return jax.lax.fori_loop(0, rounds, lambda _, replay: add(replay, rows), replay)

    def draw_batches(state, frozen, keys):
        def one(total, key):
            batch = run.trainer.draw_batch(frozen, state, key)
            return total + sum(leaf.sum() for leaf in jax.tree.leaves(batch)), None

        return jax.lax.scan(one, jnp.zeros(()), keys)[0]

    def learn(sac, batch, hyperparams, keys):
        return jax.lax.scan(
            lambda sac, key: (run.sac.update(sac, batch, hyperparams, key)[0], None), sac, keys
        )[0]

    often = updates / length
    return [
        Phase("updates", learn, (state.sac, batch, state.hyperparams, keys), often, length),
        Phase(
            "replay: draw",
            draw_batches,
            (state, run.frozen, keys),
            often,
            length,
            moved=2 * _nbytes(batch),
        ),
        Phase(
            "replay: insert",
            insert,
            (state.replay, rows),
            1,
            rounds,
            threads=True,
            moved=2 * _nbytes(rows),
        ),
    ]


def _nbytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def time_phase(phase: Phase, repeats: int) -> Timing:
    """Runs a phase once to warm up, then `repeats` times; returns the median of a whole epoch."""
    function = jax.jit(phase.function, donate_argnums=0 if phase.threads else ())
    first, *rest = phase.arguments
    compiled = function.lower(first, *rest).compile()
    seconds = []
    for _ in range(repeats + 1):  # the first one warms up
        took, result = rates.timed(compiled, first, *rest)
        first = result if phase.threads else first
        seconds.append(took)
    cost = compiled.cost_analysis() or {}
    flops = rates.count_flops(phase.function, first, *rest)
    # a scan's body is counted once
    moved = phase.steps * (phase.moved or cost.get("bytes accessed", 0.0))
    return Timing(*(phase.per_epoch * x for x in (statistics.median(seconds[1:]), flops, moved)))
