"""Tries a user's own policy in the simulator and writes it as a base policy's directory.

This file is not pure: it runs the user's code, reads and writes files, and prints.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pdjax.base_policies import load
from pdjax.base_policies.foreign import (
    artefact,
    assemble,
    description,
    exported,
    sources,
    trial,
)
from pdjax.base_policies.foreign.description import Description
from pdjax.base_policies.foreign.user_code import guard
from pdjax.base_policies.imitation import STD_FLOOR
from pdjax.config import options
from pdjax.config.options import ConfigError
from pdjax.output import tables, terminal
from pdjax.output.paths import check_directory, whole_directory
from pdjax.rollout import intervals
from pdjax.rollout.playing import make_play, make_playing
from pdjax.types import BasePolicy
from pdjax_envs import registry
from pdjax_envs.reading import check_fits, is_file, short
from pdjax_envs.task import Env, Task

SUFFIXES = {".jaxexport": "export", ".pt": "torchscript", ".pth": "torchscript"}
IMPORTING = "policy.py"  # the file that takes a policy from MODULE:NAME
MANY = 3  # environments that a program is tried with at least; an odd number, above 1
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
    known = registry.make_task(task)
    check_trial(known, play.episodes, declared["obs_horizon"])
    about, files, parts = read_source(source, known, declared, play.episodes)
    check_trial(known, play.episodes, about.obs_horizon)
    env = registry.make(task, play.physics, terminate_on_success=False)
    base = assemble.assemble(parts, about)
    obs, actions, seen = try_aloud(env, base, play, (source, "fix the policy"))
    std = np.maximum(obs.std(axis=0), STD_FLOOR)
    about = dataclasses.replace(
        about, obs_mean=tuple(obs.mean(axis=0).tolist()), obs_std=tuple(std.tolist())
    )
    with whole_directory(out) as folder:
        for name, content in files.items():
            if isinstance(content, str):
                (folder / name).write_text(content)
            else:
                (shutil.copytree if content.is_dir() else shutil.copyfile)(content, folder / name)
        description.write(folder, about)
    is_other = env.open is not None
    return _report(out, about, base, is_other, (actions, seen, play.episodes))


def check_trial(task: Task, episodes: int, obs_horizon: int) -> None:
    """Checks that the observations of a trial fit into the memory.

    Raises:
      InputError: they do not.
    """
    numbers = episodes * task.obs_dim * (task.episode_steps + obs_horizon)
    check_fits(
        4 * numbers,
        f"a trial of {episodes:,} episodes with the latest {max(obs_horizon, 1):,} observations",
    )


def read_source(
    source: str, task: Task, declared: dict[str, Any], most: int = MANY
) -> tuple[Description, dict[str, Path | str], assemble.Parts]:
    """Reads a policy from its source without playing it, after a trial in a process of its own.

    Args:
      source: see `wrap`.
      task: the policy's task.
      declared: see `wrap`.
      most: a number of environments that the policy must serve at once.

    Returns:
      The description, whose observation statistics are still 0 and 1; the files for the policy's
      directory, by their names there, as paths or text; and the policy.

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
        if not is_file(path):
            raise ConfigError(f"no policy at {short(source)}: no such file")
        obs_shape = (about.obs_horizon, dim)
        trial.try_file(about.kind, path, obs_shape, (1, max(most, MANY)))
        files: dict[str, Path | str] = {assemble.FILES[about.kind]: path}
        if about.kind == "export":
            own = artefact.read_policy(path).obs_shape[0]
            about = dataclasses.replace(about, obs_horizon=obs_horizon or own)
            beside = (exported.INIT_CARRY, exported.PARAMS)
            found = {name: path.parent / name for name in beside if (path.parent / name).exists()}
            load.check_links(path.parent, tuple(found))
            files |= found
        parts = assemble.read_file(path, about)
    elif ":" in source:
        where, _, name = source.rpartition(":")
        code = Path(where) if where.endswith(".py") else sources.importing(source)
        file = code.name if isinstance(code, Path) else IMPORTING
        files = {file: code}
        policy = sources.find(source)
        own = guard(getattr, "reading the policy's obs_horizon", policy, "obs_horizon", 1)
        values = {"obs_horizon": obs_horizon or own, "entry": f"{file}:{name}"}
        about = options.build(Description, dataclasses.asdict(about) | values)
        about.validate()
        check_trial(task, most, about.obs_horizon)
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
        obs, actions = (
            np.asarray(x).reshape(-1, x.shape[-1]) for x in (seen.obs, seen.base_action)
        )
        if not np.isfinite(actions).all():
            source, advice = said
            raise ConfigError(
                f"{source} returned NaN or infinite actions on observations of {env.task.name};"
                f" {advice}"
            )
        bar.update(play.episodes)
    return obs, actions, seen


def _report(
    out: Path, about: Description, base: BasePolicy, is_other: bool, tried: tuple
) -> dict[str, Any]:
    """Prints and returns the findings; `is_other`: the environment is one of Gymnasium."""
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
    if found["base_success"] is None:
        hint = " unless task.success says what success is" if is_other else ""
        terminal.say(
            f"{about.task} has no success; it is refined by its return (task.reward=dense){hint}"
        )
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
