"""Original tasks of mani-skill2 0.5.3 without a renderer; runs in a worker.

SAPIEN 2 needs a graphics driver even for state observations. Without one its renderer crashes, so
here everything that would be drawn is left out. Physics does not depend on it.
"""

from typing import Any

import gymnasium
import sapien.core as sapien  # pyright: ignore


class _Nothing:
    """Takes every setting and does nothing: a renderer, or a material."""

    def create_material(self) -> "_Nothing":
        """Returns a material."""
        return _Nothing()

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **settings: None


def _leave_out_pictures() -> None:
    """Changes SAPIEN and mani-skill2 in this process, before the first environment is made."""
    for name in dir(sapien.ActorBuilder):
        if name.startswith("add_") and "visual" in name:
            setattr(sapien.ActorBuilder, name, lambda self, *arguments, **settings: self)
    add_ground = sapien.Scene.add_ground
    sapien.Scene.add_ground = (
        lambda self, altitude, render=False, render_material=None, **settings: add_ground(
            self, altitude, render=False, **settings
        )
    )
    sapien.SapienRenderer = lambda **settings: _Nothing()
    sapien.Engine.set_renderer = lambda self, renderer: None

    from mani_skill2.envs.sapien_env import BaseEnv  # pyright: ignore

    BaseEnv._setup_cameras = BaseEnv._setup_lighting = lambda self: None


_leave_out_pictures()


def make_env(
    name: str = "PegInsertionSide-v0", control_mode: str = "pd_ee_delta_pose"
) -> gymnasium.Env:
    """Returns a task with state observations and sparse reward."""
    import mani_skill2.envs  # noqa: F401  # pyright: ignore

    return gymnasium.make(name, obs_mode="state", control_mode=control_mode, reward_mode="sparse")
