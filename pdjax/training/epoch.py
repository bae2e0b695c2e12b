"""One epoch of training: rollout -> replay -> learner, in one jitted program.

`init` makes the whole training state; `train_epoch` advances it. Both are pure. An epoch is a scan
of rounds; a round collects a few decisions of all environments and then takes the gradient steps
that the update ratio owes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pdjax.config.fields import Config, ConfigError
from pdjax.devices.sharding import AXIS, split
from pdjax.learner import decorator
from pdjax.learner.gradient_step import Hyperparams, SACState
from pdjax.learner.replay import ReplayState, make_packing, make_replay, sample
from pdjax.learner.sac import SAC, residual_dim
from pdjax.rollout.collect import Rollout
from pdjax.rollout.decision import Frozen, RolloutState
from pdjax.types import Array, BasePolicy, Batch, Key, Metrics, Transition


class TrainState(NamedTuple):
    """All that changes in training; donated to `train_epoch`.

    Attributes:
      sac: the learner.
      replay: the ring.
      rollout: environments and base-policy carries, leaves (num_envs, ...).
      hyperparams: the sweepable scalars.
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


class Schedule(NamedTuple):
    """How an epoch is cut, in whole numbers that the config's ratios come to.

    Attributes:
      decisions: decisions of each environment per round.
      rounds: rounds per epoch.
      updates: gradient steps per round.
    """

    decisions: int
    rounds: int
    updates: int


class Trainer(NamedTuple):
    """`init`: (frozen, hyperparams, key) -> TrainState; `train_epoch`: (frozen, state) ->
    (state, metrics); `train_members`: the same for several runs, leaves of state and metrics
    (members, ...); `draw_batch`: (frozen, state, key) -> Batch as the networks read it;
    `schedule`: how an epoch is cut."""

    init: Callable[[Frozen, Hyperparams, Key], TrainState]
    train_epoch: Callable[[Frozen, TrainState], tuple[TrainState, Metrics]]
    train_members: Callable[[Frozen, TrainState], tuple[TrainState, Metrics]]
    draw_batch: Callable[[Frozen, TrainState, Key], Batch]
    schedule: Schedule


def make_schedule(config: Config) -> Schedule:
    """Cuts an epoch.

    Raises:
      ConfigError: the config's decisions do not come to whole rounds, or a round owes a fraction
        of an update.
    """
    train = config.train
    decisions, rest = divmod(train.decisions_per_round, train.num_envs)
    if rest or decisions < 1:
        raise ConfigError(
            f"train.decisions_per_round={train.decisions_per_round} must be a multiple of"
            f" train.num_envs={train.num_envs}"
        )
    rounds, rest = divmod(train.decisions_per_epoch, train.decisions_per_round)
    if rest or rounds < 1:
        raise ConfigError(
            f"train.decisions_per_epoch={train.decisions_per_epoch} must be a multiple of"
            f" train.decisions_per_round={train.decisions_per_round}"
        )
    updates = train.decisions_per_round * train.updates_per_decision
    if abs(updates - round(updates)) > 1e-6 or updates < 1:
        raise ConfigError(
            f"train.decisions_per_round={train.decisions_per_round} times"
            f" train.updates_per_decision={train.updates_per_decision} gives {updates:g} updates a"
            " round, expected a whole number of at least 1; change either"
        )
    return Schedule(decisions, rounds, round(updates))


def make_trainer(
    config: Config, base: BasePolicy, rollout: Rollout, sac: SAC, mesh: Mesh | None = None
) -> Trainer:
    """Binds the training functions.

    Args:
      config: the run.
      base: the base policy, for sizes.
      rollout: of the environment and the base policy.
      sac: the learner.
      mesh: over which batches are split; None = one device.
    """
    schedule = make_schedule(config)
    chunk_dim = base.act_horizon * base.act_dim
    rows = _replay_rows(config, schedule)
    packing = make_packing(config.train.replay_dtype, base.obs_mean, base.obs_std)
    sizes = base.obs_dim, chunk_dim, residual_dim(config.decorator, base)
    row = _example_row(sizes, packing.dtype)
    replay = make_replay(rows, config.train.num_envs, row)

    def init(frozen: Frozen, hyperparams: Hyperparams, key: Key) -> TrainState:
        sac_key, rollout_key, key = jax.random.split(key, 3)
        return TrainState(
            sac=sac.init(sac_key, hyperparams.initial_temperature),
            replay=replay.init(),
            rollout=rollout.init(frozen, rollout_key, config.train.num_envs),
            hyperparams=hyperparams,
            decision_steps=jnp.zeros((), jnp.int32),
            control_steps=jnp.zeros(()),
            key=key,
        )

    def collect(frozen: Frozen, state: TrainState, key: Key):
        choose = _explorer(config, sac, state)
        keys = jax.random.split(key, schedule.decisions)
        rollout_state, new_rows, metrics = rollout.collect(frozen, state.rollout, choose, keys)
        state = state._replace(
            rollout=rollout_state,
            replay=replay.add(state.replay, packing.pack(new_rows)),
            decision_steps=state.decision_steps + config.train.decisions_per_round,
            control_steps=state.control_steps + metrics["control_steps"],
        )
        return state, metrics

    def draw_stored(frozen: Frozen, state: TrainState, key: Key) -> Batch:
        draw = partial(
            sample,
            n_step=config.sac.n_step,
            gamma=state.hyperparams.gamma,
            reward_offset=state.hyperparams.reward_offset,
        )
        from_demos = round(config.train.demo_share * config.sac.batch_size)
        if not from_demos:
            return draw(state.replay, key, config.sac.batch_size)
        replay_key, demo_key = jax.random.split(key)
        batch = draw(state.replay, replay_key, config.sac.batch_size - from_demos)
        demos = draw(frozen.demos, demo_key, from_demos)
        scale = state.hyperparams.residual_scale  # `demo_replay` stores differences
        demos = demos._replace(residual_action=demos.residual_action / scale)
        return jax.tree.map(lambda *halves: jnp.concatenate(halves), batch, demos)

    def draw_batch(frozen: Frozen, state: TrainState, key: Key) -> Batch:
        batch = split(mesh, draw_stored(frozen, state, key))
        view, batch = rollout.see, packing.unpack(batch)
        return batch._replace(obs=view(frozen, batch.obs), next_obs=view(frozen, batch.next_obs))

    @jax.jit  # so that `learn_if_ready`, which asks for its shapes first, traces it once
    def learn(frozen: Frozen, state: TrainState, key: Key) -> tuple[SACState, Metrics]:
        def update(sac_state: SACState, key: Key):
            sample_key, update_key = jax.random.split(key)
            batch = draw_batch(frozen, state, sample_key)
            return sac.update(sac_state, batch, state.hyperparams, update_key)

        keys = jax.random.split(key, schedule.updates)
        sac_state, metrics = jax.lax.scan(update, state.sac, keys)
        return sac_state, jax.tree.map(jnp.mean, metrics)

    def learn_if_ready(frozen: Frozen, state: TrainState, key: Key):
        ready = state.decision_steps >= config.train.learning_starts
        ready &= replay.can_sample(state.replay, config.sac.n_step)
        shapes = jax.eval_shape(learn, frozen, state, key)[1]
        skip = lambda frozen, state, key: (state.sac, jax.tree.map(jnp.zeros_like, shapes))  # noqa: E731
        return *jax.lax.cond(ready, learn, skip, frozen, state, key), ready

    def round_(frozen: Frozen, state: TrainState, learn: Callable[..., Any]):
        collect_key, learn_key, key = jax.random.split(state.key, 3)
        state, counts = collect(frozen, state._replace(key=key), collect_key)
        sac_state, losses, ready = learn(frozen, state, learn_key)
        return state._replace(sac=sac_state), (counts, losses, ready)

    def train_epoch(
        frozen: Frozen, state: TrainState, learn: Callable[..., Any] = learn_if_ready
    ) -> tuple[TrainState, Metrics]:
        state, (counts, losses, ready) = jax.lax.scan(
            lambda state, _: round_(frozen, state, learn), state, length=schedule.rounds
        )
        learned = jnp.maximum(jnp.sum(ready), 1)
        metrics = {name: jnp.sum(value) / learned for name, value in losses.items()}
        episodes = jnp.sum(counts["episodes"])
        observed = config.train.decisions_per_epoch * base.obs_dim
        metrics |= {
            "episodes": episodes,
            "train_success": jnp.sum(counts["successes"]) / jnp.maximum(episodes, 1),
            "bad_actions": jnp.sum(counts["bad_actions"]),
            "overflows": jnp.sum(counts["overflows"]),
            "anomalies": jnp.sum(counts["anomalies"]) / jnp.sum(counts["control_steps"]),
            "drift": jnp.sum(counts["far_numbers"]) / observed,
            "exploration_prob": _exploration(state),
            "decision_steps": state.decision_steps,
            "control_steps": state.control_steps,
            "gradient_steps": state.sac.gradient_steps,
        }
        return state, metrics

    def train_members(frozen: Frozen, states: TrainState) -> tuple[TrainState, Metrics]:
        learn = learn_if_ready
        if jax.default_backend() == "cpu":
            # Members take turns here: as stacks of small matrices XLA's products take half as long
            # again on a CPU as one after another. A run alone does without this rule, because the
            # check for keys that are used twice cannot see through it.
            learn = jax.custom_batching.sequential_vmap(learn)
        return jax.vmap(partial(train_epoch, learn=learn), (None, 0))(frozen, states)

    return Trainer(init, train_epoch, train_members, draw_batch, schedule)


def placement(mesh: Mesh, stacked: bool = False) -> TrainState:
    """Where each part of a training state lives: shardings, each of all leaves below it.

    Args:
      mesh: of the devices.
      stacked: of several members, leaves (members, ...), which all devices share.
    """
    first = [None] * stacked
    whole: Any = NamedSharding(mesh, PartitionSpec())
    by_env: Any = NamedSharding(mesh, PartitionSpec(*first, AXIS))
    by_column: Any = NamedSharding(mesh, PartitionSpec(*first, None, AXIS))  # (rows, num_envs, ...)
    replay = ReplayState(storage=by_column, cursor=whole, size=whole)
    everything = TrainState(*[whole] * len(TrainState._fields))
    return everything._replace(replay=replay, rollout=by_env)


def _replay_rows(config: Config, schedule: Schedule) -> int:
    """Rows of the ring: whole rounds, and more than an n-step transition needs."""
    rows = config.train.replay_capacity // config.train.num_envs
    rows -= rows % schedule.decisions
    if rows <= config.sac.n_step:
        raise ConfigError(
            f"train.replay_capacity={config.train.replay_capacity} holds {rows} decisions of each"
            f" of {config.train.num_envs} environments in whole rounds, expected more than"
            f" sac.n_step={config.sac.n_step}; raise train.replay_capacity"
        )
    return rows


def _example_row(sizes: tuple[int, int, int], dtype: Any) -> Transition:
    """What one environment stores: `sizes` numbers of obs, base_action, residual_action."""
    numbers: Any = [jax.ShapeDtypeStruct((size,), dtype) for size in sizes]
    reward: Any = jax.ShapeDtypeStruct((), jnp.float32)
    flag: Any = jax.ShapeDtypeStruct((), jnp.bool_)
    obs, base_action, residual_action = numbers
    return Transition(obs, base_action, residual_action, reward, flag, flag, flag)


def _exploration(state: TrainState, ahead: Array | int = 0) -> Array:
    """Share of decisions that let the residual in, `ahead` decisions from here."""
    steps, hyperparams = state.decision_steps + ahead, state.hyperparams
    opened = decorator.exploration_prob(steps, hyperparams.exploration_steps)
    return jnp.minimum(opened, hyperparams.exploration_limit)


def _explorer(config: Config, sac: SAC, state: TrainState):
    """How residuals are drawn while collecting: policy or prefill, then the gate."""
    num_envs = config.train.num_envs
    learning = state.decision_steps >= config.train.learning_starts

    def choose(obs: Array, base_action: Array, key: Key, index: Array, *uncertainty: Array):
        policy_key, uniform_key, gate_key = jax.random.split(key, 3)
        drawn = sac.act(state.sac.actor, obs, base_action, policy_key)
        if config.train.prefill == "uniform":
            prefill = sac.limits * jax.random.uniform(uniform_key, drawn.shape, minval=-1.0)
        else:
            prefill = drawn if config.train.prefill == "policy" else jnp.zeros_like(drawn)
        prob = _exploration(state, (index + 1) * num_envs)
        if uncertainty:
            is_open = decorator.gate_uncertain(gate_key, prob, *uncertainty)
        else:
            is_open = decorator.gate(gate_key, prob, num_envs)
        chosen = jnp.where(learning, drawn, prefill)
        residual_action = jnp.where(is_open[:, None], chosen, 0.0)
        return residual_action, state.hyperparams.residual_scale

    return choose
