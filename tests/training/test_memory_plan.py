"""The plan of a run's memory: equal to what is then there, and refused where it is not."""

import dataclasses
import functools
import gc
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.config import files as configs
from pdjax.config.presets import PRESETS
from pdjax.config.schema import Config, ConfigError
from pdjax.devices.sharding import make_mesh
from pdjax.learner.gradient_step import Hyperparams
from pdjax.learner.sac import make_hyperparams, make_sac, residual_dim
from pdjax.rollout.collect import make_rollout
from pdjax.rollout.decision import Frozen
from pdjax.training import memory_plan
from pdjax.training.demo_ring import make_demo_replay
from pdjax.training.epoch import Trainer, make_trainer
from tests.probe import make_constant_policy, make_point_env
from tests.training.test_demo_ring import episode
from tests.training.test_epoch import small_config

MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Small:
    """A small run: its config, functions, shapes and frozen part."""

    config: Config
    trainer: Trainer
    frozen: Frozen
    hyperparams: Hyperparams

    def plans(self, gib=0.0, working=0):
        args = (self.frozen, self.hyperparams, jax.random.key(0))
        state = jax.eval_shape(self.trainer.init, *args)
        return memory_plan.make_plans(state, self.frozen, (), make_mesh(self.config), gib, working)


@functools.cache
def small(**train):
    """Nothing of it is allocated, but for a few numbers of the base policy."""
    config, env, base = small_config(**train), make_point_env(), make_constant_policy(0.2)
    rollout = make_rollout(env, base, config)
    size = residual_dim(config.decorator, base)  # held over the chunk: 1
    sac = make_sac(config.sac, config.decorator, rollout.view_dim, 2, size)
    trainer = make_trainer(config, base, rollout, sac)
    frozen = Frozen(env.model, base.params, base.obs_mean, base.obs_std)
    return Small(config, trainer, frozen, make_hyperparams(config, size))


def nbytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def of_state(plan):
    """Bytes of a plan that are the training state."""
    names = ("replay", "environments", "learner")
    return sum(size for name, size in plan.held.items() if name.startswith(names))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_planned_are_exactly_the_arrays_that_are_then_there(dtype):
    run = small(replay_dtype=dtype, replay_capacity=8192)
    (plan,) = run.plans()
    gc.collect()
    before = {id(array) for array in jax.live_arrays()}
    init = jax.jit(run.trainer.init)
    state = init(run.frozen, run.hyperparams, jax.random.key(0))
    epoch = jax.jit(run.trainer.train_epoch, donate_argnums=1)
    for _ in range(2):
        state, metrics = epoch(run.frozen, state)
    assert metrics["gradient_steps"] > 0
    planned = of_state(plan)
    assert planned == nbytes(state)
    rings = plan.held["replay: observations"] + plan.held["replay: rewards and flags"]
    rings += plan.held["replay: base actions"] + plan.held["replay: residual actions"]
    assert rings == nbytes(state.replay.storage)
    del metrics
    gc.collect()
    new = [array for array in jax.live_arrays() if id(array) not in before]
    assert sum(array.nbytes for array in new) == pytest.approx(planned, rel=0.01)
    assert plan.held["base policy and model"] == nbytes(run.frozen)


def test_hand_numbers_of_a_replay():
    """4,096 decisions of 3 observed numbers, a chunk of 2, a float32 and three flags."""
    (plan,) = small().plans()
    assert plan.held["replay: observations"] == 4096 * 3 * 4
    assert plan.held["replay: base actions"] == 4096 * 2 * 4
    assert plan.held["replay: rewards and flags"] == 4096 * (4 + 3)
    (narrow,) = small(replay_dtype="bfloat16").plans()
    assert narrow.held["replay: observations"] == 4096 * 3 * 2
    assert narrow.held["replay: rewards and flags"] == 4096 * (4 + 3)


def test_demonstrations_and_working_memory_are_counted(key):
    run = small()
    demos = make_demo_replay(make_constant_policy(0.0), [episode(np.arange(5) == 4)], 1, key)
    run = dataclasses.replace(run, frozen=run.frozen._replace(demos=demos))
    (plan,) = run.plans(working=7 * MIB)
    assert plan.held["demonstrations"] == nbytes(demos)
    assert plan.held["working memory of an epoch"] == 7 * MIB


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_replay_of_the_advised_size_fits_and_one_more_round_does_not(dtype):
    run = small(replay_dtype=dtype, replay_capacity=10**7)
    (plan,) = run.plans()
    free = plan.total // 2
    plan = plan._replace(free=free)
    with pytest.raises(ConfigError, match=f"{memory_plan.text(free)} are free") as error:
        memory_plan.check([plan], run.config)
    numbers = [int(n.replace(",", "")) for n in re.findall(r"to ([\d,]{5,})", str(error.value))]
    assert len(numbers) == (2 if dtype == "float32" else 1)
    advised = [(numbers[0], dtype), *[(n, "bfloat16") for n in numbers[1:]]]
    for capacity, kept in advised:
        for more, fits in ((0, True), (run.config.train.decisions_per_round, False)):
            (other,) = small(replay_dtype=kept, replay_capacity=capacity + more).plans()
            assert other._replace(free=free).fits is fits


def test_where_nothing_fits_no_replay_is_advised():
    run = small()
    (plan,) = run.plans()
    with pytest.raises(ConfigError, match=r"no train.replay_capacity fits, or lower train.num_en"):
        memory_plan.check([plan._replace(free=MIB)], run.config)


def test_unknown_memory_refuses_nothing():
    run = small()
    (plan,) = run.plans()
    plan = plan._replace(free=None)
    memory_plan.check([plan], run.config)
    assert memory_plan.largest_capacity([plan], run.config, "float32") is None


def test_another_machine_may_be_planned_for(monkeypatch):
    run = small()
    monkeypatch.setattr(memory_plan.free_memory, "resident_memory", lambda: 2**30)
    (plan,) = run.plans(gib=3.0)
    assert plan.free == 2 * 2**30 + nbytes(run.frozen)  # which is a part of the resident memory


class Accelerator:
    """A device with 10 MiB of which 4 are taken."""

    def memory_stats(self):
        return {"bytes_limit": 10 * MIB, "bytes_in_use": 4 * MIB}


def test_an_accelerator_has_its_own_plan_and_the_host_saves(monkeypatch):
    run = small()
    (on_cpu,) = run.plans()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(memory_plan, "_devices", lambda mesh: [Accelerator()])
    device, host = run.plans()
    assert device.free == 6 * MIB + nbytes(run.frozen) and not device.saving
    assert device.held == {k: v for k, v in on_cpu.held.items() if k in device.held}
    assert host.numbers == 4 * device.numbers  # two checkpoints: copied, and encoded
    assert run.plans(gib=2.0)[0].free == 2 * 2**30


def test_working_memory_of_a_compiled_program():
    def work(x):
        y = jnp.outer(x, x)
        return x + jnp.sort(y, axis=0)[0]

    compiled = jax.jit(work, donate_argnums=0).lower(jnp.zeros(1024)).compile()
    found = memory_plan.working_memory(compiled)
    assert 4 * MIB <= found < 16 * MIB  # 1,024 x 1,024 float32, and what sorting takes


def test_tables_and_json(capsys):
    run = small()
    plans = run.plans(working=MIB)
    memory_plan.show(plans)
    shown = capsys.readouterr().err
    assert "working memory of an epoch" in shown and "1.0 MiB" in shown
    for label, size in (("steady state", plans[0].held_bytes), ("peak", plans[0].total)):
        assert re.search(rf"\b{label}\W+{re.escape(memory_plan.text(size))}", shown), label
    summary = memory_plan.summarize(plans, run.config)
    assert summary["plans"][0]["total_bytes"] == plans[0].total
    assert summary["largest_replay_capacity"]["bfloat16"] > 10**6


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resident_memory_grows_as_planned(dtype):
    """A real run of AdroitDoor in a fresh process, with a replay of a million decisions or two."""
    capacity = {"float32": "1000000", "bfloat16": "2000000"}[dtype]
    program = Path(__file__).parents[2] / "benchmarks/replay.py"
    command = [sys.executable, str(program), "--only-memory", "AdroitDoor", capacity, dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert abs(found["held"]["ratio"] - 1) < 0.1
    assert found["peak"]["ratio"] > 1  # what is planned while checkpoints are written is a bound


SIZES = memory_plan.Sizes(obs=39, history=78, chunk=112, residual=28, episode=300 * 28)


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        ("sac", {"batch_size": 2**31 - 1}, "sac.batch_size=2147483647 alone needs"),
        ("sac", {"hidden": (65_536,) * 1_000}, "sac.hidden=(65536, 65536, 65536"),
        (
            "sac",
            {"num_critics": 1_000, "hidden": (16_384,) * 2},
            "sac.num_critics=1000 alone",
        ),
        ("sac", {"n_step": 2**31 - 1}, "sac.n_step=2147483647 alone needs"),
        ("train", {"num_envs": 2**31 - 1}, "train.num_envs=2147483647 alone needs"),
        ("train", {"decisions_per_round": 2**31 - 1}, "train.decisions_per_round=2147483647 al"),
        ("train", {"decisions_per_epoch": 2**31 - 1, "decisions_per_round": 1}, "per_epoch=2147"),
        ("train", {"updates_per_decision": 1e38}, "train.updates_per_decision=1e+38 alone needs"),
        ("eval", {"episodes": 2**31 - 1}, "eval.episodes=2147483647 alone needs"),
        ("eval", {"interim_episodes": 10**7}, "eval.interim_episodes=10000000 alone needs"),
    ],
)
def test_a_count_that_alone_does_not_fit_is_named_by_arithmetic_alone(section, values, named):
    config = Config()
    changed = dataclasses.replace(getattr(config, section), **values)
    config = dataclasses.replace(config, **{section: changed})
    with pytest.raises(ConfigError, match=re.escape(named)) as caught:
        memory_plan.check_numbers(config, SIZES, 1, gib=32)
    assert len(str(caught.value)) <= 200


def test_the_presets_fit_by_their_counts():
    for name in PRESETS:
        memory_plan.check_numbers(configs.preset(name), SIZES, 4, gib=1)


def test_what_a_count_needs_at_least_is_less_than_the_plan_finds():
    """The bound must never refuse a run that the plan would take."""
    run = small()
    (plan,) = run.plans()
    learner = sum(size for name, size in plan.held.items() if name.startswith("learner"))
    least = memory_plan._least(run.config, memory_plan.Sizes(3, 6, 2, 1, 8), members=1)
    assert 0 < 4 * (least["sac.hidden"] + least["sac.num_critics"]) <= learner
    assert 4 * least["train.num_envs"] <= plan.held["environments"]
