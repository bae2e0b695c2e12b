"""Playing: an environment, a frozen base policy and a residual actor, bound together.

Whatever plays a policy starts here: evaluation, export, rendering, screening, imitation's
evaluations, and training too, which adds the learner on top. Playing knows no trainer, no replay
and no demonstrations. `make_play` is the one way to play whole episodes from the host.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdjax.base_policies.chunking import step_by_step
from pdjax.base_policies.load import load_base
from pdjax.config import schema
from pdjax.config.schema import Config, ConfigError
from pdjax.devices import processes
from pdjax.devices.sharding import copy_to_all
from pdjax.learner.sac import SAC, make_sac, residual_dim
from pdjax.rollout.collect import Rollout, make_rollout
from pdjax.rollout.decision import Frozen
from pdjax.rollout.evaluate import Evaluation
from pdjax.types import Array, BasePolicy, Params
from pdjax_envs import registry
from pdjax_envs.task import Env, Task

DEFAULT = Config()


class Playing(NamedTuple):
    """What plays, as static functions, and the arrays they take.

    Attributes:
      env: the environment.
      base: the frozen base policy.
      rollout: the rollout functions of both.
      sac: the learner's functions; playing uses `act_deterministic` only.
      mesh: the devices that share the environments; None = wherever the inputs are.
      frozen: the physics model, the base policy's parameters, the observation statistics.
    """

    env: Env
    base: BasePolicy
    rollout: Rollout
    sac: SAC
    mesh: Mesh | None
    frozen: Frozen


def load_playing(config: Config, mesh: Mesh | None, base: BasePolicy | None = None) -> Playing:
    """Builds what a run plays with; compiles nothing yet.

    Args:
      config: the run; its sections `task`, `base_policy`, `decorator` and `sac` are read.
      mesh: see `Playing`.
      base: the base policy, where it exists in memory; None = read it from `base_policy.path`.

    Raises:
      ConfigError, checkpoint.CheckpointError, registry.UnknownName: the config cannot work; the
        message says what to change.
    """
    env, base = processes.agree(partial(_load, config, base))
    return make_playing(env, base, config, mesh)


def make_playing(
    env: Env, base: BasePolicy, config: Config = DEFAULT, mesh: Mesh | None = None
) -> Playing:
    """Binds an environment, a base policy and an actor.

    Args:
      env: the environment.
      base: the base policy.
      config: the sections `decorator` and `sac` are read; the default suits a base policy that
        plays alone.
      mesh: see `Playing`.

    Raises:
      ConfigError: the base policy's sizes do not fit the task, or `decorator.residual_limits` does
        not fit the base policy's actions.
    """
    check_sizes(base, env.task)
    decorator = config.decorator
    rollout = make_rollout(env, base, decorator, mesh)
    chunk_dim, size = base.act_horizon * base.act_dim, residual_dim(decorator, base)
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
    """The environment of a run and its base policy."""
    schema.validate(config)
    task = config.task
    env = registry.make(task.name, task.physics, task.reward, task.terminate_on_success, task.shift)
    if base is None:
        base = load_base(config.base_policy, env.task)
    return env, step_by_step(base) if config.decorator.residual_per == "control_step" else base


def no_residual(actor: Params) -> Params:
    """Parameters, all zero, of an actor whose residual is always zero.

    Args:
      actor: parameters of a residual policy, or their shapes.
    """
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), actor)


Play = Callable[..., Evaluation]
"""(seed, episodes, actor = None, residual_scale = 0, base_params = the base policy's,
record = False) -> Evaluation on the host; without an actor the base policy plays alone."""


def make_play(playing: Playing, stacked: bool = False) -> Play:
    """Builds the function that plays whole episodes and returns them on the host.

    It compiles once for each number of episodes, with or without an actor and a record. Two calls
    with the same seed meet the same initial states and the same noise of the base policy, so they
    are paired.

    Args:
      playing: what plays.
      stacked: whether actors and scales have a leading axis (members, ...); all of them then play
        the same episodes, and the evaluation's leaves have that axis too.
    """
    whole = None if playing.mesh is None else NamedSharding(playing.mesh, PartitionSpec())

    def no_change(obs: Array, base_action: Array) -> Array:
        del obs
        return jnp.zeros_like(base_action)

    def evaluate(frozen, episodes, record, key, actor, residual_scale) -> Evaluation:
        choose = no_change if actor is None else partial(playing.sac.act_deterministic, actor)
        return playing.rollout.evaluate(frozen, choose, residual_scale, key, episodes, record)

    def evaluate_all(frozen, episodes, record, key, actors, scales) -> Evaluation:
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
        return jax.device_get(
            compiled(frozen, episodes, record, jax.random.key(seed), actor, scale)
        )

    return play
