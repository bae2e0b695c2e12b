"""Meta-World's push-v3 whose reset obeys its seed, and its scripted expert; runs in a worker."""

from typing import Any

import gymnasium
from metaworld.policies import SawyerPushV3Policy  # pyright: ignore

_policy = SawyerPushV3Policy()


class SeededTask(gymnasium.Wrapper):
    """Chooses one of the 50 goals by the seed; Meta-World itself draws it without the seed."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.tasks = env.get_wrapper_attr("tasks")
        env.get_wrapper_attr("toggle_sample_tasks_on_reset")(False)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Starts an episode."""
        if seed is not None:
            self.unwrapped.set_task(self.tasks[seed % len(self.tasks)])
        return self.env.reset(seed=seed, options=options)


def make_env(render_mode: str | None = None) -> gymnasium.Env:
    """Returns the environment."""
    env = gymnasium.make("Meta-World/MT1", env_name="push-v3", seed=0, render_mode=render_mode)
    return SeededTask(env)


def expert(env: gymnasium.Env, observation: Any) -> Any:
    """Returns the scripted policy's action."""
    del env
    return _policy.get_action(observation)
