"""Rollouts in worker processes: the host sends actions, the workers step their simulators.

The same choice and the same records as in `collect`, between which the host waits for the workers
instead of XLA for the physics. Whatever happens to a worker, no transition is invented: the
decision of an episode that it lost becomes a hole of the replay. Not pure: pools are processes.
"""

# pyright: reportUnknownMemberType=false

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.base_policies.chunking import push_history, start_history
from pdjax.output import terminal
from pdjax.rollout.collect import Choice, record
from pdjax.rollout.collect import Played as Led
from pdjax.rollout.decision import Frozen, Outcome, RolloutState
from pdjax.types import Array, BasePolicy, Key, Metrics, Transition
from pdjax_envs.task import Env, select
from pdjax_envs.workers import Played, WorkerPool

NO_STATE: Any = ()  # of a simulator, which is in its worker
Decide = Callable[[RolloutState, Key, Array], tuple[RolloutState, Choice, Key]]
"""(state, key, index of the decision in its block) -> state, choice, and a key for new episodes."""


class Answer(NamedTuple):
    """A decision's answer from the workers, and the state that they were asked in.

    Attributes:
      played: see `workers.Played`; on the device in `_absorb`.
      was_done: (num_envs,) bool, these began an episode instead.
      is_lost: (num_envs,) bool, the episode is gone with its worker.
    """

    played: Any
    was_done: Any
    is_lost: Any


def init(
    base: BasePolicy,
    first_noise: Callable[[int], Any],
    frozen: Frozen,
    key: Key,
    num_envs: int,
) -> RolloutState:
    """Returns the state before the first episodes: the first decision begins them.

    Args:
      base: the base policy.
      first_noise: see `Exploring`; num_envs is its only argument.
      frozen: not read.
      key: consumed.
      num_envs: number of environments.
    """
    del frozen
    return RolloutState(
        env=NO_STATE,
        history=jnp.zeros((num_envs, base.obs_horizon, base.obs_dim)),
        carry=jax.vmap(base.init_carry)(jax.random.split(key, num_envs)),
        done=jnp.ones(num_envs, bool),
        succeeded=jnp.zeros(num_envs, bool),
        noise=first_noise(num_envs),
    )


class Worlds:
    """The environments of a run in their worker processes; opened when they are first needed.

    Args:
      env: has `open`.
      base: the base policy.
      num_envs: number of environments.
    """

    def __init__(self, env: Env, base: BasePolicy, num_envs: int):
        self._env, self._base, self._num_envs = env, base, num_envs
        self._pool: WorkerPool | None = None
        self._absorb: Callable[..., Any] = jax.jit(
            partial(_absorb, base, env.reward, env.terminate_on_success)
        )
        self._seeds: Callable[..., Any] = jax.jit(partial(_seeds, num_envs))

    @property
    def pool(self) -> WorkerPool | None:
        """The workers, if they have been started."""
        return self._pool

    def collect(
        self, decide: Decide, state: RolloutState, keys: Array
    ) -> tuple[RolloutState, Transition, Metrics]:
        """Plays some decisions in all environments.

        Args:
          decide: chooses what to execute; compiled.
          state: of all environments.
          keys: (decisions,), consumed.

        Returns:
          The next state, the rows (decisions, num_envs, ...), and counts over all of them.

        Raises:
          workers.WorkerError: workers failed too often.
        """
        rows: list[Transition] = []
        counts: list[Metrics] = []
        for index in range(len(keys)):
            state, choice, reset_key = decide(state, keys[index], jnp.int32(index))
            seeds, carry_key = self._seeds(reset_key)
            answer = self.play(np.asarray(choice.chunk), np.asarray(state.done), np.asarray(seeds))
            state, (row, count) = self._absorb(state, choice, answer, carry_key)
            rows.append(row)
            counts.append(count)
        stacked: Transition = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
        total = {name: jnp.stack([c[name] for c in counts]).sum() for name in counts[0]}
        return state, stacked, total

    def play(self, chunk: np.ndarray, was_done: np.ndarray, seeds: np.ndarray) -> Answer:
        """Sends a decision to the workers and waits for their answer."""
        is_new = self._pool is None
        if self._pool is None:
            self._pool = self._env.open(self._num_envs, self._base.act_horizon)  # pyright: ignore
        pool: Any = self._pool
        begin = was_done | is_new
        if is_new and not was_done.all():
            terminal.say(
                f"{(~was_done).sum()} episodes ended with the process before; all environments"
                " begin new episodes"
            )
        pool.send(np.nan_to_num(chunk, nan=0.0), begin, seeds)
        played = pool.receive()
        is_lost = begin & ~was_done  # of an earlier process: its simulators are gone
        is_lost |= ~begin & played.truncated[:, 0] & ~played.executed[:, 0]
        return Answer(played, was_done, is_lost)

    def close(self) -> None:
        """Ends the worker processes, if they have been started."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None


def _seeds(num_envs: int, key: Key) -> tuple[Array, Key]:
    """Returns seeds (num_envs,) of new episodes below 2^31, and a key for the base policy."""
    seed_key, carry_key = jax.random.split(key)
    return jax.random.bits(seed_key, (num_envs,), jnp.uint32) >> 1, carry_key


def _absorb(
    base: BasePolicy,
    reward: str,
    terminate_on_success: bool,
    state: RolloutState,
    choice: Choice,
    answer: Answer,
    key: Key,
) -> tuple[RolloutState, tuple[Transition, Metrics]]:
    """Turns the workers' answer into the next state, rows and counts; see `record`.

    Args:
      base: the base policy.
      reward: `success` or `dense`.
      terminate_on_success: whether success ends an episode.
      state: with the base policy's next carry.
      choice: what was sent.
      answer: what came back.
      key: of the base policy's carries in new episodes; consumed.
    """
    played, was_done, is_lost = answer
    per_env = partial(_play_chunk, reward, terminate_on_success)
    history, outcome = jax.vmap(per_env)(state.history, choice.chunk, played)
    fresh_history = jax.vmap(partial(start_history, obs_horizon=base.obs_horizon))(
        played.obs[:, -1]
    )
    fresh_carry = jax.vmap(base.init_carry)(jax.random.split(key, len(was_done)))
    pick = partial(jax.vmap(select), was_done)
    done = outcome.terminated | outcome.truncated
    succeeded = state.succeeded | outcome.success
    next_state = RolloutState(
        env=NO_STATE,
        history=pick(fresh_history, jnp.where(is_lost[:, None, None], state.history, history)),
        carry=pick(fresh_carry, state.carry),
        done=~was_done & done,
        succeeded=~was_done & succeeded,
        noise=state.noise,
    )
    choice = choice._replace(is_sound=choice.is_sound & ~(is_lost & ~was_done))
    led = Led(next_state, outcome, done & ~was_done, succeeded)
    return record(base, choice, was_done, led)


def _play_chunk(
    reward: str, terminate_on_success: bool, history: Array, chunk: Array, played: Played
) -> tuple[Array, Outcome]:
    """Adds up the control steps of one environment until its episode is over."""

    def step(carry: tuple[Array, Outcome], now: tuple[Any, Array]) -> tuple[Any, None]:
        history, outcome = carry
        out, action = now
        over = outcome.terminated | outcome.truncated | ~out.executed
        terminated = out.terminated | (out.success & terminate_on_success)
        gained = out.success.astype(jnp.float32) if reward == "success" else out.reward
        bad_action = ~jnp.all(jnp.abs(action) <= 1)
        after = Outcome(
            reward=outcome.reward + gained,
            terminated=terminated,
            truncated=out.truncated & ~terminated,
            success=outcome.success | out.success,
            steps=outcome.steps + 1,
            bad_actions=outcome.bad_actions + bad_action,
            overflows=outcome.overflows,
            anomalies=outcome.anomalies,
        )
        went = push_history(history, out.obs), after
        return select(over, carry, went), None

    no, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    nothing = Outcome(jnp.zeros(()), no, no, no, zero, zero, zero, zero)
    return jax.lax.scan(step, (history, nothing), (played, chunk))[0]
