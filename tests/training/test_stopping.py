"""Signals end a program with a word and exit code 3, even where Python's handlers cannot run."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pdjax.training import stopping
from pdjax.training.stopping import Stopped

ROOT = Path(__file__).parents[2]
HANGING = """
import os, sys, time
import jax, jax.numpy as jnp
from pdjax.training import stopping

def hang(x):
    print("hanging", flush=True)
    time.sleep(120)
    return x

stopping.REACTION = stopping.PATIENCE = {seconds}
policy = jax.jit(lambda x: jax.pure_callback(hang, x, x))
try:  # as `cli` does
    with stopping.listening({is_resumable}):
        {block}
except stopping.Stopped as stop:
    print(f"pdjax: {{stop}}; {{stopping.CONTINUES}}", file=sys.stderr, flush=True)
    os._exit(stopping.STOPPED)
except KeyboardInterrupt:
    print("pdjax: interrupted", file=sys.stderr, flush=True)
    os._exit(1)
"""
PLAY = "policy(jnp.zeros(3)).block_until_ready()"
LOOP = f"with stopping.stop_asked() as asked: {PLAY}"


def started(block, seconds=0.5, is_resumable=True):
    """A process whose policy hangs by now."""
    program = HANGING.format(block=block, seconds=seconds, is_resumable=is_resumable)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "envs")])
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "hanging\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_policy_that_hangs_does_not_keep_a_command_from_ending(number):
    process = started(PLAY)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 3
    # JAX itself tells that it was interrupted, if it was.
    assert said.splitlines()[-1] == f"pdjax: stopped by {number.name}; {stopping.CONTINUES}"


def test_what_cannot_be_resumed_is_interrupted():
    process = started(PLAY, is_resumable=False)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1].splitlines()[-1] == "pdjax: interrupted"
    assert process.returncode == 1


def test_an_epoch_that_hangs_ends_after_a_while():
    process = started(LOOP)
    process.send_signal(signal.SIGTERM)
    first, *_, second = process.communicate(timeout=60)[1].splitlines()
    assert first.startswith("SIGTERM: stopping after this epoch")
    assert second == f"pdjax: stopped by SIGTERM; {stopping.CONTINUES}"
    assert process.returncode == 3


def test_a_second_signal_ends_an_epoch_at_once():
    process = started(LOOP, seconds=1_000)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    assert "send it again" in process.stderr.readline()  # at once, though the policy hangs
    process.send_signal(signal.SIGTERM)
    assert "stopped by SIGTERM" in process.communicate(timeout=60)[1]
    assert process.returncode == 3


def test_whatever_a_signal_breaks_is_told_as_a_stop():
    before = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    with pytest.raises(Stopped, match="stopped by SIGTERM"), stopping.listening(True):
        try:
            signal.raise_signal(signal.SIGTERM)
            signal.pause()
        except KeyboardInterrupt:
            raise RuntimeError("an interrupted computation") from None
    with pytest.raises(KeyboardInterrupt), stopping.listening(False):
        signal.raise_signal(signal.SIGTERM)
        signal.pause()
    assert (signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)) == before


def test_other_errors_and_results_pass():
    with pytest.raises(ValueError, match=re.escape("its own")), stopping.listening(True):
        raise ValueError("its own")
    with stopping.listening(True):
        found = 1
    assert found == 1
    for thread in threading.enumerate():  # its thread ends, though perhaps a moment later
        if thread.name == "signals":
            thread.join(10)
            assert not thread.is_alive()
