"""From a config to programs: what a run is built of, and what of it is compiled.

`build` binds environment, base policy and learner; `prepare` compiles what the training loop calls.
Nothing here trains or writes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pdjax import config as configs
from pdjax import distributed, evaluation, memory, report
from pdjax.base_policies import foreign, imitation
from pdjax.base_policies.chunking import step_by_step
from pdjax.config import BasePolicyConfig, Config, ConfigError
from pdjax.decision import Frozen
from pdjax.demo_replay import load_demos
from pdjax.refinement import Steps
from pdjax.rollout import Evaluation, Rollout, make_rollout
from pdjax.sac import SAC, make_hyperparams, make_sac
from pdjax.sharding import copy_to_all, make_mesh, place
from pdjax.train import Trainer, TrainState, make_trainer, placement, residual_dim
from pdjax.types import BasePolicy, Params
from pdjax_envs import registry
from pdjax_envs.task import Env, Task


class Run(NamedTuple):
    """A built run: static functions, and what they take.

    Attributes:
      config: the run's config.
      env: the environment.
      base: the frozen policy.
      rollout: their rollout functions.
      sac: the learner.
      trainer: the training functions.
      mesh: of the devices.
      frozen: model, base parameters, observation statistics.
    """

    config: Config
    env: Env
    base: BasePolicy
    rollout: Rollout
    sac: SAC
    trainer: Trainer
    mesh: Mesh
    frozen: Frozen


def build(config: Config) -> Run:
    """Builds a run; compiles and trains nothing yet.

    Raises:
      ConfigError, checkpoint.CheckpointError, registry.UnknownName: the config cannot work; the
        message says what to change.
    """
    env, base = distributed.agree(partial(_load, config))
    mesh = make_mesh(config)
    rollout = make_rollout(env, base, config.decorator, mesh)
    chunk_dim, size = base.act_horizon * base.act_dim, residual_dim(config.decorator, base)
    sac = make_sac(config.sac, config.decorator, rollout.view_dim, chunk_dim, size)
    trainer = make_trainer(config, base, rollout, sac, mesh)
    mean, std = base.obs_mean, base.obs_std
    if not config.decorator.normalize_obs:
        mean, std = jnp.zeros_like(mean), jnp.ones_like(std)
    share = config.train.demo_share
    demos = distributed.agree(lambda: load_demos(config, env.task, base, size) if share else ())
    distributed.check_same("base policy", (base.params, mean, std))
    distributed.check_same("file of demonstrations", demos)
    frozen = copy_to_all(mesh, Frozen(env.model, base.params, mean, std, demos))
    return Run(config, env, base, rollout, sac, trainer, mesh, frozen)


def _load(config: Config) -> tuple[Env, BasePolicy]:
    """The environment of a run and its base policy."""
    configs.validate(config)
    task = config.task
    env = registry.make(task.name, task.physics, task.reward, task.terminate_on_success, task.shift)
    base = load_base(config.base_policy, env.task)
    return env, step_by_step(base) if config.decorator.residual_per == "control_step" else base


def load_base(base_policy: BasePolicyConfig, task: Task) -> BasePolicy:
    """Reads a base policy of any kind and checks that it is one for the task.

    Raises:
      ConfigError, checkpoint.CheckpointError: there is none, or it is for another task.
    """
    path = Path(base_policy.path)
    if not base_policy.path:
        raise ConfigError("base_policy.path is empty; set it to a directory of `pdjax imitate`"
                          " or `pdjax wrap`")  # fmt: skip
    read = foreign.load if foreign.is_foreign(path) else imitation.load
    base, trained_for = read(path, base_policy.act_horizon)
    other = trained_for != task.name and registry.family(trained_for) != task.family
    if other or (base.obs_dim, base.act_dim) != (task.obs_dim, task.act_dim):
        raise ConfigError(
            f"base policy {path} was trained for {trained_for} ({base.obs_dim} numbers observed,"
            f" {base.act_dim} a control step), but task.name is {task.name} ({task.obs_dim},"
            f" {task.act_dim}); change either"
        )
    return base


def prepare(
    built: Run, memory_gib: float = 0.0, members: Sequence[Config] = ()
) -> tuple[Steps, list[memory.Plan]]:
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
    train_epoch = built.trainer.train_epoch
    if stacked:
        train_epoch = jax.vmap(train_epoch, (None, 0))
    epoch = jax.jit(train_epoch, donate_argnums=1, in_shardings=(None, there),
                    out_shardings=(there, whole))  # fmt: skip
    state, evaluation = jax.eval_shape(init), _evaluation(built)
    like = _with_places(state, placement(built.mesh))
    if stacked:
        state, evaluation = (_several(count, shapes) for shapes in (state, evaluation))
    planned = partial(memory.make_plans, state, frozen, evaluation, built.mesh, memory_gib)
    # where arrays alone are too many there is nothing to compile
    distributed.agree(lambda: memory.check(planned(), config))
    report.say("compiling an epoch")
    programs = {state.decision_steps.shape: epoch.lower(frozen, state).compile()}
    plans = planned(memory.working_memory(programs[state.decision_steps.shape]))
    distributed.agree(lambda: memory.check(plans, config))
    memory.show(plans)

    def advance(state: TrainState):
        state = place(state, there)  # a stack's rows, a rolled back one
        # of fewer members the program is compiled where they have become so few
        return programs.get(state.decision_steps.shape, epoch)(frozen, state)

    assess = make_assess(built)
    assess_all = make_assess(built, stacked) if stacked else assess
    return Steps(init, like, advance, assess, assess_all), plans


def _with_places(state: TrainState, there: TrainState) -> TrainState:
    """Shapes of a training state that also say where each array lives."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state, jax.tree.broadcast(there, state),
    )  # fmt: skip


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


def make_assess(built: Run, stacked: bool = False):
    """(actor, residual_scale, seed, episodes, record=False) -> Evaluation on the host.

    Compiled once for each number of episodes; scale 0 is the base policy. Stacked: of several
    actors and scales, leaves (members, ...), all on the same episodes.
    """

    def assess(frozen, episodes, record, key, actor, residual_scale):
        choose = partial(built.sac.act_deterministic, actor)
        return built.rollout.evaluate(frozen, choose, residual_scale, key, episodes, record)

    def assess_all(frozen, episodes, record, key, actors, scales):
        return jax.vmap(partial(assess, frozen, episodes, record, key))(actors, scales)

    compiled = jax.jit(assess_all if stacked else assess, static_argnums=(1, 2),
                       out_shardings=placement(built.mesh).key)  # fmt: skip

    def on_host(actor, residual_scale, seed, episodes, record=False) -> Evaluation:
        key = jax.random.key(seed)
        scale = jnp.asarray(residual_scale, jnp.float32)
        return jax.device_get(compiled(built.frozen, episodes, record, key, actor, scale))

    return on_host


def compare(
    built: Run, refined: Sequence[tuple[Params, float]], episodes: int, seed: int
) -> list[dict[str, Any]]:
    """Base and refined on the same episodes, as `result.json` keeps it.

    Args:
      built: the run.
      refined: actors, each with its residual_scale.
      episodes: played by the base policy and by each of these.
      seed: of the episodes.
    """
    assess, found = make_assess(built), []
    with report.progress("evaluating", (1 + len(refined)) * episodes, "episodes") as bar:
        base = assess(refined[0][0], 0.0, seed, episodes)
        note = f"base {base.success_once.mean():.1%}"
        for count, (actor, residual_scale) in enumerate(refined, 1):
            bar.update(count * episodes, note)
            result = assess(actor, residual_scale, seed, episodes)
            note = f"refined {result.success_once.mean():.1%}"
            found.append({"task": built.env.task.name} | evaluation.summarize(base, result))
        bar.update((1 + len(refined)) * episodes, note)
    return found
