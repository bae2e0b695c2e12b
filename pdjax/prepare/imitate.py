"""Not pure: trains base policies on demonstrations and writes their directories.

This is the first half of the program's job; `training.run` refines a base policy, the second half.
"""

import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pdjax.base_policies import imitation
from pdjax.base_policies.settings import ImitationConfig
from pdjax.output import lock, plots, records, tables, terminal
from pdjax.output.paths import check_directory, new_directory
from pdjax.output.run_directory import read_result, write_result
from pdjax.prepare import imitation_directory
from pdjax.rollout import intervals
from pdjax.rollout.playing import check_episodes, make_play, make_playing
from pdjax.types import BasePolicy
from pdjax_envs import registry
from pdjax_envs.demonstrations import store
from pdjax_envs.task import Env

INTERIM_SEED = 40_000  # of the episodes that choose the best policy
FINAL_SEED = 30_000  # of the episodes that the finished policy is evaluated on


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

    The directory gets the policy (`imitation.save`), `imitation.jsonl`, `learning_curve.png` and
    `result.json`. With `config.eval_every` the policy is the best by success in the simulator; then
    the directory also gets `last/`, the last parameters, and `training/` until it is finished.

    Args:
      demos: file of demonstrations.
      task: name of their task.
      out: directory, new or empty; or that of the training to resume.
      config: policy and training.
      eval_episodes: number of episodes to evaluate the finished policy on; they are not those that
        choose the best policy.
      physics: engine of all evaluations.
      resume: go on with the training in `out`; begin if there is none yet, and return its result if
        it is finished.

    Returns:
      What `result.json` holds.

    Raises:
      ConfigError: the directory is not empty or cannot be written, a number is out of range, or
        the training in it was begun with other settings.
      checkpoint.CheckpointError: the training in it has checkpoints, but none can be read; nothing
        was changed.
      store.DataError: the demonstrations cannot be used.
      registry.UnknownName: no such task.
    """
    config.validate()
    env = registry.make(task, physics)
    if resume and imitation_directory.is_finished(out, config, env.task.name):
        terminal.say(f"{out} is finished already")
        return read_result(out)
    if not resume:
        check_directory(out)
    found = store.read(demos, env.task)
    if failed := sum(t.success is not None and not t.success.any() for t in found):
        terminal.say(
            f"{failed} of {len(found)} demonstrations do not succeed; the policy imitates them all,"
            " so remove those that it should not learn from"
        )
    episodes = [(t.obs, t.actions) for t in found]
    description = imitation_directory.describe(config, env.task.name, episodes)
    trainer = imitation.make_trainer(episodes, config)
    check_episodes(env.task, max(eval_episodes, config.interim_episodes))
    if not (resume and imitation_directory.is_begun(out, description)):
        new_directory(out)
        if config.eval_every:
            imitation_directory.start(out, description)
    with lock.held(out):
        return _make(env, trainer, len(found), config, out, eval_episodes)


def _make(
    env: Env,
    trainer: imitation.Trainer,
    demonstrations: int,
    config: ImitationConfig,
    out: Path,
    eval_episodes: int,
) -> dict[str, Any]:
    """Trains and evaluates a policy, and writes it to a directory that has been begun."""
    task = env.task.name
    start = time.monotonic()
    best, last = _train(env, trainer, config, out)
    wall_s = time.monotonic() - start
    plots.plot_imitation(out, task)
    *_, trained = records.read_records(out / "imitation.jsonl")
    summary: dict[str, Any] = {
        "task": task,
        "policy": str(out),
        "kind": config.kind,
        "episodes": demonstrations,
        "steps": trained["step"],
        "seed": config.seed,
        "wall_s": wall_s,
    }
    if eval_episodes:
        play = make_play(make_playing(env, best))
        summary |= intervals.base_summary(play(FINAL_SEED, eval_episodes))
        tables.show_base(summary, f"{out}: ")
    write_result(out, summary)
    imitation_directory.finish(out, best, last if config.eval_every else None, config, task)
    return summary


def _train(
    env: Env, trainer: imitation.Trainer, config: ImitationConfig, out: Path
) -> tuple[BasePolicy, BasePolicy]:
    """Trains to the end, evaluates and saves on the way; returns the best and the last policy."""
    state = trainer.init()
    policy = trainer.make_policy(state)
    play = make_play(make_playing(env, policy))
    kept, done = imitation_directory.Kept(state, policy.params, np.float32(-np.inf)), 0
    saved = imitation_directory.checkpoints(out) if config.eval_every else None
    if saved is not None:
        found = saved.restore(kept)
        kept, done = found.tree, max(found.step, 0)
        for line in saved.set_aside(found.step, found.unreadable):
            terminal.say(f"{line}; going on from step {done:,}")
    curve = out / "imitation.jsonl"
    records.drop_records(curve, "step", done)
    lines = records.Lines(curve)
    with (
        closing(saved) if saved is not None else nullcontext(),
        terminal.progress("imitating", config.steps, "steps") as bar,
    ):
        while done < config.steps and not 0 < config.stop_at <= kept.success:
            begin, done = done, _next_stop(done, trainer.block, config)
            state, record = trainer.advance(kept.state, done - begin)
            kept = kept._replace(state=state)
            due = config.eval_every and (done % config.eval_every == 0 or done == config.steps)
            if due:
                params = trainer.make_policy(state).params
                won = play(INTERIM_SEED, config.interim_episodes, base_params=params)
                success = np.float32(won.score)
                record["success_once" if won.success_once is not None else "return"] = won.score
                if success >= kept.success:  # among equals the one that was trained longer
                    kept = kept._replace(best=params, success=success)
            lines.add({"step": done, **record})
            if due and saved is not None:
                terminal.say_unsaved(saved.save(done, kept))
            bar.update(done, _note(record))
    last = trainer.make_policy(kept.state)
    if not config.eval_every:
        return last, last
    return last._replace(params=kept.best), last


def _next_stop(done: int, block: int, config: ImitationConfig) -> int:
    """The step after a block, or before: evaluations and the end come at exactly their steps."""
    stop = min(done + block, config.steps)
    if not config.eval_every:
        return stop
    return min(stop, (done // config.eval_every + 1) * config.eval_every)


def _note(record: dict[str, float]) -> str:
    text = f"loss {record['train_loss']:.4f}, validation {record['validation_loss']:.4f}"
    success = record.get("success_once")
    return text if success is None else f"{text}, success_once {success:.1%}"
