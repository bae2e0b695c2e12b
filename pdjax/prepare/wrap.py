"""Tries a user's own policy in the simulator and writes it as a base policy's directory.

This file is not pure: it runs the user's code, reads and writes files, and prints.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdjax.base_policies import load
from pdjax.base_policies.foreign import assemble, description, exported, sources
from pdjax.base_policies.foreign.description import Description
from pdjax.base_policies.imitation import STD_FLOOR
from pdjax.config.options import ConfigError
from pdjax.output import tables, terminal
from pdjax.output.paths import check_directory, new_directory
from pdjax.rollout import intervals
from pdjax.rollout.playing import make_play, make_playing
from pdjax.types import BasePolicy
from pdjax_envs import registry
from pdjax_envs.task import Env, Task

SUFFIXES = {".jaxexport": "export", ".pt": "torchscript", ".pth": "torchscript"}
CROWDED = 0.2  # a larger share of action numbers at the bounds suggests another range of actions


class Play(NamedTuple):
    """How a policy is tried.

    Attributes:
      episodes: number of episodes to play.
      seed: seed of the first episode.
      physics: physics engine.
    """

    episodes: int
    seed: int
    physics: str


def wrap(source: str, task: str, out: Path, declared: dict[str, Any], play: Play) -> dict[str, Any]:
    """Tries a policy for some episodes and writes it to a directory for `base_policy.path`.

    Args:
      source: a .jaxexport or .pt file, FILE.py:NAME or MODULE:NAME.
      task: name of the policy's task.
      out: the directory to write, new or empty.
      declared: fields of `Description` that the user declares; obs_horizon 0 = the policy's own
        obs_horizon if it has one, else 1.
      play: how the policy is tried.

    Returns:
      The findings, as `--json` prints them.

    Raises:
      ConfigError: the policy cannot be used, or the directory cannot be written.
      registry.UnknownName: there is no such task.
    """
    check_directory(out)
    env = registry.make(task, play.physics, terminate_on_success=False)
    about, files, parts = read_source(source, env.task, declared)
    base = assemble.assemble(parts, about)
    obs, actions, seen = try_aloud(env, base, play, (source, "fix the policy"))
    std = np.maximum(obs.std(axis=0), STD_FLOOR)
    about = dataclasses.replace(
        about, obs_mean=tuple(obs.mean(axis=0).tolist()), obs_std=tuple(std.tolist())
    )
    new_directory(out)
    for name, path in files.items():
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, out / name)
    description.write(out, about)
    return _report(out, about, base, (actions, seen, play.episodes))


def read_source(
    source: str, task: Task, declared: dict[str, Any]
) -> tuple[Description, dict[str, Path], assemble.Parts]:
    """Reads a policy from its source without playing it.

    Args:
      source: see `wrap`.
      task: the policy's task.
      declared: see `wrap`.

    Returns:
      The description, whose observation statistics are still 0 and 1; the files for the policy's
      directory, by their names there; and the policy.

    Raises:
      ConfigError: the policy cannot be used.
    """
    path, dim, obs_horizon = Path(source), task.obs_dim, declared["obs_horizon"]
    about = Description(
        kind="python",
        task=task.name,
        obs_dim=dim,
        act_dim=task.act_dim,
        act_horizon=1,
        obs_mean=(0.0,) * dim,
        obs_std=(1.0,) * dim,
        **declared | {"obs_horizon": max(obs_horizon, 1)},
    )
    about.validate()
    if path.suffix in SUFFIXES:
        about = dataclasses.replace(about, kind=SUFFIXES[path.suffix])
        files = {assemble.FILES[about.kind]: path}
        if about.kind == "export":
            own = exported.load(path).obs_shape[0]
            about = dataclasses.replace(about, obs_horizon=obs_horizon or own)
            beside = (exported.INIT_CARRY, exported.PARAMS)
            files |= {name: path.parent / name for name in beside if (path.parent / name).exists()}
        parts = assemble.read_file(path, about)
    elif ":" in source:
        where, _, name = source.rpartition(":")
        is_file = where.endswith(".py")
        files = {Path(where).name: Path(where)} if is_file else {}
        policy = sources.find(source)
        own = getattr(policy, "obs_horizon", 1)
        entry = f"{Path(where).name}:{name}" if is_file else source
        about = dataclasses.replace(about, obs_horizon=obs_horizon or own, entry=entry)
        parts = assemble.adapt(policy, (about.obs_horizon, dim), about.device)
    else:
        raise ConfigError(
            f"cannot wrap {source}; expected FILE.jaxexport, FILE.pt (TorchScript), FILE.py:NAME or"
            " MODULE:NAME"
        )
    return dataclasses.replace(about, act_horizon=parts.act_horizon), files, parts


def try_aloud(env: Env, base: BasePolicy, play: Play, said: tuple[str, str]):
    """Plays a new policy with a progress bar, and checks its actions.

    Args:
      env: the environment.
      base: the policy.
      play: how the policy is tried.
      said: the policy's name and the advice in the error message.

    Returns:
      Observations (n, obs_dim) and base actions (n, chunk_dim) of all decisions, and the episodes.

    Raises:
      ConfigError: the policy returns NaN or infinite actions.
    """
    with terminal.progress("trying", play.episodes, "episodes") as bar:
        seen = make_play(make_playing(env, base))(play.seed, play.episodes, record=True)
        bar.update(play.episodes)
    obs, actions = (np.asarray(x).reshape(-1, x.shape[-1]) for x in (seen.obs, seen.base_action))
    if not np.isfinite(actions).all():
        source, advice = said
        raise ConfigError(
            f"{source} returned NaN actions on observations of {env.task.name}; {advice}"
        )
    return obs, actions, seen


def _report(out: Path, about: Description, base: BasePolicy, tried: tuple) -> dict[str, Any]:
    """Prints and returns the findings."""
    actions, seen, episodes = tried
    crowded = float((np.abs(actions) >= 1).mean())
    found = intervals.base_summary(seen)
    way, microseconds = load.cost(base, episodes)
    terminal.say(
        f"{out}: {about.kind} policy for {about.task}, obs_horizon {about.obs_horizon},"
        f" act_horizon {about.act_horizon}, called {way},"
        f" {microseconds:,.0f} us per call for {episodes} environments"
    )
    tables.show_base(found)
    if crowded > CROWDED:
        hint = "if its range is not [-1, 1], declare it with --action-low and --action-high"
        terminal.say(f"{crowded:.0%} of the policy's action numbers are at the bounds; {hint}")
    return {
        "policy": str(out),
        "task": about.task,
        "kind": about.kind,
        "called": way,
        "obs_horizon": about.obs_horizon,
        "act_horizon": about.act_horizon,
        "call_us": microseconds,
        **found,
        "at_bounds": crowded,
    }
