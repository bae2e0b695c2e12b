"""Compiles the functions that the training loop calls, and plans their memory.

Separate from `loop`, because `pdjax train --plan` and `profile` need the functions but no loop.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pdjax.config.schema import Config, ConfigError
from pdjax.devices import processes
from pdjax.devices.sharding import place
from pdjax.learner.sac import make_hyperparams, residual_dim
from pdjax.output import terminal
from pdjax.rollout.playing import make_play
from pdjax.training import memory_plan
from pdjax.training.build import Run
from pdjax.training.epoch import TrainState, placement
from pdjax.training.run_in_progress import Steps
from pdjax.training.schedule import describe_rounding


def prepare(
    built: Run, memory_gib: float = 0.0, members: Sequence[Config] = ()
) -> tuple[Steps, list[memory_plan.Plan]]:
    """Compiles an epoch and prints the memory plan.

    Args:
      built: the run, or the first of several members.
      memory_gib: memory in GiB that the run must fit into; 0 = what is free on this machine.
      members: configs of all members of one program; empty for a single run.

    Returns:
      The functions that the training loop calls, and the memory plans.

    Raises:
      ConfigError: the run does not fit into memory.
    """
    config, frozen, count = built.config, built.frozen, len(members) or 1
    if built.trainer.on_host and count > 1:
        raise ConfigError(
            f"{config.task.name} lives in worker processes and trains one run at a time, not"
            f" {count} members; give seeds to `pdjax sweep`"
        )
    processes.agree(lambda: memory_plan.check_numbers(config, _sizes(built), count, memory_gib))
    for line in describe_rounding(config):
        terminal.say(line)
    stacked = count > 1
    init, there = make_init(built, members), placement(built.mesh, stacked)
    whole = there.key
    train_epoch = built.trainer.train_members if stacked else built.trainer.train_epoch
    epoch = jax.jit(
        train_epoch, donate_argnums=1, in_shardings=(None, there), out_shardings=(there, whole)
    )
    state, evaluation = jax.eval_shape(init), _evaluation(built)
    like = _with_places(state, placement(built.mesh))
    if stacked:
        state, evaluation = (_stacked(count, shapes) for shapes in (state, evaluation))
    planned = partial(memory_plan.make_plans, state, frozen, evaluation, built.mesh, memory_gib)
    # If the arrays alone do not fit, compiling would be a waste.
    processes.agree(lambda: memory_plan.check(planned(), config))
    if built.trainer.on_host:
        go, play = partial(built.trainer.train_epoch, frozen), make_play(built.playing)
        return Steps(init, like, go, play, play, built.env.task.has_success), planned()
    terminal.say("compiling an epoch")
    programs = {state.decision_steps.shape: epoch.lower(frozen, state).compile()}
    plans = planned(memory_plan.working_memory(programs[state.decision_steps.shape]))
    processes.agree(lambda: memory_plan.check(plans, config))
    memory_plan.show(plans)

    def advance(state: TrainState):
        state = place(state, there)  # rows of a stack or a rolled-back state may lie elsewhere
        # jit compiles another program if fewer members are left.
        return programs.get(state.decision_steps.shape, epoch)(frozen, state)

    play = make_play(built.playing)
    play_all = make_play(built.playing, stacked) if stacked else play
    return Steps(init, like, advance, play, play_all, built.env.task.has_success), plans


def _sizes(built: Run) -> memory_plan.Sizes:
    """Returns the sizes that a run's task and base policy fix."""
    task, base = built.env.task, built.base
    chunk = base.act_horizon * base.act_dim
    residual = residual_dim(built.config.decorator, base)
    history = base.obs_horizon * base.obs_dim
    return memory_plan.Sizes(
        base.obs_dim, history, chunk, residual, task.act_dim * task.episode_steps
    )


def _with_places(state: TrainState, there: TrainState) -> TrainState:
    """Returns the shapes of a training state, with the sharding of each array."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        jax.tree.broadcast(there, state),
    )


def _stacked(count: int, shapes: Any) -> Any:
    """Returns the shapes of a tree's leaves with a leading axis of `count`."""
    stack = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * count), tree)  # noqa: E731
    return jax.eval_shape(stack, shapes)


def make_init(built: Run, members: Sequence[Config] = ()) -> Callable[..., TrainState]:
    """Builds the function that makes a training state at the beginning; it compiles once.

    Args:
      built: the run, or the first of several members.
      members: configs of all members; empty for a single run.

    Returns:
      (index of a member = 0) -> TrainState, on the run's devices.
    """
    size = residual_dim(built.config.decorator, built.base)
    jitted = jax.jit(built.trainer.init, out_shardings=placement(built.mesh))
    configs = members or [built.config]

    def init(member: int = 0) -> TrainState:
        config = configs[member]
        return jitted(built.frozen, make_hyperparams(config, size), jax.random.key(config.seed))

    return init


def _evaluation(built: Run) -> Any:
    """Returns the shapes of an evaluation's arrays: its environments, twice for the scan, and its
    actions."""
    task, evaluation = built.env.task, built.config.eval
    episodes = max(evaluation.episodes, evaluation.interim_episodes)
    begin = partial(built.rollout.init, num_envs=episodes)
    state = jax.eval_shape(begin, built.frozen, jax.random.key(0))
    actions = jax.ShapeDtypeStruct((task.episode_steps, episodes, task.act_dim), jnp.float32)
    return state, state, actions
