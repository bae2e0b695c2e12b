"""The published DAPG policies as experts: Gaussian MLPs that solve Adroit's four tasks.

Source: aravindr93/hand_dapg `dapg/policies/*.pickle`, written by mjrl
(`policies/gaussian_mlp.py`, `utils/fc_network.py`) with any version of Python and torch. The
pickles name classes of mjrl and torch, none of which is imported, see `pickles`. The same weights
can also be arrays in an .npz: w0, b0, w1, b1, ..., in_shift, in_scale, out_shift, out_scale,
log_std.
"""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pdjax_envs.demonstrations import pickles, torch_files
from pdjax_envs.demonstrations.trajectory import DataError
from pdjax_envs.reading import InputError, is_file, read_npz, reason, short
from pdjax_envs.task import Expert, Task

_SCALE_FLOOR = 1e-8  # added to in_scale; mjrl `fc_network.py`, `forward`
_ALLOWED = (
    pickles.DATA
    | torch_files.TENSORS
    | {
        "mjrl.policies.gaussian_mlp.MLP",
        "mjrl.utils.fc_network.FCNetwork",
        "torch.nn.backends.thnn._get_thnn_function_backend",
        "torch.nn.modules.container.ModuleList",
        "torch.nn.modules.linear.Linear",
        "torch._C._VariableFunctions",
        "torch._C._VariableFunctionsClass",
        "builtins.getattr",  # becomes a record like the rest and is never called
        "builtins.object",
        "copyreg._reconstructor",  # of objects in protocols 0 and 1
    }
)
_ARRAYS = ("in_shift", "in_scale", "out_shift", "out_scale", "log_std")


class Policy(NamedTuple):
    """The weights of a policy, all float32.

    Attributes:
      layers: weight (out, in) and bias (out,) of each layer; tanh between layers.
      in_shift: (obs_dim,) offset subtracted from the observation.
      in_scale: (obs_dim,) divisor of the shifted observation.
      out_shift: (act_dim,) offset added to the scaled output.
      out_scale: (act_dim,) factor of the last layer's output.
      log_std: (act_dim,) logarithm of the standard deviation of the policy's action noise.
    """

    layers: tuple[tuple[jax.Array, jax.Array], ...]
    in_shift: jax.Array
    in_scale: jax.Array
    out_shift: jax.Array
    out_scale: jax.Array
    log_std: jax.Array


def make_expert(path: Path, task: Task, noisy: bool = False) -> Expert:
    """Builds an expert that acts as a published policy; disturbances are Gaussian noise.

    Args:
      path: an mjrl policy pickle, or an .npz with the same weights.
      task: the task that the expert will act in.
      noisy: whether it samples actions with the noise exp(log_std) that it was trained with;
        otherwise it takes the mean action.

    Raises:
      DataError: the file cannot be read, or the policy's sizes differ from the task's.
    """
    policy = read(path)
    obs_dim, act_dim = len(policy.in_shift), len(policy.out_shift)
    if (obs_dim, act_dim) != (task.obs_dim, task.act_dim):
        raise DataError(
            f"{path} takes {obs_dim} observed numbers and gives {act_dim} actions, but {task.name}"
            f" has {task.obs_dim} and {task.act_dim}; pass the policy of that task"
        )

    def act(carry, obs, key):
        action = mean_action(policy, obs)
        if noisy:
            action += jnp.exp(policy.log_std) * jax.random.normal(key, action.shape)
        return jnp.clip(action, -1, 1), carry

    def disturb(action, obs, key, noise):
        del obs
        return jnp.clip(action + noise * jax.random.normal(key, action.shape), -1, 1)

    return Expert(lambda key: (), act, disturb)


def mean_action(policy: Policy, obs: jax.Array) -> jax.Array:
    """Returns out_shift + out_scale * MLP((obs - in_shift) / (in_scale + 1e-8)), unclipped."""
    *hidden, last = policy.layers
    x = (obs - policy.in_shift) / (policy.in_scale + _SCALE_FLOOR)
    for weight, bias in hidden:
        x = jnp.tanh(_affine(weight, bias, x))
    return policy.out_shift + policy.out_scale * _affine(*last, x)


def _affine(weight: jax.Array, bias: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.dot(weight, x, precision="highest") + bias


def read(path: Path) -> Policy:
    """Reads a policy from a pickle or an .npz, whichever the content is.

    Raises:
      DataError: the file is missing, of neither kind, damaged, or names something that no policy
        needs.
    """
    name = short(str(path))
    if not is_file(path):
        raise DataError(f"no policy at {name}; expected a DAPG policy, .pickle or .npz")
    try:
        found = read_npz(path, "policy") if zipfile.is_zipfile(path) else _read_pickle(path)
        policy = _make_policy(found)
    except pickles.Forbidden as error:
        raise DataError(
            f"{name} is a pickle that names {short(str(error))}, which no DAPG policy needs;"
            " none of it was executed"
        ) from None
    except InputError:
        raise
    except Exception as error:  # a damaged pickle can raise many kinds
        raise DataError(
            f"{name} is not a readable DAPG policy ({type(error).__name__} {reason(error)});"
            " expected an mjrl pickle or an .npz with w0, b0, ...; download it again"
        ) from None
    return policy


def _make_policy(found: dict[str, np.ndarray]) -> Policy:
    """Returns the policy of arrays by their names in an .npz.

    Raises:
      KeyError, ValueError: arrays are missing, no numbers, not finite, or of other sizes.
    """
    arrays = {}
    for name, values in found.items():
        if values.dtype.kind not in "biuf":
            raise ValueError(f"{short(name)} holds {values.dtype}, expected numbers")
        with np.errstate(over="ignore"):  # infinity is found by `_check`
            arrays[name] = jnp.asarray(values.astype(np.float32))
    depth = sum(name.startswith("w") for name in arrays)
    layers = [(arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(depth)]
    policy = Policy(tuple(layers), *(arrays[name] for name in _ARRAYS))
    _check(policy)
    return policy


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an mjrl `MLP`, named as in an .npz."""
    policy: dict[str, Any] = pickles.load(path, _ALLOWED).state
    model: dict[str, Any] = policy["model"].state
    _, activation = getattr(model.get("nonlinearity"), "args", None) or (None, "tanh")
    if activation != "tanh":
        raise ValueError(f"its layers are joined by {short(activation)}, expected tanh")
    layers = model["_modules"]["fc_layers"].state["_modules"]
    arrays = {"log_std": torch_files.array(policy["log_std_val"])}
    arrays |= {name: torch_files.array(model[name]) for name in _ARRAYS if name != "log_std"}
    for index, layer in enumerate(layers.values()):
        parameters = layer.state["_parameters"]
        arrays[f"w{index}"] = torch_files.array(parameters["weight"])
        arrays[f"b{index}"] = torch_files.array(parameters["bias"])
    return arrays


def _check(policy: Policy) -> None:
    """Raises ValueError if sizes do not fit together or numbers are not finite."""
    size = len(policy.in_shift)
    shapes = [policy.in_shift.shape, policy.in_scale.shape]
    expected = [(size,), (size,)]
    for weight, bias in policy.layers:
        shapes += [weight.shape, bias.shape]
        expected += [(len(bias), size), (len(bias),)]
        size = len(bias)
    shapes += [policy.out_shift.shape, policy.out_scale.shape, policy.log_std.shape]
    expected += [(size,)] * 3
    if shapes != expected or not policy.layers:
        raise ValueError(f"layers have shapes {shapes}, expected {expected}")
    if not all(jnp.isfinite(a).all() for a in jax.tree.leaves(policy)):
        raise ValueError("weights are not finite")
