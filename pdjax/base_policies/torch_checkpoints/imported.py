"""Code that the importers of PyTorch checkpoints share: result, settings, names of the U-Net.

`policy_decorator` reads checkpoints of that project, `lerobot` those of LeRobot. Holds no state.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pdjax.base_policies.settings import PolicyConfig
from pdjax.base_policies.torch_checkpoints.weights import Weights
from pdjax.config import options
from pdjax.config.options import ConfigError
from pdjax.types import Params
from pdjax_envs.reading import short

Shape = TypeVar("Shape", bound=PolicyConfig)
MOST_STEPS = 4096  # control steps that a policy may read or predict at once
FINAL_GROUPS = 8  # of the U-Net's last block; both projects use 8 for any n_groups


class Imported(NamedTuple):
    """A policy that was read from a checkpoint.

    Attributes:
      kind: kind of policy, see `settings.KINDS`.
      shape: the section of settings for that kind.
      params: parameters for `make_policy` of that kind. The policy itself normalises by their
        `obs_mean` and `obs_std`.
      act_dim: numbers in one action.
      action_scale: factor of the actions, one number or (act_dim,).
      action_offset: number added to the scaled actions, one or (act_dim,).
      statistics: mean and standard deviation (obs_dim,) of the training data, or None if the
        checkpoint lacks them.
      origin: the project that the checkpoint comes from, for messages.
      tasks: the task that it was trained on, if its settings name one.
      control_modes: the control mode of its actions, if its settings name one.
    """

    kind: str
    shape: PolicyConfig
    params: Params
    act_dim: int
    action_scale: tuple[float, ...]
    action_offset: tuple[float, ...]
    statistics: tuple[np.ndarray, np.ndarray] | None
    origin: str
    tasks: tuple[str, ...] = ()
    control_modes: tuple[str, ...] = ()


def shape_from(
    cls: type[Shape],
    values: dict[str, Any],
    names: dict[str, str],
    path: Path,
    weights: Weights,
    **more: Any,
) -> Shape:
    """Builds a policy's section of settings from the settings of another project.

    Args:
      cls: the section's class.
      values: the other project's settings.
      names: maps names of fields of the section to names of settings in `values`.
      path: the file that `values` comes from, for messages.
      weights: the weights, which no size may exceed.
      **more: further fields of the section.

    Raises:
      ConfigError: a setting is missing or invalid, or larger than the weights allow.
    """
    if lacking := [name for name in names.values() if name not in values]:
        raise ConfigError(f"{short(str(path))} lacks {', '.join(lacking)}")
    try:
        shape = options.build(cls, {ours: values[name] for ours, name in names.items()} | more)
        _check_sizes(shape, weights)
        shape.validate()
    except ConfigError as error:
        raise ConfigError(f"{short(str(path))}: {short(str(error), 220)}") from None
    return shape


def _check_sizes(shape: PolicyConfig, weights: Weights) -> None:
    """Checks that nothing is larger than the weights can fill, before anything is made of it."""
    numbers, arrays = sum(a.size for a in weights.arrays.values()), len(weights.arrays)
    for field in dataclasses.fields(shape):
        value = getattr(shape, field.name)
        sizes = value if isinstance(value, tuple) else (value,)
        most = arrays if field.name.endswith("layers") else numbers
        most = min(most, MOST_STEPS) if field.name.endswith("horizon") else most
        if len(sizes) > arrays or any(isinstance(n, int) and n > most for n in sizes):
            raise ConfigError(
                f"{field.name}={short(value)}, expected at most {most:,} with {arrays:,} arrays of"
                f" {numbers:,} numbers in {short(str(weights.path))}"
            )


def unet_key(names: tuple[str, ...], blocks: tuple[str, str], resample: str) -> str:
    """Returns the torch name of a layer of `unet.UNet`.

    Args:
      names: path to the array within the U-Net; its last element names the array.
      blocks: torch names of the two convolution blocks of a residual block.
      resample: torch name of the convolution that changes the length, after its module's number.
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
