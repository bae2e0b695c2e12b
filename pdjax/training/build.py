"""Builds a run from its config: what plays, the training functions and the demonstrations.

Separate from `compiled`, because nothing is compiled here: tests and `profile` take the parts.
"""

from typing import NamedTuple

from jax.sharding import Mesh

from pdjax.config import schema
from pdjax.config.schema import Config, ConfigError
from pdjax.devices import processes
from pdjax.devices.sharding import copy_to_all, make_mesh
from pdjax.learner.sac import SAC, residual_dim
from pdjax.rollout.collect import Rollout
from pdjax.rollout.decision import Frozen
from pdjax.rollout.playing import Playing, load_playing
from pdjax.training import worker_epoch
from pdjax.training.demo_ring import load_demos
from pdjax.training.epoch import Trainer, make_trainer
from pdjax.training.schedule import whole_epochs
from pdjax.types import BasePolicy
from pdjax_envs.task import Env


class Run(NamedTuple):
    """A built run.

    Attributes:
      config: the run's config.
      playing: what plays; its `frozen` also holds the demonstrations, if the run has any.
      trainer: the training functions.
      mesh: the devices that share environments, replay and batches.
    """

    config: Config
    playing: Playing
    trainer: Trainer
    mesh: Mesh

    @property
    def env(self) -> Env:
        """The environment."""
        return self.playing.env

    @property
    def base(self) -> BasePolicy:
        """The frozen base policy."""
        return self.playing.base

    @property
    def rollout(self) -> Rollout:
        """The rollout functions."""
        return self.playing.rollout

    @property
    def sac(self) -> SAC:
        """The learner's functions."""
        return self.playing.sac

    @property
    def frozen(self) -> Frozen:
        """The arrays that training never changes."""
        return self.playing.frozen


def build(config: Config, base: BasePolicy | None = None) -> Run:
    """Builds a run without compiling or training anything.

    Args:
      config: the run.
      base: the base policy, if it exists in memory; None = read it from `base_policy.path`.

    Raises:
      ConfigError, checkpoint.CheckpointError, registry.UnknownName,
        demonstrations.trajectory.DataError: the config cannot work; the message says what to
        change.
    """
    schema.validate(config)
    whole_epochs(config)
    mesh = make_mesh(config)
    playing = load_playing(config, mesh, base)
    base, task = playing.base, playing.env.task
    if playing.env.open is None:
        trainer = make_trainer(config, base, playing.rollout, playing.sac, mesh)
    else:
        _check_for_workers(config, mesh)
        trainer = worker_epoch.make_trainer(config, playing.env, base, playing.rollout, playing.sac)
    size, share = residual_dim(config.decorator, base), config.train.demo_share
    demos = processes.agree(lambda: load_demos(config, task, base, size) if share else ())
    processes.check_same("base policy", (base.params, base.obs_mean, base.obs_std))
    processes.check_same("file of demonstrations", demos)
    frozen = playing.frozen._replace(demos=copy_to_all(mesh, demos))
    playing = playing._replace(frozen=frozen)
    return Run(config, playing, trainer, mesh)


def _check_for_workers(config: Config, mesh: Mesh) -> None:
    """Checks that a run of an environment in worker processes asks for nothing that it lacks."""
    if mesh.size > 1:
        raise ConfigError(
            f"{config.task.name} lives in worker processes, which one device serves, not"
            f" {mesh.size}; set train.devices=1"
        )
    if config.train.retry_share:
        raise ConfigError(
            f"{config.task.name} lives in worker processes and cannot go back to a moment of an"
            f" episode, but train.retry_share={config.train.retry_share}; set it to 0"
        )
