"""This file is not pure: it records demonstrations and trains base policies from them.

The first half of the program's job; the second, refining a base policy, is `runner`.
"""

import json
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pdjax import evaluation, plots, report, tables, unfinished
from pdjax.base_policies import imitation
from pdjax.base_policies.settings import ImitationConfig
from pdjax.outputs import check_directory, check_file, new_directory, write_result
from pdjax.rollout import make_base_play
from pdjax.schema import ConfigError
from pdjax.types import BasePolicy, Params
from pdjax_envs import demonstrations, registry
from pdjax_envs.adroit import dapg
from pdjax_envs.task import Env, Expert, Task

INTERIM_SEED = 40_000  # of the episodes that choose the best policy; the final ones are others


def record_demonstrations(
    task: str,
    out: Path,
    episodes: int,
    seed: int,
    noise: float,
    physics: str = "auto",
    expert: str | None = None,
) -> dict[str, Any]:
    """Records an expert into an HDF5 file; returns what was written.

    Args:
      task: its name.
      out: file to write.
      episodes: successful episodes to record.
      seed: of the first episode.
      noise: see `demonstrations.record`.
      physics: engine.
      expert: the task's own, or `dapg:FILE` or `dapg-noisy:FILE`, see `adroit.dapg`.

    Raises:
      ConfigError: the file or its sidecar exists, or cannot be written; no such expert.
      demonstrations.DataError: the task has no expert, or the file holds none for it.
      registry.UnknownName: no such task.
    """
    check_file(out, (".h5", ".hdf5"))
    check_file(out.with_suffix(".json"), (".json",))
    env = registry.make(task, physics)
    chosen = None if expert is None else _load_expert(expert, env.task)
    with report.progress("recording", episodes, "episodes") as bar:
        found, rate = demonstrations.record(env, episodes, seed, noise, bar.update, chosen)
    out.parent.mkdir(parents=True, exist_ok=True)
    demonstrations.write(out, env.task, found)
    lengths = [len(trajectory.actions) for trajectory in found]
    report.say(
        f"{out}: {episodes} episodes of {task}, {np.mean(lengths):.0f} control steps each;"
        f" the expert succeeded in {rate:.1%} of its attempts"
    )
    return {"task": task, "file": str(out), "episodes": episodes, "expert_success": rate,
            "mean_steps": np.mean(lengths), "seed": seed, "noise": noise,
            "expert": expert or "scripted"}  # fmt: skip


def _load_expert(text: str, task: Task) -> Expert:
    kind, _, file = text.partition(":")
    if kind not in ("dapg", "dapg-noisy") or not file:
        raise ConfigError(f"--expert got {text!r}, expected dapg:FILE or dapg-noisy:FILE")
    return dapg.make_expert(Path(file), task, noisy=kind == "dapg-noisy")


def train_base_policy(
    demos: Path,
    task: str,
    out: Path,
    config: ImitationConfig,
    eval_episodes: int,
    physics: str = "auto",
    resume: bool = False,
) -> dict[str, Any]:
    """Trains a base policy on a demonstration file and writes its directory.

    Beside the policy (`imitation.save`) the directory gets `imitation.jsonl` and
    `learning_curve.png` and `result.json`; with `config.eval_every` also `last/`, the last
    parameters, where the policy itself is the best by success in the simulator, and until it is
    finished `training/`.

    Args:
      demos: the file.
      task: its task.
      out: directory, new or empty; or of the training to resume.
      config: policy and training.
      eval_episodes: to evaluate the finished policy on; others than those that choose the best.
      physics: engine of all evaluations.
      resume: go on with the training in `out`; begin where there is none yet, and return its
        result where it is finished.

    Raises:
      ConfigError: the directory is not empty or cannot be written, a number is out of range, or
        what was begun there had other settings.
      demonstrations.DataError: the demonstrations cannot be used.
      registry.UnknownName: no such task.
    """
    config.validate()
    if resume and unfinished.is_finished(out, config, task):
        report.say(f"{out} is finished already")
        return json.loads((out / "result.json").read_text())
    if not resume:
        check_directory(out)
    env = registry.make(task, physics)
    found = demonstrations.read(demos, env.task)
    episodes = [(t.obs, t.actions) for t in found]
    description = unfinished.describe(config, task, episodes)
    if not (resume and unfinished.is_begun(out, description)):
        new_directory(out)
        if config.eval_every:
            unfinished.start(out, description)
    start = time.monotonic()
    best, last = _train(env, episodes, config, out)
    wall_s = time.monotonic() - start
    plots.plot_imitation(out, task)
    *_, trained = report.read_records(out / "imitation.jsonl")
    summary: dict[str, Any] = {"task": task, "policy": str(out), "kind": config.kind,
                               "episodes": len(found), "steps": trained["step"],
                               "seed": config.seed, "wall_s": wall_s}  # fmt: skip
    if eval_episodes:
        success = base_success(env, best, eval_episodes)
        summary |= evaluation.base_summary(int(success.sum()), eval_episodes)
        tables.show_base(summary, f"{out}: ")
    write_result(out, summary)
    unfinished.finish(out, best, last if config.eval_every else None, config, task)
    return summary


def _train(
    env: Env, episodes: imitation.Episodes, config: ImitationConfig, out: Path
) -> tuple[BasePolicy, BasePolicy]:
    """Trains to the end, evaluating and saving on the way; returns the best and the last policy."""
    trainer = imitation.make_trainer(episodes, config)
    state = trainer.init()
    policy = trainer.make_policy(state)
    play = make_base_success(env, policy)
    kept, done = unfinished.Kept(state, policy.params, np.float32(-1)), 0
    saved = unfinished.checkpoints(out) if config.eval_every else None
    if saved is not None:
        step, kept, problems = saved.restore(kept)
        done = max(step, 0)
        for problem in problems:
            report.say(f"{problem} - going on from an earlier one")
    curve = out / "imitation.jsonl"
    report.drop_records(curve, "step", done)
    with (
        closing(saved) if saved is not None else nullcontext(),
        report.progress("imitating", config.steps, "steps") as bar,
    ):
        while done < config.steps and not 0 < config.stop_at <= kept.success:
            begin, done = done, min(done + trainer.block, config.steps)
            state, record = trainer.advance(kept.state)
            kept = kept._replace(state=state)
            due = config.eval_every and (
                done // config.eval_every > begin // config.eval_every or done == config.steps
            )
            if due:
                params = trainer.make_policy(state).params
                won = play(params, config.interim_episodes, INTERIM_SEED)
                success = np.float32(won.mean())
                record["success_once"] = float(success)
                if success >= kept.success:  # of equals the longer trained
                    kept = kept._replace(best=params, success=success)
            report.add_record(curve, {"step": done, **record})
            if due and saved is not None:
                report.say_unsaved(saved.save(done, kept))
            bar.update(done, _note(record))
    last = trainer.make_policy(kept.state)
    if not config.eval_every:
        return last, last
    return last._replace(params=kept.best), last


def _note(record: dict[str, float]) -> str:
    text = f"loss {record['train_loss']:.4f}, validation {record['validation_loss']:.4f}"
    success = record.get("success_once")
    return text if success is None else f"{text}, success_once {success:.1%}"


def make_base_success(env: Env, policy: BasePolicy) -> Callable[[Params, int, int], np.ndarray]:
    """(params, episodes, seed) -> (episodes,) bool, success_once of a base policy alone; compiled
    once for each number of episodes."""
    play = make_base_play(env, policy)
    return lambda params, episodes, seed: np.asarray(play(params, seed, episodes).success_once)


def base_success(env: Env, policy: BasePolicy, episodes: int, seed: int = 30_000) -> np.ndarray:
    """(episodes,) bool, success_once of a base policy alone."""
    return make_base_success(env, policy)(policy.params, episodes, seed)
