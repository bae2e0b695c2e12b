"""More episodes than fit into memory are refused before anything is allocated."""

import pytest
from jax.errors import JaxRuntimeError

from pdjax.devices import exhaustion
from pdjax.rollout import playing
from pdjax_envs.reading import InputError
from tests.probe import make_constant_policy, make_point_env


@pytest.mark.parametrize("record", [False, True])
def test_more_episodes_than_fit_into_memory_are_refused_at_once(record):
    play = playing.make_play(playing.make_playing(make_point_env(), make_constant_policy()))
    with pytest.raises(InputError, match="playing 2,147,483,647 episodes of Point at once needs"):
        play(0, 2**31 - 1, record=record)


def test_what_an_episode_needs_besides_its_actions_at_least():
    found = playing.make_playing(make_point_env(episode_steps=8), make_constant_policy())
    assert playing._more_numbers(found, record=False) == 2 * 3  # the observations that it reads
    assert playing._more_numbers(found, record=True) == 6 + 4 * 3 + 8  # one at each decision


@pytest.mark.parametrize(
    "error",
    [MemoryError("1.39 PiB"), JaxRuntimeError("RESOURCE_EXHAUSTED: Out")],
)
def test_an_exhausted_memory_says_what_to_lower(error):
    message = r"not enough memory: .*; lower the x"
    with pytest.raises(InputError, match=message), exhaustion.lower("the x"):
        raise error


def test_other_failures_of_jax_stay_what_they_are():
    fault = JaxRuntimeError("INTERNAL: a fault")
    with pytest.raises(JaxRuntimeError, match="INTERNAL"), exhaustion.lower("the x"):
        raise fault
