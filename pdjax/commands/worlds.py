"""Settings of Gymnasium environments, for commands that have no config. Sets them for a process."""

from collections.abc import Sequence


def use_workers(changes: Sequence[str]) -> None:
    """Runs worker processes as `--set task.python=... task.options=...` says, from here on.

    Raises:
      ConfigError: a key is not one of the task's, or its value is wrong.
    """
    if changes:
        from pdjax.config import files
        from pdjax.rollout.playing import workers_of
        from pdjax_envs import from_gymnasium

        files.check_of_task(changes)
        from_gymnasium.use(workers_of(files.load("fast", changes)))
