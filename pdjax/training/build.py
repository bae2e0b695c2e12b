"""From a config to programs: what a run is built of, and what of it is compiled.

`build` binds environment, base policy and learner; `prepare` compiles what the training loop calls.
Nothing here trains or writes.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from pdjax.base_policies.chunking import step_by_step
from pdjax.base_policies.load import load_base
from pdjax.config import fields
from pdjax.config.fields import Config
from pdjax.devices import processes
from pdjax.devices.sharding import copy_to_all, make_mesh
from pdjax.learner.sac import SAC, make_sac, residual_dim
from pdjax.rollout.collect import Rollout, make_rollout
from pdjax.rollout.decision import Frozen
from pdjax.training.demo_ring import load_demos
from pdjax.training.epoch import Trainer, make_trainer
from pdjax.types import BasePolicy
from pdjax_envs import registry
from pdjax_envs.task import Env


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
    env, base = processes.agree(partial(_load, config))
    mesh = make_mesh(config)
    rollout = make_rollout(env, base, config.decorator, mesh)
    chunk_dim, size = base.act_horizon * base.act_dim, residual_dim(config.decorator, base)
    sac = make_sac(config.sac, config.decorator, rollout.view_dim, chunk_dim, size)
    trainer = make_trainer(config, base, rollout, sac, mesh)
    mean, std = base.obs_mean, base.obs_std
    if not config.decorator.normalize_obs:
        mean, std = jnp.zeros_like(mean), jnp.ones_like(std)
    share = config.train.demo_share
    demos = processes.agree(lambda: load_demos(config, env.task, base, size) if share else ())
    processes.check_same("base policy", (base.params, mean, std))
    processes.check_same("file of demonstrations", demos)
    frozen = copy_to_all(mesh, Frozen(env.model, base.params, mean, std, demos))
    return Run(config, env, base, rollout, sac, trainer, mesh, frozen)


def _load(config: Config) -> tuple[Env, BasePolicy]:
    """The environment of a run and its base policy."""
    fields.validate(config)
    task = config.task
    env = registry.make(task.name, task.physics, task.reward, task.terminate_on_success, task.shift)
    base = load_base(config.base_policy, env.task)
    return env, step_by_step(base) if config.decorator.residual_per == "control_step" else base
