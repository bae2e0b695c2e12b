"""Trains any kind of base policy on demonstrations, and saves and loads its directory.

A policy's directory holds `policy.json` (kind, task and shape) and `params/` (an Orbax checkpoint).
Training is pure; saving and loading are not. This file knows no simulator.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pdjax.base_policies.chunking import training_windows
from pdjax.base_policies.kinds import act, behavior_transformer, diffusion, mlp
from pdjax.base_policies.kinds.trainable import TrainablePolicy, Windows, abstract_params
from pdjax.base_policies.settings import KINDS, ImitationConfig, PolicyConfig
from pdjax.base_policies.torch_checkpoints.adaptation import Adaptation, adapt
from pdjax.config import options
from pdjax.config.seeds import shift_seed
from pdjax.devices import exhaustion
from pdjax.output import checkpoint
from pdjax.types import Array, BasePolicy, Key, Params
from pdjax_envs import reading, writing
from pdjax_envs.reading import InputError, check_fits

FILE = "policy.json"
MOST_NUMBERS = 1_000_000  # in one observation or action, far beyond any robot's
STD_FLOOR = 1e-2  # small changes of a constant entry (the robot's base) must not become large

MAKERS: dict[str, Callable[..., TrainablePolicy]] = {
    "diffusion": diffusion.make_trainable,
    "bet": behavior_transformer.make_trainable,
    "act": act.make_trainable,
    "mlp": mlp.make_trainable,
}

Episodes = list[tuple[np.ndarray, np.ndarray]]
"""One (obs (T + 1, obs_dim), actions (T, act_dim)) per episode, with actions in [-1, 1]."""


class ImitationState(NamedTuple):
    """Everything that training carries from one gradient step to the next.

    Attributes:
      params: the trained parameters.
      average: exponential moving average of `params`, which the finished policy uses.
      fixed: arrays that are never trained, such as the clusters of a Behavior Transformer.
      opt_state: state of the optimiser.
      step: () int32, gradient steps taken.
      key: random key of the next gradient step.
    """

    params: Params
    average: Params
    fixed: Params
    opt_state: Any
    step: Array
    key: Key


class Trainer(NamedTuple):
    """Trains one policy on one set of demonstrations.

    Attributes:
      block: largest number of gradient steps in one `advance`.
      init: () -> ImitationState.
      advance: (state, steps=block) -> (state, losses). The state is donated. The losses are
        `train_loss`, the mean over the steps, and `validation_loss`. A second compiled program
        serves every number of steps below `block`.
      make_policy: (state) -> BasePolicy with the averaged parameters.
    """

    block: int
    init: Callable[[], ImitationState]
    advance: Callable[..., tuple[ImitationState, dict[str, float]]]
    make_policy: Callable[[ImitationState], BasePolicy]


def statistics(episodes: Episodes) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and floored standard deviation (obs_dim,) over all observations."""
    obs = np.concatenate([obs for obs, _ in episodes])
    return obs.mean(axis=0), np.maximum(obs.std(axis=0), STD_FLOOR)


def make_windows(
    episodes: Episodes, kind: TrainablePolicy, obs_mean: np.ndarray, obs_std: np.ndarray
) -> Windows:
    """Cuts episodes into the windows that a kind of policy needs, and puts them on the device."""
    pairs = [
        training_windows(
            (obs - obs_mean) / obs_std, actions, kind.obs_horizon, kind.pred_horizon, kind.from_now
        )
        for obs, actions in episodes
    ]
    parts = [np.concatenate(part).astype(np.float32) for part in zip(*pairs)]
    return Windows(*map(jnp.asarray, parts))


def make_trainer(episodes: Episodes, config: ImitationConfig) -> Trainer:
    """Prepares training on the given data: cuts windows, holds episodes out, jits the steps.

    Args:
      episodes: demonstrations.
      config: policy shape and training settings.

    Raises:
      schema.ConfigError: a setting cannot work.
    """
    config.validate()
    obs_mean, obs_std = statistics(episodes)
    held_out = int(len(episodes) * config.validation)
    order = np.random.default_rng(config.seed).permutation(len(episodes))
    split = [[episodes[i] for i in part] for part in (order[held_out:], order[:held_out])]
    kind = MAKERS[config.kind](config.policy, len(obs_mean), episodes[0][1].shape[1])
    training = make_windows(split[0], kind, obs_mean, obs_std)
    validating = make_windows(split[1], kind, obs_mean, obs_std) if held_out else training

    optimizer = _make_optimizer(config, kind)
    block = max(1, min(200, config.steps // 20))
    jit_init = jax.jit(partial(_init, kind, optimizer))
    step = partial(_step, kind, optimizer, config)
    advance_block = jax.jit(partial(_advance, step, block), donate_argnums=0)
    advance_part = jax.jit(partial(_advance_part, step), donate_argnums=0)
    validate = jax.jit(lambda state, *rest: kind.loss(state.average | state.fixed, *rest))
    validation_key = jax.random.key(shift_seed(config.seed, 1))

    def advance(state: ImitationState, steps: int = block):
        with exhaustion.lower("batch_size or the sizes of the policy"):
            if steps == block:
                state, train_loss = advance_block(state, training)
            else:
                state, train_loss = advance_part(state, training, steps)
        same_noise = jax.random.clone(validation_key)  # so that only changes of the policy show
        return state, {
            "train_loss": float(train_loss),
            "validation_loss": float(validate(state, validating, same_noise)),
        }

    def make_policy(state: ImitationState) -> BasePolicy:
        mean, std = jnp.asarray(obs_mean, jnp.float32), jnp.asarray(obs_std, jnp.float32)
        kept = jax.tree.map(jnp.copy, state.average | state.fixed)  # the state is donated
        return kind.make_policy(kept | {"obs_mean": mean, "obs_std": std})

    init = partial(jit_init, jax.random.key(config.seed), training)
    _check_memory(config, jax.eval_shape(init), training)
    return Trainer(block, init, advance, make_policy)


def _check_memory(config: ImitationConfig, state: ImitationState, windows: Windows) -> None:
    """Checks that parameters, optimiser and a batch fit into memory, by their shapes alone.

    Raises:
      InputError: they do not.
    """
    held = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(state))
    check_fits(2 * held, f"a policy of these sizes ({config.kind})")
    window = sum(math.prod(leaf.shape[1:]) * 4 for leaf in windows)
    check_fits(config.batch_size * window, f"batch_size={config.batch_size:,}", "lower it")


def train(
    episodes: Episodes,
    config: ImitationConfig,
    progress: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> BasePolicy:
    """Trains a policy to the end; `prepare.imitate` also evaluates, saves and resumes.

    Args:
      episodes: demonstrations.
      config: policy shape and training settings.
      progress: called with the number of gradient steps taken and the latest losses.

    Returns:
      The policy with the averaged parameters.
    """
    trainer = make_trainer(episodes, config)
    state = trainer.init()
    for begin in range(0, config.steps, trainer.block):
        end = min(begin + trainer.block, config.steps)
        state, losses = trainer.advance(state, end - begin)
        progress(end, losses)
    return trainer.make_policy(state)


def _make_optimizer(config: ImitationConfig, kind: TrainablePolicy) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(1, config.steps // 20), max(2, config.steps)
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, weight_decay=config.weight_decay, mask=kind.decays),
    )


def _init(kind: TrainablePolicy, optimizer, key: Key, windows: Windows) -> ImitationState:
    init_key, key = jax.random.split(key)
    params, fixed = kind.init(init_key, windows)
    average = jax.tree.map(jnp.copy, params)
    step = jnp.zeros((), jnp.int32)
    return ImitationState(params, average, fixed, optimizer.init(params), step, key)


def _step(
    kind: TrainablePolicy, optimizer, config: ImitationConfig, windows: Windows, state
) -> tuple[ImitationState, Array]:
    """Takes one gradient step; returns the state and its loss."""

    def loss_of(params, fixed, batch, key):
        return kind.loss(params | fixed, batch, key)

    pick_key, loss_key, key = jax.random.split(state.key, 3)
    index = jax.random.randint(pick_key, (config.batch_size,), 0, len(windows.obs))
    batch = Windows(windows.obs[index], windows.actions[index])
    loss, grads = jax.value_and_grad(loss_of)(state.params, state.fixed, batch, loss_key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # The average follows faster at first, while the parameters still change a lot.
    decay = jnp.minimum(config.ema, (1 + state.step) / (10 + state.step))
    average = optax.incremental_update(params, state.average, 1 - decay)
    return ImitationState(params, average, state.fixed, opt_state, state.step + 1, key), loss


def _advance(step, block: int, state: ImitationState, windows: Windows):
    """Takes `block` gradient steps; returns the state and the mean loss."""
    state, losses = jax.lax.scan(lambda state, _: step(windows, state), state, length=block)
    return state, losses.mean()


def _advance_part(step, state: ImitationState, windows: Windows, steps: Array | int):
    """Takes `steps` gradient steps, at least 1; the program does not depend on their number."""

    def add(_, carry):
        state, total = carry
        state, loss = step(windows, state)
        return state, total + loss

    state, total = jax.lax.fori_loop(0, steps, add, (state, jnp.float32(0)))
    return state, total / steps


def save(directory: Path, policy: BasePolicy, config: ImitationConfig, task: str) -> None:
    """Writes a trained policy to a directory that `load` reads.

    Args:
      directory: an existing directory.
      policy: the policy.
      config: the settings that it was trained with.
      task: name of its task.
    """
    _write(directory, policy, describe(config, task))


def describe(config: ImitationConfig, task: str) -> dict[str, Any]:
    """Returns the content of `policy.json`, except for the sizes of the task."""
    sections = dataclasses.asdict(config)
    training = {name: value for name, value in sections.items() if name not in {"kind", *KINDS}}
    imitated = {"policy": sections[config.kind], **training}
    return {"kind": config.kind, "task": task, "imitation": imitated}


def save_imported(
    directory: Path, policy: BasePolicy, shape: PolicyConfig, task: str, adaptation: Adaptation
) -> None:
    """Writes a policy that was trained elsewhere to a directory that `load` reads.

    Args:
      directory: an existing directory.
      policy: the policy that `make_policy` of its kind returned, before it is adapted.
      shape: shape of the policy.
      task: name of its task.
      adaptation: how its actions and statistics are adapted to the task.
    """
    kind = next(name for name, section in KINDS.items() if isinstance(shape, section))
    _write(
        directory,
        policy,
        {
            "kind": kind,
            "task": task,
            "imitation": {"policy": dataclasses.asdict(shape)},
            "adaptation": dataclasses.asdict(adaptation),
        },
    )


def _write(directory: Path, policy: BasePolicy, description: dict[str, Any]) -> None:
    description = description | {"obs_dim": policy.obs_dim, "act_dim": policy.act_dim}
    checkpoint.save(directory / "params", policy.params)
    writing.write_json(directory / FILE, description)


def load(directory: Path, act_horizon: int = 0) -> tuple[BasePolicy, str]:
    """Reads a policy's directory.

    Args:
      directory: a directory that `save` or `save_imported` wrote.
      act_horizon: control steps to execute of each chunk; 0 = the number that it was trained with.

    Returns:
      The policy and the name of its task.

    Raises:
      checkpoint.CheckpointError: the directory is missing or its parts do not agree.
      schema.ConfigError: the policy does not predict `act_horizon` steps.
    """
    try:
        description = reading.read_json_object(directory / FILE, "base policy")
        name = description["kind"]
        shape = options.build(KINDS[name], description["imitation"]["policy"])
        obs_dim, act_dim = (_size(description, key) for key in ("obs_dim", "act_dim"))
        task = str(description["task"])
        around = description.get("adaptation")
        adaptation = options.build(Adaptation, around) if around else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        is_told = isinstance(error, InputError) and (directory / FILE).exists()
        why = f" ({error})" if is_told else ""
        raise checkpoint.CheckpointError(
            f"no usable base policy in {directory}{why}: expected policy.json and params/ as"
            " written by `pdjax imitate`, `pdjax import` or `pdjax wrap`"
        ) from None
    shape = _with_act_horizon(name, shape, act_horizon)
    shape.validate()
    kind = MAKERS[name](shape, obs_dim, act_dim)

    like = abstract_params(kind, obs_dim, act_dim)
    policy = kind.make_policy(checkpoint.restore(directory / "params", like))
    return adapt(policy, adaptation) if adaptation else policy, task


def _size(description: dict[str, Any], name: str) -> int:
    """Returns the number of entries of an observation or of an action."""
    size = description[name]
    if type(size) is not int or not 0 < size <= MOST_NUMBERS:
        raise InputError(
            f"{name} is {reading.short(size)}, expected a count of at most {MOST_NUMBERS:,}"
        )
    return size


def _with_act_horizon(name: str, shape: PolicyConfig, act_horizon: int) -> PolicyConfig:
    """Returns the shape with another act_horizon, if the kind's parameters do not fix it."""
    if not act_horizon or act_horizon == shape.act_horizon:
        return shape
    if not hasattr(shape, "pred_horizon"):
        raise options.ConfigError(
            f"act_horizon={act_horizon} is impossible: this {name} policy predicts exactly"
            f" {shape.act_horizon} control steps at once; train another policy or set act_horizon=0"
        )
    return dataclasses.replace(shape, act_horizon=act_horizon)
