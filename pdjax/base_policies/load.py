"""The one door to a base policy: reads a directory of any kind and checks that it fits the task."""

from pathlib import Path

from pdjax.base_policies import imitation
from pdjax.base_policies.foreign import assemble
from pdjax.config.fields import BasePolicyConfig, ConfigError
from pdjax.types import BasePolicy
from pdjax_envs import registry
from pdjax_envs.task import Task


def load_base(base_policy: BasePolicyConfig, task: Task) -> BasePolicy:
    """Reads a base policy of any kind and checks that it is one for the task.

    Raises:
      ConfigError, checkpoint.CheckpointError: there is none, or it is for another task.
    """
    path = Path(base_policy.path)
    if not base_policy.path:
        raise ConfigError(
            "base_policy.path is empty; set it to a directory of `pdjax imitate` or `pdjax wrap`"
        )
    read = assemble.load if assemble.is_foreign(path) else imitation.load
    base, trained_for = read(path, base_policy.act_horizon)
    other = trained_for != task.name and registry.family(trained_for) != task.family
    if other or (base.obs_dim, base.act_dim) != (task.obs_dim, task.act_dim):
        raise ConfigError(
            f"base policy {path} was trained for {trained_for} ({base.obs_dim} numbers observed,"
            f" {base.act_dim} a control step), but task.name is {task.name} ({task.obs_dim},"
            f" {task.act_dim}); change either"
        )
    return base
