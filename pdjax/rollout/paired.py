"""Base and refined policy on the same episodes: the compiled evaluation and its comparison."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pdjax.output import terminal
from pdjax.rollout import intervals
from pdjax.rollout.evaluate import Evaluation
from pdjax.training.build import Run
from pdjax.training.epoch import placement
from pdjax.types import Params


def make_assess(built: Run, stacked: bool = False):
    """(actor, residual_scale, seed, episodes, record=False) -> Evaluation on the host.

    Compiled once for each number of episodes; scale 0 is the base policy. Stacked: of several
    actors and scales, leaves (members, ...), all on the same episodes.
    """

    def assess(frozen, episodes, record, key, actor, residual_scale):
        choose = partial(built.sac.act_deterministic, actor)
        return built.rollout.evaluate(frozen, choose, residual_scale, key, episodes, record)

    def assess_all(frozen, episodes, record, key, actors, scales):
        return jax.vmap(partial(assess, frozen, episodes, record, key))(actors, scales)

    compiled = jax.jit(
        assess_all if stacked else assess,
        static_argnums=(1, 2),
        out_shardings=placement(built.mesh).key,
    )

    def on_host(actor, residual_scale, seed, episodes, record=False) -> Evaluation:
        key = jax.random.key(seed)
        scale = jnp.asarray(residual_scale, jnp.float32)
        return jax.device_get(compiled(built.frozen, episodes, record, key, actor, scale))

    return on_host


def compare(
    built: Run, refined: Sequence[tuple[Params, float]], episodes: int, seed: int
) -> list[dict[str, Any]]:
    """Base and refined on the same episodes, as `result.json` keeps it.

    Args:
      built: the run.
      refined: actors, each with its residual_scale.
      episodes: played by the base policy and by each of these.
      seed: of the episodes.
    """
    assess, found = make_assess(built), []
    with terminal.progress("evaluating", (1 + len(refined)) * episodes, "episodes") as bar:
        base = assess(refined[0][0], 0.0, seed, episodes)
        note = f"base {base.success_once.mean():.1%}"
        for count, (actor, residual_scale) in enumerate(refined, 1):
            bar.update(count * episodes, note)
            result = assess(actor, residual_scale, seed, episodes)
            note = f"refined {result.success_once.mean():.1%}"
            found.append({"task": built.env.task.name} | intervals.summarize(base, result))
        bar.update((1 + len(refined)) * episodes, note)
    return found
