"""Policies called through the host: shapes, seeds, failures in play, calls that never return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.base_policies.foreign import host, user_code
from pdjax.base_policies.foreign.user_code import cause, words
from pdjax.config.options import ConfigError

SHAPE = (1, 3)


def as_policy(function):
    return host.without_memory(function)


def remembering(start):
    return host.HostPolicy(lambda: start, lambda carry, obs, seed: (obs[:, :, :1], carry))


@pytest.mark.parametrize(
    "function",
    [
        lambda obs: np.zeros((2, len(obs), 1)),  # time first: fits two environments only
        lambda obs: np.zeros((2, 2, 1)),
        lambda obs: np.zeros((len(obs), 0, 1)),
        lambda obs: np.zeros((len(obs), 2, 0)),
    ],
)
def test_shapes_are_compared_not_sizes(function):
    with pytest.raises(ConfigError, match=r"returned an array of shape \(2|3, .* expected \(2|3, "):
        host.probe(as_policy(function), SHAPE)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda obs: (obs, obs), "returned a tuple of 2, expected one array, the actions"),
        (lambda obs: {"action": obs}, "returned a dict of 1, expected one array, the actions"),
        (lambda obs: "left", "returned an array of dtype <U4, expected numbers"),
        (lambda obs: obs * 1j, "returned an array of dtype complex64, expected numbers"),
    ],
)
def test_answers_that_are_no_actions(function, words):
    with pytest.raises(ConfigError) as caught:
        host.probe(as_policy(function), SHAPE)
    assert words in str(caught.value)


@pytest.mark.parametrize("start", [np.array([object()]), "abc", {"name": "x"}])
def test_memory_that_jax_cannot_hold(start):
    with pytest.raises(ConfigError, match="expected a pytree of arrays of numbers"):
        host.probe(remembering(start), SHAPE)


def test_the_same_seeds_must_give_the_same_answers():
    rng, calls = np.random.default_rng(0), []

    def counting(obs):
        calls.append(0)
        return obs[:, :, :1] + len(calls)

    for function in (counting, lambda obs: rng.normal(size=(len(obs), 1, 1))):
        with pytest.raises(ConfigError, match="answers the same observations and seeds different"):
            host.probe(as_policy(function), SHAPE)

    def by_seed(carry, obs, seed):
        draw = [np.random.default_rng(s).normal(size=(1, 1)) for s in seed]
        return np.stack(draw), carry

    assert host.probe(host.HostPolicy(tuple, by_seed), SHAPE) == (1, 1)


def play(function, count=4):
    """Calls a policy in a compiled program; returns what its failure stands for."""
    _, apply = host.make_functions(as_policy(function), (1, 1))
    keys = jax.random.split(jax.random.key(0), count)
    call = jax.jit(jax.vmap(lambda obs, key: apply((), (), obs, key)[0]))
    with pytest.raises(Exception) as caught:
        jax.block_until_ready(call(jnp.zeros((count, *SHAPE)), keys))
    return cause(caught.value)


def fail(error):
    def function(obs):
        raise error

    return function


def test_a_failure_in_play_names_the_line_and_keeps_the_message():
    found = play(fail(ValueError("no entry 7\nin the table")))
    assert isinstance(found, ConfigError)
    line = fail.__code__.co_firstlineno + 2
    assert str(found) == (
        f"the base policy failed in play: ValueError: no entry 7 in the table (test_host.py:{line})"
    )
    assert "sys.exit(0) (test_host.py:" in str(play(fail(SystemExit(0))))
    assert isinstance(play(fail(KeyboardInterrupt())), KeyboardInterrupt | ConfigError)
    wrong = play(lambda obs: np.zeros((1, len(obs), 1)))
    assert "returned an array of shape (1, 4, 1), expected (4, 1, 1)" in str(wrong)


class Mute(Exception):  # noqa: N818
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize("error", [ValueError("x" * 10**6), Mute(), SystemExit("a\nb" * 999)])
def test_words_are_one_short_line_whatever_the_error(error):
    with pytest.raises(ConfigError) as caught:
        user_code.guard(fail(error), "asking", 0)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
    assert "test_host.py:" in str(caught.value)


def test_other_errors_stay_what_they_are():
    error = KeyError("a")
    assert cause(error) is error and words(error) == "KeyError: 'a'"
