"""Writes files as `torch.save` does, without torch: stand-ins lend their names."""

import collections
import io
import pickle
import zipfile

import numpy as np

from tests.mjrl_pickle import _Call, _named, without_torch

STORAGES = {
    "f4": "FloatStorage",
    "f8": "DoubleStorage",
    "f2": "HalfStorage",
    "i8": "LongStorage",
    "u1": "ByteStorage",
    "b1": "BoolStorage",
}


class _Storage:
    def __init__(self, array, kind):
        self.array, self.kind = array, kind


class _Tensor:
    """Pickles as a tensor of a storage; `shape`, `strides` and `offset` may lie."""

    def __init__(self, array, kind=None, shape=None, strides=None, offset=0):
        name = STORAGES.get(array.dtype.str[1:], "FloatStorage")
        self.storage = _Storage(np.ascontiguousarray(array).ravel(), kind or name)
        self.shape = array.shape if shape is None else shape
        filled = [int(np.prod(self.shape[axis + 1 :])) for axis in range(len(self.shape))]
        self.strides = filled if strides is None else strides
        self.offset = offset

    def __reduce__(self):
        hooks = collections.OrderedDict()
        args = (self.storage, self.offset, tuple(self.shape), tuple(self.strides), False, hooks)
        return _named("torch._utils", "_rebuild_tensor_v2"), args


class _StateDict(collections.OrderedDict):
    """Has attributes, as a state dict has `_metadata`."""

    def __reduce__(self):
        state = {"_metadata": {"": {"version": 1}}}
        return collections.OrderedDict, (), state, None, iter(self.items())


tensor = _Tensor


def parameter(array):
    return _Call("torch._utils", "_rebuild_parameter", _Tensor(array), True, {})


def _tensors(tree):
    if isinstance(tree, dict):
        return _StateDict((name, _tensors(value)) for name, value in tree.items())
    return _Tensor(tree) if isinstance(tree, np.ndarray) else tree


def write(path, tree, more=None, compression=zipfile.ZIP_STORED):
    """Writes nested dicts of arrays; `more` are further members of the archive, by name.

    Values may also be what `tensor` and `parameter` return, or anything that can be pickled.
    """
    storages, content = [], io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, _Storage):
                return None
            storages.append(value.array.tobytes())
            named = _named("torch", value.kind)
            return "storage", named, str(len(storages) - 1), "cpu", value.array.size

    with without_torch():
        Pickler(content, 2).dump(_tensors(tree))
    members = {"data.pkl": content.getvalue(), "byteorder": b"little", "version": b"3\n"}
    members |= {f"data/{key}": data for key, data in enumerate(storages)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in (members | (more or {})).items():
            if data is not None:
                archive.writestr(f"archive/{name}", data)
    return path
