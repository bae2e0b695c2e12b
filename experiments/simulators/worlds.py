"""Environments of other packages that need a few lines to be a world; runs in a worker.

    pdjax envs check experiments/simulators/worlds.py:make_env_robosuite --set task.python=...

Each function needs its package only, in the interpreter that `task.python` names. What else it
takes is in docs/own_simulator.md.
"""

from typing import Any

import gymnasium
import numpy as np


def make_env_robosuite(name: str = "Lift", robot: str = "Panda", steps: int = 200) -> gymnasium.Env:
    """Returns a task of robosuite with state observations and sparse reward."""
    import robosuite  # pyright: ignore
    from robosuite.wrappers import GymWrapper  # pyright: ignore

    env = robosuite.make(
        name,
        robots=robot,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=True,
        reward_shaping=False,
        horizon=steps + 1,  # it raises beyond its horizon; the time limit comes first
    )
    check = env._check_success
    # its random numbers have no seed at a reset: `seed` of `robosuite.make` is for the whole life
    return gymnasium.wrappers.TimeLimit(
        _Success(_Seeded(GymWrapper(env), lambda seed: _seed_robosuite(env, seed)), check), steps
    )


def _seed_robosuite(env: Any, seed: int) -> None:
    env.rng = np.random.default_rng(seed)
    if env.placement_initializer is not None:
        env.placement_initializer.rng = env.rng


def make_env_aloha(name: str = "AlohaTransferCube-v0") -> gymnasium.Env:
    """Returns a task of gym-aloha that observes joints and objects instead of a picture."""
    import gym_aloha  # noqa: F401  # pyright: ignore

    env = gymnasium.make(f"gym_aloha/{name}", obs_type="pixels_agent_pos", disable_env_checker=True)
    inner: Any = env.unwrapped
    parts = [getattr(inner._env.task, f"get_{name}") for name in ("qpos", "qvel", "env_state")]
    # drawing, which its own observation does at every step, takes most of its time
    inner._env.task.get_observation = lambda physics: np.concatenate([p(physics) for p in parts])
    inner._format_raw_obs = lambda raw: raw
    inner.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, env.reset(seed=0)[0].shape)
    return _Bare(env)


def make_env_maniskill3(
    name: str = "PickCube-v1", mode: str = "pd_ee_delta_pos", steps: int = 50
) -> gymnasium.Env:
    """Returns one environment of ManiSkill3 on the CPU with state observations."""
    _leave_out_pictures()
    import mani_skill.envs  # noqa: F401  # pyright: ignore
    from mani_skill.utils.wrappers.gymnasium import CPUGymWrapper  # pyright: ignore

    env = gymnasium.make(
        name,
        obs_mode="state",
        control_mode=mode,
        reward_mode="sparse",
        num_envs=1,
        sim_backend="physx_cpu",
        render_backend="none",
    )
    return gymnasium.wrappers.TimeLimit(_Success(CPUGymWrapper(env), None), steps)


def _leave_out_pictures() -> None:
    """Changes SAPIEN 3 and ManiSkill3 in this process so that nothing needs a graphics driver."""
    import sapien  # pyright: ignore

    add_component = sapien.Entity.add_component
    for name in dir(sapien.render):
        if name.startswith("Render"):
            setattr(sapien.render, name, _Nothing)
    for name in dir(sapien.ActorBuilder):
        if name.startswith("add_") and "visual" in name:
            setattr(sapien.ActorBuilder, name, lambda self, *arguments, **settings: self)
    sapien.Entity.add_component = lambda self, component: (
        self if isinstance(component, _Nothing) else add_component(self, component)
    )
    from mani_skill.envs.sapien_env import BaseEnv  # pyright: ignore

    BaseEnv._setup_lighting = lambda self, options: None
    BaseEnv._setup_sensors = lambda self, options: setattr(self, "_sensors", {})


class _Nothing:
    """Takes every setting and does nothing: a material, a shape, a light."""

    def __init__(self, *arguments: Any, **settings: Any):
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **settings: _Nothing()


class _Bare(gymnasium.Wrapper):
    """Takes the observation space that the environment has now."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.observation_space = env.unwrapped.observation_space


class _Seeded(gymnasium.Wrapper):
    """Calls `seeds` with the seed before a reset."""

    def __init__(self, env: gymnasium.Env, seeds: Any):
        super().__init__(env)
        self._seeds = seeds

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self._seeds(seed)
        return self.env.reset(seed=seed, options=options)


class _Success(gymnasium.Wrapper):
    """Says in `info` whether the task is solved, as `check` or the environment's own info does."""

    def __init__(self, env: gymnasium.Env, check: Any):
        super().__init__(env)
        self._check = check

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        done = bool(self._check() if self._check else info["success"])
        return obs, float(reward), terminated, truncated, {"success": done}
