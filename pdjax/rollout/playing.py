"""Playing: an environment, a frozen base policy and a residual actor, bound together.

Everything that plays a policy starts here: evaluation, export, rendering, screening, imitation's
evaluations, and also training, which adds the learner. Playing knows no trainer, no replay and no
demonstrations. `make_play` is the only way to play whole episodes from the host.
"""

# pyright: reportUnknownMemberType=false

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdjax.base_policies.chunking import step_by_step
from pdjax.base_policies.load import load_base
from pdjax.config import plain_yaml, schema
from pdjax.config.schema import Config, ConfigError, TaskConfig
from pdjax.devices import exhaustion, processes
from pdjax.devices.sharding import copy_to_all
from pdjax.learner.sac import SAC, make_sac, residual_dim
from pdjax.rollout import worker_rollout
from pdjax.rollout.collect import Rollout, exploring_of, make_rollout
from pdjax.rollout.decision import Frozen
from pdjax.rollout.evaluate import Evaluation
from pdjax.rollout.worker_play import Games
from pdjax.types import Array, BasePolicy, Key, Params, Scalar
from pdjax_envs import from_gymnasium, registry
from pdjax_envs.from_gymnasium import Workers
from pdjax_envs.names import unknown
from pdjax_envs.reading import check_fits, short
from pdjax_envs.task import Env, Task

DEFAULT = Config()
COPIES = 2  # of what an episode keeps, while XLA puts it together


class Playing(NamedTuple):
    """An environment, a base policy and an actor: static functions and the arrays that they take.

    Attributes:
      env: the environment.
      base: the frozen base policy.
      rollout: the rollout functions of both.
      sac: the learner's functions; playing only uses `act_deterministic`.
      mesh: the devices that share the environments; None = those that hold the inputs.
      frozen: the physics model, the base policy's parameters, the observation statistics.
    """

    env: Env
    base: BasePolicy
    rollout: Rollout
    sac: SAC
    mesh: Mesh | None
    frozen: Frozen


def load_playing(
    config: Config,
    mesh: Mesh | None,
    base: BasePolicy | None = None,
    trained_in: TaskConfig | None = None,
) -> Playing:
    """Loads a run's environment and base policy and binds them; compiles nothing yet.

    Args:
      config: the run; only its sections `task`, `base_policy`, `decorator` and `sac` are read.
      mesh: see `Playing`.
      base: a base policy in memory; None = read it from `base_policy.path`.
      trained_in: the task that the actor was trained in, whose features it reads; None = the
        config's.

    Raises:
      ConfigError: the config cannot work; the message says what to change.
      checkpoint.CheckpointError: `base_policy.path` holds no policy that can be used.
      registry.UnknownName: there is no such task or engine, or warp is not installed.
    """
    env, base = processes.agree(partial(_load, config, base))
    env = _with_features(env, config.task.name, trained_in or config.task)
    return make_playing(env, base, config, mesh)


def _with_features(env: Env, name: str, trained_in: TaskConfig) -> Env:
    """Returns the environment of a name with the features that the actor of a training reads."""
    named = trained_in.features or trained_in.name
    if trained_in.features and named not in registry.task_names():
        # a file's code would run unannounced
        raise unknown("task.features", named, registry.task_names())
    if named == name:
        return env
    if from_gymnasium.environment(named):
        return env._replace(task=dataclasses.replace(env.task, features=None))
    task = registry.make_task(named)
    if trained_in.features and (task.features is None or task.obs_dim != env.task.obs_dim):
        raise ConfigError(
            f"task.features={named} names a task with obs_dim {task.obs_dim} and"
            f" {'no ' if task.features is None else ''}features, but {env.task.name} has"
            f" obs_dim {env.task.obs_dim}; name one with features of these observations"
        )
    return env._replace(task=dataclasses.replace(env.task, features=task.features))


def make_playing(
    env: Env, base: BasePolicy, config: Config = DEFAULT, mesh: Mesh | None = None
) -> Playing:
    """Binds an environment, a base policy and an actor.

    Args:
      env: the environment.
      base: the base policy.
      config: only how the residual is added, chosen and explored is read; the default suits a
        base policy that plays alone.
      mesh: see `Playing`.

    Raises:
      ConfigError: the base policy's sizes do not fit the task, or `decorator.residual_limits` does
        not fit the base policy's actions.
    """
    check_sizes(base, env.task)
    decorator = config.decorator
    chunk_dim, size = base.act_horizon * base.act_dim, residual_dim(decorator, base)
    rollout = make_rollout(env, base, config, mesh)
    if env.open is not None:
        first_noise = partial(exploring_of(config).first_noise, size=size)
        rollout = rollout._replace(init=partial(worker_rollout.init, base, first_noise))
    mean, std = base.obs_mean, base.obs_std
    if not decorator.normalize_obs:
        mean, std = jnp.zeros_like(mean), jnp.ones_like(std)
    frozen = Frozen(env.model, base.params, mean, std)
    return Playing(
        env=env,
        base=base,
        rollout=rollout,
        sac=make_sac(config.sac, decorator, rollout.view_dim, chunk_dim, size),
        mesh=mesh,
        frozen=frozen if mesh is None else copy_to_all(mesh, frozen),
    )


def check_episodes(task: Task, episodes: int, more: int = 0) -> None:
    """Checks that episodes of a task fit into memory, by what a program keeps of each at least.

    Args:
      task: the task.
      episodes: number of episodes that one program plays.
      more: how many numbers it keeps of each, besides the actions.

    Raises:
      InputError: they do not fit.
    """
    check_fits(
        4 * COPIES * episodes * (task.act_dim * task.episode_steps + more),
        f"playing {episodes:,} episodes of {task.name} at once",
        "lower their number",
    )


def _more_numbers(playing: Playing, record: bool) -> int:
    """Returns how many numbers a program keeps of each episode, besides the actions."""
    task, base = playing.env.task, playing.base
    read, decisions = base.obs_horizon * base.obs_dim, -(-task.episode_steps // base.act_horizon)
    return read + record * (decisions * base.obs_dim + task.act_dim * task.episode_steps)


def check_sizes(base: BasePolicy, task: Task) -> None:
    """Checks that a base policy, wherever it comes from, reads and acts as a task does.

    Raises:
      ConfigError: its observations or actions have other sizes than the task's.
    """
    if (base.obs_dim, base.act_dim) != (task.obs_dim, task.act_dim):
        raise ConfigError(
            f"the base policy has obs_dim {base.obs_dim} and act_dim {base.act_dim}, but"
            f" {task.name} has obs_dim {task.obs_dim} and act_dim {task.act_dim}; change the policy"
            " or the task"
        )


def _load(config: Config, base: BasePolicy | None) -> tuple[Env, BasePolicy]:
    """Loads a run's environment and its base policy."""
    schema.validate(config)
    task = config.task
    env = registry.make(
        task.name,
        task.physics,
        task.reward,
        task.terminate_on_success,
        task.shift,
        workers_of(config),
        task.hold_steps,
    )
    if task.reward == "success" and not env.task.has_success:
        raise ConfigError(
            f"{task.name} has no success, so task.reward=success would always be 0; set"
            f" task.reward={' or '.join(env.task.rewards)}"
        )
    if base is None:
        base = load_base(config.base_policy, env.task)
    return env, step_by_step(base) if config.decorator.residual_per == "control_step" else base


def workers_of(config: Config) -> Workers:
    """Returns how the worker processes of a Gymnasium environment are run.

    Raises:
      ConfigError: `task.options` is not what it should be.
    """
    task, options = config.task, dict[str, Any]()
    for text in task.options:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"task.options got {short(repr(text))}, expected name=value")
        options[name] = plain_yaml.parse(value, f"task.options: cannot read {short(repr(text))}")
    return Workers(
        count=task.workers,
        python=task.python,
        options=options,
        success=task.success,
        episode_steps=task.episode_steps,
        step_timeout=task.step_timeout,
        restarts=task.restarts,
    )


def no_residual(actor: Params) -> Params:
    """Returns an actor's parameters, all zero, so that its residual is always zero.

    Args:
      actor: the parameters of a residual policy, or their `jax.ShapeDtypeStruct`s.
    """

    def zeros(leaf: Any) -> Any:
        return np.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(zeros, actor)


Play = Callable[..., Evaluation]
"""(seed, episodes, actor=None, residual_scale=0.0, base_params=None, record=False) -> Evaluation.

The evaluation's arrays are NumPy arrays on the host. Without an actor the base policy plays alone.
`base_params` replace the base policy's own parameters; see `evaluate.evaluate` for the rest. More
episodes than fit into memory are an `InputError`, before anything is allocated where possible."""


def make_play(playing: Playing, stacked: bool = False) -> Play:
    """Builds the function that plays whole episodes and returns their outcomes on the host.

    The function compiles once per number of episodes, with or without an actor and with or without
    a record. Two calls with the same seed meet the same initial states and the same noise of the
    base policy, so they are paired.

    Args:
      playing: the environment, the base policy and their functions.
      stacked: whether actors and scales have a leading axis (members, ...). If so, all members play
        the same episodes, and the evaluation's leaves have that axis too.
    """
    if playing.env.open is not None:
        return Games(playing).play
    whole = None if playing.mesh is None else NamedSharding(playing.mesh, PartitionSpec())

    def no_change(obs: Array, base_action: Array) -> Array:
        del obs
        return jnp.zeros_like(base_action)

    def evaluate(
        frozen: Frozen,
        episodes: int,
        record: bool,
        key: Key,
        actor: Params,
        residual_scale: Scalar,
    ) -> Evaluation:
        residual = no_change if actor is None else partial(playing.sac.act_deterministic, actor)
        return playing.rollout.evaluate(frozen, residual, residual_scale, key, episodes, record)

    def evaluate_all(
        frozen: Frozen, episodes: int, record: bool, key: Key, actors: Params, scales: Array
    ) -> Evaluation:
        return jax.vmap(partial(evaluate, frozen, episodes, record, key))(actors, scales)

    compiled = jax.jit(
        evaluate_all if stacked else evaluate, static_argnums=(1, 2), out_shardings=whole
    )

    def play(
        seed: int,
        episodes: int,
        actor: Params = None,
        residual_scale: Any = 0.0,
        base_params: Params = None,
        record: bool = False,
    ) -> Evaluation:
        frozen = playing.frozen
        if base_params is not None:
            frozen = frozen._replace(base_params=base_params)
        scale = jnp.asarray(residual_scale, jnp.float32)
        count = math.prod(scale.shape) * episodes
        check_episodes(playing.env.task, count, _more_numbers(playing, record))
        with exhaustion.lower("the number of episodes"):
            return jax.device_get(
                compiled(frozen, episodes, record, jax.random.key(seed), actor, scale)
            )

    return play
