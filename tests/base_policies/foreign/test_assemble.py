"""A user's own policy as a base: all kinds act, remember and are refined in the same way."""

import json
import pickle
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.base_policies.foreign import artefact, assemble, description, exported, host, sources
from pdjax.commands import cli
from pdjax.config.options import ConfigError
from pdjax.rollout.collect import make_rollout
from pdjax.rollout.decision import Frozen
from pdjax_envs.reading import InputError
from tests.probe import (
    make_constant_policy,
    make_counting_policy,
    make_point_env,
    make_point_task,
    registered,
)

OBS, ACT, HORIZON, CHUNK = 3, 1, 2, 2  # of the point on a line
WEIGHT = np.array([[0.3], [-0.2], [0.01]], np.float32)

# The same policy four times: chunk = tanh(newest obs @ WEIGHT), then half of that.
JAX_CODE = """
    import jax.numpy as jnp

    class policy:
        obs_horizon, params = 2, {"w": jnp.array([[0.3], [-0.2], [0.01]])}

        def init_carry(key):
            return ()

        def apply(params, carry, obs_history, key):
            action = jnp.tanh(obs_history[-1] @ params["w"])
            return jnp.stack([action, action / 2]), carry
"""
NUMPY_CODE = """
    import numpy as np

    W = np.array([[0.3], [-0.2], [0.01]], np.float32)

    def act(obs_history):
        action = np.tanh(obs_history[:, -1] @ W)
        return np.stack([action, action / 2], axis=1)
"""


def about(kind="python", **changes):
    return description.Description(
        **{
            "kind": kind,
            "task": "Point",
            "obs_dim": OBS,
            "act_dim": ACT,
            "obs_horizon": HORIZON,
            "act_horizon": CHUNK,
            "obs_mean": (0.0,) * OBS,
            "obs_std": (1.0,) * OBS,
        }
        | changes
    )


def assembled(policy, **changes):
    told = about(**changes)
    parts = assemble.adapt(policy, (told.obs_horizon, told.obs_dim))
    return assemble.assemble(parts, told, 0)


def write_code(folder, name, code):
    (folder / f"{name}_policy.py").write_text(textwrap.dedent(code))
    return folder


def play_once(base, obs_history, seed=0):
    """Returns (chunk, carry) of all environments for the first decision of an episode."""
    start_key, key = jax.random.split(jax.random.key(seed))
    carry = jax.vmap(base.init_carry)(jax.random.split(start_key, len(obs_history)))
    keys = jax.random.split(key, len(obs_history))
    call = jax.jit(jax.vmap(base.apply, (None, 0, 0, 0)))
    return call(base.params, carry, jnp.asarray(obs_history), keys)


def make_module():
    torch = pytest.importorskip("torch")

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.from_numpy(WEIGHT))

        def forward(self, obs_history):
            action = torch.tanh(obs_history[:, -1] @ self.w)
            return torch.stack([action, action / 2], dim=1)

    return torch, Module()


def save_torchscript(path):
    torch, module = make_module()
    torch.jit.trace(module, torch.zeros(2, HORIZON, OBS)).save(str(path))
    return path


@pytest.fixture
def point():
    """Registers one more task: the point, with a goal that the policies below do not reach."""
    with registered(make_point_task(episode_steps=7)):
        yield


def source_of(kind, folder):
    """Returns the argument of `pdjax wrap` for each kind."""
    if kind == "export":
        base = assembled(
            sources.find(f"{write_code(folder, 'jax', JAX_CODE)}/jax_policy.py:policy")
        )
        exported.export_policy(base, folder / "exported", "Point")
        return str(folder / "exported" / "policy.jaxexport")
    if kind == "torchscript":
        return str(save_torchscript(folder / "own.pt"))
    code = JAX_CODE if kind == "jax" else NUMPY_CODE
    name = "policy" if kind == "jax" else "act"
    return f"{write_code(folder, kind, code)}/{kind}_policy.py:{name}"


KINDS = ("jax", "numpy", "export", "torchscript")


def wrap(source, out, *more):
    return cli.main(
        ["wrap", source, "--task", "Point", "--out", str(out), "--episodes", "4", *more]
    )


def expected_chunk(obs_history):
    action = np.tanh(obs_history[..., -1, :] @ WEIGHT)
    return np.stack([action, action / 2], axis=-2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_envs", [1, 5])
def test_every_kind_gives_the_hand_computed_actions(kind, num_envs, tmp_path, point, capsys):
    assert wrap(source_of(kind, tmp_path), tmp_path / "base", "--obs-horizon", "2") == 0
    base, task = assemble.load(tmp_path / "base")
    assert task == "Point" and (base.obs_horizon, base.act_horizon) == (HORIZON, CHUNK)
    rng = np.random.default_rng(0)
    obs_history = rng.normal(size=(num_envs, HORIZON, OBS)).astype(np.float32)
    chunk, carry = play_once(base, obs_history)
    np.testing.assert_allclose(chunk, expected_chunk(obs_history), atol=1e-6)
    assert carry == ()
    # and for one environment, without vmap
    alone, _ = base.apply(base.params, (), jnp.asarray(obs_history[0]), jax.random.key(0))
    np.testing.assert_allclose(alone, chunk[0], atol=1e-6)
    way = "through the host" if kind in ("numpy", "torchscript") else "in the program"
    assert f"called {way}" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_refining_works_with_every_kind_and_leaves_it_alone(
    kind, tmp_path, point, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert wrap(source_of(kind, tmp_path), "base", "--obs-horizon", "2") == 0
    files = lambda folder: {  # noqa: E731
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    before = files(Path("base"))
    params = jax.device_get(assemble.load(Path("base"))[0].params)
    small = [
        "task.name=Point",
        "base_policy.path=base",
        "train.num_envs=4",
        "train.decisions_per_round=16",
        "train.decisions_per_epoch=128",
        "train.total_decisions=256",
        "train.learning_starts=64",
        "sac.batch_size=16",
        "sac.hidden=[8]",
        "eval.episodes=4",
        "eval.interim_episodes=0",
        "decorator.residual_scale=0.9",
    ]
    assert cli.main(["train", "peg_fast", "--out", "run", "--set", *small]) == 0
    assert "us per call for 4 environments" in capsys.readouterr().err
    result = json.loads(Path("run/result.json").read_text())
    assert result["gradient_steps"] > 0 and result["decision_steps"] == 256
    assert before == files(Path("base")) == files(Path("run/base_policy"))
    again = jax.device_get(assemble.load(Path("run/base_policy"))[0].params)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert cli.main(["eval", "run", "--episodes", "3"]) == 0  # from the copy in the run


# A policy's memory is reset together with its environment.


class Counter:
    """Host policy whose action is 0.01 times the number of decisions since the reset."""

    @staticmethod
    def init_carry():
        return {"count": np.ones((), np.int32)}

    @staticmethod
    def act(carry, obs_history, seed):
        count = carry["count"]
        return np.repeat(0.01 * count[:, None, None], CHUNK, axis=1), {"count": count + 1}


class Leaking:
    """The same policy with memory outside the carry, like an RNN that keeps its hidden state."""

    def __init__(self):
        self.count = {}

    def init_carry(self):
        return ()

    def act(self, carry, obs_history, seed):
        count = self.count.get(len(seed), np.ones(len(seed)))
        self.count[len(seed)] = count + 1
        return np.repeat(0.01 * count[:, None, None], CHUNK, axis=1).astype(np.float32), carry


def exported_counter(folder):
    base = make_counting_policy(act_horizon=CHUNK)
    exported.export_policy(base, folder / "counter", "Point")
    return assemble.load(folder / "counter")[0]


def counts_and_resets(base, num_envs=6, decisions=40):
    """Returns the counts that the actions show, and where episodes were reset."""
    # Success ends an episode. Every environment has another residual, so that they reach the goal
    # at different times.
    env = make_point_env(episode_steps=9, goal=0.5, tolerance=0.25)
    rollout = make_rollout(env, base)
    frozen = Frozen(env.model, base.params, base.obs_mean, base.obs_std)

    def choose(obs, base_action, key, index):
        own = jnp.linspace(0.0, 1.0, num_envs)[:, None]
        return jnp.broadcast_to(own, base_action.shape), 0.9

    @jax.jit
    def play(key):
        start_key, keys_key = jax.random.split(key)
        state = rollout.init(frozen, start_key, num_envs)
        return rollout.collect(frozen, state, choose, jax.random.split(keys_key, decisions))[1]

    rows = jax.device_get(play(jax.random.key(0)))
    return np.round(rows.base_action[..., 0] * 100).astype(int), rows.is_reset


def follows_resets(counts, is_reset):
    """Returns whether every count is the number of decisions since its environment's reset."""
    expected, now = np.zeros_like(counts), np.ones(counts.shape[1], int)
    for row in range(len(counts)):
        expected[row] = now
        now = np.where(is_reset[row], 1, now + 1)
    return (counts == expected).all()


@pytest.mark.parametrize("kind", ["host", "export"])
def test_memory_is_reset_exactly_with_its_environment(kind, tmp_path):
    base = assembled(Counter) if kind == "host" else exported_counter(tmp_path)
    counts, is_reset = counts_and_resets(base)
    ends = is_reset.sum(axis=0)
    assert ends.min() >= 5 and len(np.unique(ends)) >= 3  # many, and staggered
    assert follows_resets(counts, is_reset)


def test_the_same_check_catches_memory_that_leaks():
    leaking: Any = Leaking()
    shape = (CHUNK, ACT)  # as `host.probe`, which catches it too, would find
    parts = assemble.Parts(*host.make_functions(leaking, shape), params=(), chunk_shape=shape)
    counts, is_reset = counts_and_resets(assemble.assemble(parts, about()))
    assert not follows_resets(counts, is_reset)


def test_an_exported_policy_acts_bit_for_bit_as_the_original(tmp_path):
    def apply(params, carry, obs_history, key):
        noise = jax.random.normal(key, (CHUNK, ACT))
        carry = {"last": obs_history[-1], "n": carry["n"] + 1}
        return jnp.tanh(params["gain"] * noise + obs_history[-1, :1] + carry["n"]), carry

    constant = make_constant_policy()
    original = constant._replace(
        apply=apply,
        params={"gain": jnp.float32(0.7)},
        init_carry=lambda key: {"last": jnp.zeros(3), "n": jax.random.normal(key)},
    )
    exported.export_policy(original, tmp_path / "base", "Point")
    read, _ = assemble.load(tmp_path / "base")

    history = jax.random.normal(jax.random.key(4), (4, 2, 3))
    leaves = [jax.tree.leaves(play_once(base, history)) for base in (original, read)]
    for one, other in zip(*leaves, strict=True):
        np.testing.assert_array_equal(one, other)

    # and in several members of one program, each with environments of its own
    members = jax.random.split(jax.random.key(5), (3, 4))
    histories = jax.random.normal(jax.random.key(6), (3, 4, 2, 3))

    def act(base):
        def one(key, history):
            return base.apply(base.params, base.init_carry(key), history, jax.random.clone(key))

        return jax.jit(jax.vmap(jax.vmap(one)))(jax.random.clone(members), histories)

    for one, other in zip(*(jax.tree.leaves(act(base)) for base in (original, read)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_one_call_of_the_host_serves_all_environments():
    sizes = []

    def act(obs_history):
        sizes.append(len(obs_history))
        return np.zeros((len(obs_history), CHUNK, ACT), np.float32)

    base = assembled(act)
    sizes.clear()
    jax.block_until_ready(play_once(base, jnp.zeros((7, HORIZON, OBS))))
    assert sizes == [7]


def test_other_devices_reach_the_host_by_copies_with_the_same_result(monkeypatch):
    history = np.random.default_rng(0).normal(size=(5, HORIZON, OBS)).astype(np.float32)
    here = play_once(assembled(Counter), history)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = play_once(assembled(Counter), history)
    assert here[1]["count"].tolist() == [2] * 5
    jax.tree.map(np.testing.assert_array_equal, here, there)


def test_seeds_differ_between_environments_and_repeat_with_the_key():
    class Noise:
        init_carry = staticmethod(tuple)

        @staticmethod
        def act(carry, obs_history, seed):
            draw = [np.random.default_rng(s).uniform(-1, 1, (CHUNK, ACT)) for s in seed]
            return np.stack(draw), carry

    base = assembled(Noise)

    history = jnp.zeros((6, HORIZON, OBS))
    first, again, other = (np.asarray(play_once(base, history, seed)[0]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first)) == first.size and (first != other).all()


def test_declared_ranges_are_scaled_and_clipped_and_nan_stays_for_the_environment_to_count():
    def act(obs_history):
        value = obs_history[:, -1, :1]
        return np.stack([value, value + 10], axis=1)

    base = assembled(act, action_low=(0.0,), action_high=(20.0,))

    def chunk(value):
        history = jnp.full((HORIZON, OBS), value, jnp.float32)
        return np.asarray(base.apply((), (), history, jax.random.key(0))[0])[:, 0]

    # [0, 20] -> [-1, 1]: 5 -> -0.5, 15 -> 0.5; 15 -> 0.5, 25 -> 1.5, clipped
    np.testing.assert_allclose(chunk(5.0), [-0.5, 0.5])
    np.testing.assert_allclose(chunk(15.0), [0.5, 1.0])
    for bad in (np.nan, np.inf, -np.inf):
        assert np.isnan(chunk(bad)).all()


@pytest.mark.parametrize("name", ["policy.jaxexport", "init_carry.jaxexport"])
def test_a_damaged_program_is_told_before_jax_reads_it(tmp_path, monkeypatch, name):
    exported_counter(tmp_path)
    base = tmp_path / "counter"
    content = bytearray((base / name).read_bytes())
    content[len(content) // 2] ^= 1
    (base / name).write_bytes(content)
    monkeypatch.setattr(artefact, "read", lambda path: pytest.fail("read it"))
    with pytest.raises(ConfigError, match=f"is damaged: {name} has changed since it was written"):
        assemble.load(base)


def test_fewer_steps_of_a_chunk_may_be_executed_but_not_more(tmp_path):
    exported.export_policy(make_constant_policy(0.3, act_horizon=4), tmp_path / "base", "Point")
    base, _ = assemble.load(tmp_path / "base", act_horizon=3)
    assert base.act_horizon == 3
    assert play_once(base, jnp.zeros((1, 2, 3)))[0].shape == (1, 3, 1)
    with pytest.raises(ConfigError, match="act_horizon=5 must be <= 4"):
        assemble.load(tmp_path / "base", act_horizon=5)


def test_a_torch_module_given_as_python_code(tmp_path):
    _, module = make_module()
    base = assembled(module)
    history = np.random.default_rng(1).normal(size=(3, HORIZON, OBS)).astype(np.float32)
    np.testing.assert_allclose(play_once(base, history)[0], expected_chunk(history), atol=1e-6)


# Bad input ends in one line and writes nothing.


def refuse(capsys, argv, words, out=Path("new")):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and words in captured.err, captured.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("act = 3", "the policy is a int, expected a function, a torch.nn.Module or an object"),
        ("import nowhere_at_all", "failed with ModuleNotFoundError: No module named 'nowhere_at"),
        (
            "def other(obs): ...",
            "own_policy.py has no 'act'; known: other",
        ),
        (
            "def act(obs): return obs.nope",
            "the policy, on 2 observation histories (2, 1, 3), failed with Attrib",
        ),
        ("def act(obs): return obs[:, 0, 0]", "returned an array of shape (2,) on 2 observation"),
        ("def act(obs): return obs[:1, :, :1]", "returned an array of shape (1, 1, 1) on 2 obs"),
        ("def act(obs): return obs[:, :, :2]", "returns chunks (1, 2) (act_horizon, act_dim), e"),
        (
            "def act(obs): return obs[:, :, :1] + float('nan')",
            "returned NaN or infinite actions on",
        ),
        (
            "def act(obs): return obs[:, :, :1] / obs[:, :, :1].clip(0, 1)",
            "returned NaN or infinite",
        ),
        ("def act(): raise RuntimeError('no weights')", "failed with RuntimeError: no weights"),
        ("syntax error", "failed with SyntaxError"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_code_that_cannot_be_a_policy(code, words, tmp_path, point, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_code(tmp_path, "own", code)
    refuse(capsys, ["wrap", "own_policy.py:act", "--task", "Point", "--out", "new"], words)


GOOD = ["--task", "Point", "--out", "new"]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("junk.pt", "is not a TorchScript file, and pdjax does not read pickles (torch.save)"),
        ("none.pt", "no policy at none.pt: no such file"),
        ("junk.jaxexport", "junk.jaxexport is not a jax.export artefact that this JAX can read: "),
        ("none.jaxexport", "no policy at none.jaxexport: no such file"),
        ("none.py:act", "cannot read the policy's code none.py: No such file"),
        ("no_such_module:act", "importing no_such_module failed with ModuleNotFoundError"),
        ("good", "cannot wrap good; expected FILE.jaxexport, FILE.pt (TorchScript), FILE.py:NAME"),
    ],
)
def test_other_sources_that_cannot_be_wrapped(source, words, tmp_path, point, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("junk.pt").write_bytes(pickle.dumps(Counter))
    Path("junk.jaxexport").write_bytes(b"junk")
    refuse(capsys, ["wrap", source, *GOOD], words)


def test_torch_files_that_cannot_be_wrapped(tmp_path, point, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch, module = make_module()
    torch.save(module.state_dict(), "weights.pt")
    refuse(capsys, ["wrap", "weights.pt", *GOOD], "is not a TorchScript file, and")
    wrap_good = ["wrap", str(save_torchscript(tmp_path / "good.pt")), *GOOD]
    refuse(capsys, [*wrap_good, "--action-low", "1"], "action_low=[1.0] must lie below")
    refuse(capsys, [*wrap_good, "--task", "Pont"], "unknown task 'Pont'")
    if not torch.cuda.is_available():
        refuse(capsys, [*wrap_good, "--device", "cuda"], "torch finds no GPU here; set device to")
    monkeypatch.setitem(sys.modules, "torch", None)
    refuse(capsys, wrap_good, "needs torch, which is not installed; pip install")


def test_artefacts_of_other_signatures(tmp_path, point, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    symbol = jax.export.symbolic_shape("n")[0]
    shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)  # noqa: E731

    def write(name, function, *inputs, platforms=None):
        content = jax.export.export(jax.jit(function), platforms=platforms)(*inputs).serialize()
        Path(name).write_bytes(content)
        return ["wrap", name, "--task", "Point", "--out", "new"]

    newest = lambda obs: obs[:, -1:, :1]  # noqa: E731
    refuse(capsys, write("a.jaxexport", newest, shape(16, 2, 3)), "only takes a batch of 16; exp")
    refuse(capsys, write("b.jaxexport", newest, shape(symbol, 2, 4)), "reads observation historie")
    refuse(
        capsys,
        write("c.jaxexport", lambda a, b: a + b, shape(symbol, 2, 3), shape()),
        "takes 2 inputs, expected one, obs_history",
    )
    refuse(capsys, write("d.jaxexport", lambda obs: obs, shape(symbol, 3)), "takes obs_history of")
    refuse(
        capsys,
        write("e.jaxexport", newest, shape(symbol, 2, 3), platforms=["tpu"]),
        "was exported for tpu, but this process runs on cpu",
    )
    endless = lambda obs: newest(obs) + jnp.inf  # noqa: E731
    refuse(
        capsys,
        write("g.jaxexport", endless, shape(symbol, 2, 3)),
        "returned NaN or infinite actions on observations of Point",
    )
    # A function of the observations alone is accepted.
    assert cli.main(write("f.jaxexport", newest, shape(symbol, 2, 3))) == 0
    base, _ = assemble.load(Path("new"))
    assert (base.obs_horizon, base.act_horizon) == (2, 1)


def test_memory_beyond_the_machines_is_refused_before_it_is_taken():
    size = 10**12
    start = np.broadcast_to(np.float32(0), (size,))
    own = host.HostPolicy(lambda: start, lambda carry, obs, seed: (obs[:, :, :1], carry))
    pure = types.SimpleNamespace(
        init_carry=lambda key: jnp.zeros(size),
        apply=lambda params, carry, obs, key: (obs[:, :1], carry),
    )
    for policy in (own, pure):
        with pytest.raises(InputError, match=r"memory from init_carry.*needs [\d,.]+ GiB"):
            assemble.adapt(policy, (HORIZON, OBS))


def test_a_policy_that_calls_python_cannot_be_exported(tmp_path):
    with pytest.raises(ConfigError, match="the policy is called through the host"):
        exported.export_policy(assembled(Counter), tmp_path / "base", "Point")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"obs_mean": None}, "policy.json lacks obs_mean; write the directory with `pdjax wrap`"),
        ({"act_dim": 0}, "policy.json: config key act_dim got 0, expected integer >= 1"),
        ({"obs_std": [1.0]}, "policy.json: obs_std has 1 numbers, expected 3"),
        ({"act_horizon": 3}, "returns chunks (2, 1) (act_horizon, act_dim), expected (3, 1)"),
        ({"action_low": [0, 0]}, "action_low has 2 numbers, expected 1"),
    ],
)
def test_descriptions_that_cannot_be(change, words, tmp_path):
    exported.export_policy(make_constant_policy(0.3), tmp_path / "base", "Point")
    path = tmp_path / "base" / "policy.json"
    values = json.loads(path.read_text()) | change
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(ConfigError) as caught:
        assemble.load(tmp_path / "base")
    assert words in str(caught.value)


def test_a_carry_that_changes_its_shape_is_refused():
    class Growing:
        init_carry = staticmethod(lambda key: jnp.zeros(1))
        apply = staticmethod(lambda p, carry, obs, key: (obs[:, :1], jnp.zeros(2)))

    with pytest.raises(ConfigError, match="returns the carry"):
        assemble.adapt(Growing, (HORIZON, OBS))


def test_a_carry_of_the_host_that_changes_its_shape_is_refused():
    growing = host.HostPolicy(
        init_carry=lambda: np.zeros(1),
        act=lambda carry, obs, seed: (obs[:, :, :1], np.concatenate([carry] * 2, 1)),
    )
    with pytest.raises(ConfigError, match="returned a carry of"):
        host.probe(growing, (HORIZON, OBS))
