"""What the training loop calls, compiled: the epoch, the start, evaluations, with a memory plan.

Nothing here trains or writes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pdjax.config.schema import Config
from pdjax.devices import processes
from pdjax.devices.sharding import place
from pdjax.learner.sac import make_hyperparams, residual_dim
from pdjax.output import terminal
from pdjax.rollout.playing import make_play
from pdjax.training import memory_plan
from pdjax.training.build import Run
from pdjax.training.epoch import TrainState, placement
from pdjax.training.run_in_progress import Steps


def prepare(
    built: Run, memory_gib: float = 0.0, members: Sequence[Config] = ()
) -> tuple[Steps, list[memory_plan.Plan]]:
    """What the training loop calls, an epoch compiled; and what it takes of memory, shown.

    Args:
      built: the run, or the first member.
      memory_gib: see `plan`.
      members: of one program; by default the run alone.

    Raises:
      ConfigError: it does not fit.
    """
    config, frozen, count = built.config, built.frozen, len(members) or 1
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
        state, evaluation = (_several(count, shapes) for shapes in (state, evaluation))
    planned = partial(memory_plan.make_plans, state, frozen, evaluation, built.mesh, memory_gib)
    # where arrays alone are too many there is nothing to compile
    processes.agree(lambda: memory_plan.check(planned(), config))
    terminal.say("compiling an epoch")
    programs = {state.decision_steps.shape: epoch.lower(frozen, state).compile()}
    plans = planned(memory_plan.working_memory(programs[state.decision_steps.shape]))
    processes.agree(lambda: memory_plan.check(plans, config))
    memory_plan.show(plans)

    def advance(state: TrainState):
        state = place(state, there)  # a stack's rows, a rolled back one
        # of fewer members the program is compiled where they have become so few
        return programs.get(state.decision_steps.shape, epoch)(frozen, state)

    play = make_play(built.playing)
    play_all = make_play(built.playing, stacked) if stacked else play
    return Steps(init, like, advance, play, play_all), plans


def _with_places(state: TrainState, there: TrainState) -> TrainState:
    """Shapes of a training state that also say where each array lives."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        jax.tree.broadcast(there, state),
    )


def _several(count: int, shapes: Any) -> Any:
    """Shapes of so many of a tree, stacked."""
    stack = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * count), tree)  # noqa: E731
    return jax.eval_shape(stack, shapes)


def make_init(built: Run, members: Sequence[Config] = ()) -> Callable[..., TrainState]:
    """(member = 0) -> its training state at the beginning, on its devices; compiled once."""
    size = residual_dim(built.config.decorator, built.base)
    init = jax.jit(built.trainer.init, out_shardings=placement(built.mesh))
    of_each = members or [built.config]

    def of(member: int = 0) -> TrainState:
        config = of_each[member]
        return init(built.frozen, make_hyperparams(config, size), jax.random.key(config.seed))

    return of


def _evaluation(built: Run) -> Any:
    """Shapes of what an evaluation holds: environments twice, as a scan does, and the actions."""
    task, evaluation = built.env.task, built.config.eval
    episodes = max(evaluation.episodes, evaluation.interim_episodes)
    begin = partial(built.rollout.init, num_envs=episodes)
    state = jax.eval_shape(begin, built.frozen, jax.random.key(0))
    actions = jax.ShapeDtypeStruct((task.episode_steps, episodes, task.act_dim), jnp.float32)
    return state, state, actions
