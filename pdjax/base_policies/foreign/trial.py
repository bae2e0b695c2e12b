"""Tries a foreign program in a process of its own, with limits of time and memory.

A file of `jax.export` or TorchScript runs no Python, but it may loop for ever, take all memory or
crash its process. `pdjax wrap` finds that out here before it reads the file itself. The process
that tries computes on the CPU; the one that asks kills it when it oversteps a limit. This file is
not pure: it starts a process.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pdjax.base_policies.foreign.user_code import words
from pdjax.config.options import ConfigError

START_S, BUILD_S, CALL_S = 60.0, 60.0, 5.0  # to import, to read and compile, and for two calls
SLOW = 10  # how much longer it may take by the clock while others use the processor
SPARE = 1 << 30  # bytes of memory beyond what the file and its arrays need
PER_BYTE = 8  # bytes of memory that reading and compiling a byte of a file may take
CPU_S = 300  # of processor time, should the process that asks no longer live
WATCHED_EVERY_S = 0.02
_answers = 1  # where the process that tries writes what it does


def try_file(kind: str, path: Path, obs_shape: tuple[int, int], rows: Sequence[int]) -> None:
    """Reads and compiles a file, and calls it twice for each number of environments, on zeros.

    Args:
      kind: `export` or `torchscript`.
      path: the file.
      obs_shape: (obs_horizon, obs_dim) for TorchScript; an artefact has its own.
      rows: numbers of environments.

    Raises:
      ConfigError: the file is not usable, fails, crashes, takes too long or too much memory, or
        answers the same inputs differently.
    """
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    settings = os.environ | {
        "PYTHONPATH": paths,
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    task = json.dumps([kind, str(path), obs_shape, rows])
    with subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, task],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=settings,
    ) as process:
        try:
            _supervise(process, path)
        finally:
            process.kill()


def _supervise(process: subprocess.Popen[bytes], path: Path) -> None:
    """Follows what the process says, until it is done."""
    assert process.stdout is not None
    doing, limit, begun = "start", START_S, _times(process.pid)
    most = None  # bytes that the process may hold, once it has imported everything
    while True:
        if select.select([process.stdout], [], [], WATCHED_EVERY_S)[0]:
            line = process.stdout.readline()
            if not line:
                raise ConfigError(f"{path} crashed its process ({_end_of(process)}); do not use it")
            word, value = json.loads(line)
            if word == "refused":
                raise ConfigError(value)
            if word == "done":
                return
            doing, limit, begun = word, CALL_S if word == "call" else BUILD_S, _times(process.pid)
            if word == "read":
                most = _resident(process.pid) + SPARE + PER_BYTE * path.stat().st_size
            elif word == "compile" and most is not None:
                most += 2 * value
        clock, processor = (now - at for now, at in zip(_times(process.pid), begun))
        if min(clock, processor) > limit or clock > SLOW * limit:
            raise ConfigError(
                f"{path} takes too long: to {doing} it took over {limit:g} s; a policy must return"
            )
        if most is not None and _resident(process.pid) > most:
            raise ConfigError(
                f"{path} takes too much memory: to {doing} it took over {most / 2**30:.1f} GiB; use"
                " a smaller policy"
            )


def _end_of(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit status {code}"


def _times(pid: int) -> tuple[float, float]:
    """Returns the time by the clock and the processor time of a process, in s.

    Where the system does not tell the processor time, the clock stands in for it.
    """
    clock = time.monotonic()
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return clock, clock
    return clock, (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    """Returns the bytes of memory that a process holds; 0 where the system does not say."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


# From here on: the process that tries.


def _say(word: str, value: Any = None) -> None:
    os.write(_answers, json.dumps([word, value]).encode() + b"\n")


def _try_export(path: Path, rows: Sequence[int]) -> None:
    import jax
    import numpy as np

    from pdjax.base_policies.foreign import artefact

    jax.devices()
    _say("read")
    policy = artefact.read_policy(path)
    if "cpu" not in policy.platforms:
        return
    first = artefact.read(path.parent / artefact.INIT_CARRY) if policy.carry else None
    zeros = lambda leaf: np.zeros(leaf.shape, leaf.dtype)  # noqa: E731
    params = jax.tree.map(zeros, policy.params)
    _say("compile", sum(leaf.nbytes for leaf in jax.tree.leaves(params)))

    def compile_for(count: int) -> Callable[[], Any]:
        seed = np.zeros((count, 2), np.uint32)
        obs = np.zeros((count, *policy.obs_shape), np.float32)
        carry = tuple(np.zeros((count, *leaf.shape), leaf.dtype) for leaf in policy.carry)

        def ask(params: Any, carry: Any, obs: Any, seed: Any) -> Any:
            begun = first.call(seed) if first is not None else ()
            return policy.call(params, carry, obs, seed), begun

        inputs = (params, carry, obs, seed)
        program = jax.jit(ask).lower(*inputs).compile()
        return lambda: jax.tree.leaves(jax.device_get(program(*inputs)))

    _try(path, rows, compile_for)


def _try_torchscript(path: Path, obs_shape: tuple[int, int], rows: Sequence[int]) -> None:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        return  # `read_torchscript` says what is missing
    from pdjax.base_policies.foreign.sources import read_torchscript

    _say("read")
    module = read_torchscript(path).eval()

    def prepare_for(count: int) -> Callable[[], Any]:
        def ask() -> Any:
            with torch.inference_mode():
                chunk = module(torch.zeros((count, *obs_shape)))
            return [chunk.float().numpy()] if isinstance(chunk, torch.Tensor) else []

        return ask

    _try(path, rows, prepare_for)


def _try(path: Path, rows: Sequence[int], prepare_for: Callable[[int], Callable[[], Any]]) -> None:
    """Calls a program twice for each number of environments."""
    import numpy as np

    for count in rows:
        try:
            _say("compile", 0)
            ask = prepare_for(count)
            _say("call")
            answers = ask(), ask()
        except Exception as error:
            raise ConfigError(
                f"{path} failed on zeros for {count} environment(s): {words(error)}; it must take"
                " any number of them, and the policy's obs_horizon (--obs-horizon)"
            ) from None
        if not all(np.allclose(*pair, atol=1e-4, equal_nan=True) for pair in zip(*answers)):
            raise ConfigError(
                f"{path} answers the same observations differently: it draws its own random"
                " numbers; write Python code that draws from the key or seed alone"
            )


def _main(task: str) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    kind, path, obs_shape, rows = json.loads(task)
    try:
        if kind == "export":
            _try_export(Path(path), rows)
        else:
            _try_torchscript(Path(path), tuple(obs_shape), rows)
    except ConfigError as error:
        _say("refused", str(error))
    except MemoryError:
        _say("refused", f"{path} takes too much memory; use a smaller policy")
    else:
        _say("done")
    os._exit(0)


if __name__ == "__main__":
    # What the file or its libraries print does not reach the process that asks.
    _answers = os.dup(1)
    os.dup2(2, 1)
    _main(sys.argv[1])
