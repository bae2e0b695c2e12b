"""Whole episodes in worker processes, for evaluations: `make_play` for such environments.

Episode i of all policies begins from the same seed, in environments apart from those of training.
An episode ends when its environment ends it, at success or later. Not pure.
"""

# pyright: reportUnknownMemberType=false

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.base_policies.chunking import push_history, start_history
from pdjax.learner.decorator import clip_action, decorate
from pdjax.output import terminal
from pdjax.rollout.decision import Frozen, base_actions
from pdjax.rollout.evaluate import OUTCOMES, Evaluation
from pdjax.types import Array, BasePolicy, Params
from pdjax_envs.task import select
from pdjax_envs.workers import Played, WorkerPool, same_starts

SLOTS = 16  # episodes that are played at once
Keep = Callable[[int, int, np.ndarray], None]  # see `Games.play`


class Games:
    """The workers of evaluations, started when they are first needed.

    Args:
      playing: see `playing.Playing`.
    """

    def __init__(self, playing: Any):
        self._playing = playing
        self._pools: dict[tuple[int, bool], WorkerPool] = {}
        self._starts_differ = False
        self._decide: Callable[..., Any] = jax.jit(partial(_decide, playing))
        self._begin: Callable[..., Any] = jax.jit(partial(_begin, playing.base))
        self._push: Callable[..., Any] = jax.jit(jax.vmap(_push_all))

    def play(
        self,
        seed: int,
        episodes: int,
        actor: Params = None,
        residual_scale: Any = 0.0,
        base_params: Params = None,
        record: bool = False,
        keep: Keep | None = None,
    ) -> Evaluation:
        """Plays episodes, see `playing.Play`. Positions cannot be recorded, but pictures can.

        Args:
          seed, episodes, actor, residual_scale, base_params, record: see there.
          keep: receives (episode, control step, picture (H, W, 3) uint8) after each control step;
            None = no pictures.

        Raises:
          workers.WorkerError: workers failed too often, or the environment draws no pictures.
        """
        frozen, scale = self._playing.frozen, float(residual_scale)
        if base_params is not None:
            frozen = frozen._replace(base_params=base_params)
        slots = min(episodes, SLOTS)
        parts = [
            self._wave(frozen, seed, first, slots, actor, scale, record, keep)
            for first in range(0, episodes, slots)
        ]
        joined: dict[str, Any] = {}
        for name, axis in _AXES.items():
            values = [part[name] for part in parts if part[name] is not None]
            whole = np.concatenate(values, axis=axis) if values else None
            joined[name] = None if whole is None else np.take(whole, range(episodes), axis=axis)
        carry = None
        if record:

            def join(*waves: Array) -> Array:
                return jnp.concatenate(waves)[:episodes]

            carry = jax.tree.map(join, *(part["carry"] for part in parts))
        return Evaluation(qpos=None, carry=carry, starts_differ=self._starts_differ, **joined)

    def close(self) -> None:
        """Ends the worker processes."""
        for pool in self._pools.values():
            pool.close()
        self._pools.clear()

    def _wave(
        self,
        frozen: Frozen,
        seed: int,
        first: int,
        slots: int,
        actor: Params,
        scale: float,
        record: bool,
        keep: Keep | None,
    ) -> dict[str, Any]:
        """Plays `slots` episodes at once, from episode `first` on."""
        env, base = self._playing.env, self._playing.base
        pool, limit = self._pool(slots, keep is not None), env.task.episode_steps
        numbers = [first + slot for slot in range(slots)]
        seeds = np.array([episode_seed(seed, number) for number in numbers], np.uint32)
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.array(numbers))
        still = np.zeros((slots, base.act_horizon, base.act_dim), np.float32)
        pool.send(still[:, : pool.chunk], np.ones(slots, bool), seeds)
        history, carry, noise = self._begin(pool.receive().obs[:, -1], keys)
        over = np.zeros(slots, bool)
        played: list[_Decision] = []
        seen: list[tuple[np.ndarray, np.ndarray]] = []
        for index in range(-(-limit // base.act_horizon)):
            before = carry
            chunk, carry, residual, base_action = self._decide(
                frozen, actor, jnp.float32(scale), history, carry, noise, index
            )
            if record:  # after its end an episode's carry stays
                carry = jax.vmap(select)(jnp.asarray(over), before, carry)
            chunk = np.nan_to_num(np.asarray(chunk))
            if record:
                seen.append((np.asarray(history[:, -1]), np.asarray(base_action)))
            # An episode that is over begins anew, out of the count: all slots play on.
            if keep is None:
                pool.send(chunk, pool.ended, seeds)
                answer = pool.receive()
            else:
                at = index * base.act_horizon
                answer = _watch(pool, chunk, seeds, over, partial(_keep, keep, first, at))
            counted = answer.executed & ~over[:, None]
            saturated = np.mean(np.abs(np.asarray(residual)) > 0.95, axis=-1)
            played.append(_Decision(answer, counted, chunk, saturated, ~over))
            over |= (answer.terminated | answer.truncated).any(axis=1)
            if over.all():
                break
            history = self._push(history, answer.obs, answer.executed)
        pool.abandon()
        for line in pool.new_reasons():
            terminal.say(f"{line}; it was replaced, and its episodes of the evaluation end there")
        found = _summarize(played, limit, env.task.has_success)
        decisions = -(-limit // base.act_horizon)
        seen += seen[-1:] * (decisions - len(seen))
        for at, name in enumerate(("obs", "base_action")):
            found[name] = np.stack([row[at] for row in seen]) if record else None
        found["carry"] = jax.device_get(carry) if record else None
        return found

    def _pool(self, slots: int, draws: bool) -> WorkerPool:
        """Returns the workers of so many episodes; starts them when they are first needed."""
        env, base = self._playing.env, self._playing.base
        if (slots, draws) not in self._pools:
            pool = env.open(slots, 1, render=True) if draws else env.open(slots, base.act_horizon)
            self._pools[slots, draws] = pool
            differ = not same_starts(pool)
            if differ and not self._starts_differ:
                terminal.say(
                    f"resets of one seed differ in {env.task.name}: base and refined policy do not"
                    " play the same episodes, so intervals are those of unpaired ones"
                )
            self._starts_differ |= differ
        return self._pools[slots, draws]


def _watch(
    pool: WorkerPool,
    chunk: np.ndarray,
    seeds: np.ndarray,
    over: np.ndarray,
    keep: Callable[[int, int, np.ndarray], None],
) -> Played:
    """Plays a decision a control step at a time, with a picture of each slot after each step."""
    steps: list[Played] = []
    ended = np.zeros(len(chunk), bool)  # within this decision: what follows does not count
    for t in range(chunk.shape[1]):
        pool.send(chunk[:, t : t + 1], pool.ended, seeds)
        answer = pool.receive()
        for slot in np.flatnonzero(answer.executed[:, 0] & ~over & ~ended):
            keep(int(slot), t, pool.render(int(slot)))
        old = steps[-1] if steps else answer
        still = [np.zeros_like(values) for values in answer]
        still[Played._fields.index("obs")] = old.obs
        where = [ended.reshape(-1, *[1] * (values.ndim - 1)) for values in answer]
        steps.append(Played(*map(np.where, where, still, answer)))
        ended |= (answer.terminated | answer.truncated)[:, 0]
    return Played(*(np.concatenate(values, axis=1) for values in zip(*steps, strict=True)))


def _keep(keep: Keep, first: int, at: int, slot: int, t: int, picture: np.ndarray) -> None:
    keep(first + slot, at + t, picture)


_AXES = dict.fromkeys(OUTCOMES, 0) | {"obs": 1, "base_action": 1}  # of the episodes


def episode_seed(seed: int, number: int) -> int:
    """Returns the seed of an episode's reset, below 2^31."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) >> 1


def _begin(base: BasePolicy, obs: Array, keys: Array) -> tuple[Array, Any, Array]:
    """Returns histories, carries and noise keys at the start of episodes."""
    both = jax.vmap(jax.random.split)(keys)
    history = jax.vmap(partial(start_history, obs_horizon=base.obs_horizon))(obs)
    return history, jax.vmap(base.init_carry)(both[:, 0]), both[:, 1]


def _decide(
    playing: Any,
    frozen: Frozen,
    actor: Params,
    scale: Array,
    history: Array,
    carry: Any,
    noise: Array,
    index: Array,
) -> tuple[Array, Any, Array, Array]:
    """Returns chunk, carry, residual and base action of one decision."""
    now = jax.vmap(jax.random.fold_in, (0, None))(noise, index)
    chunk, carry = base_actions(playing.base, frozen, carry, history, now)
    obs, base_action = history[:, -1], chunk.reshape(len(history), -1)
    if actor is None:
        residual = jnp.zeros_like(base_action)
    else:
        view = playing.rollout.see(frozen, obs)
        residual = playing.sac.act_deterministic(actor, view, base_action)
    action = clip_action(decorate(base_action, residual, scale))
    return action.reshape(chunk.shape), carry, residual, base_action


def _push_all(history: Array, obs: Array, executed: Array) -> Array:
    """Appends the observations (act_horizon, obs_dim) of the executed control steps."""

    def push(history: Array, now: tuple[Array, Array]) -> tuple[Array, None]:
        obs, was_executed = now
        return jnp.where(was_executed, push_history(history, obs), history), None

    return jax.lax.scan(push, history, (obs, executed))[0]


class _Decision(NamedTuple):
    """One decision of all episodes.

    Attributes:
      answer: of the workers.
      counted: (episodes, act_horizon) bool, the control step belongs to the episode.
      actions: (episodes, act_horizon, act_dim).
      saturated: (episodes,) share of residual numbers above 0.95 in absolute value.
      is_running: (episodes,) bool, the episode had not ended before.
    """

    answer: Played
    counted: np.ndarray
    actions: np.ndarray
    saturated: np.ndarray
    is_running: np.ndarray


def _summarize(played: list[_Decision], limit: int, has_success: bool) -> dict[str, Any]:
    """Returns the figures of episodes, see `Evaluation`; after its end an episode stands still."""
    counted = np.concatenate([one.counted for one in played], axis=1)  # (episodes, steps)
    success = np.concatenate([one.answer.success for one in played], axis=1) & counted
    reward = np.concatenate([one.answer.reward for one in played], axis=1)
    actions = np.concatenate([one.actions for one in played], axis=1)
    steps_played = counted.sum(axis=1)
    once = success.any(axis=1)
    to_success = np.where(once, success.argmax(axis=1) + 1, limit)
    at_end = success[np.arange(len(success)), np.maximum(steps_played - 1, 0)]
    second = actions[:, 2:] - 2 * actions[:, 1:-1] + actions[:, :-2]
    until: np.ndarray = np.minimum(to_success, steps_played)
    alive = np.arange(2, int(actions.shape[1]))[None] < until[:, None]
    squared: Any = np.mean(second**2, axis=-1)
    smoothness = (squared * alive).sum(axis=1) / np.maximum(alive.sum(axis=1), 1)
    horizon = played[0].actions.shape[1]
    deciding = np.stack([one.is_running for one in played], axis=1)
    deciding &= np.arange(len(played))[None] * horizon < until[:, None]
    saturated = np.stack([one.saturated for one in played], axis=1)
    saturation = (saturated * deciding).sum(axis=1) / np.maximum(deciding.sum(axis=1), 1)
    returns = np.where(counted & np.isfinite(reward), reward, 0.0).sum(axis=1)
    return {
        "success_once": once if has_success else None,
        "success_at_end": at_end if has_success else None,
        "steps_to_success": to_success.astype(np.int32),
        "smoothness": smoothness.astype(np.float32),
        "saturation": saturation.astype(np.float32),
        "returns": returns.astype(np.float32),
    }
