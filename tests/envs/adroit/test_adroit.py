"""The Adroit tasks against gymnasium-robotics itself, number by number.

Both start from the same state and take the same actions. Physics is compared bit by bit. Readings
are compared in JAX's 64-bit mode, where the engine's numbers arrive unrounded: equal to the last
bit of a float32 (and of a float64 but for the last digits of norms and angles, whose sums XLA
orders differently). In the usual 32-bit mode differences of positions may be off by a rounding.

Runs in processes of their own, since the 64-bit mode is set once per process.
"""

import functools
import importlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

NAMES = ("Door", "Hammer", "Pen", "Relocate")
SEEDS, STEPS = 20, 200
FEW_SEEDS = 4  # where a difference is looked for that every episode shows
EXPERTS = Path(__file__).parents[3].parent / "shared/data/dapg"
# State of gymnasium-robotics' environments besides qpos and qvel.
EXTRA = {
    "Door": ("door_body_pos",),
    "Hammer": ("board_pos",),
    "Pen": ("desired_orien",),
    "Relocate": ("obj_pos", "target_pos"),
}
# One character of each task, changed.
MUTATIONS = {
    "Door": ("0.1 * hand.distance(palm, handle)", "0.2 * hand.distance(palm, handle)"),
    "Hammer": ("jnp.clip(physics.qvel[-6:], -1.0", "jnp.clip(physics.qvel[-6:], -0.0"),
    "Pen": ("pen, target, pos - place", "pen, target, pos + place"),
    "Relocate": ("ball[2] > LIFTED", "ball[1] > LIFTED"),
}
ROUNDING_64 = 2e-15  # of sums of about 1, in float64
ROUNDING_32 = 1e-6


def expert_policy(name):
    """The published DAPG expert: (observation, _) to action, both float64 NumPy."""
    weights = np.load(EXPERTS / f"dapg_{name.lower()}.npz")

    def act(obs, rng):
        del rng
        x = (obs - weights["in_shift"]) / (weights["in_scale"] + 1e-8)
        x = np.tanh(x @ weights["w0"].T + weights["b0"])
        x = np.tanh(x @ weights["w1"].T + weights["b1"])
        x = x @ weights["w2"].T + weights["b2"]
        return weights["out_shift"] + weights["out_scale"] * x

    return act


def play_theirs(name, reward, actor, seeds):
    """Plays gymnasium-robotics; returns starts, actions (float32), observations, rewards, ..."""
    import gymnasium
    import gymnasium_robotics
    import mujoco

    gymnasium.register_envs(gymnasium_robotics)
    suffix = "Sparse" if reward == "sparse" else ""
    env = gymnasium.make(f"AdroitHand{name}{suffix}-v1").unwrapped
    starts, actions, observations, rewards, successes, states = [], [], [], [], [], []
    for seed in range(seeds):
        env.reset(seed=seed)
        found = env.get_env_state()
        # Our start is in float32, so theirs is rounded to it.
        start = {k: np.float64(np.float32(found[k])) for k in ("qpos", "qvel", *EXTRA[name])}
        mujoco.mj_resetData(env.model, env.data)
        set_state(env, name, start)
        starts.append(start)
        observations.append([env._get_obs()])
        for rows in (actions, rewards, successes, states):
            rows.append([])
        rng = np.random.default_rng(seed)
        for _ in range(STEPS):
            # Beyond [-1, 1] too, where both clip.
            action = np.float32(actor(observations[-1][-1], rng))
            obs, got, _, _, info = env.step(action)
            actions[-1].append(action)
            observations[-1].append(obs)
            rewards[-1].append(got)
            successes[-1].append(info["success"])
            states[-1].append(np.concatenate([env.data.qpos, env.data.qvel]))
    stack = lambda rows: np.swapaxes(np.array(rows), 0, 1)  # noqa: E731  (seeds, steps) -> (steps, seeds)
    return (starts, *map(stack, (actions, observations, rewards, successes, states)))


def set_state(env, name, start):
    """`set_env_state` without its check of key names, which differs between the tasks."""
    body = {"Door": "frame", "Hammer": "nail_board", "Relocate": "Object"}.get(name)
    if body:
        env.model.body(body).pos = start[EXTRA[name][0]]
    if name == "Pen":
        env.model.body("target").quat = start["desired_orien"]
    if name == "Relocate":
        env.model.site("target").pos = start["target_pos"]
    env.set_state(start["qpos"], start["qvel"])


def make_ours(name, reward, mutated):
    """Our environment, or one with a task that differs by one character."""
    from pdjax_envs import registry
    from pdjax_envs.task import make_env

    if not mutated:
        return registry.make(f"Adroit{name}", "native", reward)
    file = importlib.import_module(f"pdjax_envs.adroit.{name.lower()}").__file__
    assert file is not None
    path = Path(file)
    before, after = MUTATIONS[name]
    source = path.read_text()
    assert source.count(before) == 1
    module = {}
    exec(compile(source.replace(before, after), "mutated", "exec"), module)
    task = module["make_task"]()
    return make_env(task, registry.make_engine(task.scene, "native"), reward)


def make_play(env):
    """(starts, actions) -> the same as `play_theirs` without both, on our native engine."""
    import jax
    import jax.numpy as jnp

    def control_step(state, action):
        state, out = jax.vmap(env.step, (None, 0, 0))(env.model, state, action)
        return state, (out.obs, out.reward, out.success, state.physics.raw)

    @jax.jit
    def play(starts, actions):
        starts = jax.vmap(env.task.make_start)(starts)
        state, first = jax.vmap(env.start_from, (None, 0))(env.model, starts)
        return first, jax.lax.scan(control_step, state, actions)[1]

    def play_ours(starts, actions):
        starts = jax.tree.map(lambda *rows: jnp.asarray(np.stack(rows)), *starts)
        first, (obs, *rest, raw) = play(starts, jnp.asarray(actions))
        nq, nv = env.task.scene.model.nq, env.task.scene.model.nv
        states = np.ascontiguousarray(raw).view(np.float64)[..., 1 : 1 + nq + nv]
        return np.concatenate([first[None], obs]), *map(np.asarray, rest), states

    return play_ours


def _child(name, bits, recorded):
    """Compares ours and theirs in one process, which imports and compiles once for all actors.

    The file `recorded` keeps what theirs does with random actions for the other precision.
    """
    import jax

    jax.config.update("jax_enable_x64", bits == "64")
    if not Path(recorded).exists():
        actor = lambda obs, rng: rng.uniform(-1.1, 1.1, len_action(name))  # noqa: E731
        played = {kind: play_theirs(name, kind, actor, SEEDS) for kind in ("sparse", "dense")}
        Path(recorded).write_bytes(pickle.dumps(played))
    random = pickle.loads(Path(recorded).read_bytes())
    report = {"random": {}, "expert": {}}
    for reward in ("sparse", "dense"):
        play = make_play(make_ours(name, reward, mutated=False))
        report["random"][reward] = differences(play, random[reward])
        if bits == "64" and EXPERTS.is_dir():
            theirs = play_theirs(name, reward, expert_policy(name), SEEDS)
            report["expert"][reward] = differences(play, theirs)
    if bits == "64":
        starts, *arrays = random["dense"]
        few = starts[:FEW_SEEDS], *(array[:, :FEW_SEEDS] for array in arrays)
        play = make_play(make_ours(name, "dense", mutated=True))
        report["mutated"] = differences(play, few)
    print(json.dumps(report))


def differences(play_ours, theirs):
    """Between what `play_theirs` returned and ours from the same starts with the same actions."""
    starts, actions, *theirs = theirs
    ours = play_ours(starts, actions)
    obs, rewards, successes, states = zip(ours, theirs, strict=True)
    return {
        "states_equal": bool(np.array_equal(*states)),
        "success_equal": bool(np.array_equal(*successes)),
        "success": float(np.any(successes[1], axis=0).mean()),
        "obs": compare(*obs),
        "reward": compare(*rewards),
    }


def len_action(name):
    return {"Door": 28, "Hammer": 26, "Pen": 24, "Relocate": 30}[name]


def compare(ours, theirs):
    """Largest difference, and of those that also differ in float32."""
    error = np.abs(np.float64(ours) - np.float64(theirs))
    same = np.float32(ours) == np.float32(theirs)
    return {
        "largest": float(error.max()),
        "beyond_float32": float(np.max(error * ~same)),
        "differing": int(np.sum(~same)),
        "numbers": int(same.size),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(task, "64" or "32") -> what `_child` reports, in a process of its own."""
    folder = tmp_path_factory.mktemp("recorded")

    @functools.cache
    def report(name, bits):
        done = subprocess.run(
            [sys.executable, str(Path(__file__)), name, bits, str(folder / name)],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return report


def actors():
    absent = pytest.mark.skipif(not EXPERTS.is_dir(), reason="needs ../shared/data/dapg")
    return [pytest.param("random"), pytest.param("expert", marks=absent)]


@pytest.mark.parametrize("who", actors())
@pytest.mark.parametrize("name", NAMES)
def test_equal_to_gymnasium_robotics(name, who, run):
    reports = run(name, "64")[who]
    assert set(reports) == {"sparse", "dense"}
    for report in reports.values():
        assert report["states_equal"]
        assert report["success_equal"]
        assert report["obs"]["largest"] < ROUNDING_64
        assert report["reward"]["largest"] < 100 * ROUNDING_64  # rewards reach 100
        # Angles of about zero are the only float32 that may differ, by less than their float64 do.
        assert report["obs"]["beyond_float32"] < ROUNDING_64
        assert report["reward"]["differing"] == 0
        if who == "expert":
            assert report["success"] >= (0.55 if name == "Pen" else 0.9)


@pytest.mark.parametrize("name", NAMES)
def test_equal_in_the_usual_precision(name, run):
    reports = run(name, "32")["random"]
    assert set(reports) == {"sparse", "dense"}
    for report in reports.values():
        assert report["states_equal"]
        assert report["success_equal"]
        assert report["obs"]["largest"] < ROUNDING_32
        assert report["reward"]["largest"] < 100 * ROUNDING_32


@pytest.mark.parametrize("name", NAMES)
def test_a_change_of_one_character_shows(name, run):
    report = run(name, "64")["mutated"]
    off = ROUNDING_64 * 1e6
    assert report["obs"]["largest"] > off or report["reward"]["largest"] > off


if __name__ == "__main__":
    _child(*sys.argv[1:])
