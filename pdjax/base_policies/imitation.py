"""Trains a diffusion policy on demonstrations, and keeps it on disk.

Pure training functions plus save and load of a policy directory: `policy.json` (what it is, whose
task, its data's statistics) and `params/` (an Orbax checkpoint).
"""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pdjax import checkpoint, schema
from pdjax.base_policies import diffusion
from pdjax.base_policies.chunking import training_windows
from pdjax.schema import Count, Positive, Range, Seed, Share
from pdjax.types import Array, BasePolicy, Key, Params

STD_FLOOR = 1e-2  # constant entries (the robot's base) must not blow up small differences


@dataclasses.dataclass(frozen=True)
class ImitationConfig:
    """How a base policy is trained."""

    policy: diffusion.DiffusionConfig = dataclasses.field(default_factory=diffusion.DiffusionConfig)
    """Shape of the policy."""
    steps: Count = 6_000
    """Gradient steps."""
    batch_size: Count = 256
    """Windows per gradient step."""
    learning_rate: Positive = 1e-3
    """Peak Adam step size; linear warm-up over 5 % of the steps, then a cosine to 0."""
    weight_decay: Annotated[float, Range(0)] = 1e-6
    """AdamW weight decay."""
    ema: Share = 0.995
    """Decay per step of the averaged parameters, which are the ones kept."""
    validation: Annotated[float, Range(0, 0.9)] = 0.05
    """Share of the episodes held out for the validation loss."""
    seed: Seed = 0
    """Seed of initialisation, shuffling and noise."""

    def validate(self) -> None:
        """Raises ConfigError at a value out of range, see also `DiffusionConfig.validate`."""
        schema.check(self)
        self.policy.validate()


class Windows(NamedTuple):
    """Training data: `cond` (n, obs_horizon * obs_dim) normalised, `actions` (n, chunk_dim)."""

    cond: Array
    actions: Array


class ImitationState(NamedTuple):
    """What training carries: parameters, their average, optimiser state, step and key."""

    params: Params
    average: Params
    opt_state: Any
    step: Array
    key: Key


def statistics(episodes: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and floored standard deviation (obs_dim,) over all observations of all episodes."""
    obs = np.concatenate([obs for obs, _ in episodes])
    return obs.mean(axis=0), np.maximum(obs.std(axis=0), STD_FLOOR)


def make_windows(
    episodes: list[tuple[np.ndarray, np.ndarray]],
    config: diffusion.DiffusionConfig,
    obs_mean: np.ndarray,
    obs_std: np.ndarray,
) -> Windows:
    """Cuts (obs (T + 1, obs_dim), actions (T, act_dim)) episodes into device-resident windows."""
    pairs = [
        training_windows((obs - obs_mean) / obs_std, actions, config.obs_horizon,
                         config.pred_horizon)
        for obs, actions in episodes
    ]  # fmt: skip
    cond = np.concatenate([obs for obs, _ in pairs]).astype(np.float32)
    actions = np.concatenate([actions for _, actions in pairs]).astype(np.float32)
    count = len(cond)
    return Windows(jnp.asarray(cond.reshape(count, -1)), jnp.asarray(actions.reshape(count, -1)))


def train(
    episodes: list[tuple[np.ndarray, np.ndarray]],
    config: ImitationConfig,
    progress: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
) -> BasePolicy:
    """Trains a policy.

    Args:
      episodes: (obs (T + 1, obs_dim), actions (T, act_dim)) each, actions in [-1, 1].
      config: policy shape and training settings.
      progress: called with the step and the latest losses.
    """
    config.validate()
    obs_mean, obs_std = statistics(episodes)
    held_out = int(len(episodes) * config.validation)
    order = np.random.default_rng(config.seed).permutation(len(episodes))
    split = [[episodes[i] for i in part] for part in (order[held_out:], order[:held_out])]
    training = make_windows(split[0], config.policy, obs_mean, obs_std)
    validating = make_windows(split[1], config.policy, obs_mean, obs_std) if held_out else training

    obs_dim, act_dim = len(obs_mean), episodes[0][1].shape[1]
    denoiser = diffusion.make_denoiser(obs_dim, act_dim, config.policy)
    optimizer = _make_optimizer(config)
    state = jax.jit(partial(_init, denoiser, optimizer))(jax.random.key(config.seed))
    block = max(1, min(200, config.steps // 20))
    advance = jax.jit(partial(_advance, denoiser, optimizer, config, block), donate_argnums=0)
    validate = jax.jit(partial(diffusion.loss, denoiser))
    validation_key = jax.random.key(config.seed + 1)
    for step in range(0, config.steps, block):
        state, losses = advance(state, training)
        same_noise = jax.random.clone(validation_key)  # so that only the policy changes
        progress(min(step + block, config.steps), {
            "train_loss": float(losses),
            "validation_loss": float(validate(state.average, tuple(validating), same_noise)),
        })  # fmt: skip
    mean, std = jnp.asarray(obs_mean, jnp.float32), jnp.asarray(obs_std, jnp.float32)
    return diffusion.make_policy(config.policy, act_dim, state.average, mean, std)


def _make_optimizer(config: ImitationConfig) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, max(1, config.steps // 20), config.steps
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=config.weight_decay)
    )


def _init(denoiser, optimizer, key: Key) -> ImitationState:
    init_key, key = jax.random.split(key)
    params = denoiser.init(init_key)
    average = jax.tree.map(jnp.copy, params)
    return ImitationState(params, average, optimizer.init(params), jnp.zeros((), jnp.int32), key)


def _advance(denoiser, optimizer, config: ImitationConfig, block: int, state, windows):
    """`block` gradient steps; returns the state and their mean loss."""

    def step(state: ImitationState, _):
        pick_key, loss_key, key = jax.random.split(state.key, 3)
        index = jax.random.randint(pick_key, (config.batch_size,), 0, len(windows.cond))
        batch = (windows.cond[index], windows.actions[index])
        loss, grads = jax.value_and_grad(diffusion.loss, argnums=1)(
            denoiser, state.params, batch, loss_key
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # The average follows faster at first, when the parameters still move far.
        decay = jnp.minimum(config.ema, (1 + state.step) / (10 + state.step))
        average = optax.incremental_update(params, state.average, 1 - decay)
        return ImitationState(params, average, opt_state, state.step + 1, key), loss

    state, losses = jax.lax.scan(step, state, length=block)
    return state, losses.mean()


def save(directory: Path, policy: BasePolicy, config: ImitationConfig, task: str) -> None:
    """Writes a policy directory that `load` reads."""
    description = {
        "kind": "diffusion",
        "task": task,
        "obs_dim": policy.obs_dim,
        "act_dim": policy.act_dim,
        "imitation": dataclasses.asdict(config),
    }
    checkpoint.save(directory / "params", policy.params)
    (directory / "policy.json").write_text(json.dumps(description, indent=2) + "\n")


def load(directory: Path, act_horizon: int = 0) -> tuple[BasePolicy, str]:
    """Reads a policy directory.

    Args:
      directory: written by `save`.
      act_horizon: control steps to execute of each chunk; 0 = as trained.

    Returns:
      The policy and the name of its task.

    Raises:
      checkpoint.CheckpointError: the directory is missing or does not fit its description.
      schema.ConfigError: the policy does not predict `act_horizon` steps.
    """
    try:
        description = json.loads((directory / "policy.json").read_text())
        shape = schema.build(diffusion.DiffusionConfig, description["imitation"]["policy"])
        obs_dim, act_dim = int(description["obs_dim"]), int(description["act_dim"])
        task = str(description["task"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise checkpoint.CheckpointError(
            f"no usable base policy in {directory}: expected policy.json and params/ as written by"
            " `pdjax imitate`"
        ) from None
    if act_horizon:
        shape = dataclasses.replace(shape, act_horizon=act_horizon)
    shape.validate()
    denoiser = diffusion.make_denoiser(obs_dim, act_dim, shape)
    like = {
        "denoiser": jax.eval_shape(denoiser.init, jax.random.key(0)),
        "obs_mean": jax.ShapeDtypeStruct((obs_dim,), jnp.float32),
        "obs_std": jax.ShapeDtypeStruct((obs_dim,), jnp.float32),
    }
    params = checkpoint.restore(directory / "params", like)
    return diffusion.make_policy(shape, act_dim, params["denoiser"], params["obs_mean"],
                                 params["obs_std"]), task  # fmt: skip
