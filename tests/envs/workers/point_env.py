"""A point mass that tests play in workers, with every way to misbehave. Needs NumPy and Gymnasium.

It obeys the classic interface too: `make_classic` returns what gym before 0.26 expected.
"""

import os
import sys
import time

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Tuple


class PointEnv(gymnasium.Env):
    """A point on a line with noisy starts; solved within 0.1 of 0, over beyond 3.

    `trouble` is something that it does at step `at` of each episode, or in a reset. With `once`, a
    file, whoever removes that file first does it, and nobody does it again.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, trouble="", at=3, limit=7, once="", space="box", render_mode=None):
        self.trouble, self.at, self.limit, self.once = trouble, at, limit, once
        self.render_mode = render_mode
        self.action_space = Box(np.array([-1, 0], np.float32), np.array([3, 2], np.float32))
        self.observation_space = Box(-np.inf, np.inf, (2, 2), np.float64)
        self.space = space
        if space == "dict":
            goal = Dict({"z": Box(-9, 9, (), np.float32), "a": Box(0, 9, (1,), np.int64)})
            pair = Tuple((Box(-9, 9, (2,), np.float64), Box(0, 255, (1,), np.uint8)))
            self.observation_space = Dict({"pos": pair, "goal": goal})
        elif space == "text":
            self.observation_space = Dict({"a": Box(0, 1), "said": gymnasium.spaces.Text(3)})
        elif space == "picture":
            self.observation_space = Dict({"cam": Box(0, 255, (64, 64, 3), np.uint8)})
        elif space == "unbounded":
            self.action_space = Box(-np.inf, np.inf, (2,))
        elif space == "discrete":
            self.action_space = Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.trouble == "unseeded":
            self.np_random = np.random.default_rng()
        self.x, self.steps = self.np_random.uniform(-1, 1, 2), 0
        self.misbehave("reset")
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        self.x = self.x + 0.3 * action + 0.01 * self.np_random.normal(size=2)
        value = self.misbehave("step")
        obs = self.observe() if value is None else value
        info = {"is_success": bool(abs(self.x[0]) < 0.1), "energy": float(action @ action)}
        reward = np.float64(-abs(self.x[0])) if self.trouble != "inf_reward" else np.inf
        return obs, reward, bool(self.x[0] > 3), self.steps >= self.limit, info

    def observe(self):
        if self.space == "dict":
            pos = (self.x.copy(), np.array([self.steps], np.uint8))
            return {"goal": {"a": np.array([5], np.int64), "z": np.float32(7)}, "pos": pos}
        return np.array([self.x, [self.steps, self.x[0] ** 2]])

    def render(self):
        if self.trouble == "render_hangs":
            time.sleep(1000)
        return np.full((4, 6, 3), self.steps, np.uint8)

    def misbehave(self, where):
        if where == "reset":
            due = self.trouble.startswith("reset")
        else:
            due = self.steps == self.at and not self.trouble.startswith("reset")
        if not due or not self.trouble:
            return None
        if self.once:
            try:
                os.unlink(self.once)
            except FileNotFoundError:
                return None
        return getattr(self, self.trouble, lambda: None)()

    def prints(self):
        print("a line on standard output", flush=True)
        os.write(1, b"bytes below Python\n" * 100)
        os.system("echo of another program; echo and its errors >&2")
        print("trouble ahead", file=sys.stderr)

    def sleeps(self):
        print("about to sleep")
        time.sleep(1000)

    def dies(self):
        print("about to die")
        os.kill(os.getpid(), 9)

    def exits(self):
        sys.exit(3)

    def raises(self):
        raise ValueError("the gripper\nis stuck")

    reset_raises = raises

    def nan(self):
        return np.full((2, 2), np.nan)

    def huge(self):
        return np.full((2, 2), 1e200)

    def shape(self):
        return np.zeros(3)

    def starts_program(self):
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", "1000"])


def make_env(**options):
    return PointEnv(**options)


def make_wrong():
    return "no environment"


def is_left(env, observation, reward, terminated, info):
    return observation[0, 0] < 0


class Classic:
    """The interface of gym before 0.26 around a PointEnv."""

    def __init__(self):
        self.env = PointEnv()
        self.action_space, self.observation_space = (
            self.env.action_space,
            self.env.observation_space,
        )

    def seed(self, seed=None):
        self.next_seed = seed

    def reset(self):
        return self.env.reset(seed=self.next_seed)[0]

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        if truncated:
            info["TimeLimit.truncated"] = not terminated
        return obs, reward, terminated or truncated, info


def make_classic():
    return Classic()
