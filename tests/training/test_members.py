"""Several runs in one program: each is the run that it is alone, however the others end."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.config import files as configs
from pdjax.config.schema import SWEEPABLE, ConfigError
from pdjax.output.checkpoint import CheckpointError
from pdjax.training import loop, members
from pdjax.training.run_in_progress import Member
from tests.output.test_checkpoint import contents, damage
from tests.training.test_loop import EPOCH, TOTAL, failing, make_steps, records, run_config, same

# what every sweepable number is in one of the members, if not as in the config
OTHERS = {
    "seed": 5,
    "decorator.residual_scale": 0.4,
    "decorator.exploration_steps": 64,
    "sac.gamma": 0.9,
    "sac.tau": 0.05,
    "sac.actor_lr": 2e-3,
    "sac.critic_lr": 3e-3,
    "sac.temperature_lr": 4e-3,
    "sac.initial_temperature": 0.5,
    "sac.target_entropy_scale": 0.25,
    "sac.actor_average": 0.9,
    "sac.residual_penalty": 1.0,
    "sac.penalty_half_life": 8.0,
    "sac.final_penalty": 0.1,
    "sac.smoothness_penalty": 2.0,
    "sac.reward_offset": -0.5,
}


def with_value(config, name, value):
    *section, key = name.split(".")
    if not section:
        return dataclasses.replace(config, **{key: value})
    part = dataclasses.replace(getattr(config, section[0]), **{key: value})
    return dataclasses.replace(config, **{section[0]: part})


def refine(of_each, directory, steps=None):
    places = [Member(own, directory / f"member_{index}") for index, own in enumerate(of_each)]
    for place in places:
        place.directory.mkdir(parents=True, exist_ok=True)
    return loop.refine(places, steps or make_steps(*of_each))


def close(first, second, **tolerance):
    def number(leaf):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    for leaf, expected in zip(*map(jax.tree.leaves, (first, second)), strict=True):
        np.testing.assert_allclose(number(leaf), number(expected), **tolerance)


@pytest.fixture(scope="module")
def eight():
    """Seeds, and one member each that differs in other numbers."""
    config = run_config(total=4 * EPOCH, sac={"smoothness_penalty": 1.0, "final_penalty": 0.0})
    config = with_value(config, "sac.penalty_half_life", 20.0)
    names = [list(OTHERS)[index::5] for index in range(5)]
    found = [dataclasses.replace(config, seed=seed) for seed in range(3)]
    for some in names:
        own = config
        for name in some:
            own = with_value(own, name, OTHERS[name])
        found.append(own)
    return found


@jax.debug_key_reuse(False)  # the check stumbles over a scan whose keys are one for each seed
def test_eight_members_are_the_runs_that_they_are_alone(eight, tmp_path):
    assert set(OTHERS) == set(SWEEPABLE)
    members.check(eight)
    together = refine(eight, tmp_path / "together")
    for index, own in enumerate(eight):
        (alone,) = refine([own], tmp_path / f"alone{index}")
        assert alone.state.sac.gradient_steps > 0
        close(together[index].state.sac, alone.state.sac, rtol=2e-3, atol=2e-4)
        close(together[index].best_actor, alone.best_actor, rtol=2e-3, atol=2e-4)
        assert together[index].best_score == alone.best_score
        for name in ("metrics.jsonl", "audit.jsonl"):
            ours = records(tmp_path / "together" / f"member_{index}", name)
            theirs = records(tmp_path / f"alone{index}" / "member_0", name)
            assert [list(record) for record in ours] == [list(record) for record in theirs]
            for ours_, theirs_ in zip(ours, theirs, strict=True):
                for key, value in ours_.items():
                    if isinstance(value, float):
                        np.testing.assert_allclose(value, theirs_[key], rtol=5e-3, atol=5e-4)


@pytest.fixture(scope="module")
def three():
    return [dataclasses.replace(run_config(), seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def steps(three):
    return make_steps(*three)


@pytest.fixture(scope="module")
def whole(three, steps, tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    with jax.debug_key_reuse(False):
        return refine(three, directory, steps), directory


@pytest.mark.parametrize("epochs", [0, 1, 5, 9])
@jax.debug_key_reuse(False)
def test_members_that_broke_down_end_as_those_that_did_not(three, steps, whole, tmp_path, epochs):
    with pytest.raises(RuntimeError):
        refine(three, tmp_path, failing(steps, epochs, RuntimeError()))
    resumed = refine(three, tmp_path, steps)
    assert all(map(same, resumed, whole[0]))
    for index in range(3):
        folder = f"member_{index}"
        assert records(tmp_path / folder) == records(whole[1] / folder)


@jax.debug_key_reuse(False)
def test_members_with_unequal_checkpoints_go_on_from_what_all_have(three, steps, whole, tmp_path):
    # as if killed while the first was on disk already and the others were not
    with pytest.raises(RuntimeError):
        refine(three, tmp_path, failing(steps, 6, RuntimeError()))
    newest = str(6 * EPOCH)
    for index in (1, 2):
        (tmp_path / f"member_{index}" / "checkpoints" / newest).rename(tmp_path / f"gone{index}")
    before = contents(tmp_path / "member_0" / "checkpoints" / newest)
    assert all(map(same, refine(three, tmp_path, steps), whole[0]))
    assert contents(tmp_path / "member_0" / "checkpoints" / f"{newest}.newer") == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@jax.debug_key_reuse(False)
def test_members_without_a_readable_checkpoint_in_common_refuse(three, steps, tmp_path):
    with pytest.raises(RuntimeError):
        refine(three, tmp_path / "run", failing(steps, 6, RuntimeError()))
    older, newest = str(4 * EPOCH), str(6 * EPOCH)
    (tmp_path / "run" / "member_0" / "checkpoints" / older).rename(tmp_path / "gone")
    damage(tmp_path / "run" / "member_1" / "checkpoints" / newest)
    before = contents(tmp_path / "run")
    message = rf"another member goes on from {older} decisions: .* those that exist are {newest}"
    with pytest.raises(CheckpointError, match=message):
        refine(three, tmp_path / "run", steps)
    # Not even the member that could have gone on was touched.
    assert contents(tmp_path / "run") == before


@jax.debug_key_reuse(False)
def test_members_begin_anew_where_one_was_killed_before_its_first_checkpoint(
    three, steps, whole, tmp_path
):
    with pytest.raises(RuntimeError):
        refine(three, tmp_path, failing(steps, 3, RuntimeError()))
    first = str(2 * EPOCH)
    (tmp_path / "member_2" / "checkpoints" / first).rename(tmp_path / "gone")
    assert all(map(same, refine(three, tmp_path, steps), whole[0]))
    for index in range(2):
        assert (tmp_path / f"member_{index}" / "checkpoints" / f"{first}.newer").is_dir()


@jax.debug_key_reuse(False)
def test_a_member_that_ends_leaves_the_others_as_they_are(three, tmp_path, whole):
    # Its step size makes it diverge, be rolled back and at last stopped.
    bad = with_value(dataclasses.replace(three[0], seed=9), "sac.critic_lr", 1e4)
    ends = refine([three[0], bad, three[2]], tmp_path)
    assert ends[1].stopped and ends[1].state.decision_steps < TOTAL
    assert records(tmp_path / "member_1", "audit.jsonl")[-1]["done"] == "stop"
    for index in (0, 2):
        assert ends[index].state.decision_steps == TOTAL
        close(ends[index].state.sac, whole[0][index].state.sac, rtol=1e-6)


@jax.debug_key_reuse(False)
def test_the_worse_half_ends_and_the_stack_becomes_small(three, tmp_path, whole):
    config = dataclasses.replace(three[0].train, halve_at=(2 * EPOCH, 4 * EPOCH))
    of_each = [dataclasses.replace(own, train=config) for own in three]
    of_each.append(dataclasses.replace(of_each[0], seed=3))
    plain, widths = make_steps(*of_each), []

    def train_epoch(state):
        widths.append(len(state.decision_steps))
        return plain.train_epoch(state)

    ends = refine(of_each, tmp_path, plain._replace(train_epoch=train_epoch))
    assert widths == [4] * 2 + [2] * 2 + [1] * 6
    steps = [int(end.state.decision_steps) for end in ends]
    assert sorted(steps) == [2 * EPOCH] * 2 + [4 * EPOCH, TOTAL]
    scores = [
        [r["success_once"] for r in records(tmp_path / f"member_{index}") if r["group"] == "eval"]
        for index in range(4)
    ]
    assert min(s[1] for s, n in zip(scores, steps, strict=True) if n > 2 * EPOCH) >= max(
        s[1] for s, n in zip(scores, steps, strict=True) if n == 2 * EPOCH
    )
    out = records(tmp_path / f"member_{steps.index(2 * EPOCH)}", "audit.jsonl")[-1]
    assert (out["rule"], out["done"]) == ("halving", "stop")
    survivor = steps.index(TOTAL)
    if survivor < 3:  # it is the run that it is without a halving
        close(ends[survivor].state.sac, whole[0][survivor].state.sac, rtol=2e-3, atol=2e-4)


class Scored:
    """An evaluation of so many successes in ten, the first after so many control steps."""

    def __init__(self, successes, steps=5.0):
        self.score = successes / 10
        self.steps_to_success = np.full(10, steps)


def test_who_is_lost_by_hand():
    results = {0: Scored(3), 1: Scored(9), 2: Scored(5, 4.0), 3: Scored(5, 6.0), 4: Scored(1)}
    lost: Any = members.lost
    assert lost((), 100, 5, results) == set()
    assert lost((200,), 199, 5, results) == set()
    assert lost((200,), 200, 5, results) == {0, 4}  # three of five stay
    assert lost((200, 300), 300, 5, results) == {0, 4, 3}  # of equals the slower one
    assert lost((200,), 264, 5, {1: Scored(1), 2: Scored(2)}) == set()  # halved already
    assert lost((1,), 10, 1, {0: Scored(0)}) == set()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["seed: [0, 1]", "sac.gamma: [0.9]"], "the same number of values .*seed: 2, sac.gamma: 1"),
        (["seed: 3"], "seed: no list"),
        (["seed: []"], "seed: 0"),
        (["sac.hiden: [[8], [16]]"], "unknown config key 'sac.hiden'"),
        (["sac.gamma: [0.9, 2.0]"], "sac.gamma got 2.0, expected number 0 to 1"),
        (["sac: {hidden: [[8], [16]]}"], "sac.hidden .*, which one program cannot hold"),
        (["sac.smoothness_penalty: [0, 1]"], "differ in whether sac.smoothness_penalty is 0"),
        (["seed: [1, 2, 1]"], "members 0 and 2 are the same run"),
    ],
)
def test_members_that_cannot_be(lines, words, tmp_path):
    path = tmp_path / "members.yaml"
    path.write_text("preset: fast\nmembers:\n" + "".join(f"  {line}\n" for line in lines))
    with pytest.raises(ConfigError, match=words):
        members.check(configs.load_members(str(path)))


def test_members_of_a_file_and_of_a_number_of_seeds(tmp_path):
    path = tmp_path / "members.yaml"
    path.write_text("preset: fast\nmembers:\n  seed: [4, 5]\n  sac: {gamma: [0.9, 0.95]}\n")
    found = configs.load_members(str(path), ["sac.tau=0.5", "members.sac.actor_lr=[1e-3,1e-2]"])
    assert members.varied(found) == [
        {"seed": 4, "sac.gamma": 0.9, "sac.actor_lr": 1e-3},
        {"seed": 5, "sac.gamma": 0.95, "sac.actor_lr": 1e-2},
    ]
    assert {own.sac.tau for own in found} == {0.5}
    with pytest.raises(ConfigError, match="leave out --members"):
        configs.load_members(str(path), seeds=3)
    with pytest.raises(ConfigError, match="only `pdjax train` accepts"):
        configs.load(str(path))
    seeds = configs.load_members("peg_fast", ["seed=7"], seeds=3)
    assert [own.seed for own in seeds] == [7, 8, 9]
    assert configs.load_members("peg_fast") == [configs.load("peg_fast")]


def test_what_members_set_is_written_as_json(tmp_path):
    found = configs.load_members("peg_fast", seeds=2)
    assert json.loads(json.dumps(members.varied(found))) == [{"seed": 0}, {"seed": 1}]
