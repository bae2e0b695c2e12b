"""What the importers of PyTorch checkpoints share: their result, settings, the U-Net's names.

`policy_decorator` and `lerobot` read the checkpoints of these projects. Holds no state.
"""

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pdjax.base_policies.settings import PolicyConfig
from pdjax.config import schema
from pdjax.config.schema import ConfigError
from pdjax.types import Params

Shape = TypeVar("Shape", bound=PolicyConfig)
FINAL_GROUPS = 8  # of the U-Net's last block in both projects, whatever n_groups is


class Imported(NamedTuple):
    """A policy as a checkpoint holds it.

    Attributes:
      kind: see `settings.KINDS`.
      shape: its section.
      params: as its kind's `make_policy` takes them; their `obs_mean` and `obs_std` are what the
        policy itself normalises by.
      act_dim: numbers in one action.
      action_scale: what its actions are multiplied by, one for all numbers or each its own.
      action_offset: what is added then.
      statistics: mean and standard deviation (obs_dim,) of the data it was trained on, where the
        checkpoint tells them.
      origin: what it is, in words.
    """

    kind: str
    shape: PolicyConfig
    params: Params
    act_dim: int
    action_scale: tuple[float, ...]
    action_offset: tuple[float, ...]
    statistics: tuple[np.ndarray, np.ndarray] | None
    origin: str


def shape_from(
    cls: type[Shape], values: dict[str, Any], names: dict[str, str], path: Path, **more: Any
) -> Shape:
    """A policy's section from someone else's settings.

    Args:
      cls: the section.
      values: their settings.
      names: of the section's fields -> of theirs.
      path: where theirs come from.
      **more: further fields.

    Raises:
      ConfigError: one is missing, or cannot be.
    """
    if lacking := [name for name in names.values() if name not in values]:
        raise ConfigError(f"{path} lacks {', '.join(lacking)}")
    try:
        shape = schema.build(cls, {ours: values[name] for ours, name in names.items()} | more)
        shape.validate()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return shape


def unet_key(names: tuple[str, ...], blocks: tuple[str, str], resample: str) -> str:
    """The torch name of a layer of `unet.UNet`; the last of `names` is the array.

    Args:
      names: within the U-Net.
      blocks: names of a residual block's two convolution blocks.
      resample: of the convolution that changes the length, behind its module's number.
    """
    stage, *inner = names[:-1]
    if stage in ("step_in", "step_out"):
        return f"diffusion_step_encoder.{1 if stage == 'step_in' else 3}"
    if stage == "final":
        return "final_conv.1"
    if stage == "final_block":
        return f"final_conv.0.block.{_LAYER[inner[0]]}"
    modules = f"{'mid' if stage == 'middle' else stage}_modules"
    if stage != "middle":
        modules += f".{inner.pop(0)}"
    which, *inner = inner
    if which == "resample":
        return f"{modules}.2{resample}"
    modules += f".{_BLOCK[which]}"
    if inner == ["film"]:
        return f"{modules}.cond_encoder.1"
    if inner == ["around"]:
        return f"{modules}.residual_conv"
    return f"{modules}.{blocks[_BLOCK[inner[0]]]}.block.{_LAYER[inner[1]]}"


_BLOCK, _LAYER = {"first": 0, "second": 1}, {"conv": 0, "norm": 1}
