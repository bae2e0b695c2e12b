"""Steps Gymnasium environments in a process of its own, in whatever interpreter has them.

One self-contained script, because simulators pin other Pythons and other NumPys than pdjax: it
needs Python 3.8, NumPy 1 or 2, and Gymnasium (or its ancestor gym). `process` starts it:
`PYTHON worker.py REQUESTS ANSWERS MEMORY PARENT`, three inherited file descriptors and the process
that it must not outlive (0: that process is found by the end of REQUESTS alone).

A message is its length, uint32 little-endian, and a JSON object. Requests, each with one answer:
  {"do": "make", "spec": {...}, "count": N} -> what `Worker.make` returns.
  {"do": "attach", "parts": [[NAME, PATH, SHAPE, START, STOP]], "probe": bool, "size": BYTES,
    "layout": {NAME: [OFFSET, SHAPE, DTYPE]}, "first": ROW} -> {"info": [KEY]}, see `attach`.
  {"do": "play"} -> {}; one decision of all environments, or of those in "only"; those in "begin",
    [[INDEX, SEED]], begin an episode. See `Worker.play`.
  {"do": "advise", "only": [INDEX]} -> {}; what the expert would do now becomes `actions`.
  {"do": "render", "index": I} -> {"shape": [H, W, 3]}; the pixels follow the arrays in MEMORY.
  {"do": "close"} -> no answer; the process ends, as it does when REQUESTS ends.
Any answer may be {"error": LINE, "kind": "refused" | "numbers" | "raised"} instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import faulthandler
import importlib
import importlib.util
import inspect
import json
import math
import mmap
import os
import random
import select
import signal
import struct
import sys
import threading
import traceback
from typing import Any

SUCCESS_KEYS = ("success", "is_success", "task_success", "goal_achieved", "solved")  # of `auto`
PLAY = struct.pack("<I", 14) + b'{"do": "play"}'  # the message that has to be fast
MOST_WORDS = 300  # characters of an error
ROBOTICS = "gymnasium_robotics"  # adds its IDs when it is imported, which people leave out


class Refused(Exception):  # noqa: N818 (a verdict)
    """Says in one line why an environment cannot be used, or which numbers it got wrong."""

    def __init__(self, text: str, kind: str = "refused"):
        super().__init__(text)
        self.kind = kind


try:
    import numpy as np

    try:
        import gymnasium as library  # pyright: ignore
    except ImportError:
        import gym as library  # pyright: ignore
    MISSING = ""
except ImportError as missing:
    np: Any = None
    library: Any = None
    MISSING = str(missing)


def load_function(place: str) -> Any:
    """Returns the function that FILE.py:NAME names; each file runs once."""
    file, _, name = place.rpartition(":")
    if file not in sys.modules:
        if not os.path.isfile(file):
            raise Refused(f"there is no file {file}")
        spec: Any = importlib.util.spec_from_file_location(file, file)
        sys.modules[file] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[file])
    if not callable(getattr(sys.modules[file], name, None)):
        raise Refused(f"{file} has no function {name!r}")
    return getattr(sys.modules[file], name)


def takes(function: Any, name: str) -> bool:
    """Returns whether a function takes a keyword argument of this name."""
    parameters = inspect.signature(function).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def make_env(spec: dict) -> Any:
    """Makes one environment.

    Args:
      spec: see `spec.check_spec`.

    Raises:
      Refused: there is no such ID, file or function.
    """
    place, options = spec["env"], dict(spec.get("options") or {})
    module, _, name = place.rpartition(":")
    if module.endswith(".py"):
        function = load_function(place)
        if spec.get("render") and takes(function, "render_mode"):
            options.setdefault("render_mode", "rgb_array")
        return function(**options)
    if module:
        importlib.import_module(module)
    if spec.get("render"):
        options.setdefault("render_mode", "rgb_array")
    if spec.get("episode_steps"):
        options.setdefault("max_episode_steps", spec["episode_steps"])
    try:
        return library.make(name, **options)
    except library.error.UnregisteredEnv:
        if not module and importlib.util.find_spec(ROBOTICS):
            return make_env({**spec, "env": f"{ROBOTICS}:{name}"})
        known = list(getattr(library.envs.registry, "keys", list)())
        close = [*difflib.get_close_matches(name, known), "MODULE:ID of another package"]
        raise Refused(f"there is no {name}; did you mean {', '.join(close)}?") from None


def outline(space: Any) -> dict:
    """Returns what a space is made of, as JSON."""
    found: Any = {"kind": type(space).__name__, "text": one_line(space)}
    if found["kind"] == "Box":
        found.update(shape=space.shape, dtype=str(space.dtype))
    if found["kind"] in ("Dict", "Tuple"):
        items = getattr(space.spaces, "items", lambda: enumerate(space.spaces))()
        found["items"] = [[key, outline(item)] for key, item in items]
    return found


def make_success(rule: str) -> Any:
    """Returns (env, observation, reward, terminated, info) -> whether the task is solved now.

    Args:
      rule: `auto` (the first of SUCCESS_KEYS that info has), a key of info (False while it is
        absent), `terminated`, `reward>=X`, or FILE.py:FUNCTION, which is returned.
    """
    if ".py:" in rule:
        return load_function(rule)
    if rule == "terminated":
        return lambda env, observation, reward, terminated, info: terminated
    if rule.startswith("reward>="):
        least = float(rule[len("reward>=") :])
        return lambda env, observation, reward, terminated, info: reward >= least
    keys = SUCCESS_KEYS if rule == "auto" else (rule,)
    return lambda env, observation, reward, terminated, info: next(
        (info[key] for key in keys if key in info), False
    )


class World:
    """One environment and the episode that it plays.

    Args:
      env: the environment, of Gymnasium's interface or of gym's older ones.
      spec: see `spec.check_spec`.
    """

    def __init__(self, env: Any, spec: dict):
        if not (hasattr(env, "step") and hasattr(env, "action_space")):
            raise Refused(f"it is {one_line(env)}, expected a gymnasium.Env")
        self.env, self.limit, self.steps = env, int(spec.get("episode_steps") or 0), 0
        self.is_success = make_success(spec.get("success") or "auto")
        self.make_expert = load_function(spec["expert"]) if spec.get("expert") else None
        self.expert: Any = None
        self.observation: Any = None
        self.is_seeded_by_reset = takes(env.reset, "seed")
        self.parts: Any = ()  # (name, path, shape, (chunk, *shape) view of obs), by `Worker.attach`
        self.obs = self.reward = self.flags = np.zeros(0)

    def reset(self, seed: int) -> Any:
        """Starts an episode and returns its first observation; the same seed, the same start."""
        # Some environments draw from Python's or NumPy's global generators.
        random.seed(seed)
        np.random.seed(seed)
        if not self.is_seeded_by_reset:
            self.env.seed(seed)
        found = self.env.reset(**({"seed": seed} if self.is_seeded_by_reset else {}))
        self.steps = 0
        pair = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)
        return found[0] if pair else found

    def step(self, action: Any) -> tuple:
        """Plays a control step: (observation, reward, terminated, truncated, info)."""
        found = self.env.step(action)
        if len(found) == 5:
            observation, reward, terminated, truncated, info = found
        else:
            observation, reward, ended, info = found
            truncated = ended and info.get("TimeLimit.truncated", False)
            terminated = ended and not truncated
        self.steps += 1
        reward = float(reward)
        if not math.isfinite(reward):
            raise Refused("its reward is not finite", "numbers")
        truncated = bool(truncated) or self.steps == self.limit
        return observation, reward, bool(terminated), truncated, info

    def judge(self, *seen: Any) -> bool:
        """Returns whether the task is solved, of (observation, reward, terminated, info)."""
        found = self.is_success(self.env, *seen)
        if found is True or found is False:
            return found
        number = np.ravel(np.asarray(found))
        if number.size != 1 or number[0] not in (0, 1):
            raise Refused(f"its success is {one_line(found)}, expected yes or no, or 0 or 1")
        return bool(number[0])

    def write(self, observation: Any, t: int) -> None:
        """Writes an observation into row t of `obs`; `check_finite` comes later."""
        self.observation = observation
        for name, path, shape, view in self.parts:
            value = observation
            for key in path:
                value = value[key]
            value = np.asarray(value)
            if value.shape != shape:
                raise Refused(f"{name} has shape {value.shape}, expected {shape}", "numbers")
            view[t] = value

    def begin(self, seed: int) -> None:
        """Answers a decision with the first observation of a new episode; no step is executed."""
        self.expert = self.make_expert() if inspect.isclass(self.make_expert) else self.make_expert
        self.write(self.reset(seed), 0)
        self.obs[1:], self.reward[:], self.flags[:] = self.obs[0], 0, False

    def advise(self) -> Any:
        """Returns what the expert would do now, in the environment's own units."""
        action, shape = (
            np.asarray(self.expert(self.env, self.observation)),
            self.env.action_space.shape,
        )
        if action.shape != shape or not np.isfinite(action).all():
            raise Refused(f"returned {one_line(action)}, expected finite numbers (shape {shape})")
        return action

    def play(self, actions: Any) -> None:
        """Answers a decision with its control steps, until the episode ends.

        Args:
          actions: (chunk, ...), of the environment's own.
        """
        rewards, flags = memoryview(self.reward), memoryview(self.flags)  # faster than arrays
        for t, action in enumerate(actions):
            observation, reward, terminated, truncated, info = self.step(action)
            self.write(observation, t)
            rewards[t] = reward
            flags[t, 0], flags[t, 1], flags[t, 3] = terminated, truncated, True
            flags[t, 2] = self.judge(observation, reward, terminated, info)
            if terminated or truncated:
                self.obs[t + 1 :], self.reward[t + 1 :], self.flags[t + 1 :] = self.obs[t], 0, False
                return


class Worker:
    """The environments of this process and the arrays that it shares with the one that asks."""

    def __init__(self, memory: int):
        self.memory, self.worlds = memory, []

    def make(self, request: dict) -> dict:
        """Makes the environments and says what they are made of."""
        if MISSING:
            raise Refused(
                f"{sys.executable} lacks a package ({MISSING}); install numpy and gymnasium there"
            )
        spec = request["spec"]
        self.worlds = [World(make_env(spec), spec) for _ in range(request["count"])]
        env = self.worlds[0].env
        core, actions = getattr(env, "unwrapped", env), env.action_space
        limit = getattr(getattr(env, "spec", None), "max_episode_steps", 0)
        limit = limit or vars(env).get("_max_episode_steps", 0)  # of the wrapper TimeLimit
        hz, names = 0, {"numpy", library.__name__, "mujoco", type(core).__module__.split(".")[0]}
        with contextlib.suppress(Exception):
            hz = env.metadata.get("render_fps")
        with contextlib.suppress(Exception):
            hz = 1 / float(core.dt)  # of one step; pictures may have another rate
        found = {name: getattr(sys.modules.get(name), "__version__", "") for name in sorted(names)}
        return {
            "observations": outline(env.observation_space),
            "actions": outline(actions),
            "low": np.ravel(getattr(actions, "low", [])).tolist(),
            "high": np.ravel(getattr(actions, "high", [])).tolist(),
            "episode_steps": int(self.worlds[0].limit or limit or 0),
            "control_hz": float(hz or 0),
            "python": ".".join(map(str, sys.version_info[:3])),
            "versions": {name: str(version) for name, version in found.items() if version},
        }

    def attach(self, request: dict) -> dict:
        """Opens the shared arrays; with `probe`, plays the first step of the first environment.

        The first axis of each array counts all workers' environments; those here begin at `first`.
        `parts` says where each Box lies in a flat observation. The answer lists info's keys.
        """
        self.size = request["size"]
        shared = mmap.mmap(self.memory, self.size)
        rows = slice(request["first"], request["first"] + len(self.worlds))
        self.arrays = {
            name: np.ndarray(shape, dtype, shared, offset)[rows]
            for name, (offset, shape, dtype) in request["layout"].items()
        }
        for index, world in enumerate(self.worlds):
            for name in ("obs", "reward", "flags"):
                setattr(world, name, self.arrays[name][index])
            world.parts = [
                (name, path, tuple(shape), world.obs[:, a:b].reshape(-1, *shape))
                for name, path, shape, a, b in request["parts"]
            ]
        world, space = self.worlds[0], self.worlds[0].env.action_space
        actions = self.arrays["actions"]
        self.actions = actions.reshape(actions.shape[:2] + space.shape)
        if not request["probe"]:
            return {}
        world.begin(0)
        check_finite(world.obs)
        middle = ((space.high + space.low) / 2).astype(space.dtype)
        obs, reward, terminated, _, info = world.step(middle)
        world.judge(obs, reward, terminated, info)
        world.write(obs, 0)
        check_finite(world.obs)
        return {"info": sorted(map(str, info))}

    def play(self, request: dict) -> dict:
        """Plays one decision in each environment: a chunk of control steps, or one reset.

        `obs[:, -1]` is always the newest observation: what is not executed repeats the one before.
        """
        actions, begin = self.actions.copy(), dict(request.get("begin", ()))
        for index in request.get("only", range(len(self.worlds))):
            if index in begin:
                self.worlds[index].begin(begin[index])
            else:
                self.worlds[index].play(actions[index])
        check_finite(self.arrays["obs"])
        return {}

    def advise(self, request: dict) -> dict:
        """Writes into each row of `actions` what the expert would do in that environment."""
        for index in request["only"]:
            self.actions[index] = self.worlds[index].advise()
        return {}

    def render(self, request: dict) -> dict:
        """Writes a picture of one environment behind the arrays."""
        picture = np.asarray(self.worlds[request["index"]].env.render())
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise Refused("its render() returns no picture (H, W, 3) uint8; it needs rgb_array")
        os.ftruncate(self.memory, self.size + picture.size)
        os.pwrite(self.memory, picture.tobytes(), self.size)
        return {"shape": picture.shape}


def check_finite(obs: Any) -> None:
    """Raises Refused unless all numbers are finite, as float32 can hold them."""
    if not np.logical_and.reduce(np.isfinite(obs), None):
        raise Refused("its observation is not finite (NaN, infinite, beyond float32)", "numbers")


def one_line(value: Any) -> str:
    """Returns a short text."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= MOST_WORDS else text[: MOST_WORDS - 3] + "..."


def words(error: BaseException) -> str:
    """Returns type, message and place of an error, if it can a place outside of libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    frames = [f for f in frames if not f.filename.startswith((__file__, "<frozen"))]
    places = (os.path.dirname(os.__file__), sys.prefix + os.sep + "lib")  # of libraries
    own = [f for f in frames if not f.filename.startswith(places)]
    place = (own or frames or [None])[-1]
    where = f" ({os.path.basename(place.filename)}:{place.lineno})" if place else ""
    text = one_line(str(error)) or (place and place.line) or "no message"
    return f"{type(error).__name__}: {text}{where}"


def read_request(pipe: int) -> dict:
    """Reads a request; at the end of the pipe, one to close."""
    found = more = os.read(pipe, 1 << 16)  # there is never more than one request
    while more and len(found) < 4 + struct.unpack("<I", found[:4])[0]:
        more = os.read(pipe, 1 << 16)
        found += more
    if found == PLAY:
        return {"do": "play"}
    return json.loads(found[4:]) if more else {"do": "close"}


def die_with_parent(requests: int, parent: int) -> None:
    """Sees to it that this process ends with the one that started it, even within a step."""
    with contextlib.suppress(Exception):  # Linux only; PR_SET_PDEATHSIG is 1
        # Were there a launcher in between, its end would be watched.
        if os.getppid() == parent and ctypes.CDLL(None).prctl(1, signal.SIGKILL) == 0:
            return

    def watch() -> None:
        poll = select.poll()
        poll.register(requests, 0)  # hanging up is always reported
        poll.poll()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main(requests: int, answers: int, memory: int, parent: int) -> None:
    """Answers requests until there are no more."""
    for pipe in (requests, answers, memory):
        os.set_inheritable(pipe, False)  # what environments start must not hold them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks decides
    faulthandler.enable()  # a crash leaves its place in the log
    faulthandler.register(signal.SIGUSR1, all_threads=False)  # so does a hang, when asked
    die_with_parent(requests, parent)  # which may have ended before: then REQUESTS has too
    sys.dont_write_bytecode, sys.path[0] = True, os.getcwd()  # as in `python -c`
    worker = Worker(memory)
    while True:
        request = read_request(requests)
        if request["do"] == "close":
            break
        try:
            answer = getattr(worker, request["do"])(request)
        except Refused as error:
            answer = {"error": one_line(str(error)), "kind": error.kind}
        except BaseException as error:
            traceback.print_exc()
            answer = {"error": words(error), "kind": "raised"}
        text = json.dumps(answer).encode()
        message = struct.pack("<I", len(text)) + text
        while message:
            message = message[os.write(answers, message) :]
    for world in worker.worlds:
        with contextlib.suppress(BaseException):
            world.env.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
