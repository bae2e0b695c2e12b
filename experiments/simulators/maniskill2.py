"""Original tasks of mani-skill2 0.5.3 without a renderer; runs in a worker.

SAPIEN 2 needs a graphics driver even for state observations. Without one its renderer crashes, so
here everything that would be drawn is left out. Physics does not depend on it.
"""

import sys
from typing import Any

import gymnasium
import numpy as np
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


def _state(env: Any) -> dict[str, np.ndarray]:
    """Returns the state of an environment as our task's `get_state` names it."""
    poses = [env.peg] if hasattr(env, "peg") else [env.cubeA, env.cubeB]
    qpos = [env.agent.robot.get_qpos()]
    qpos += [np.concatenate([actor.pose.p, actor.pose.q]) for actor in poses]
    state = {"qpos": np.concatenate(qpos), "qvel": np.zeros(9 + 6 * len(poses))}
    if hasattr(env, "peg"):
        state |= {
            "peg_half_length": env.peg_half_size[0],
            "peg_half_width": env.peg_half_size[1],
            "hole_offset": env.box_hole_offset.p[1:],
            "hole_half_width": env.box_hole_radius,
            "box_pos": env.box.pose.p,
            "box_quat": env.box.pose.q,
        }
    return state


def main() -> None:
    """Writes where episodes begin: `maniskill2.py NAME CONTROL_MODE SEEDS.npy STARTS.npz`."""
    name, control_mode, seeds, out = sys.argv[1:]
    env = make_env(name, control_mode)
    rows = []
    for seed in np.load(seeds).tolist():
        env.reset(seed=seed)
        rows.append({"seed": seed, **_state(env.unwrapped)})
    columns: dict[str, Any] = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    np.savez(out, **columns)


if __name__ == "__main__":
    main()
