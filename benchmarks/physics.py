"""Compares the speed of our jitted rollout with everything that could replace it.

    python benchmarks/physics.py                          # every task: rollout and raw MuJoCo
    python benchmarks/physics.py --peers --tasks AdroitDoor   # Gymnasium and MJX too

Two loops take turns in one process, at each number of environments:

- rollout: jit + scan + vmap of the task's whole control step (control, physics, observation,
  reward, success) under given random actions from fresh starts, on the native engine;
- raw: `mujoco.batch` alone, from Python. It replays the controls of the rollout from the same
  states with the same overrides, substeps and threads, so both do identical physics, which the
  program checks bit by bit.

`--peers` adds, for the Adroit tasks, `gymnasium.vector.AsyncVectorEnv` over the environments of
gymnasium-robotics, at the number of processes that is fastest here and under the same kind of
actions; and the same rollout on MJX on this CPU, in its own process because it needs other XLA
options.

Rates are medians over the turns, ratios are medians of the turns' ratios. If other programs use the
machine, the ratio of the best turns says more. The program appends a row to
`benchmarks/results/physics.jsonl`.
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import jax
import mujoco
import mujoco.batch
import numpy as np
from harness import alternate, append_row, median, ratio

from pdjax.devices.rates import timed
from pdjax_envs import registry
from pdjax_envs.physics import mjx_flags
from pdjax_envs.physics.engine import Scene, row_ids
from pdjax_envs.task import Env, EnvState, make_env

PROCESSES = (2, 3, 4, 8)  # of AsyncVectorEnv; more were never faster on 2 cores
MJX_ENVS, MJX_STEPS = 64, 2
MJX_LIMIT = 900  # s


def make_rollout(env: Env, record: bool = False):
    """Makes a jitted (states, actions (num_steps, num_envs, act_dim)) -> (states, all outcomes).

    Outcomes are kept, as a learner keeps them; with `record` the controls (num_steps, num_envs, nu)
    are kept instead, which computes them a second time.
    """

    def control_step(states: EnvState, actions):
        after, outcome = jax.vmap(env.step, in_axes=(None, 0, 0))(env.model, states, actions)
        if not record:
            return after, outcome
        return after, jax.vmap(env.task.control)(states.episode, states.physics, actions)

    return jax.jit(lambda states, actions: jax.lax.scan(control_step, states, actions))


def begin(env: Env, num_envs: int, num_steps: int, seed: int) -> tuple[EnvState, jax.Array]:
    """Returns fresh states and random actions (num_steps, num_envs, act_dim) in [-1, 1]."""
    reset_key, key = jax.random.split(jax.random.key(seed))
    states, _ = jax.jit(jax.vmap(env.reset, in_axes=(None, 0)))(
        env.model, jax.random.split(reset_key, num_envs)
    )
    shape = (num_steps, num_envs, env.task.act_dim)
    return states, jax.random.uniform(key, shape, minval=-1.0)


class RawLoop:
    """The same physics without JAX: a Python loop over `mujoco.batch`."""

    def __init__(self, scene: Scene, states: EnvState, num_threads: int = 0):
        num_envs = states.steps.shape[0]
        self._scene = scene
        self._batch = mujoco.batch.Batch(scene.model, num_envs, num_threads)
        for field, names in scene.override_rows.items():
            rows = row_ids(scene.model, field, names)
            values = np.asarray(states.episode.overrides[field])
            target = self._batch.expand(field)
            target[:, rows] = values.reshape(num_envs, len(rows), *target.shape[2:])
        self._start = (np.asarray(states.physics.qpos), np.asarray(states.physics.qvel))
        self.num_threads = self._batch.nthread

    def run(self, ctrl: np.ndarray) -> tuple[float, np.ndarray]:
        """Replays controls (num_steps, num_envs, nu); returns seconds and final qpos."""
        self._batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self._batch.qpos, self._batch.qvel = self._start
        if not self._scene.fresh_fields:  # resets compute forward dynamics, see native.py
            self._batch.forward()
        target = self._batch.bind("ctrl")
        began = time.perf_counter()
        for row in ctrl:
            target[:] = row
            self._batch.step(nstep=self._scene.n_substeps)
        return time.perf_counter() - began, self._batch.qpos.astype(np.float32)


class AsyncLoop:
    """The environments of gymnasium-robotics in processes."""

    def __init__(self, name: str, processes: int, num_steps: int):
        import gymnasium
        import gymnasium_robotics

        gymnasium.register_envs(gymnasium_robotics)
        env_id = f"gymnasium_robotics:AdroitHand{name.removeprefix('Adroit')}Sparse-v1"
        # Spawned: a forked process would inherit JAX's threads in an unknown state.
        self._env = gymnasium.make_vec(
            env_id, processes, "async", vector_kwargs={"context": "spawn"}
        )
        self._env.reset(seed=0)
        rng, shape = np.random.default_rng(0), self._env.action_space.shape
        assert shape is not None
        self._actions = rng.uniform(-1, 1, (num_steps, *shape)).astype(np.float32)

    def rate(self) -> float:
        """Measures the control steps per second of all environments."""
        began = time.perf_counter()
        for action in self._actions:
            self._env.step(action)
        return self._actions.shape[0] * self._actions.shape[1] / (time.perf_counter() - began)

    def close(self) -> None:
        """Ends the processes."""
        self._env.close()


def best_async(name: str, samples: int) -> tuple[AsyncLoop, dict[str, float]]:
    """Returns the loop with the fastest number of processes, and the rates of all numbers tried."""
    loops = {count: AsyncLoop(name, count, samples // count) for count in PROCESSES}
    rates = {}
    for count, loop in loops.items():
        loop.rate()
        rates[count] = median([loop.rate() for _ in range(3)])
    best = max(rates, key=lambda count: rates[count])
    for count, loop in loops.items():
        if count != best:
            loop.close()
    return loops[best], {str(count): rate for count, rate in rates.items()}


def measure(name: str, num_envs: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measures the control steps per second of all loops of one task, in turns."""
    env = registry.make(name, "native")
    num_steps = max(8, args.samples // num_envs)
    states, actions = begin(env, num_envs, num_steps, args.seed)
    ctrl = make_rollout(env, record=True)(states, actions)[1]
    ctrl = env.task.scene.scale_ctrl(np.asarray(ctrl))
    rollout = make_rollout(env)
    compile_s, (after, _) = timed(rollout, states, actions)
    raw = RawLoop(env.task.scene, states)
    _, raw_qpos = raw.run(ctrl)
    if not np.array_equal(raw_qpos, np.asarray(after.physics.qpos)):
        raise AssertionError("rollout and raw loop did different physics; the ratio means nothing")

    count = num_envs * num_steps
    loops = {
        "rollout": lambda: count / timed(rollout, states, actions)[0],
        "raw": lambda: count / raw.run(ctrl)[0],
    }
    peers = {}
    if args.peers and name.startswith("Adroit"):
        theirs, tried = best_async(name, args.samples)
        loops["gymnasium_async"] = theirs.rate
        peers["gymnasium_async_by_processes"] = tried
    rates = alternate(loops, args.repeats)
    if peers:
        theirs.close()
    return {
        "task": name,
        "num_envs": num_envs,
        "num_steps": num_steps,
        "repeats": args.repeats,
        "threads": raw.num_threads,
        "first_call_s": round(compile_s, 2),
        "control_steps_per_s": {loop: median(found) for loop, found in rates.items()},
        "rollout_over": {
            loop: ratio(rates["rollout"], found)
            for loop, found in rates.items()
            if loop != "rollout"
        },
        **peers,
    }


def measure_mjx(name: str, seed: int, plain: bool) -> float:
    """Measures the same rollout on MJX on a CPU, in control steps per second, in a fresh process.

    With `plain` MJX solves for every contact that the model could have, as it does by itself; our
    models limit it to the deepest.
    """
    mjx_flags.prepare()
    env = registry.make(name, "mjx")
    if plain:
        scene = env.task.adapt(env.task.scene, "mjx")
        scene.model.numeric("max_contact_points").data[:] = 1e6
        env = make_env(env.task, registry.make_engine(scene, "mjx"))
    states, actions = begin(env, MJX_ENVS, MJX_STEPS, seed)
    rollout = make_rollout(env)
    timed(rollout, states, actions)
    return median([MJX_ENVS * MJX_STEPS / timed(rollout, states, actions)[0] for _ in range(3)])


def measure_mjx_apart(name: str, seed: int, plain: bool = False) -> float:
    """Runs `measure_mjx` in a fresh process."""
    command = [sys.executable, __file__, "--tasks", name, "--seed", str(seed), "--only-mjx"]
    command += ["--plain"] if plain else []
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=MJX_LIMIT)
    return json.loads(done.stdout.splitlines()[-1])


def show(row: dict[str, Any]) -> None:
    """Prints one measurement in readable form."""
    rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in row["control_steps_per_s"].items())
    print(f"{row['task']}, {row['num_envs']} environments, control steps/s: {rates}")
    for name, found in row["rollout_over"].items():
        low, high = found["range"]
        print(
            f"    rollout / {name}: {found['median']} ({low} to {high}; of the best turns"
            f" {found['of_best']})",
            flush=True,
        )


def main() -> None:
    """Measures, prints and appends a row."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=registry.task_names())
    parser.add_argument("--num-envs", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--samples", type=int, default=4096, help="control steps per turn")
    parser.add_argument("--repeats", type=int, default=15, help="turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", action="store_true", help="measure Gymnasium and MJX too")
    parser.add_argument("--only-mjx", action="store_true", help="print MJX's rate alone")
    parser.add_argument("--plain", action="store_true", help="MJX without our limit on contacts")
    parser.add_argument("--dry", action="store_true", help="append no row")
    args = parser.parse_args()
    if args.only_mjx:
        print(json.dumps(measure_mjx(args.tasks[0], args.seed, args.plain)))
        return
    rows = []
    for name in args.tasks:
        mjx_rates = {}
        if args.peers:
            mjx_rates = {
                "mjx_on_cpu": measure_mjx_apart(name, args.seed),
                "plain_mjx_on_cpu": measure_mjx_apart(name, args.seed, plain=True),
            }
        for num_envs in args.num_envs:
            row = measure(name, num_envs, args)
            for loop, rate in mjx_rates.items():
                row["control_steps_per_s"][loop] = rate
                fast = [row["control_steps_per_s"]["rollout"]]
                row["rollout_over"][loop] = ratio(fast, [rate])
            show(row)
            rows.append(row)
    if not args.dry:
        append_row("physics", {"rows": rows})


if __name__ == "__main__":
    main()
