"""Sizes of a base policy that cannot be are refused by its settings, or before its training."""

import numpy as np
import pytest

from pdjax.base_policies import imitation, settings
from pdjax.config import options
from pdjax.config.options import ConfigError
from pdjax_envs.reading import InputError

EPISODES = [(np.zeros((6, 3), np.float32), np.zeros((5, 2), np.float32)) for _ in range(3)]
SIZES = [
    option.name
    for option in options.describe(settings.ImitationConfig)
    if "." in option.name and (option.kind is int or option.kind == tuple[int, ...])
]


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("value", [10**9, 2**31 - 1])
def test_no_size_of_a_policy_can_be_a_billion(name, value):
    section, key = name.split(".")
    given = [value] if "dims" in key or name == "mlp.hidden" else value
    with pytest.raises(ConfigError, match=rf"{name} got .*{value}.*, expected"):
        settings.recipe(section, {section: {key: given}})


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        ("mlp", {"batch_size": 2**31 - 1}, "batch_size=2,147,483,647 needs"),
        ("mlp", {"mlp": {"hidden": [65_536] * 6}}, r"a policy of these sizes \(mlp\) needs"),
    ],
)
def test_an_imitation_that_cannot_fit_is_refused_before_it_allocates(recipe, changes, message):
    with pytest.raises(InputError, match=message):
        imitation.make_trainer(EPISODES, settings.recipe(recipe, changes))
