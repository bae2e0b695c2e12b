"""This file is not pure: it records demonstrations and trains base policies from them.

The first half of the program's job; the second, refining a base policy, is `runner`.
"""

import json
import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pdjax.base_policies import imitation
from pdjax.base_policies.settings import ImitationConfig
from pdjax.output import plots, records, tables, terminal
from pdjax.output.paths import check_directory, new_directory, write_result
from pdjax.prepare import imitation_directory
from pdjax.rollout import intervals
from pdjax.rollout.playing import make_play, make_playing
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
    if resume and imitation_directory.is_finished(out, config, task):
        terminal.say(f"{out} is finished already")
        return json.loads((out / "result.json").read_text())
    if not resume:
        check_directory(out)
    env = registry.make(task, physics)
    found = store.read(demos, env.task)
    episodes = [(t.obs, t.actions) for t in found]
    description = imitation_directory.describe(config, task, episodes)
    if not (resume and imitation_directory.is_begun(out, description)):
        new_directory(out)
        if config.eval_every:
            imitation_directory.start(out, description)
    start = time.monotonic()
    best, last = _train(env, episodes, config, out)
    wall_s = time.monotonic() - start
    plots.plot_imitation(out, task)
    *_, trained = records.read_records(out / "imitation.jsonl")
    summary: dict[str, Any] = {
        "task": task,
        "policy": str(out),
        "kind": config.kind,
        "episodes": len(found),
        "steps": trained["step"],
        "seed": config.seed,
        "wall_s": wall_s,
    }
    if eval_episodes:
        play = make_play(make_playing(env, best))
        success = play(FINAL_SEED, eval_episodes).success_once
        summary |= intervals.base_summary(int(success.sum()), eval_episodes)
        tables.show_base(summary, f"{out}: ")
    write_result(out, summary)
    imitation_directory.finish(out, best, last if config.eval_every else None, config, task)
    return summary


def _train(
    env: Env, episodes: imitation.Episodes, config: ImitationConfig, out: Path
) -> tuple[BasePolicy, BasePolicy]:
    """Trains to the end, evaluating and saving on the way; returns the best and the last policy."""
    trainer = imitation.make_trainer(episodes, config)
    state = trainer.init()
    policy = trainer.make_policy(state)
    play = make_play(make_playing(env, policy))
    kept, done = imitation_directory.Kept(state, policy.params, np.float32(-1)), 0
    saved = imitation_directory.checkpoints(out) if config.eval_every else None
    if saved is not None:
        step, kept, problems = saved.restore(kept)
        done = max(step, 0)
        for problem in problems:
            terminal.say(f"{problem} - going on from an earlier one")
    curve = out / "imitation.jsonl"
    records.drop_records(curve, "step", done)
    with (
        closing(saved) if saved is not None else nullcontext(),
        terminal.progress("imitating", config.steps, "steps") as bar,
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
                won = play(INTERIM_SEED, config.interim_episodes, base_params=params)
                success = np.float32(won.success_once.mean())
                record["success_once"] = float(success)
                if success >= kept.success:  # of equals the longer trained
                    kept = kept._replace(best=params, success=success)
            records.add_record(curve, {"step": done, **record})
            if due and saved is not None:
                terminal.say_unsaved(saved.save(done, kept))
            bar.update(done, _note(record))
    last = trainer.make_policy(kept.state)
    if not config.eval_every:
        return last, last
    return last._replace(params=kept.best), last


def _note(record: dict[str, float]) -> str:
    text = f"loss {record['train_loss']:.4f}, validation {record['validation_loss']:.4f}"
    success = record.get("success_once")
    return text if success is None else f"{text}, success_once {success:.1%}"
