"""Uses pdjax from other software, as that software's users do, and prints a table.

    pip install -e '.[interop]'
    python benchmarks/clients.py                    # every client: minutes
    python benchmarks/clients.py --only brax-ppo    # some of them
    python benchmarks/clients.py --write            # also put the table into its page

The page is docs/other_software.md.
Each client runs in a process of its own, in an empty folder and with a time limit. A client whose
package is missing is left out with that reason. The exit status is 1 if one of them failed.
"""

import argparse
import dataclasses
import functools
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/other_software.md"
BEGIN, END = "<!-- table of benchmarks/clients.py -->\n", "<!-- end of the table -->"
LIMIT_S = 900  # of one client
ENV_ID = "pdjax_envs.gymnasium:pdjax/AdroitDoor-v0"
TINY = {  # a training of 1,024 decisions
    "train": {
        "num_envs": 8,
        "total_decisions": 1024,
        "decisions_per_epoch": 256,
        "decisions_per_round": 64,
        "learning_starts": 256,
        "replay_capacity": 4096,
        "updates_per_decision": 0.125,
    },
    "sac": {"batch_size": 64, "hidden": [32, 32]},
    "eval": {"episodes": 4, "interim_episodes": 0},
    "checkpoint": {"every": 512},
}


@dataclasses.dataclass(frozen=True)
class Client:
    """What one row of the table tries.

    Attributes:
      name: its name on the command line.
      package: the package whose version is shown; without it the client is left out.
      done: what is done, for the table.
      play: does it in the current folder; returns the result, for the table.
      needs: further packages.
    """

    name: str
    package: str
    done: str
    play: Callable[[], str]
    needs: tuple[str, ...] = ()


def gymnasium_single() -> str:
    """Steps one environment to its end and past it; runs Gymnasium's checker."""
    import gymnasium
    from gymnasium.utils.env_checker import check_env

    env = gymnasium.make(ENV_ID, reward="dense")
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    steps, over = 0, False
    while not over:
        *_, terminated, truncated, _ = env.step(env.action_space.sample())
        steps, over = steps + 1, terminated or truncated
    assert env.spec is not None and steps == env.spec.max_episode_steps == 200
    return f"check_env passes, the episode ends after {steps} steps"


def gymnasium_vector(mode: str) -> str:
    """Steps two environments through 250 control steps, in one of Gymnasium's modes."""
    import gymnasium

    kwargs = {"context": "spawn"} if mode == "async" else {}
    env = gymnasium.make_vec(ENV_ID, 2, vectorization_mode=mode, vector_kwargs=kwargs)
    obs, _ = env.reset(seed=0)
    ends = 0
    for _ in range(250):
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        ends += int((terminated | truncated).sum())
    env.close()
    assert obs.shape == (2, 39) and np.isfinite(obs).all() and ends == 2
    return f"250 steps, {ends} episodes ended and began anew"


def gymnasium_render() -> str:
    """Records 20 control steps as a video."""
    import gymnasium

    env: Any = gymnasium.make(ENV_ID, 20, render_mode="rgb_array")
    env = gymnasium.wrappers.RecordVideo(env, "videos")
    env.reset(seed=0)
    picture = env.render()
    while not env.step(env.action_space.sample())[3]:
        pass
    env.close()
    (video,) = Path("videos").glob("*.mp4")
    assert picture.shape == (400, 480, 3) and picture.std() > 20
    return f"a video of {video.stat().st_size / 1000:.0f} kB, pictures 480 x 400"


def stable_sac(library: str) -> str:
    """Trains SAC for 2,000 control steps in four environments."""
    import torch  # pyright: ignore[reportMissingImports]

    from pdjax_envs import sb3

    torch.set_num_threads(1)  # docs/other_software.md says why
    env = sb3.make("AdroitDoor", 4, reward="dense", seed=0)
    sac = importlib.import_module(library).SAC
    model = sac("MlpPolicy", env, seed=0, learning_starts=400)
    model.learn(2_000)
    episodes = len(model.ep_info_buffer)
    assert model.num_timesteps == 2_000 and model._n_updates == 400 and episodes == 8
    return f"{model.num_timesteps:,} steps, {model._n_updates} updates, {episodes} episodes logged"


def brax_trainer(agent: str) -> str:
    """Trains with one of Brax's own trainers, evaluated before and after."""
    from pdjax_envs import brax

    train = importlib.import_module(f"brax.training.agents.{agent}.train").train
    options = {
        "sac": {"num_envs": 16, "batch_size": 64, "min_replay_size": 512},
        "ppo": {"num_envs": 32, "batch_size": 32, "num_minibatches": 4, "unroll_length": 10},
    }[agent]
    seen: list[tuple[int, float]] = []
    train(
        brax.make("AdroitDoor", reward="dense"),
        num_timesteps=8_000,
        episode_length=200,
        num_eval_envs=16,
        num_evals=2,
        normalize_observations=True,
        progress_fn=lambda steps, found: seen.append((steps, float(found["eval/episode_reward"]))),
        **options,
    )
    (_, before), (steps, after) = seen
    assert steps >= 8_000 and np.isfinite([before, after]).all()
    return f"{steps:,} steps, return {before:.1f} before and {after:.1f} after"


def minari_folder() -> str:
    """Collects episodes with Minari's own collector and reads them back with `pdjax data check`."""
    import gymnasium

    os.environ["MINARI_DATASETS_PATH"] = str(Path("datasets").resolve())
    minari: Any = importlib.import_module("minari")
    env = minari.DataCollector(gymnasium.make(ENV_ID, 30))
    for episode in range(3):
        env.reset(seed=episode)
        while not env.step(env.action_space.sample())[3]:
            pass
    env.create_dataset("pdjax/door-v0", algorithm_name="random", author="x", author_email="x@x.x")
    command = [sys.executable, "-m", "pdjax.commands.cli", "data", "check", "--json"]
    done = run_checked([*command, "datasets/pdjax/door-v0", "--task", "AdroitDoor"])
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["episodes"] == 3, found
    return f"{found['episodes']} episodes collected, and the folder is read"


def exported_policy() -> str:
    """Exports a refined policy and calls it as its README says, where only that is installed."""
    import jax
    import jax.numpy as jnp

    import pdjax

    base = pdjax.base_policy(lambda obs: jnp.tanh(obs[-1, :28]), obs_dim=39, act_dim=28)
    config = pdjax.load_config("fast", **TINY)
    run = pdjax.train(config, base=base, task="AdroitDoor", out="run", progress=False)
    pdjax.export(run, "deployed", episodes=4)
    text = Path("deployed/README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    code = code.replace("default_rng()", "default_rng(0)") + "\nprint(repr(float(chunk.sum())))\n"
    Path("deployed/call.py").write_text(code)
    asked = re.search(r"pip install ([\w \[\]\-.=<>']+)", text)
    packages = (asked[1] if asked else "jax").replace("'", "").split()
    packages = [f"jax=={jax.__version__}" if name == "jax" else name for name in packages]
    venv.create("bare", with_pip=True)
    bare = Path("bare/bin/python").absolute()
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [str(bare), "-m", "pip", "install", "-q", "--timeout", "60"]
    run_checked([*pip, *packages], env=outside)
    found = [
        run_checked([str(python), "call.py"], cwd="deployed", env=outside).stdout
        for python in (bare, sys.executable)
    ]
    assert found[0] == found[1] and np.isfinite(float(found[0]))
    return f"with {' '.join(packages)}: the same actions as beside pdjax"


def playground_in_our_trainer() -> str:
    """Refines a policy on an environment of MuJoCo Playground."""
    from pdjax_envs import registry

    registry.make_task("playground:CartpoleBalance")  # before JAX starts: it sets XLA's options
    import jax.numpy as jnp

    import pdjax

    base = pdjax.base_policy(lambda obs: jnp.zeros(1), obs_dim=5, act_dim=1)
    config = pdjax.load_config("fast", **TINY, task={"reward": "dense"})
    task = "playground:CartpoleBalance"
    run = pdjax.train(config, base=base, task=task, out="run", progress=False)
    steps = run.summary["gradient_steps"]
    assert run.summary["decision_steps"] == 1024 and steps > 0
    assert all(np.isfinite(run.metrics[name]).all() for name in ("critic_loss", "actor_loss"))
    return f"1,024 decisions, {steps} updates, {run.summary['episodes']} episodes played"


CLIENTS = (
    Client("gymnasium", "gymnasium", "`make`, `check_env`, one episode", gymnasium_single),
    Client(
        "gymnasium-sync",
        "gymnasium",
        "`make_vec(..., vectorization_mode='sync')`",
        functools.partial(gymnasium_vector, "sync"),
    ),
    Client(
        "gymnasium-async",
        "gymnasium",
        "`make_vec(..., vectorization_mode='async')`, spawned",
        functools.partial(gymnasium_vector, "async"),
    ),
    Client(
        "gymnasium-render",
        "gymnasium",
        "`render_mode='rgb_array'`, `RecordVideo`",
        gymnasium_render,
        ("moviepy",),
    ),
    Client(
        "sb3-sac",
        "stable-baselines3",
        "SAC on `pdjax_envs.sb3.make`",
        functools.partial(stable_sac, "stable_baselines3"),
        ("torch",),
    ),
    Client(
        "sbx-sac",
        "sbx-rl",
        "SAC on `pdjax_envs.sb3.make`",
        functools.partial(stable_sac, "sbx"),
        ("torch",),
    ),
    Client(
        "brax-ppo",
        "brax",
        "PPO on `pdjax_envs.brax.make`",
        functools.partial(brax_trainer, "ppo"),
    ),
    Client(
        "brax-sac",
        "brax",
        "SAC on `pdjax_envs.brax.make`",
        functools.partial(brax_trainer, "sac"),
    ),
    Client("minari", "minari", "`DataCollector`, then `pdjax data check FOLDER`", minari_folder),
    Client("exported", "jax", "`pdjax.export`, called in a bare environment", exported_policy),
    Client(
        "playground",
        "playground",
        "CartpoleBalance refined by `pdjax.train`",
        playground_in_our_trainer,
    ),
)


def run_checked(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command; raises RuntimeError with the end of what it wrote if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, **options)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-500:]}")
    return done


def missing(client: Client) -> list[str]:
    """Returns the packages that a client needs and that are not installed."""
    found = []
    for package in (client.package, *client.needs):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found.append(package)
    return found


def try_client(client: Client) -> tuple[str, float, bool]:
    """Runs a client in a process of its own; returns (result, seconds, whether it failed)."""
    if lack := missing(client):
        return f"not tried: needs {', '.join(lack)}", 0.0, False
    start = time.monotonic()
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path if path)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).resolve()), "--play", client.name]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": paths},
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"**failed**: not done after {LIMIT_S} s", time.monotonic() - start, True
    lines = (done.stderr if done.returncode else done.stdout).strip().splitlines() or ["no word"]
    result = f"**failed**: {lines[-1][:200]}" if done.returncode else lines[-1]
    return result, time.monotonic() - start, bool(done.returncode)


def main() -> int:
    """Runs the clients and prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    names = [client.name for client in CLIENTS]
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    parser.add_argument("--play", choices=names, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.play:
        print(next(client.play for client in CLIENTS if client.name == args.play)())
        return 0
    lines = ["| client | version | what is done | result | seconds |", "|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    failures = 0
    for client in CLIENTS:
        if client.name not in args.only:
            continue
        result, seconds, failed = try_client(client)
        version = "" if missing(client) else importlib.metadata.version(client.package)
        row = (client.package, version, client.done, result.replace("|", "/"), f"{seconds:.0f}")
        lines.append(f"| {' | '.join(row)} |")
        failures += failed
        print(lines[-1], flush=True)
    if args.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + "\n".join(lines) + "\n" + END + rest.partition(END)[2])
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
