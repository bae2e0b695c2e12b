"""Configs: the method's values, files read back unchanged, mistakes reported in one line."""

import dataclasses
from typing import Annotated

import pytest

from pdjax.config import files as configs
from pdjax.config import options, plain_yaml, schema
from pdjax.config.presets import PRESETS
from pdjax.config.schema import Config, ConfigError
from pdjax_envs import names

CONFIG_FILES = sorted(configs.configs())


def load_text(folder, text, *overrides):
    path = folder / "run.yaml"
    path.write_text(text)
    return configs.load(str(path), overrides)


def test_preset_pd_has_the_values_of_the_paper():
    pd = configs.preset("pd")
    assert (pd.sac.gamma, pd.sac.tau, pd.sac.batch_size) == (0.97, 0.01, 1024)
    assert pd.sac.actor_lr == pd.sac.critic_lr == pd.sac.temperature_lr == 1e-4
    assert (pd.train.learning_starts, pd.train.prefill) == (8_000, "uniform")
    assert (pd.train.updates_per_decision, pd.train.num_envs) == (0.25, 16)
    assert (pd.sac.max_grad_norm, pd.sac.initial_temperature) == (50.0, 1.0)
    assert (pd.sac.target_entropy_scale, pd.sac.reward_offset) == (1.0, -1.0)
    assert (pd.sac.log_std_min, pd.sac.log_std_max) == (-20.0, 2.0)
    assert (pd.sac.hidden, pd.sac.num_critics) == ((256, 256, 256), 2)
    assert (pd.decorator.critic_input, pd.decorator.actor_input) == ("sum", "obs")
    # Peg with a diffusion base: residual_scale 0.1, H 30,000
    assert (pd.decorator.residual_scale, pd.decorator.exploration_steps) == (0.1, 30_000)
    assert (pd.sac.n_step, pd.sac.critic_layer_norm) == (1, False)


def test_preset_dawn_prefills_with_the_base_and_has_no_gate():
    dawn = configs.preset("dawn")
    assert (dawn.train.learning_starts, dawn.train.prefill) == (20_000, "base")
    assert (dawn.sac.critic_layer_norm, dawn.sac.initial_temperature) == (True, 0.01)
    assert dawn.decorator.exploration_steps == 0
    assert dawn.sac.gamma == configs.preset("pd").sac.gamma  # the rest is unchanged


def test_every_preset_is_valid():
    for name in PRESETS:
        schema.validate(configs.preset(name))


def test_unknown_preset_names_those_that_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown preset 'fats'.*pd.*dawn.*fast"):
        load_text(tmp_path, "preset: fats")


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_config_files_build_and_survive_writing_and_reading(tmp_path, name):
    config = configs.load(name)
    configs.save(config, tmp_path / "saved.yaml")
    assert configs.load(str(tmp_path / "saved.yaml")) == config


def test_there_are_config_files():
    assert "peg_fast" in CONFIG_FILES


def test_a_file_changes_its_preset_and_an_override_changes_the_file(tmp_path):
    text = "preset: dawn\nsac:\n  gamma: 0.9\n  tau: 0.5\n"
    config = load_text(tmp_path, text, "sac.tau=0.25", "sac.hidden=[8, 4]", "seed=7")
    assert config.sac.gamma == 0.9  # file
    assert config.sac.tau == 0.25  # override
    assert config.sac.initial_temperature == 0.01  # preset
    assert (config.sac.hidden, config.seed) == ((8, 4), 7)


def test_numbers_in_scientific_notation_are_numbers(tmp_path):
    # YAML 1.1 takes both for text
    config = load_text(tmp_path, "{}", "sac.actor_lr=3e-4", "train.total_decisions=1e6")
    assert config.sac.actor_lr == 3e-4
    assert config.train.total_decisions == 1_000_000
    assert isinstance(config.train.total_decisions, int)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sac.gama=0.9", r"unknown config key 'sac.gama'; did you mean sac.gamma\?"),
        ("sak.gamma=0.9", r"unknown config key 'sak'; did you mean sac\?"),
        ("zzz=1", r"unknown config key 'zzz'; known: task, .*seed"),
        ("seed=abc", r"seed got 'abc', expected integer 0 to 2147483647"),
        ("seed=true", r"seed got True, expected integer"),
        ("seed=1.5", r"seed got 1.5, expected integer"),
        ("seed=-1", r"seed got -1, expected integer 0 to"),
        ("seed=", r"seed got None, expected integer"),
        ("seed.deep=1", r"seed got {'deep': 1}, expected integer"),
        ("sac=1", r"config key sac got 1, expected a section of keys"),
        ("sac.gamma=2", r"sac.gamma got 2, expected number 0 to 1"),
        ("sac.gamma=.nan", r"sac.gamma got nan, expected number 0 to 1"),
        ("sac.actor_lr=0", r"sac.actor_lr got 0, expected number > 0"),
        ("sac.actor_lr=.inf", r"sac.actor_lr got inf, expected number > 0"),
        ("sac.reward_offset=.nan", r"sac.reward_offset got nan, expected number"),
        ("sac.hidden=256", r"sac.hidden got 256, expected \[integer 1 to 65536, ...\]"),
        ("sac.hidden=[]", r"sac.hidden got \[\], expected"),
        ("sac.hidden=[0]", r"sac.hidden got \[0\], expected"),
        ("sac.critic_layer_norm=1", r"sac.critic_layer_norm got 1, expected true \| false"),
        ("task.physics=foo", r"task.physics got 'foo', expected auto \| native"),
        ("task.name=3", r"task.name got 3, expected text"),
        ("train.num_envs=0", r"train.num_envs got 0, expected integer >= 1"),
        ("seed", r"--set 'seed' has no value; expected section.key=value"),
        ("=1", r"--set '=1' has no value"),
        ("sac={gamma: 0.5}", r"gives a whole section; .*, such as sac.gamma=VALUE"),
        ("sac={}", r"gives a whole section"),
        (f"seed{'.a' * 5_000}=1", r"unknown config key 'seed.a.*expected section.key"),
        ("sac.batch_size=1e18", r"batch_size got '1e18', expected integer >= 1 that 32 bits can"),
        (
            "sac.batch_size=\u0661\u0662",
            r"batch_size got .*, expected integer >= 1",
        ),  # 12, in Arabic
        ("train.learning_starts=1e30", r"expected integer >= 0 that 32 bits can hold"),
        ("train.total_decisions=2147483648", r"integer >= 1 that 32 bits can hold"),
        ("sac.actor_lr=1e39", r"expected number > 0 that 32 bits can hold"),
        ("sac.actor_lr=1e-40", r"expected number > 0 that 32 bits can hold"),
        ("sac.reward_offset=-1e39", r"expected number that 32 bits can hold"),
        ("sac.num_critics=1e9", r"expected integer 1 to 1000"),
        (f"sac.hidden={[8] * 1_001}", r"expected at most 1,000 values, not 1,001"),
        (f"seed={'x' * 9_000}", r"seed got 'x{37}\.\.\.x{37}', expected integer"),
        ("seed=[1", r"--set 'seed=\[1': cannot read the value"),
        ("sac.log_std_min=3", r"sac.log_std_min=3.0 must be below sac.log_std_max=2.0"),
        (
            "decorator.only_features=true",
            "only_features=true needs decorator.task_features=true",
        ),
        (
            "sac.final_penalty=0.1",
            r"sac.final_penalty=0.1 is the .*; also set sac.penalty_half_life",
        ),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_text(tmp_path, "{}", override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sac: 3", "sac got 3, expected a section"),
        ("sac:", "sac got None, expected a section"),
        ("", "holds NoneType, expected sections of keys"),
        ("- 1", "holds list, expected sections of keys"),
        ("a: [", "cannot read config"),
        ("gama: 1", "unknown config key 'gama'"),
        ("1: 2", "unknown config key '1'"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_text(tmp_path, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 5_000, ".", "/dev/stdin", "a\0b", "loop.yaml"])
def test_a_path_that_is_no_file_is_one_short_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(ConfigError, match=r"no config .*: neither a file nor a name") as caught:
        configs.load(name)
    assert len(str(caught.value)) <= 293


def test_the_largest_numbers_of_each_type_are_taken():
    config = configs.load("peg_fast", ["train.total_decisions=2147483647", "sac.actor_lr=3.4e38"])
    assert (config.train.total_decisions, config.sac.actor_lr) == (2**31 - 1, 3.4e38)


@pytest.mark.parametrize(
    "changes", [{"seeds": 1_001}, {"changes": {"members": {"seed": [1] * 2_000}}}]
)
def test_more_members_than_a_program_can_hold_are_refused(changes):
    with pytest.raises(ConfigError, match="members, expected at most 1,000"):
        configs.load_members("peg_fast", **changes)


def test_a_mistake_in_a_runs_config_names_the_run(tmp_path):
    configs.save(Config(), tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("gamma:", "gama:"))
    with pytest.raises(ConfigError, match=r"config.yaml: unknown config key 'sac.gama'"):
        configs.load_of_run(tmp_path)


def test_many_known_names_are_shortened_to_the_nearest():
    known = [f"name_{index}" for index in range(100)] + ["zebra"]
    assert names.suggest("zebro", known) == "did you mean zebra?"
    found = names.suggest("x", known, "`list`")
    assert found.endswith(" and 96 more (`list` lists them)")
    assert len(found) < 120
    assert names.suggest("x", ["a", "b"]) == "known: a, b"


def test_a_config_that_does_not_exist_suggests_one():
    with pytest.raises(ConfigError, match=r"'peg_fats'.*did you mean peg_fast\?"):
        configs.load("peg_fats")


def test_a_config_made_in_code_is_checked_too():
    config = dataclasses.replace(Config(), sac=dataclasses.replace(Config().sac, gamma=1.5))
    with pytest.raises(ConfigError, match=r"sac.gamma got 1.5, expected number 0 to 1"):
        schema.validate(config)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        configs.preset("pd").sac.gamma = 0.5  # type: ignore[misc]


def leaves(instance, prefix=""):
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", value


def test_every_key_is_described_with_its_default():
    described = {option.name: option for option in schema.describe()}
    assert {name: o.default for name, o in described.items()} == dict(leaves(Config()))
    for name, option in described.items():
        assert len(option.doc) > 10, f"{name} has no docstring"
        assert option.expected()


def test_a_description_says_type_range_and_meaning():
    (option,) = (o for o in schema.describe() if o.name == "sac.gamma")
    assert option.expected() == "number 0 to 1"
    assert option.doc == "Discount per decision."


def test_a_number_is_declared_sweepable_by_its_field():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        tau: Annotated[options.Share, schema.Sweepable(is_switch=True)] = 0.5
        size: options.Count = 3

    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: Inner = Inner()
        seed: Annotated[int, schema.Sweepable()] = 0

    marks = options.marked(Outer, schema.Sweepable)
    assert marks == {"inner.tau": schema.Sweepable(True), "seed": schema.Sweepable()}
    assert not options.marked(Inner, options.Option)


def test_sweepable_numbers_keep_their_range():
    (tau,) = (option for option in schema.describe() if option.name == "sac.tau")
    assert "sac.tau" in schema.SWEEPABLE and tau.expected() == "number 0 to 1"
    assert "sac.hidden" not in schema.SWEEPABLE
    assert schema.SWITCHES == ("decorator.residual_scale", "sac.smoothness_penalty")


def test_ranges():
    assert 0 in options.Range(0, 1)
    assert 1 in options.Range(0, 1)
    assert 1.01 not in options.Range(0, 1)
    assert 0 not in options.Range(0, above=True)
    assert float("nan") not in options.FINITE
    assert float("inf") not in options.FINITE
    assert -1e300 in options.FINITE


def test_a_file_may_start_from_a_config_that_is_shipped_with_pdjax(tmp_path):
    config = load_text(tmp_path, "preset: hammer_fast\nsac: {gamma: 0.9}")
    assert (config.task.name, config.sac.gamma, config.sac.n_step) == ("AdroitHammer", 0.9, 5)
    assert config.sac.final_penalty == 0.2  # of what hammer_fast starts from


PUBLISHED = {  # policy_decorator README.md: residual_scale, exploration_steps, budget
    "paper/peg_diffusion": (0.1, 30_000, 4_000_000),
    "paper/faucet_diffusion": (0.1, 100_000, 2_000_000),
    "paper/chair_diffusion": (0.2, 300_000, 2_000_000),
    "paper/stack_bet": (0.03, 1_000_000, 3_000_000),
    "paper/peg_bet": (0.3, 8_000_000, 10_000_000),
    "paper/faucet_bet": (0.2, 500_000, 3_000_000),
    "paper/chair_bet": (0.2, 4_000_000, 6_000_000),
}


def test_suites_hold_eight_tasks_with_two_kinds_of_base_policies():
    families = {
        "AdroitDoor",
        "AdroitHammer",
        "AdroitPen",
        "AdroitRelocate",
        "PegInsertionSide",
        "StackCube",
        "TurnFaucet",
        "PushChair",
    }
    for suite in ("paper", "fast"):
        names = [name for name in configs.configs() if name.startswith(f"{suite}/")]
        found = [configs.load(name) for name in names]
        for kind in ("diffusion", "bet"):
            tasks = {
                config.task.name.removesuffix("HeldOut")
                for name, config in zip(names, found, strict=True)
                if name.endswith(f"_{kind}")
            }
            assert tasks == families
        swept = plain_yaml.read(configs.suites()[suite], "sweep", "")["config"]
        assert sorted(swept) == sorted(names)
        for name, config in zip(names, found, strict=True):
            kind = name.rsplit("_", 1)[1] + ("_paper" if suite == "paper" else "")
            task = config.task.name.removesuffix("HeldOut")
            assert config.base_policy.path == f"runs/bases/{task}/{kind}_seed0"


@pytest.mark.parametrize("name", [name for name in CONFIG_FILES if name.startswith("paper/")])
def test_what_the_paper_publishes_is_in_its_suite_and_the_rest_is_marked(name):
    config, text = configs.load(name), configs.configs()[name].read_text()
    text = " ".join(text.replace("#", " ").split())
    found = (config.decorator.residual_scale, config.decorator.exploration_steps)
    found += (config.train.total_decisions,)
    if name in PUBLISHED:
        assert (
            found == PUBLISHED[name] and "the values and the budget published for this task" in text
        )
    else:
        assert "No values are published for this task" in text
    pd = configs.preset("pd")
    lr = 3e-4 if name in ("paper/peg_bet", "paper/faucet_bet") else 1e-4
    gamma = 0.9 if name == "paper/chair_diffusion" else pd.sac.gamma
    assert config.sac == dataclasses.replace(pd.sac, actor_lr=lr, critic_lr=lr, gamma=gamma)


def test_a_wrong_override_of_a_run_does_not_blame_its_file(tmp_path):
    configs.save(Config(), tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"^unknown config key 'task.pythn'; did you mean"):
        configs.load_of_run(tmp_path, ["task.pythn=x"])
