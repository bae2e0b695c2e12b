"""Checks that a task keeps to what the rest of pdjax relies on, and measures what it costs.

Each check is a function of what a task showed in play. Separate from the tests of our own tasks,
so that it runs on any task, in the user's hands. Not pure: it plays, starts processes and prints.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.output import terminal
from pdjax.prepare import verdicts
from pdjax.prepare.check_workers import check_workers
from pdjax.prepare.verdicts import FAIL, NOTE, OK, Finding
from pdjax_envs import registry
from pdjax_envs.demonstrations.trajectory import column_names, episode_keys
from pdjax_envs.physics.plain_loop import PlainLoop
from pdjax_envs.reading import reason, short
from pdjax_envs.task import Env
from pdjax_envs.user_code import words

NUM_ENVS = 32
MOST_STEPS = 1_000  # control steps of an episode that are played
PLAIN_ENVS = 4  # environments that MuJoCo's own loop steps
PLAIN_STEPS = 25  # control steps that are compared with MuJoCo's own loop
SAME = 1e-4  # largest difference between a batch and one environment
CHILD_S = 300.0  # for an engine to lower a step, in a process of its own


class Played:
    """A task in play: episodes of random actions, and of none."""

    def __init__(self, env: Env, seed: int):
        self.env, self.task = env, env.task
        self.steps = min(self.task.episode_steps, MOST_STEPS)
        self._seed = seed
        rng = np.random.default_rng(seed)
        shape = (self.steps, NUM_ENVS, self.task.act_dim)
        self.actions = rng.uniform(-1, 1, shape).astype(np.float32)
        self._play = jax.jit(self._episodes)

    def _episodes(self, model: Any, keys: Any, actions: Any) -> Any:
        state, first = jax.vmap(self.env.reset, (None, 0))(model, keys)

        def step(state: Any, action: Any) -> Any:
            state, out = jax.vmap(self.env.step, (None, 0, 0))(model, state, action)
            return state, out

        last, outs = jax.lax.scan(step, state, actions)
        return state, first, last, outs

    def keys(self) -> Any:
        """Returns the keys of the episodes."""
        return jax.random.split(jax.random.key(self._seed), NUM_ENVS)

    def play(self, actions: np.ndarray) -> Any:
        """Returns first states and observations, last states, and all control steps."""
        return jax.device_get(self._play(self.env.model, self.keys(), actions))

    @cached_property
    def random(self) -> Any:
        """Episodes of random actions."""
        return self.play(self.actions)

    @cached_property
    def still(self) -> Any:
        """Episodes in which nothing is commanded."""
        return self.play(np.zeros_like(self.actions))

    @cached_property
    def plain(self) -> "list[_Plain]":
        """Some of the episodes of random actions in MuJoCo's own loop."""
        return [_plain(self, index) for index in range(PLAIN_ENVS)]

    @cached_property
    def obs(self) -> np.ndarray:
        """Observations in random play, (steps + 1, NUM_ENVS, obs_dim)."""
        _, first, _, outs = self.random
        return np.concatenate([first[None], outs.obs])


def check_task(name: str, physics: str = "auto", seed: int = 0) -> dict[str, Any]:
    """Plays a task, checks it and prints a table.

    Args:
      name: the task.
      physics: physics engine.
      seed: seed of starts and actions.

    Returns:
      `task`, `physics`, `passed` and the `findings`, as `--json` prints them.

    Raises:
      registry.UnknownName: there is no such task.
      InputError: it is in a file whose code fails.
    """
    reward = "" if registry.make_task(name).has_success else "dense"
    env = registry.make(name, physics, reward, terminate_on_success=False)
    if env.open is not None:
        return verdicts.show(env.task.name, env.engine, check_workers(env, seed))
    played = Played(env, seed)
    findings: list[Finding] = []
    engines = ["mjx", "warp"] if env.task.engine is None else []
    with terminal.progress("checking", len(CHECKS) + len(engines), "checks") as bar:
        for title, check in CHECKS.items():
            if found := _attempt(check, played):
                findings.append(Finding(title, *found))
            bar.update(1)
        for engine in engines:
            findings.append(_lowers(name, engine))
            bar.update(1)
    return verdicts.show(env.task.name, env.engine, findings)


def _attempt(check: "Check", played: Played) -> tuple[str, str] | None:
    """Runs one check; whatever it raises is what it found."""
    try:
        return check(played)
    except Exception as error:  # the task's own functions may raise anything
        return FAIL, words(error)


def _shapes(played: Played) -> tuple[str, str]:
    task, (_, first, _, outs) = played.task, played.random
    problems: list[str] = []
    expected = (NUM_ENVS, task.obs_dim)
    if first.shape != expected or outs.obs.shape[1:] != expected:
        problems.append(f"observations {outs.obs.shape[2:]}, declared ({task.obs_dim},)")
    if outs.obs.dtype != np.float32 or first.dtype != np.float32:
        problems.append(f"observations are {outs.obs.dtype}, expected float32")
    if len({name for name, _ in task.observation}) < len(task.observation):
        problems.append("two parts of the observation have one name")
    if unknown := set(task.meanings) - {name for name, _ in task.observation + task.action}:
        problems.append(f"meanings of {short(', '.join(sorted(unknown)))}, which is no part")
    if not np.isfinite(outs.reward).all():
        problems.append("rewards are not finite")
    if outs.overflow.any():
        problems.append("contacts or constraints did not fit into the engine's buffers")
    seen = f"{task.obs_dim} observed numbers, {task.act_dim} of the action"
    return (FAIL if problems else OK, "; ".join(problems) or seen)


def _repeats(played: Played) -> tuple[str, str]:
    again = played.play(played.actions)
    same = all(
        np.array_equal(a, b, equal_nan=True)
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(played.random), strict=True)
        if not jnp.issubdtype(a.dtype, jax.dtypes.extended)
    )
    seen = "the same keys and actions give the same numbers" if same else (
        "the same keys and actions give other numbers: draw from the key alone"
    )  # fmt: skip
    return (OK if same else FAIL, seen)


def _starts(played: Played) -> tuple[str, str]:
    return verdicts.starts(played.obs[0])


def _numbers(played: Played) -> tuple[str, str]:
    flat = played.obs.reshape(-1, played.task.obs_dim)
    return verdicts.numbers(flat, column_names(played.task.observation))


def _rate(success: np.ndarray) -> float:
    return float(success.any(axis=0).mean())


def _success(played: Played) -> tuple[str, str] | None:
    if not played.task.has_success:
        return None
    rate = _rate(played.random[3].success)
    return verdicts.random_success(rate, played.task.expert is not None)


def _nothing(played: Played) -> tuple[str, str] | None:
    if not played.task.has_success:
        return None
    return verdicts.still_success(_rate(played.still[3].success))


def _expert(played: Played) -> tuple[str, str] | None:
    task, env = played.task, played.env
    if task.expert is None or not task.has_success:
        return None
    expert = task.expert()

    def episode(key: Any) -> Any:
        start, carry, acting, _ = episode_keys(key)
        state, obs = env.reset(env.model, start)

        def step(now: Any, key: Any) -> Any:
            state, obs, carry = now
            action, carry = expert.act(carry, obs, key)
            state, out = env.step(env.model, state, action)
            return (state, out.obs, carry), out.success

        begin = state, obs, expert.init(carry)
        return jnp.any(jax.lax.scan(step, begin, jax.random.split(acting, played.steps))[1])

    rate = float(np.mean(jax.jit(jax.vmap(episode))(played.keys())))
    return (OK if rate else FAIL, f"the scripted expert succeeds in {rate:.0%}")


def _one(played: Played) -> tuple[str, str]:
    """Compares one environment alone with its row of the batch."""
    env, steps = played.env, min(played.steps, PLAIN_STEPS)
    state, obs = jax.jit(env.reset)(env.model, played.keys()[1])
    step, found = jax.jit(env.step), [obs]
    for action in played.actions[:steps, 1]:
        state, out = step(env.model, state, action)
        found.append(out.obs)
    difference = float(np.abs(np.stack(found) - played.obs[: steps + 1, 1]).max())
    seen = f"largest difference {difference:.2g} over {steps} control steps"
    return (OK if difference <= SAME else FAIL, seen)


def _restored(played: Played) -> tuple[str, str]:
    """Starts episodes again from states in the middle of others."""
    task, env, (_, _, last, outs) = played.task, played.env, played.random
    saved = jax.vmap(task.get_state)(last.episode, last.physics)
    starts = jax.vmap(task.make_start)(saved)
    _, obs = jax.jit(jax.vmap(env.start_from, (None, 0)))(env.model, starts)
    difference = float(np.abs(np.asarray(obs) - outs.obs[-1]).max())
    seen = f"largest difference {difference:.2g} between an observation and that of its state"
    return (OK if difference <= 1e-2 else NOTE, seen)


class _Plain(NamedTuple):
    """What MuJoCo's own loop showed under the commands that the task gave.

    Attributes:
      difference: largest difference of a position from the engine's, in the first control steps.
      contacts: the largest number of contacts.
      constraints: the largest number of rows in the constraint solver.
    """

    difference: float
    contacts: int
    constraints: int


def _plain(played: Played, index: int) -> _Plain:
    """Steps one environment with MuJoCo's own loop beside the engine."""
    task, env = played.task, played.env
    state = jax.tree.map(lambda leaf: leaf[index], played.random[0])
    loop = PlainLoop(task.scene, state.episode.overrides, state.physics.qpos, state.physics.qvel)
    control = jax.jit(lambda s, a: task.control(s.episode, s.physics, a))
    step = jax.jit(lambda s, a: env.step(env.model, s, a)[0])
    difference = 0.0
    for count, action in enumerate(played.actions[:, index]):
        qpos = loop.step(np.asarray(control(state, action)))
        state = step(state, action)
        if count < PLAIN_STEPS:
            apart = np.abs(np.asarray(state.physics.qpos) - qpos).max()
            difference = max(difference, float(apart))
    return _Plain(difference, loop.contacts, loop.constraints)


def _plain_loop(played: Played) -> tuple[str, str] | None:
    if played.env.engine != "native":
        return None
    difference = max(plain.difference for plain in played.plain)
    seen = f"largest difference of a position {difference:.2g} over {PLAIN_STEPS} control steps"
    return (OK if difference <= SAME else FAIL, seen)


def _buffers(played: Played) -> tuple[str, str] | None:
    """Compares the room for contacts and constraints, which Warp needs, with what play took."""
    if played.task.engine is not None:
        return None
    contacts = max(plain.contacts for plain in played.plain)
    constraints = max(plain.constraints for plain in played.plain)
    room = played.task.scene.buffers
    seen = (
        f"up to {contacts} contacts and {constraints} constraint rows; room for {room.contacts} and"
        f" {room.constraints}"
    )
    if contacts > room.contacts or constraints > room.constraints:
        proposed = f"Buffers(contacts={_roomy(contacts)}, constraints={_roomy(constraints)})"
        return (FAIL, f"{seen}; give buffers={proposed}")
    return (OK, seen)


def _roomy(count: int) -> int:
    """Returns twice a count, rounded up to a multiple of 16."""
    return -(-2 * count // 16) * 16


def _speed(played: Played) -> tuple[str, str]:
    played.play(played.actions)
    begun = time.perf_counter()
    played.play(played.actions)
    rate = played.steps * NUM_ENVS / (time.perf_counter() - begun)
    return (OK, f"{rate:,.0f} control steps/s with {NUM_ENVS} environments")


Check = Callable[[Played], tuple[str, str] | None]
"""What a task showed -> `ok`, `note` or `FAIL`, and what was seen; None if it does not apply."""
CHECKS: dict[str, Check] = {
    "shapes and names": _shapes,
    "determinism": _repeats,
    "starts": _starts,
    "observed numbers": _numbers,
    "success": _success,
    "doing nothing": _nothing,
    "expert": _expert,
    "one equals many": _one,
    "restoring a state": _restored,
    "MuJoCo's own loop": _plain_loop,
    "buffers": _buffers,
    "speed": _speed,
}


def _lowers(name: str, engine: str) -> Finding:
    """Lowers a step for another engine, in a process that can still set what MJX needs."""
    command = [sys.executable, "-m", __name__, name, engine]
    label = f"lowers for {engine}"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(label, NOTE, reason(error))
    last = (done.stdout.strip().splitlines() or ["the process failed"])[-1]
    return Finding(label, OK if done.returncode == 0 else NOTE, short(last, 160))


def _main(name: str, engine: str) -> int:
    """Lowers a step of several environments; prints one line and returns an exit status."""
    try:
        registry.prepare(name, engine)
        env = registry.make(name, engine, terminate_on_success=False)
        keys = jax.random.split(jax.random.key(0), 2)
        state, _ = jax.eval_shape(jax.vmap(env.reset, (None, 0)), env.model, keys)
        action = jax.ShapeDtypeStruct((2, env.task.act_dim), jnp.float32)
        jax.jit(jax.vmap(env.step, (None, 0, 0))).lower(env.model, state, action)
    except Exception as error:  # an engine raises many kinds for what it does not know
        print(words(error))
        return 1
    print("a step of several environments lowers")
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
