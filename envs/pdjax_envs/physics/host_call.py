"""Calls from compiled CPU programs into Python, under keys that outlast the process.

JAX's own callbacks tie a program to the Python objects of its process, so JAX's compilation cache
cannot keep the program. Here a program instead holds a number that is computed from the called
function, and a handler of XLA's typed FFI looks the function up by that number. A later process
that makes the same function loads the program from disk instead of compiling it again.

The handler uses XLA's C interface (`xla/ffi/api/c_api.h` among jaxlib's headers) through ctypes.
`available` returns whether it supports the installed version of that interface. The module's only
state is the table of functions.
"""

import ctypes
import math
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

HostFunction = Callable[[list[np.ndarray], list[np.ndarray]], None]

_TARGET = "pdjax_host_call"
_VERSIONS = {(0, 3), (0, 5)}  # versions with the structs below: jaxlib 0.10 and 0.12
_METADATA = 1  # the kind of extension with which XLA asks for a handler's version
_INTERNAL = 13  # XLA_FFI_Error_Code
_ERROR_CREATE = 48  # byte offset in XLA_FFI_Api of the pointer to that function
_DTYPES = {1: np.bool_, 4: np.int32, 8: np.uint32, 11: np.float32, 12: np.float64}

_MOST_VIEWS = 1024

_functions: dict[int, HostFunction] = {}
# XLA reuses the same memory; making a view takes several times as long as looking it up.
_views: dict[tuple[int, type, tuple[int, ...]], np.ndarray] = {}


def available() -> bool:
    """Returns whether `call` works here: on a single CPU device, with a supported interface.

    With four emulated devices, some processes crashed at exit, after all work was done.
    """
    return jax.default_backend() == "cpu" and jax.local_device_count() == 1 and _register()


def call(
    function: HostFunction, key: int, results: Sequence[jax.ShapeDtypeStruct]
) -> Callable[..., Any]:
    """Returns a host function as a JAX function that `vmap` can batch.

    Args:
      function: (inputs, outputs to fill), which are NumPy views of XLA's own buffers with equal
        leading axes, valid during the call. It must depend on its inputs alone and never call JAX.
      key: 63 bits, the most that lowering accepts; equal only for functions that do the same.
      results: shapes and dtypes of the outputs without leading axes.
    """
    _functions.setdefault(key, function)
    target = jax.ffi.ffi_call(_TARGET, tuple(results), vmap_method="broadcast_all")
    return lambda *inputs: target(*inputs, key=np.uint64(key))


class _Version(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    ]


class _Metadata(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("version", _Version),
        ("traits", ctypes.c_uint32),
    ]


class _Extension(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("metadata", ctypes.POINTER(_Metadata)),
    ]


class _Buffers(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("items", ctypes.POINTER(ctypes.c_void_p)),
    ]


class _Attributes(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("names", ctypes.c_void_p),
        ("items", ctypes.POINTER(ctypes.c_void_p)),
    ]


class _CallFrame(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.POINTER(_Extension)),
        ("api", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("args", _Buffers),
        ("rets", _Buffers),
        ("attrs", _Attributes),
    ]


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("dtype", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
    ]


class _Scalar(ctypes.Structure):
    _fields_ = [("dtype", ctypes.c_int), ("value", ctypes.POINTER(ctypes.c_uint64))]


class _ErrorArguments(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("extension_start", ctypes.c_void_p),
        ("message", ctypes.c_char_p),
        ("code", ctypes.c_int),
    ]


_ErrorCreate = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_ErrorArguments))


@cache
def _version() -> tuple[int, int]:
    """Returns the version of the installed jaxlib's interface."""
    header = Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h"
    text = header.read_text() if header.exists() else ""
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    major, minor = (int(match[1]) if match else -1 for match in found)
    return major, minor


@cache
def _register() -> bool:
    """Registers the handler with XLA once; returns False if XLA's interface is not supported."""
    if _version() not in _VERSIONS or sys.maxsize < 2**32:
        return False
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_handle))  # XLA keeps the pointer
    pointer = ctypes.cast(_handle, ctypes.c_void_p).value
    jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(pointer), platform="cpu")
    return True


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))
def _handle(pointer: Any) -> int | None:
    """Handles a call from XLA; returns None or a pointer to an error, which XLA then raises."""
    frame = pointer.contents
    if frame.extension_start and frame.extension_start.contents.type == _METADATA:
        version = frame.extension_start.contents.metadata.contents.version
        version.major, version.minor = _version()
        return None
    try:
        key = _Scalar.from_address(frame.attrs.items[0]).value[0]
        _functions[key](_arrays(frame.args), _arrays(frame.rets))
    except BaseException:  # interruptions too: no exception may pass through C
        arguments = _ErrorArguments(
            ctypes.sizeof(_ErrorArguments), None, traceback.format_exc().encode(), _INTERNAL
        )
        create: Any = ctypes.c_void_p.from_address(frame.api + _ERROR_CREATE).value
        return _ErrorCreate(create)(ctypes.byref(arguments))
    return None


def _arrays(buffers: _Buffers) -> list[np.ndarray]:
    """Returns NumPy views of XLA's buffers."""
    return [_view(_Buffer.from_address(buffers.items[index])) for index in range(buffers.size)]


def _view(buffer: _Buffer) -> np.ndarray:
    rank = buffer.rank
    shape, dtype = tuple(buffer.dims[:rank]), _DTYPES[buffer.dtype]
    place = (buffer.data, dtype, shape)
    view = _views.get(place)
    if view is None:
        if len(_views) >= _MOST_VIEWS:
            _views.clear()
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory: Any = (ctypes.c_char * size).from_address(buffer.data) if size else bytearray()
        view = _views[place] = np.ndarray(shape, dtype, memory)
    return view
