"""Reads LeRobot checkpoints of diffusion policies and ACT whose observations are numbers.

A checkpoint is a folder with `config.json` and `model.safetensors`. The statistics are among the
weights (older versions) or in `policy_preprocessor_*` and `policy_postprocessor_*`. The task's
observation is observation.state followed by observation.environment_state.

A number that was constant in training is normalised to its distance from that constant, minus 1 for
a range, as LeRobot has it at the constant itself. LeRobot would multiply such a distance by 1e8,
and networks in float32 then give NaN. The style encoder of ACT, which no rollout uses, is
left out.

Source: huggingface/lerobot policies/diffusion, policies/act and processor/normalize_processor.py.
This file is not pure: it reads files.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pdjax.base_policies.kinds import act, diffusion
from pdjax.base_policies.kinds.trainable import abstract_params
from pdjax.base_policies.settings import NOISE_STEPS, ActConfig, DiffusionConfig
from pdjax.base_policies.torch_checkpoints.imported import (
    FINAL_GROUPS,
    Imported,
    shape_from,
    unet_key,
)
from pdjax.base_policies.torch_checkpoints.weights import Weights, fit, read_safetensors
from pdjax.config.options import ConfigError
from pdjax.types import Params
from pdjax_envs.reading import is_file, read_json_object, short

PARTS = ("observation.state", "observation.environment_state")  # their order in an observation
# The two statistics of each mode of normalisation, and whether they are the ends of a range.
MODES = {
    "MEAN_STD": ("mean", "std", False),
    "MIN_MAX": ("min", "max", True),
    "QUANTILES": ("q01", "q99", True),
    "QUANTILE10": ("q10", "q90", True),
}
BUFFERS = ("normalize_inputs.buffer_", "normalize_targets.buffer_", "unnormalize_outputs.buffer_")
STEPS = {
    "rename_observations_processor",
    "to_batch_processor",
    "device_processor",
    "normalizer_processor",
    "unnormalizer_processor",
}
EPS = 1e-8  # added to widths; LeRobot NormalizerProcessorStep, eps
ROUNDING = 1e-6  # a width below this share of the mean is rounding in float32: 16 steps of it
MOST = 1e30  # largest statistic; the width of a range of larger ones is not finite in float32
MOST_NUMBERS = 100_000  # in one observation or action
DDIM_STEPS = 10  # for checkpoints that sample with DDPM; Diffusion Policy uses 10 with DDIM


class _Source(NamedTuple):
    """The settings and statistics in a checkpoint's folder.

    Attributes:
      path: path of config.json.
      config: content of config.json.
      parts: maps names of the observation's parts to their sizes, in order.
      act_dim: numbers in one action.
      stats: maps names such as `observation.state.mean` to statistics.
    """

    path: Path
    config: dict[str, Any]
    parts: dict[str, int]
    act_dim: int
    stats: dict[str, np.ndarray]

    def normalisation(self, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and width (count,) float32: normalised = (raw - mean) / width.

        Args:
          name: a feature, such as `observation.state` or `action`.
          count: numbers in the feature.

        Raises:
          ConfigError: the mode is unknown, or statistics are missing or have another size.
        """
        kind = {PARTS[0]: "STATE", PARTS[1]: "ENV"}.get(name, "ACTION")
        mode = str(self.config["normalization_mapping"].get(kind, "IDENTITY"))
        if mode == "IDENTITY":
            return np.zeros(count, np.float32), np.ones(count, np.float32)
        if mode not in MODES:
            raise ConfigError(
                f"{self.path}: {kind} is normalised by {short(repr(mode))}, expected one of"
                f" {', '.join(MODES)} or IDENTITY"
            )
        first, second, is_range = MODES[mode]
        low, high = (self._statistic(f"{name}.{which}", count) for which in (first, second))
        mean, width = (low + (high - low) / 2, (high - low) / 2) if is_range else (low, high)
        if (width < 0).any():
            raise ConfigError(f"{self.path.parent}: {name} has a negative width in its statistics")
        constant = (width <= np.maximum(EPS, ROUNDING * np.abs(mean))) & (name != "action")
        return np.where(constant & is_range, low + 1, mean), np.where(constant, 1, width)

    def _statistic(self, key: str, count: int) -> np.ndarray:
        found = self.stats.get(key)
        if found is None or found.shape != (count,) or not (np.abs(found) <= MOST).all():
            raise ConfigError(
                f"{self.path.parent} has {'no' if found is None else 'no usable'} {key}, expected"
                f" {count} numbers in model.safetensors or policy_preprocessor_*.safetensors"
            )
        return found.astype(np.float32)

    def learned_from(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns mean and standard deviation (obs_dim,) of the training data, or None."""
        both = [
            [(f"{name}.{which}", count) for name, count in self.parts.items()]
            for which in ("mean", "std")
        ]
        if any(key not in self.stats for side in both for key, _ in side):
            return None
        mean, std = (np.concatenate([self._statistic(*each) for each in side]) for side in both)
        return mean, std


def read(folder: Path, ddim_steps: int = 0) -> Imported:
    """Reads a checkpoint.

    Args:
      folder: a folder with config.json and model.safetensors.
      ddim_steps: denoising steps of a diffusion policy; 0 = the checkpoint's number if it samples
        with DDIM, else 10.

    Raises:
      ConfigError: the checkpoint cannot be read, reads images or has another architecture.
    """
    path = folder / "config.json"
    if not is_file(path):
        raise ConfigError(
            f"no {short(str(path))}: expected the config.json of a LeRobot policy, beside its"
            " model.safetensors"
        )
    config = read_json_object(path, "the policy's")
    name = config.get("type")
    if name not in ("diffusion", "act"):
        raise ConfigError(f"{path}: type is {short(repr(name))}, expected diffusion or act")
    if not isinstance(config.get("normalization_mapping"), dict):
        raise ConfigError(f"{path} lacks normalization_mapping, from kinds of features to modes")
    parts, act_dim = _features(path, config)
    weights = read_safetensors(folder / "model.safetensors")
    source = _Source(path, config, parts, act_dim, _statistics(folder, weights))
    pairs = [source.normalisation(part, count) for part, count in parts.items()]
    mean, width = (np.concatenate(side) for side in zip(*pairs, strict=True))
    own = {"obs_mean": jnp.asarray(mean), "obs_std": jnp.asarray(width + np.float32(EPS))}
    if name == "act":
        return _act(source, weights, own)
    return _diffusion(source, weights, own, ddim_steps)


def _features(path: Path, config: dict[str, Any]) -> tuple[dict[str, int], int]:
    """Returns the sizes of the observation's parts and of the action, after checking them."""
    try:
        inputs = {
            str(k): (v["type"], list(v["shape"])) for k, v in config["input_features"].items()
        }
        outputs = {k: list(v["shape"]) for k, v in config["output_features"].items()}
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(
            f"{path} lacks input_features and output_features with type and shape; convert an older"
            " checkpoint to LeRobot's current format first"
        ) from None
    if images := [name for name, (kind, _) in inputs.items() if kind == "VISUAL"]:
        raise ConfigError(
            f"{path}: the policy reads images ({short(', '.join(images))}); pdjax imports"
            " policies that read numbers only"
        )
    sizes = [(name, shape) for name, (_, shape) in inputs.items()] + list(outputs.items())
    for name, shape in sizes:
        one = len(shape) == 1 and type(shape[0]) is int and 0 < shape[0] <= MOST_NUMBERS
        if name not in (*PARTS, "action") or not one:
            raise ConfigError(
                f"{path}: {short(name)} has shape {short(shape)}, expected one axis of"
                f" {', '.join(PARTS)} or action"
            )
    parts = {name: inputs[name][1][0] for name in PARTS if name in inputs}
    if not parts or "action" not in outputs:
        raise ConfigError(f"{path} names no {'action' if parts else PARTS[0]} among its features")
    return parts, outputs["action"][0]


def _statistics(folder: Path, weights: Weights) -> dict[str, np.ndarray]:
    """Returns the statistics by name; removes those that are among the weights."""
    stats: dict[str, np.ndarray] = {}
    for key in [key for key in weights.arrays if key.startswith(BUFFERS)]:
        feature, _, which = key.partition("buffer_")[2].rpartition(".")
        name = "action" if feature == "action" else feature.replace("_", ".", 1)
        stats[f"{name}.{which}"] = weights.arrays.pop(key)
    for description in ("policy_preprocessor.json", "policy_postprocessor.json"):
        if (folder / description).exists():
            _check_steps(folder / description)
    files = folder.glob("policy_*processor_step_*normalizer_processor.safetensors")
    for file in sorted(files, reverse=True):  # the unnormalizer of actions comes last
        stats |= read_safetensors(file).arrays
    return stats


def _check_steps(path: Path) -> None:
    steps = read_json_object(path, "the processor's description").get("steps", [])
    if not isinstance(steps, list):
        raise ConfigError(f"{path}: steps is {short(steps)}, expected a list")
    names = {str(step.get("registry_name")) for step in steps if isinstance(step, dict)}
    if unknown := names - STEPS:
        raise ConfigError(
            f"{path}: the processing step {short(sorted(unknown)[0])} cannot be imported; pdjax"
            " imports policies whose only processing is normalisation"
        )


def _expect(source: _Source, wanted: dict[str, Any]) -> None:
    """Raises ConfigError if a setting has another value than the one that pdjax implements."""
    for name, value in wanted.items():
        if source.config.get(name, value) != value:
            raise ConfigError(
                f"{source.path}: {name} is {short(repr(source.config[name]))}, expected {value!r};"
                " other values cannot be imported"
            )


def _diffusion(source: _Source, weights: Weights, own: Params, steps: int) -> Imported:
    _expect(
        source,
        {
            "num_train_timesteps": NOISE_STEPS,
            "beta_schedule": "squaredcos_cap_v2",
            "clip_sample": True,
            "clip_sample_range": 1.0,
        },
    )
    names = {
        "obs_horizon": "n_obs_steps",
        "act_horizon": "n_action_steps",
        "pred_horizon": "horizon",
        "prediction": "prediction_type",
        "unet_dims": "down_dims",
        "unet_kernel": "kernel_size",
        "unet_groups": "n_groups",
        "unet_step_dim": "diffusion_step_embed_dim",
        "unet_scale": "use_film_scale_modulation",
    }
    sampler = source.config.get("noise_scheduler_type", "DDPM")
    if not steps and sampler == "DDIM":
        steps = source.config.get("num_inference_steps") or NOISE_STEPS
    shape = shape_from(
        DiffusionConfig,
        source.config,
        names,
        source.path,
        weights,
        denoiser="unet",
        ddim_steps=steps or DDIM_STEPS,
        unet_final_groups=FINAL_GROUPS,
    )
    kind = diffusion.make_trainable(shape, len(own["obs_mean"]), source.act_dim)
    like = abstract_params(kind, len(own["obs_mean"]), source.act_dim)

    def key_of(names: tuple[str, ...]) -> str:
        return "diffusion.unet." + unet_key(names[1:], ("conv1", "conv2"), "")

    params = fit(weights, {"denoiser": like["denoiser"]}, key_of) | own
    offset, scale = source.normalisation("action", source.act_dim)
    return Imported(
        "diffusion",
        shape,
        params,
        source.act_dim,
        tuple(scale.tolist()),
        tuple(offset.tolist()),
        source.learned_from(),
        f"LeRobot, which samples by {sampler}",
    )


def _act(source: _Source, weights: Weights, own: Params) -> Imported:
    _expect(source, {"pre_norm": False, "feedforward_activation": "relu", "n_obs_steps": 1})
    names = {
        "act_horizon": "n_action_steps",
        "pred_horizon": "chunk_size",
        "encoder_layers": "n_encoder_layers",
        "decoder_layers": "n_decoder_layers",
        "heads": "n_heads",
        "width": "dim_model",
        "feedforward": "dim_feedforward",
        "latent_dim": "latent_dim",
        "dropout": "dropout",
        "kl_weight": "kl_weight",
    }
    decay = source.config.get("temporal_ensemble_coeff")
    ensemble = {} if decay is None else {"temporal_ensemble": True, "ensemble_decay": decay}
    shape = shape_from(
        ActConfig,
        source.config,
        names,
        source.path,
        weights,
        style=False,
        decoder_norm=True,
        obs_tokens=len(source.parts),
        **ensemble,
    )
    kind = act.make_trainable(shape, len(own["obs_mean"]), source.act_dim)
    like = abstract_params(kind, len(own["obs_mean"]), source.act_dim)
    for key in [key for key in weights.arrays if key.startswith("model.vae_encoder")]:
        del weights.arrays[key]
    _join_embeddings(source, weights, shape.width)
    _part_attention(weights, shape)
    params = fit(weights, {"act": like["act"]}, _act_key)
    # ACT clips to [-1, 1] before any adaptation, but normalised actions can lie outside, so the
    # output layer itself undoes the normalisation.
    offset, scale = source.normalisation("action", source.act_dim)
    out = params["act"]["out"]
    out["kernel"], out["bias"] = out["kernel"] * scale, out["bias"] * scale + offset
    return Imported(
        "act", shape, params | own, source.act_dim, (1.0,), (0.0,), source.learned_from(), "LeRobot"
    )


def _join_embeddings(source: _Source, weights: Weights, width: int) -> None:
    """Joins the embeddings into one layer of the whole observation; each token sees one part."""
    names = {PARTS[0]: "robot_state", PARTS[1]: "env_state"}
    kernels, biases, seen = [], [], 0
    for part, count in source.parts.items():
        name = f"model.encoder_{names[part]}_input_proj"
        taken = weights.take(f"{name}.weight", (width, count))
        kernel = np.zeros((width, sum(source.parts.values())), np.float32)
        kernel[:, seen : seen + count] = taken
        kernels.append(kernel)
        biases.append(weights.take(f"{name}.bias", (width,)))
        seen += count
    weights.arrays["embed_obs.weight"] = np.concatenate(kernels)
    weights.arrays["embed_obs.bias"] = np.concatenate(biases)


def _part_attention(weights: Weights, shape: ActConfig) -> None:
    """Splits the layers of query, key and value, which torch stores as one."""
    modules = [f"model.encoder.layers.{i}.self_attn" for i in range(shape.encoder_layers)]
    for which in ("self_attn", "multihead_attn"):
        modules += [f"model.decoder.layers.{i}.{which}" for i in range(shape.decoder_layers)]
    for module in modules:
        kernel = weights.take(f"{module}.in_proj_weight", (3 * shape.width, shape.width))
        bias = weights.take(f"{module}.in_proj_bias", (3 * shape.width,))
        for name, w, b in zip(("query", "key", "value"), np.split(kernel, 3), np.split(bias, 3)):
            weights.arrays[f"{module}.{name}.weight"] = w
            weights.arrays[f"{module}.{name}.bias"] = b


_OF_ACT = {
    "embed_latent": "model.encoder_latent_input_proj",
    "embed_obs": "embed_obs",
    "places": "model.encoder_1d_feature_pos_embed.weight",
    "queries": "model.decoder_pos_embed.weight",
    "decoder_norm": "model.decoder.norm",
    "out": "model.action_head",
}
_OF_ENCODER = {
    "attend": "self_attn",
    "norm_attend": "norm1",
    "inner": "linear1",
    "outer": "linear2",
    "norm": "norm2",
}
_OF_DECODER = _OF_ENCODER | {"look": "multihead_attn", "norm_look": "norm2", "norm": "norm3"}


def _act_key(names: tuple[str, ...]) -> str:
    part, *inner = names[1:]
    if part not in ("encoder", "decoder"):
        return _OF_ACT[part]
    layer, name, *deeper = inner
    key = f"model.{part}.layers.{layer}.{(_OF_ENCODER if part == 'encoder' else _OF_DECODER)[name]}"
    if name not in ("attend", "look"):
        return key
    return f"{key}.{'out_proj' if deeper[0] == 'out' else deeper[0]}"
