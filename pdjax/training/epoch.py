"""One epoch of training: rollout -> replay -> learner, in one jitted program.

`Trainer.init` makes the whole training state; `Trainer.train_epoch` advances it. Both are pure. An
epoch is a scan of rounds. A round collects a few decisions in all environments and then takes the
gradient steps that `train.updates_per_decision` asks for. Separate from `loop`, which has effects.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdjax.config.schema import Config
from pdjax.devices.sharding import AXIS, split
from pdjax.learner import decorator
from pdjax.learner.gradient_step import Hyperparams, SACState
from pdjax.learner.replay import (
    Packing,
    ReplayBuffer,
    ReplayState,
    make_packing,
    make_replay,
    sample,
)
from pdjax.learner.sac import SAC, residual_dim
from pdjax.rollout.collect import Rollout
from pdjax.rollout.decision import Frozen, RolloutState
from pdjax.training.schedule import Schedule, make_schedule, replay_rows
from pdjax.types import Array, BasePolicy, Batch, Key, Metrics, Transition


class TrainState(NamedTuple):
    """Everything that changes in training; donated to `train_epoch`.

    Attributes:
      sac: the learner.
      replay: the ring.
      rollout: environments and base-policy carries, leaves (num_envs, ...).
      hyperparams: the sweepable numbers.
      decision_steps: () int32, decisions so far over all environments.
      control_steps: () float32, control steps so far over all environments.
      key: source of all further randomness.
    """

    sac: SACState
    replay: ReplayState
    rollout: RolloutState
    hyperparams: Hyperparams
    decision_steps: Array
    control_steps: Array
    key: Key


class Trainer(NamedTuple):
    """The training functions of one run.

    Attributes:
      init: (frozen, hyperparams, key) -> TrainState.
      train_epoch: (frozen, state) -> (state, metrics).
      train_members: the same for several runs; leaves of state and metrics are (members, ...).
      draw_batch: (frozen, state, key) -> Batch in the form that the networks read.
      schedule: how an epoch is divided.
      on_host: whether `train_epoch` is a loop on the host, and cannot be compiled.
    """

    init: Callable[[Frozen, Hyperparams, Key], TrainState]
    train_epoch: Callable[[Frozen, TrainState], tuple[TrainState, Metrics]]
    train_members: Callable[[Frozen, TrainState], tuple[TrainState, Metrics]]
    draw_batch: Callable[[Frozen, TrainState, Key], Batch]
    schedule: Schedule
    on_host: bool = False


class Parts(NamedTuple):
    """What the training functions share: functions and sizes, fixed when they are compiled."""

    config: Config
    schedule: Schedule
    obs_dim: int
    rollout: Rollout
    sac: SAC
    replay: ReplayBuffer
    packing: Packing
    mesh: Mesh | None


def make_trainer(
    config: Config, base: BasePolicy, rollout: Rollout, sac: SAC, mesh: Mesh | None = None
) -> Trainer:
    """Builds the training functions of a run.

    Args:
      config: the run.
      base: the base policy; only its sizes and observation statistics are read.
      rollout: rollout functions of the environment and the base policy.
      sac: the learner.
      mesh: devices over which batches are split; None means one device.

    Raises:
      ConfigError: see `schedule.make_schedule` and `schedule.replay_rows`.
    """
    return trainer_of(make_parts(config, base, rollout, sac, mesh))


def trainer_of(parts: Parts) -> Trainer:
    """Returns the training functions of parts; see `make_trainer`."""
    learn = make_learn(parts)
    return Trainer(
        init=partial(_init, parts),
        train_epoch=partial(_train_epoch, parts, learn),
        train_members=partial(_train_members, parts, learn),
        draw_batch=partial(_draw_batch, parts),
        schedule=parts.schedule,
    )


def make_parts(
    config: Config, base: BasePolicy, rollout: Rollout, sac: SAC, mesh: Mesh | None = None
) -> Parts:
    """Puts together what the training functions share; see `make_trainer`."""
    schedule = make_schedule(config)
    packing = make_packing(config.train.replay_dtype, base.obs_mean, base.obs_std)
    row = _example_row(
        base.obs_dim, base.act_horizon * base.act_dim, residual_dim(config.decorator, base), packing
    )
    replay = make_replay(replay_rows(config, schedule), config.train.num_envs, row)
    return Parts(config, schedule, base.obs_dim, rollout, sac, replay, packing, mesh)


def make_learn(parts: Parts) -> Callable[..., tuple[SACState, Metrics, Array]]:
    """Returns (frozen, state, key) -> (SACState, losses, whether it learnt), one round's steps."""
    # `_learn_if_ready` first asks for the shapes of its results; with jit it is traced only once.
    return partial(_learn_if_ready, parts, jax.jit(partial(_learn, parts)))


def _init(parts: Parts, frozen: Frozen, hyperparams: Hyperparams, key: Key) -> TrainState:
    """Makes the training state at the beginning of a run."""
    sac_key, rollout_key, key = jax.random.split(key, 3)
    return TrainState(
        sac=parts.sac.init(sac_key, hyperparams.initial_temperature),
        replay=parts.replay.init(),
        rollout=parts.rollout.init(frozen, rollout_key, parts.config.train.num_envs),
        hyperparams=hyperparams,
        decision_steps=jnp.zeros((), jnp.int32),
        control_steps=jnp.zeros(()),
        key=key,
    )


def _train_epoch(
    parts: Parts, learn: Callable[..., Any], frozen: Frozen, state: TrainState
) -> tuple[TrainState, Metrics]:
    """Plays and learns for one epoch; `learn` is `_learn_if_ready`, bound to its parts."""

    def play_round(state: TrainState, _: None):
        collect_key, learn_key, key = jax.random.split(state.key, 3)
        state, counts = _collect(parts, frozen, state._replace(key=key), collect_key)
        sac_state, losses, ready = learn(frozen, state, learn_key)
        return state._replace(sac=sac_state), (counts, losses, ready)

    state, (counts, losses, ready) = jax.lax.scan(play_round, state, length=parts.schedule.rounds)
    return state, epoch_metrics(parts, state, counts, losses, ready)


def epoch_metrics(
    parts: Parts, state: TrainState, counts: Metrics, losses: Metrics, ready: Array
) -> Metrics:
    """Returns the metrics of an epoch.

    Args:
      parts: sizes.
      state: after the epoch.
      counts: counts of each round, (rounds,).
      losses: of each round, (rounds,); 0 where it did not learn.
      ready: (rounds,) bool, whether it learnt.
    """
    learned = jnp.maximum(jnp.sum(ready), 1)
    metrics = {name: jnp.sum(value) / learned for name, value in losses.items()}
    episodes = jnp.sum(counts["episodes"])
    observed = float(parts.config.train.decisions_per_epoch * parts.obs_dim)  # beyond 32 bits
    metrics |= {
        "episodes": episodes,
        "train_success": jnp.sum(counts["successes"]) / jnp.maximum(episodes, 1),
        "cut_episodes": jnp.sum(counts["cut_episodes"]),
        "reward": jnp.sum(counts["reward"]) / parts.config.train.decisions_per_epoch,
        "bad_actions": jnp.sum(counts["bad_actions"]),
        "overflows": jnp.sum(counts["overflows"]),
        "anomalies": jnp.sum(counts["anomalies"])
        / jnp.maximum(jnp.sum(counts["control_steps"]), 1),
        "drift": jnp.sum(counts["far_numbers"]) / observed,
        "exploration_prob": _exploration(state),
        "decision_steps": state.decision_steps,
        "control_steps": state.control_steps,
        "gradient_steps": state.sac.gradient_steps,
    }
    return metrics


def _train_members(
    parts: Parts, learn: Callable[..., Any], frozen: Frozen, states: TrainState
) -> tuple[TrainState, Metrics]:
    """Plays and learns for one epoch of several runs; `learn` as in `_train_epoch`."""
    if jax.default_backend() == "cpu":
        # On a CPU members learn in turns: XLA multiplies stacked small matrices 1.5 times slower
        # than one after another. A single run does not use `sequential_vmap`, because JAX's check
        # for reused keys cannot see through it.
        learn = jax.custom_batching.sequential_vmap(learn)
    return jax.vmap(partial(_train_epoch, parts, learn), (None, 0))(frozen, states)


def _collect(
    parts: Parts, frozen: Frozen, state: TrainState, key: Key
) -> tuple[TrainState, Metrics]:
    """Plays the decisions of one round and adds them to the replay."""
    choose = partial(explore, parts.config, parts.sac, state)
    keys = jax.random.split(key, parts.schedule.decisions)
    rollout_state, new_rows, metrics = parts.rollout.collect(frozen, state.rollout, choose, keys)
    state = state._replace(
        rollout=rollout_state,
        replay=parts.replay.add(state.replay, parts.packing.pack(new_rows)),
        decision_steps=state.decision_steps + parts.config.train.decisions_per_round,
        control_steps=state.control_steps + metrics["control_steps"],
    )
    return state, metrics


def explore(
    config: Config,
    sac: SAC,
    state: Any,
    obs: Array,
    base_action: Array,
    key: Key,
    index: Array,
    *uncertainty: Array,
    noise: Array | None = None,
) -> tuple[Array, Array]:
    """Draws the residuals of one decision while collecting: policy or prefill, then the gate.

    Args:
      config: the run.
      sac: the learner.
      state: at the start of the round: its `sac.actor`, `hyperparams` and `decision_steps`.
      obs: (num_envs, view_dim), what the residual policy reads.
      base_action: (num_envs, chunk_dim).
      key: consumed.
      index: () number of the decision in its round.
      *uncertainty: with gate="uncertain", (num_envs,) difference of two draws of the base policy.
      noise: (num_envs, residual_dim) standard normal; None = drawn here.

    Returns:
      residual_action: (num_envs, residual_dim), after the gate.
      residual_scale: ().
    """
    policy_key, uniform_key, gate_key = jax.random.split(key, 3)
    if noise is None:
        noise = jax.random.normal(policy_key, (len(obs), len(sac.limits)))
    drawn = sac.act(state.sac.actor, obs, base_action, noise)
    if config.train.prefill == "uniform":
        prefill = sac.limits * jax.random.uniform(uniform_key, drawn.shape, minval=-1.0)
    else:
        prefill = drawn if config.train.prefill == "policy" else jnp.zeros_like(drawn)
    num_envs = config.train.num_envs
    prob = _exploration(state, (index + 1) * num_envs)
    if uncertainty:
        is_open = decorator.gate_uncertain(gate_key, prob, *uncertainty)
    else:
        is_open = decorator.gate(gate_key, prob, num_envs)
    learning = state.decision_steps >= config.train.learning_starts
    chosen = jnp.where(learning, drawn, prefill)
    residual_action = jnp.where(is_open[:, None], chosen, 0.0)
    return residual_action, state.hyperparams.residual_scale


def _exploration(state: Any, ahead: Array | int = 0) -> Array:
    """Returns the share of decisions that apply the residual, `ahead` decisions from now."""
    steps, hyperparams = state.decision_steps + ahead, state.hyperparams
    opened = decorator.exploration_prob(steps, hyperparams.exploration_steps)
    return jnp.minimum(opened, hyperparams.exploration_limit)


def _learn_if_ready(
    parts: Parts, learn: Callable[..., Any], frozen: Frozen, state: TrainState, key: Key
) -> tuple[SACState, Metrics, Array]:
    """Learns if the replay is ready, and says whether it did; `learn` is `_learn`, jitted."""
    ready = state.decision_steps >= parts.config.train.learning_starts
    ready &= parts.replay.can_sample(state.replay, parts.config.sac.n_step)
    shapes = jax.eval_shape(learn, frozen, state, key)[1]

    def skip(frozen: Frozen, state: TrainState, key: Key) -> tuple[SACState, Metrics]:
        del frozen, key
        return state.sac, jax.tree.map(jnp.zeros_like, shapes)

    return *jax.lax.cond(ready, learn, skip, frozen, state, key), ready


def _learn(parts: Parts, frozen: Frozen, state: TrainState, key: Key) -> tuple[SACState, Metrics]:
    """Takes the gradient steps of one round; the metrics are their means."""

    def update(sac_state: SACState, key: Key) -> tuple[SACState, Metrics]:
        sample_key, update_key = jax.random.split(key)
        batch = _draw_batch(parts, frozen, state, sample_key)
        return parts.sac.update(sac_state, batch, state.hyperparams, update_key)

    keys = jax.random.split(key, parts.schedule.updates)
    sac_state, metrics = jax.lax.scan(update, state.sac, keys)
    return sac_state, jax.tree.map(jnp.mean, metrics)


def _draw_batch(parts: Parts, frozen: Frozen, state: TrainState, key: Key) -> Batch:
    """Draws a batch in the form that the networks read."""
    batch = split(parts.mesh, _draw_stored(parts, frozen, state, key))
    view, batch = parts.rollout.see, parts.packing.unpack(batch)
    return batch._replace(obs=view(frozen, batch.obs), next_obs=view(frozen, batch.next_obs))


def _draw_stored(parts: Parts, frozen: Frozen, state: TrainState, key: Key) -> Batch:
    """Draws a batch in the replay's packed format, with its share of demonstrations."""
    sac = parts.config.sac
    draw = partial(
        sample,
        n_step=sac.n_step,
        gamma=state.hyperparams.gamma,
        reward_offset=state.hyperparams.reward_offset,
    )
    from_demos = round(parts.config.train.demo_share * sac.batch_size)
    if not from_demos:
        return draw(state.replay, key, sac.batch_size)
    replay_key, demo_key = jax.random.split(key)
    batch = draw(state.replay, replay_key, sac.batch_size - from_demos)
    demos = draw(frozen.demos, demo_key, from_demos)
    scale = state.hyperparams.residual_scale  # `demo_ring` keeps differences that are not divided
    demos = demos._replace(residual_action=demos.residual_action / scale)
    return jax.tree.map(lambda *halves: jnp.concatenate(halves), batch, demos)


def placement(mesh: Mesh, stacked: bool = False) -> TrainState:
    """Returns where each part of a training state lives: one sharding for all leaves below it.

    Args:
      mesh: the devices.
      stacked: whether leaves are (members, ...), the states of several members; every device holds
        all members.
    """
    first = [None] * stacked
    whole: Any = NamedSharding(mesh, PartitionSpec())
    by_env: Any = NamedSharding(mesh, PartitionSpec(*first, AXIS))
    by_column: Any = NamedSharding(mesh, PartitionSpec(*first, None, AXIS))  # (rows, num_envs, ...)
    replay = ReplayState(storage=by_column, cursor=whole, size=whole)
    everything = TrainState(*[whole] * len(TrainState._fields))
    return everything._replace(replay=replay, rollout=by_env)


def _example_row(obs_dim: int, chunk_dim: int, residual_dim: int, packing: Packing) -> Transition:
    """Returns the shapes of what one environment stores in one row."""

    def numbers(size: int) -> Any:
        return jax.ShapeDtypeStruct((size,), packing.dtype)

    reward: Any = jax.ShapeDtypeStruct((), jnp.float32)
    flag: Any = jax.ShapeDtypeStruct((), jnp.bool_)
    return Transition(
        obs=numbers(obs_dim),
        base_action=numbers(chunk_dim),
        residual_action=numbers(residual_dim),
        reward=reward,
        terminated=flag,
        truncated=flag,
        is_reset=flag,
    )
