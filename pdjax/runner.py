"""This file is not pure: it builds runs from configs, drives them and writes their directories.

The single door: everything that a command does to policies goes through `build` and `run`, or
through `finished`, which reads runs back.

A run's directory holds `config.yaml`, `base_policy/` (a copy, so that the directory is complete),
`residual/` (the best residual policy's parameters), `checkpoints/` (to resume from),
`metrics.jsonl`, `tb/`, `learning_curve.png` and, last of all, `result.json`.
"""

import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pdjax import checkpoint, evaluation, memory, plots, report
from pdjax import config as configs
from pdjax.base_policies import foreign, imitation
from pdjax.base_policies.chunking import step_by_step
from pdjax.config import BasePolicyConfig, Config, ConfigError
from pdjax.decision import Frozen
from pdjax.demo_replay import load_demos
from pdjax.loop import Steps, refine
from pdjax.outputs import check_directory, new_directory, write_result
from pdjax.rollout import Evaluation, Rollout, make_rollout
from pdjax.sac import SAC, make_hyperparams, make_sac
from pdjax.sharding import copy_to_all, make_mesh
from pdjax.train import Trainer, TrainState, make_trainer, placement, residual_dim
from pdjax.types import BasePolicy, Params
from pdjax_envs import registry
from pdjax_envs.task import Env, Task


class Run(NamedTuple):
    """A built run: static functions, and what they take.

    Attributes:
      config: the run's config.
      env: the environment.
      base: the frozen policy.
      rollout: their rollout functions.
      sac: the learner.
      trainer: the training functions.
      mesh: of the devices.
      frozen: model, base parameters, observation statistics.
    """

    config: Config
    env: Env
    base: BasePolicy
    rollout: Rollout
    sac: SAC
    trainer: Trainer
    mesh: Mesh
    frozen: Frozen


class Result(NamedTuple):
    """A finished run: its directory and the content of `result.json`."""

    directory: Path
    summary: dict[str, Any]


def build(config: Config) -> Run:
    """Builds a run; compiles and trains nothing yet.

    Raises:
      ConfigError, checkpoint.CheckpointError, registry.UnknownName: the config cannot work; the
        message says what to change.
    """
    configs.validate(config)
    task = config.task
    env = registry.make(task.name, task.physics, task.reward, task.terminate_on_success, task.shift)
    base = load_base(config.base_policy, env.task)
    if config.decorator.residual_per == "control_step":
        base = step_by_step(base)
    mesh = make_mesh(config)
    rollout = make_rollout(env, base, config.decorator, mesh)
    chunk_dim, size = base.act_horizon * base.act_dim, residual_dim(config.decorator, base)
    sac = make_sac(config.sac, config.decorator, rollout.view_dim, chunk_dim, size)
    trainer = make_trainer(config, base, rollout, sac, mesh)
    mean, std = base.obs_mean, base.obs_std
    if not config.decorator.normalize_obs:
        mean, std = jnp.zeros_like(mean), jnp.ones_like(std)
    demos = load_demos(config, env.task, base, size) if config.train.demo_share else ()
    frozen = copy_to_all(mesh, Frozen(env.model, base.params, mean, std, demos))
    return Run(config, env, base, rollout, sac, trainer, mesh, frozen)


def load_base(base_policy: BasePolicyConfig, task: Task) -> BasePolicy:
    """Reads a base policy of any kind and checks that it is one for the task.

    Raises:
      ConfigError, checkpoint.CheckpointError: there is none, or it is for another task.
    """
    path = Path(base_policy.path)
    if not base_policy.path:
        raise ConfigError("base_policy.path is empty; set it to a directory of `pdjax imitate`"
                          " or `pdjax wrap`")  # fmt: skip
    read = foreign.load if foreign.is_foreign(path) else imitation.load
    base, trained_for = read(path, base_policy.act_horizon)
    other = trained_for != task.name and registry.family(trained_for) != task.family
    if other or (base.obs_dim, base.act_dim) != (task.obs_dim, task.act_dim):
        raise ConfigError(
            f"base policy {path} was trained for {trained_for} ({base.obs_dim} numbers observed,"
            f" {base.act_dim} a control step), but task.name is {task.name} ({task.obs_dim},"
            f" {task.act_dim}); change either"
        )
    return base


def plan(config: Config, memory_gib: float = 0.0) -> dict[str, Any]:
    """Shows what a run would take of memory, and takes none: see `memory.summarize`.

    Args:
      config: the run.
      memory_gib: GiB of the machine, or of the accelerator where there is one, to plan for;
        0 = what is free of this one.

    Raises:
      ConfigError: see `build`; or it does not fit.
    """
    return memory.summarize(prepare(build(config), memory_gib)[1], config)


def run(config: Config, directory: Path, resume: bool = False, memory_gib: float = 0.0) -> Result:
    """Trains, evaluates and writes a run directory.

    Args:
      config: the run.
      directory: created; must not exist or be empty, unless the run in it is resumed.
      resume: go on where the run in `directory` stopped; begin where there is none yet, and
        return its result where it is finished.
      memory_gib: see `plan`.

    Raises:
      ConfigError: see `plan`; or the directory is not empty, cannot be written, or is another
        run's.
      stopping.Stopped: it was asked to stop, and can be resumed.
    """
    start = time.monotonic()
    begun = resume and _is_begun(config, directory)
    if not begun:
        check_directory(directory)
    elif (directory / "result.json").is_file():
        report.say(f"{directory} is finished already")
        return Result(directory, json.loads((directory / "result.json").read_text()))
    built = build(config)
    if directory.resolve().is_relative_to(Path(config.base_policy.path).resolve()):
        raise ConfigError(
            f"{directory} is inside the base policy's directory; choose another --out"
        )
    steps, _ = prepare(built, memory_gib)
    if not begun:
        _begin(config, directory)
    if foreign.is_foreign(Path(config.base_policy.path)):
        num_envs = config.train.num_envs
        way, microseconds = foreign.cost(built.base, num_envs)
        report.say(f"base policy called {way}: {microseconds:,.0f} us a call for {num_envs}"
                   " environments")  # fmt: skip
    before = time.monotonic() - start
    progress = refine(config, steps, directory)
    trained = report.wall_s(directory)  # however often interrupted
    start = time.monotonic()
    state, actor = progress.state, progress.best_actor
    shutil.rmtree(directory / "residual", ignore_errors=True)  # of a run that ended here
    checkpoint.save(directory / "residual", actor)
    summary = compare(built, actor, config.eval.episodes, config.eval.seed)
    summary |= {
        "seed": config.seed,
        "decision_steps": int(state.decision_steps),
        "control_steps": int(state.control_steps),
        "gradient_steps": int(state.sac.gradient_steps),
        "physics": built.env.engine,
        "wall_s": before + trained + time.monotonic() - start,
    }
    plots.plot_learning_curve(directory, summary)
    write_result(directory, summary)
    return Result(directory, summary)


def _is_begun(config: Config, directory: Path) -> bool:
    """Whether a directory holds this run, begun or finished.

    Raises:
      ConfigError: it holds a run of another config.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        return False
    for name, (got, held) in configs.differences(config, configs.load(str(path))).items():
        raise ConfigError(
            f"cannot resume {directory}: it was begun with {name}={held!r}, got {got!r};"
            " give the same config, or choose another --out"
        )
    return True


def _begin(config: Config, directory: Path) -> None:
    """Makes a run directory with the config and a copy of the base policy: all of it or nothing."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    new_directory(partial)
    shutil.copytree(config.base_policy.path, partial / "base_policy")
    configs.save(config, partial / "config.yaml")
    partial.replace(directory)


def prepare(built: Run, memory_gib: float = 0.0) -> tuple[Steps, list[memory.Plan]]:
    """What the training loop calls, an epoch compiled; and what it takes of memory, shown.

    Raises:
      ConfigError: it does not fit.
    """
    config, frozen, there = built.config, built.frozen, placement(built.mesh)
    init = make_init(built)
    epoch = jax.jit(built.trainer.train_epoch, donate_argnums=1, in_shardings=(None, there),
                    out_shardings=(there, None))  # fmt: skip
    state = jax.eval_shape(init)
    planned = partial(memory.make_plans, state, frozen, _evaluation(built), built.mesh, memory_gib)
    memory.check(planned(), config)  # where arrays alone are too many there is nothing to compile
    report.say("compiling an epoch")
    epoch = epoch.lower(frozen, state).compile()
    plans = planned(memory.working_memory(epoch))
    memory.check(plans, config)
    memory.show(plans)
    steps = Steps(
        init=init,
        # a restored state comes from one device
        train_epoch=lambda state: epoch(frozen, jax.device_put(state, there)),
        assess=make_assess(built),
    )
    return steps, plans


def make_init(built: Run) -> Callable[[], TrainState]:
    """() -> the training state at the beginning of a run, on its devices; compiled once."""
    config = built.config
    hyperparams = make_hyperparams(config, residual_dim(config.decorator, built.base))
    init = jax.jit(built.trainer.init, out_shardings=placement(built.mesh))
    return lambda: init(built.frozen, hyperparams, jax.random.key(config.seed))


def _evaluation(built: Run) -> Any:
    """Shapes of what an evaluation holds: environments twice, as a scan does, and the actions."""
    task, evaluation = built.env.task, built.config.eval
    episodes = max(evaluation.episodes, evaluation.interim_episodes)
    begin = partial(built.rollout.init, num_envs=episodes)
    state = jax.eval_shape(begin, built.frozen, jax.random.key(0))
    actions = jax.ShapeDtypeStruct((task.episode_steps, episodes, task.act_dim), jnp.float32)
    return state, state, actions


def make_assess(built: Run):
    """(actor, residual_scale, seed, episodes, record=False) -> Evaluation on the host.

    Compiled once for each number of episodes; scale 0 is the base policy.
    """

    def assess(frozen, actor, residual_scale, key, episodes, record):
        def choose(obs, base_action):
            return built.sac.act_deterministic(actor, obs, base_action)

        return built.rollout.evaluate(frozen, choose, residual_scale, key, episodes, record)

    compiled = jax.jit(assess, static_argnums=(4, 5))

    def on_host(actor, residual_scale, seed, episodes, record=False) -> Evaluation:
        key = jax.random.key(seed)
        scale = jnp.float32(residual_scale)
        return jax.device_get(compiled(built.frozen, actor, scale, key, episodes, record))

    return on_host


def compare(built: Run, actor: Params, episodes: int, seed: int) -> dict[str, Any]:
    """Base and refined on the same episodes, as `result.json` keeps it."""
    assess = make_assess(built)
    with report.progress("evaluating", 2 * episodes, "episodes") as bar:
        base = assess(actor, 0.0, seed, episodes)
        bar.update(episodes, f"base {base.success_once.mean():.1%}")
        refined = assess(actor, built.config.decorator.residual_scale, seed, episodes)
        bar.update(2 * episodes, f"refined {refined.success_once.mean():.1%}")
    return {"task": built.env.task.name} | evaluation.summarize(base, refined)
