"""The exported refined policy: as evaluated, without pdjax, and safe where it knows nothing."""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from pdjax.base_policies.chunking import push_history
from pdjax.base_policies.foreign import assemble, exported
from pdjax.commands import cli
from pdjax.learner.decorator import clip_action, decorate, far_numbers
from pdjax.rollout.decision import start_episode
from pdjax.rollout.playing import make_play
from pdjax.runs import export as export_of_runs
from pdjax.runs.deployed import make_deployed, trips
from pdjax.runs.load import load_refined
from pdjax_envs import make
from tests.probe import make_constant_policy, make_point_task, registered

EPISODE_STEPS, LIMIT = 12, 0.05
TINY = [
    "task.name=Point",
    "base_policy.path=base",
    "train.num_envs=4",
    "train.decisions_per_round=16",
    "train.decisions_per_epoch=128",
    "train.total_decisions=1024",
    "train.learning_starts=64",
    "sac.batch_size=32",
    "sac.hidden=[16]",
    "sac.residual_penalty=0",
    "sac.head_gain=1",
    "eval.episodes=64",
    "eval.interim_episodes=32",
    "eval.interim_every=512",
    "train.updates_per_decision=0.5",
    "decorator.exploration_steps=0",
    "decorator.residual_scale=0.5",
]


def make_noisy_policy():
    """Often stops short of the goal; acts by its key, its own count and its oldest observation."""
    constant = make_constant_policy()

    def apply(params, carry, obs_history, key):
        action = params["velocity"] + 0.1 * jax.random.normal(key, (2, 1)) + 0.001 * carry
        return jnp.clip(action + 0.01 * obs_history[0, 0], -1, 1), carry + 1

    return constant._replace(apply=apply, params={"velocity": jnp.float32(0.33)})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a trained run, `run`, of what `pdjax export` wrote of it, `deployed`, and of
    what that printed, `found.json`."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch, registered(make_point_task(EPISODE_STEPS, 0.1)):
        patch.chdir(folder)
        exported.export_policy(make_noisy_policy(), Path("base"), "Point")
        assert cli.main(["train", "peg_fast", "--out", "run", "--set", *TINY]) == 0
        argv = ["export", "run", "--out", "deployed", "--episodes", "64", "--seed", "3", "--json"]
        with Path("found.json").open("w") as file, contextlib.redirect_stdout(file):
            assert cli.main(argv) == 0
        yield folder


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


@pytest.fixture(scope="module")
def run(made):
    """The finished run, ready to play."""
    assert json.loads((made / "run/result.json").read_text())["gradient_steps"] > 0
    return load_refined(made / "run")


def read(folder, name):
    return export.deserialize(bytearray((folder / "deployed" / name).read_bytes()))


def key_words(key):
    return jax.random.key_data(key)[None]


def test_it_acts_as_the_refined_policy_does_all_through_an_episode(made, run):
    playing, actor, scale = run.playing, run.actor, run.residual_scale
    env, base, frozen = make("Point", terminate_on_success=False), playing.base, playing.frozen
    policy, init_carry = read(made, "policy.jaxexport"), read(made, "init_carry.jaxexport")
    assert set(policy.platforms) == {"cpu", "cuda", "tpu"}

    # As `evaluate.evaluate` plays it: episode 0 of 2, by the same keys.
    def choose(obs, base_action):
        return playing.sac.act_deterministic(actor, obs, base_action)

    played = make_play(playing)(7, 2, actor, scale, record=True)
    key = jax.random.key(7)
    start_key, noise_key = jax.random.split(jax.random.split(key, 2)[0])
    carry_key = jax.random.split(jax.random.clone(start_key))[1]
    state = start_episode(env, base, frozen, start_key)
    carry, base_carry, position, changed = init_carry.call(key_words(carry_key)), state.carry, [], 0
    for index in range(EPISODE_STEPS // base.act_horizon):
        now = jax.random.fold_in(noise_key, index)
        chunk, carry = policy.call((), carry, state.history[None], key_words(now))
        base_chunk, base_carry = base.apply(base.params, base_carry, state.history, now)
        base_action = base_chunk.reshape(1, -1)
        residual = choose(playing.rollout.see(frozen, state.history[-1:]), base_action)
        expected = clip_action(decorate(base_action, residual, scale))
        np.testing.assert_allclose(chunk.reshape(1, -1), expected, atol=1e-6)
        changed += int((np.abs(expected - base_action) > 1e-3).any())
        for action in chunk[0]:
            env_state, out = env.step(frozen.model, state.env, action)
            state = state._replace(env=env_state, history=push_history(state.history, out.obs))
            position.append(env_state.physics.qpos)
    assert played.qpos is not None
    np.testing.assert_allclose(position, played.qpos[:, 0], atol=1e-6)
    assert changed == EPISODE_STEPS // base.act_horizon  # the residual is not nothing
    assert carry[0] == 0  # and the fail-safe let it be


def test_what_was_written_succeeds_as_often_as_the_run(made):
    found = json.loads((made / "found.json").read_text())
    assert found["success"] == found["run_success"] > 0.9  # of a base at about a half
    assert (found["trips"], found["decisions"]) == (0, 64 * EPISODE_STEPS // 2)
    # Decisions are taken at steps 0, 2 ... 10, and no number observed is beyond 10 there.
    assert found["drift_of_base"] == 0.0 and found["drift_limit"] == pytest.approx(0.05)


NORMAL = np.array([[0.0, 0.5, 3.0], [0.02, 0.5, 4.0]], np.float32)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("value", [20.0, -20.0, np.nan, np.inf])
def test_it_is_the_base_alone_where_an_observation_is_not_known(made, run, number, value):
    base, key = run.playing.base, jax.random.key(5)
    policy, init_carry = read(made, "policy.jaxexport"), read(made, "init_carry.jaxexport")
    carry = init_carry.call(key_words(jax.random.clone(key)))
    _, carry = policy.call((), carry, NORMAL[None], key_words(jax.random.clone(key)))
    assert carry[0] == 0
    shifted, held = NORMAL.copy(), NORMAL.copy()
    shifted[1, number] += value
    if np.isfinite(value):
        held = shifted
    else:
        held[1, number] = held[0, number]  # the latest finite value
    chunk, after = policy.call((), carry, shifted[None], key_words(jax.random.clone(key)))
    base_carry = base.init_carry(key)
    now = jax.random.clone(key)
    _, base_carry = base.apply(base.params, base_carry, jnp.asarray(NORMAL), jax.random.clone(now))
    expected, _ = base.apply(base.params, base_carry, jnp.asarray(held), now)
    assert np.isfinite(chunk).all()
    np.testing.assert_allclose(chunk[0], expected, atol=1e-6)
    assert after[0] == 1
    # and it counts on, until all is known again
    _, after = policy.call((), after, shifted[None], key_words(jax.random.clone(key)))
    _, last = policy.call((), after, NORMAL[None], key_words(jax.random.clone(key)))
    assert after[0] == last[0] == 2


def deploy(choose, base=None, limit=LIMIT):
    return make_deployed(base or make_constant_policy(0.25), choose, 0.5, limit)


def act(policy, obs_history, carry=None):
    carry = policy.init_carry(jax.random.key(0)) if carry is None else carry
    return policy.apply((), carry, jnp.asarray(obs_history), jax.random.key(1))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_residual_that_is_not_finite_is_switched_off(value):
    bad = lambda obs, action: jnp.array([[1.0, value]])  # noqa: E731
    chunk, carry = act(deploy(bad), NORMAL)
    np.testing.assert_array_equal(chunk, [[0.25], [0.25]])
    assert carry.trips == 1
    good = lambda obs, action: jnp.array([[1.0, -1.0]])  # noqa: E731
    chunk, carry = act(deploy(good), NORMAL)
    np.testing.assert_allclose(chunk, [[0.75], [-0.25]])
    assert carry.trips == 0


def test_nothing_ever_seen_is_the_mean_of_the_data_and_a_bad_base_action_is_zero():
    seen = []

    def apply(params, carry, obs_history, key):
        del params, key
        seen.append(np.asarray(obs_history))
        return jnp.array([[jnp.nan], [0.5]]), carry

    base = make_constant_policy()._replace(apply=apply, obs_mean=jnp.array([1.0, 2.0, 3.0]))
    zero = lambda obs, action: jnp.zeros((1, 2))  # noqa: E731
    with jax.disable_jit():
        chunk, carry = act(deploy(zero, base), [[np.nan, 5.0, np.inf], [7.0, np.nan, np.nan]])
    np.testing.assert_array_equal(seen[-1], [[1, 5, 3], [7, 5, 3]])
    np.testing.assert_array_equal(chunk, [[0.0], [0.5]])
    np.testing.assert_array_equal(carry.seen, [7, 5, 3])
    assert carry.trips == 1


def test_the_limit_is_a_share_of_numbers():
    wide = make_constant_policy()._replace(obs_mean=jnp.zeros(40), obs_std=jnp.ones(40))
    obs = np.zeros(40, np.float32)
    for count, tripped in ((0, False), (2, False), (3, True)):  # 2 of 40 are 5 %, not more
        obs[:count] = 10.5
        assert trips(wide, jnp.asarray(obs), LIMIT) == tripped
    np.testing.assert_array_equal(
        far_numbers(jnp.array([10.0, 10.5, -10.5, jnp.nan]), jnp.zeros(4), jnp.ones(4)),
        [False, True, True, True],
    )


def test_its_readme_works_where_there_is_no_pdjax(here):
    text = (here / "deployed/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (needs,) = re.findall(r"`pip install (.*?)`", text)
    check = "\nprint(chunk.shape, trips.shape)"
    done = run_with_only(needs.split(), code + check)
    assert done.stdout == "(1, 2, 1) (1,)\n", done.stderr
    assert "No module named 'flatbuffers'" in run_with_only(["jax"], code).stderr
    assert "at\n10 Hz" in text and f"episodes of {EPISODE_STEPS}\ncontrol steps (1.2 s)" in text


def run_with_only(packages, code):
    """Runs code where only these packages and what they require can be imported."""
    return subprocess.run(
        [sys.executable, "-c", ONLY.format(packages=packages) + code],
        cwd="deployed",
        capture_output=True,
        text=True,
    )


ONLY = """
import importlib.metadata, re, sys

wanted, allowed = {packages!r}, set()
while wanted:
    name = re.match(r"[\\w.-]+", wanted.pop())[0].lower().replace("-", "_")
    if name not in allowed:
        allowed.add(name)
        required = importlib.metadata.requires(name) or []
        wanted += [other for other in required if "extra ==" not in other]


owners = importlib.metadata.packages_distributions()


class Only:
    def find_spec(self, name, path=None, target=None):
        found = owners.get(name.partition(".")[0], [])
        if found and not allowed & {{owner.lower().replace("-", "_") for owner in found}}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Only())
"""


def test_its_readme_resets_the_memory_of_one_robot_among_several(here, monkeypatch):
    monkeypatch.chdir(here / "deployed")
    text = (here / "deployed/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code.replace("num_envs = 1 ", "num_envs = 3 "), names)
    assert names["chunk"].shape == (3, 2, 1)
    obs = np.full((3, 2, 3), np.nan, np.float32)
    _, carry = names["act"]((), names["start"](names["draw"]()), obs, names["draw"]())
    carry = names["reset"](carry, np.array([False, True, False]))
    assert np.asarray(carry[0]).tolist() == [1, 0, 1]  # trips
    assert np.asarray(carry[2]).tolist() == [1, 0, 1]  # the base policy's own count


def test_a_base_policy_alone_is_exported_too(here, capsys):
    argv = ["export", "base", "--out", "alone", "--episodes", "16", "--seed", "3", "--json"]
    assert cli.main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["success"] == found["run_success"] < 0.9
    assert (found["trips"], found["task"]) == (0, "Point")
    both = [act_alone(here, name) for name in ("alone", "base")]
    np.testing.assert_allclose(both[0], both[1], atol=1e-6)


def act_alone(here, name):
    base, _ = assemble.load(here / name)
    history = jnp.asarray(NORMAL)
    key = jax.random.key(5)
    carry = base.init_carry(jax.random.clone(key))
    return base.apply(base.params, carry, history, jax.random.clone(key))[0]


def test_it_is_a_base_policy_again(here):
    changes = ["base_policy.path=deployed", "train.total_decisions=128", "eval.interim_episodes=0"]
    assert cli.main(["train", "peg_fast", "--out", "second", "--set", *TINY, *changes]) == 0
    first, second = (
        json.loads(Path(f"{run}/result.json").read_text()) for run in ("run", "second")
    )
    assert second["gradient_steps"] > 0
    assert second["base_success"] == first["refined_success"]  # on the same episodes
    argv = ["screen", "deployed", "--task", "Point", "--episodes", "8"]
    assert cli.main(argv) == 0


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_mistakes_are_one_line_and_change_nothing(here, capsys):
    Path("hosted.py").write_text("def act(obs_history):\n    return obs_history[:, :, :1] * 0\n")
    argv = ["wrap", "hosted.py:act", "--task", "Point", "--obs-horizon", "2", "--episodes", "1"]
    shutil.copytree("run", "of_host", ignore=shutil.ignore_patterns("base_policy*"))
    assert cli.main([*argv, "--out", "of_host/base_policy"]) == 0
    Path("empty").mkdir()
    capsys.readouterr()
    before = everything(here)
    for argv, message in [
        (["empty", "--out", "new"], "empty is no run: expected config.yaml as `pdjax train` write"),
        (["run", "--out", "base"], "base is not empty; choose another --out or remove it"),
        (["run"], "required: --out"),
        (["of_host", "--out", "new"], "of_host has a policy that is called through the host"),
    ]:
        assert cli.main(["export", *argv]) == 2
        said = capsys.readouterr().err
        assert message in said.splitlines()[-1] and said.count("pdjax:") == 1, said
    assert everything(here) == before


def test_a_limit_is_the_guards_above_what_the_base_itself_does(here, run, monkeypatch):
    # Where the base's data say 0 +- 0.3 of the time step, it is far in 4 ... 12: a third of all
    # numbers in those observations, so one third and the guard's 5 % are let through.
    narrow = run.playing.base._replace(obs_std=jnp.array([1.0, 1.0, 0.3]))
    playing = run.playing._replace(base=narrow)
    monkeypatch.setattr(
        export_of_runs, "load_refined", lambda *_, **__: run._replace(playing=playing)
    )
    found = export_of_runs.export_run(Path("run"), Path("narrow"), 8, 0)
    assert found["drift_of_base"] == pytest.approx(1 / 3)
    assert found["drift_limit"] == pytest.approx(1 / 3 + run.config.guard.drift)
    assert found["trips"] == 0
