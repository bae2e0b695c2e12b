"""Every flag and key takes any seed of 31 bits, and all seeds that follow from it are seeds."""

import dataclasses
import json

import numpy as np
import pytest

from pdjax.base_policies.settings import ImitationConfig
from pdjax.commands import cli, quickstart, table
from pdjax.config import files as configs
from pdjax.config import options, schema, seeds
from pdjax.sweep import spec
from pdjax.training import loop
from pdjax_envs.demonstrations import record
from tests.envs.demonstrations.test_record import make_expert_env

LAST = 2**31 - 1
SEEDS = [0, 1, 7919, LAST]
SEEDED = [
    name
    for name, cls in table.COMMANDS.items()
    if any(o.name == "seed" for o in options.describe(cls))
]
KEYS = [
    (cls, option.name)
    for cls in (schema.Config, ImitationConfig, spec.Settings)
    for option in options.describe(cls)
    if option.name.split(".")[-1] == "seed"
]


def is_seed(number):
    return isinstance(number, int) and 0 <= number <= LAST


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", SEEDED)
def test_every_command_takes_any_seed(capsys, monkeypatch, name, seed):
    command = table.COMMANDS[name]
    monkeypatch.setattr(command, "run", lambda self: {"seed": self.seed})
    required = [o.name for o in options.describe(command) if o.default is dataclasses.MISSING]
    words = [required.pop(0)] if required else []
    words += [word for flag in required for word in (f"--{flag.replace('_', '-')}", "x")]
    code = cli.main([name, *words, "--seed", str(seed), "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert json.loads(captured.out) == {"seed": seed}


def test_the_commands_with_seeds_are_those_that_draw():
    assert {"quickstart", "demos", "imitate", "wrap", "screen", "eval", "export"} <= set(SEEDED)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("cls", "key"), KEYS, ids=lambda value: getattr(value, "__name__", value))
def test_every_key_takes_any_seed(cls, key, seed):
    (option,) = (o for o in options.describe(cls) if o.name == key)
    assert options.convert(option, seed, key) == seed
    with pytest.raises(options.ConfigError, match="expected integer 0 to 2147483647"):
        options.convert(option, 2**31, key)


def test_a_shifted_seed_is_a_seed_and_small_ones_are_plain_sums():
    assert seeds.shift_seed(20_000, 1_000_000) == 1_020_000
    assert seeds.shift_seed(LAST, 1) == 0
    assert seeds.shift_seed(LAST, 5) == 4


@pytest.mark.parametrize("seed", SEEDS)
def test_members_count_up_from_any_seed(seed):
    found = [member.seed for member in configs.load_members("peg_fast", [f"seed={seed}"], seeds=4)]
    assert found[0] == seed
    assert all(map(is_seed, found))
    assert len(set(found)) == 4


@pytest.mark.parametrize("seed", SEEDS)
def test_interim_evaluations_have_a_seed_of_their_own(seed):
    found = loop._interim_seed(schema.EvalConfig(seed=seed))
    assert is_seed(found)
    assert found != seed
    assert found == seed + 1_000_000 or seed == LAST


def test_the_demonstrations_of_a_quickstart_have_seeds_of_their_own():
    firsts = [quickstart.first_episode(seed) for seed in SEEDS]
    assert firsts[:2] == [0, 1_000_000]
    assert all(map(is_seed, firsts))
    gaps = np.diff(sorted([*firsts, firsts[0] + 2**31]))
    assert gaps.min() > 2 * quickstart.EPISODES  # attempts that one quickstart may need


def test_recording_goes_on_from_the_last_seed_to_the_first():
    found, _ = record.record(make_expert_env(), 4, seed=LAST - 1)
    assert [trajectory.seed for trajectory in found] == [LAST - 1, LAST, 0, 1]
    same, _ = record.record(make_expert_env(), 1, seed=0)
    np.testing.assert_array_equal(found[2].obs, same[0].obs)
