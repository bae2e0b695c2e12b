"""Reads checkpoints of policy_decorator's offline scripts: Diffusion Policy and BeT.

A checkpoint is a `torch.save` file with the state dicts `ema_agent` and `agent`, or `agent` alone.
The script's `args.json` is beside it or one folder up. Both policies read raw observations and
return actions in [-1, 1].

Source: tongzhoumu/policy_decorator offline/diffusion_policy_unet_maniskill2.py,
offline/bet_maniskill2.py, nets/ and online/pi_dec_*_maniskill2.py, which read such files.
This file is not pure: it reads files.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from pdjax.base_policies.kinds import behavior_transformer, diffusion
from pdjax.base_policies.kinds.trainable import TrainablePolicy, abstract_params
from pdjax.base_policies.settings import BehaviorTransformerConfig, DiffusionConfig, PolicyConfig
from pdjax.base_policies.torch_checkpoints.imported import (
    FINAL_GROUPS,
    Imported,
    shape_from,
    unet_key,
)
from pdjax.base_policies.torch_checkpoints.weights import (
    Weights,
    fit,
    from_torch,
    read_torch,
)
from pdjax.config.options import ConfigError
from pdjax.types import Params
from pdjax_envs.names import task_named
from pdjax_envs.reading import is_file, read_json_object, short

STATES = ("ema_agent", "agent")  # in the order in which the reference looks for them
UNET, GPT = "noise_pred_net.", "net._gpt_model.transformer."


def read(path: Path, ddim_steps: int = 0) -> Imported:
    """Reads a checkpoint.

    Args:
      path: the .pt file.
      ddim_steps: denoising steps of a diffusion policy; 0 = 4, as in the reference's refinement.

    Raises:
      ConfigError: the checkpoint cannot be read or has another architecture.
    """
    saved = read_torch(path)
    name = next((name for name in STATES if name in saved.value), None)
    if name is None:
        found = short(", ".join(map(str, list(saved.value)[:5])))
        raise ConfigError(
            f"{path} holds {found}, expected {' or '.join(STATES)};"
            " give a checkpoint of policy_decorator's offline scripts"
        )
    weights, args_path, args = from_torch(path, saved, name), *_read_args(path)
    if weights.has(UNET):
        found = _diffusion(weights, args, args_path, ddim_steps or 4)
    elif weights.has(GPT):
        found = _behavior_transformer(weights, args, args_path)
    else:
        raise ConfigError(
            f"{path}: {name} holds {short(next(iter(weights.arrays), 'nothing'))}, expected {UNET}"
            f" or {GPT}; pdjax imports Diffusion Policy and BeT"
        )
    task, mode = (args.get(key) for key in ("env_id", "control_mode"))
    return found._replace(
        tasks=(task_named(task),) if isinstance(task, str) else (),
        control_modes=(mode,) if isinstance(mode, str) else (),
    )


def _read_args(path: Path) -> tuple[Path, dict[str, Any]]:
    places = [folder / "args.json" for folder in path.absolute().parents[:2]]
    found = next((place for place in places if is_file(place)), None)
    if found is None:
        raise ConfigError(f"{path} needs the args.json of its training beside it or one folder up")
    return found, read_json_object(found, "settings")


def _diffusion(weights: Weights, args: dict[str, Any], args_path: Path, steps: int) -> Imported:
    names = {
        "obs_horizon": "obs_horizon",
        "act_horizon": "act_horizon",
        "pred_horizon": "pred_horizon",
        "unet_dims": "unet_dims",
        "unet_groups": "n_groups",
        "unet_step_dim": "diffusion_step_embed_dim",
    }
    shape = shape_from(
        DiffusionConfig,
        args,
        names,
        args_path,
        weights,
        denoiser="unet",
        prediction="epsilon",
        ddim_steps=steps,
        unet_final_groups=FINAL_GROUPS,
    )
    key = (
        f"{UNET}mid_modules.0.cond_encoder.1.weight"  # (2 width, step_dim + obs_horizon * obs_dim)
    )
    observed = weights.shape_of(key, 2)[1] - shape.unet_step_dim
    act_dim = weights.shape_of(f"{UNET}final_conv.1.weight", 3)[0]
    if observed <= 0 or observed % shape.obs_horizon:
        raise ConfigError(
            f"{weights.path}: {key} reads {observed} observed numbers in addition to the"
            f" {shape.unet_step_dim} of the noise level, expected a multiple of"
            f" obs_horizon={shape.obs_horizon}"
        )
    obs_dim = observed // shape.obs_horizon
    kind = diffusion.make_trainable(shape, obs_dim, act_dim)
    return _imported("diffusion", shape, weights, kind, (obs_dim, act_dim))


def _behavior_transformer(weights: Weights, args: dict[str, Any], args_path: Path) -> Imported:
    names = {
        "obs_horizon": "context_window",
        "bins": "n_clusters",
        "layers": "n_layers",
        "heads": "n_heads",
        "width": "n_embedding",
    }
    readout = weights.shape_of("net._gpt_model.lm_head.weight", 2)[0]
    shape = shape_from(BehaviorTransformerConfig, args, names, args_path, weights, readout=readout)
    for layer in range(shape.layers):  # the causal mask, a buffer in torch
        weights.take(f"{GPT}h.{layer}.attn.bias", (1, 1, shape.obs_horizon, shape.obs_horizon))
    obs_dim = weights.shape_of(f"{GPT}wte.weight", 2)[1]
    act_dim = weights.shape_of("net._cluster_centers", 2)[1]
    kind = behavior_transformer.make_trainable(shape, obs_dim, act_dim)
    return _imported("bet", shape, weights, kind, (obs_dim, act_dim))


_OF_BLOCK = {
    "norm_1": "ln_1",
    "attend_in": "attn.c_attn",
    "attend_out": "attn.c_proj",
    "norm_2": "ln_2",
    "inner": "mlp.c_fc",
    "outer": "mlp.c_proj",
}
_OF_BET = {
    "embed": f"{GPT}wte",
    "positions": f"{GPT}wpe.weight",
    "norm": f"{GPT}ln_f",
    "readout": "net._gpt_model.lm_head",
    "head": "net._map_to_cbet_preds.0",
}


def _key(names: tuple[str, ...]) -> str:
    """Returns the torch name of the layer or array at `names` in either policy's parameters."""
    part, *inner = names
    if part == "denoiser":
        return UNET + unet_key(tuple(inner), ("blocks.0", "blocks.1"), ".conv")
    if part == "bins":
        return "net._cluster_centers"
    if inner[0] == "blocks":
        return f"{GPT}h.{inner[1]}.{_OF_BLOCK[inner[2]]}"
    return _OF_BET[inner[0]]


def _imported(
    kind: str, shape: PolicyConfig, weights: Weights, policy: TrainablePolicy, dims: tuple[int, int]
) -> Imported:
    obs_dim, act_dim = dims
    like: Params = abstract_params(policy, obs_dim, act_dim)
    raw = {"obs_mean": jnp.zeros(obs_dim), "obs_std": jnp.ones(obs_dim)}
    network = {name: part for name, part in like.items() if name not in raw}
    params = fit(weights, network, _key) | raw
    return Imported(kind, shape, params, act_dim, (1.0,), (0.0,), None, "policy_decorator")
