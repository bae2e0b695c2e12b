"""One epoch of training with environments in worker processes.

The same learner, replay and rows as in `epoch`; only the loop over rounds and decisions runs on the
host. While the workers play a round, the gradient steps of the round before run in another thread,
so that the acting policy is one round old (`train.overlap`). Which thread is faster changes
nothing: what acts and what is learnt from is fixed beforehand. The last round of an epoch is learnt
at its end, so that between epochs nothing is pending.
"""

# pyright: reportUnknownMemberType=false

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pdjax.config.schema import Config
from pdjax.learner.gradient_step import Hyperparams, SACState
from pdjax.learner.sac import SAC
from pdjax.output import terminal
from pdjax.rollout.collect import Rollout, choose, exploring_of
from pdjax.rollout.decision import Frozen, RolloutState, base_actions
from pdjax.rollout.worker_rollout import Worlds
from pdjax.training import epoch
from pdjax.training.epoch import Parts, Trainer, TrainState, epoch_metrics, explore
from pdjax.training.stopping import Cut
from pdjax.types import Array, BasePolicy, Key, Metrics, Params
from pdjax_envs.task import Env
from pdjax_envs.workers import WorkerError


class _Actor(NamedTuple):
    actor: Params


class Acting(NamedTuple):
    """What chooses residuals, as in `TrainState`."""

    sac: _Actor
    hyperparams: Hyperparams
    decision_steps: Array


def make_trainer(config: Config, env: Env, base: BasePolicy, rollout: Rollout, sac: SAC) -> Trainer:
    """Builds the training functions of a run in worker processes, which they own.

    Args:
      config: the run.
      env: has `open`.
      base: the base policy.
      rollout: `see` and `init` are used.
      sac: the learner.

    Raises:
      ConfigError: see `epoch.make_trainer`.
    """
    parts = epoch.make_parts(config, base, rollout, sac)
    train_epoch = _make_train_epoch(parts, env, base)
    return epoch.trainer_of(parts)._replace(train_epoch=train_epoch, on_host=True)


def _make_decide(parts: Parts, base: BasePolicy) -> Callable[..., Any]:
    """Returns the compiled choice of one decision, see `worker_rollout.Decide`."""
    config, see = parts.config, parts.rollout.see
    act = partial(base_actions, base)
    exploring = exploring_of(config)

    @jax.jit
    def decide(frozen: Frozen, acting: Acting, state: RolloutState, key: Key, index: Array) -> Any:
        def explore_view(obs: Array, *rest: Array, **noise: Array) -> tuple[Array, Array]:
            return explore(config, parts.sac, acting, see(frozen, obs), *rest, **noise)

        return choose(act, frozen, explore_view, exploring, state, key, index)

    return decide


def _make_train_epoch(
    parts: Parts, env: Env, base: BasePolicy
) -> Callable[[Frozen, TrainState], tuple[TrainState, Metrics]]:
    """Returns the function that plays and learns for one epoch."""
    config = parts.config
    worlds = Worlds(env, base, config.train.num_envs)
    learn = epoch.make_learn(parts)
    decide = _make_decide(parts, base)
    learn_now = jax.jit(learn)
    add = jax.jit(
        lambda replay, rows: parts.replay.add(replay, parts.packing.pack(rows)), donate_argnums=0
    )
    split = jax.jit(lambda key: jax.random.split(key, 3))
    spread = jax.jit(lambda key: jax.random.split(key, parts.schedule.decisions))

    def play_round(
        frozen: Frozen, state: TrainState, key: Key, learner: ThreadPoolExecutor, pending: Any
    ) -> tuple[TrainState, Metrics, Any]:
        """Collects a round while the round before is learnt; `pending`: its key, or None.

        Raises:
          Cut: workers failed too often.
        """
        acting = Acting(_Actor(state.sac.actor), state.hyperparams, state.decision_steps)
        future = None
        if pending is not None:
            future = learner.submit(_wait, partial(learn_now, frozen, state, pending))
        try:
            rollout_state, rows, counts = worlds.collect(
                partial(decide, frozen, acting), state.rollout, spread(key)
            )
        except WorkerError as error:
            if future is not None:
                state = state._replace(sac=future.result()[0])
            raise Cut(state, error) from None
        losses = None
        if future is not None:
            sac_state, *losses = future.result()
            state = state._replace(sac=sac_state)
        state = state._replace(
            rollout=rollout_state,
            replay=add(state.replay, rows),
            decision_steps=state.decision_steps + config.train.decisions_per_round,
            control_steps=state.control_steps + counts["control_steps"],
        )
        return state, counts, losses

    def train(frozen: Frozen, state: TrainState) -> tuple[TrainState, Metrics]:
        counts: list[Metrics] = []
        learnt: list[Any] = []
        pending = None
        with ThreadPoolExecutor(1, "learner") as learner:
            for number in range(1, parts.schedule.rounds + 1):
                collect_key, learn_key, key = split(state.key)
                state = state._replace(key=key)
                state, count, losses = play_round(frozen, state, collect_key, learner, pending)
                counts.append(count)
                learnt += [losses] if losses is not None else []
                pending = learn_key
                if not config.train.overlap or number == parts.schedule.rounds:
                    sac_state, *losses = learn_now(frozen, state, pending)
                    state, pending = state._replace(sac=sac_state), None
                    learnt.append(losses)
        stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
        losses, ready = stack([tuple(one) for one in learnt])
        metrics = epoch_metrics(parts, state, stack(counts), losses, ready)
        if worlds.pool is not None:
            metrics["restarts"] = jnp.float32(worlds.pool.restarts)
            for line in worlds.pool.new_reasons():
                terminal.say(f"{line}; it was replaced, and its episodes are left out")
        return state, metrics

    return train


def _wait(call: Callable[[], tuple[SACState, Any, Any]]) -> tuple[SACState, Any, Any]:
    """Computes in this thread until the results are there."""
    return jax.block_until_ready(call())
