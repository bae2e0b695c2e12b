"""Writes policies as mjrl and old torch pickle them, without either: stand-ins lend their names."""

import pickle
import sys
import types
from contextlib import contextmanager
from unittest import mock

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C  # torch `serialization.py`


def make_weights(obs_dim, act_dim, width=5, seed=0):
    """Arrays by the names of an .npz policy."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "w0": draw(width, obs_dim),
        "b0": draw(width),
        "w1": draw(width, width),
        "b1": draw(width),
        "w2": draw(act_dim, width),
        "b2": draw(act_dim),
        "in_shift": draw(obs_dim),
        "in_scale": np.abs(draw(obs_dim)) + 0.1,
        "out_shift": 0.1 * draw(act_dim),
        "out_scale": 0.1 * draw(act_dim),
        "log_std": draw(act_dim).astype(np.float64) - 2,
    }


@contextmanager
def without_torch():
    """Leaves the names of torch to stand-ins, also where torch is installed."""
    with mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.split(".")[0] == "torch"]:
            del sys.modules[name]
        yield


class _Tensor:
    """Pickles as a torch tensor whose storage is `content`."""

    def __init__(self, array, content=None):
        self.array = array
        self.content = _storage(array) if content is None else content

    def __reduce__(self):
        strides = tuple(stride // self.array.itemsize for stride in self.array.strides)
        storage = _Call("torch.storage", "_load_from_bytes", self.content)
        args = (storage, 0, self.array.shape, strides, False, {})
        return _named("torch._utils", "_rebuild_tensor_v2"), args


class _Call:
    """Pickles as a call of a name."""

    def __init__(self, module, name, *args):
        self.call = module, name, args

    def __reduce__(self):
        module, name, args = self.call
        return _named(module, name), args


def _named(module, name):
    """A class that pickles by that name, found there while `dumps` runs."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:count]), types.ModuleType(module))
    if not hasattr(sys.modules[module], name):
        setattr(sys.modules[module], name, type(name, (), {"__module__": module}))
    return getattr(sys.modules[module], name)


def _storage(array):
    """What `torch.save` writes for the storage of a tensor."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value if isinstance(value, tuple) and value[0] == "storage" else None

    class File(bytearray):
        def write(self, data):
            self.extend(data)

    file = File()
    for value in (_MAGIC, 1001, {"little_endian": True}):
        pickle.dump(value, file, 2)
    Pickler(file, 2).dump(("storage", _named("torch", "FloatStorage"), "7", "cpu", array.size))
    pickle.dump(["7"], file, 2)
    return bytes(file) + np.int64(array.size).tobytes() + array.tobytes()


def _instance(module, name, state):
    instance = _named(module, name)()
    instance.__dict__.update(state)
    return instance


def dumps(weights, storage_of_w0=None, protocol=3, activation="tanh"):
    """The bytes of an mjrl policy pickle of such weights.

    Args:
      weights: see `make_weights`.
      storage_of_w0: bytes to put in place of what torch saved for the first weights.
      protocol: the pickle's protocol.
      activation: name of the function between the layers, as torch 2.13 names it.
    """
    with without_torch():
        layers = {}
        for index in range(3):
            weight, bias = _Tensor(weights[f"w{index}"]), _Tensor(weights[f"b{index}"])
            if index == 0 and storage_of_w0:
                weight = _Tensor(weights["w0"], storage_of_w0)
            rebuilt = {
                name: _Call("torch._utils", "_rebuild_parameter", tensor, True, {})
                for name, tensor in (("weight", weight), ("bias", bias))
            }
            layers[str(index)] = _instance(
                "torch.nn.modules.linear", "Linear", {"_parameters": rebuilt}
            )
        stack = _instance("torch.nn.modules.container", "ModuleList", {"_modules": layers})
        functions = _named("torch._C", "_VariableFunctionsClass")
        scales = ("in_shift", "in_scale", "out_shift", "out_scale")
        model = _instance(
            "mjrl.utils.fc_network",
            "FCNetwork",
            {
                "_modules": {"fc_layers": stack},
                "nonlinearity": _Call("builtins", "getattr", functions, activation),
                **{name: _Tensor(weights[name]) for name in scales},
            },
        )
        policy = _instance(
            "mjrl.policies.gaussian_mlp", "MLP", {"model": model, "log_std_val": weights["log_std"]}
        )
        return pickle.dumps(policy, protocol)
