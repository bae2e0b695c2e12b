"""Plans a run's memory before the run allocates any, and refuses a run that does not fit.

A plan counts the arrays that training will hold, by their shapes alone, the working memory that XLA
states for the compiled epoch, and upper bounds of the rest (docs/decisions/training.md, 40).
Separate, so that the plan can be made for another machine. All functions are pure except
`make_plans`, which asks how much memory is free, and `show`.
"""

import itertools
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from pdjax.config import files as configs
from pdjax.config.schema import Config, ConfigError
from pdjax.output import terminal
from pdjax.rollout.decision import Frozen
from pdjax.training.epoch import TrainState, placement
from pdjax_envs import free_memory
from pdjax_envs.reading import short

PROGRAMS = 32 * 2**20  # bytes of OTHERS
COUNTS = 20  # metrics that a round adds to its epoch
WRITERS = 2  # checkpoints that may be written at the same time: the newest and the best
WIDTHS = {"float32": 4, "bfloat16": 2}  # replay_dtype -> bytes of one number
MOMENTS = ("actor_opt", "critic_opt", "temperature_opt")
NUMBERS = {  # fields of the replay in replay_dtype -> parts of the plan
    "obs": "replay: observations",
    "base_action": "replay: base actions",
    "residual_action": "replay: residual actions",
}
FLAGS = "replay: rewards and flags"
OTHERS = "other programs and physics threads (estimate)"


class Plan(NamedTuple):
    """What one memory has to hold: that of the machine or of an accelerator.

    Attributes:
      name: name of the memory.
      held: part -> bytes in the steady state.
      saving: bytes that are added while checkpoints are written; an upper bound.
      numbers: bytes of the replay's observations and actions, in `held` and `saving` together.
      flags: bytes of the replay's rewards and flags, likewise.
      free: bytes available to the run: free ones, and those of `held` that are allocated already.
        None if unknown.
    """

    name: str
    held: dict[str, int]
    saving: int
    numbers: int
    flags: int
    free: int | None

    @property
    def held_bytes(self) -> int:
        """Bytes in the steady state."""
        return sum(self.held.values())

    @property
    def total(self) -> int:
        """Bytes at the peak, while checkpoints are written."""
        return self.held_bytes + self.saving

    @property
    def fits(self) -> bool:
        """Whether the run fits; also true if the free memory is unknown."""
        return self.free is None or self.total <= self.free


class Sizes(NamedTuple):
    """Counts of numbers that a run's task and base policy fix.

    Attributes:
      obs: in an observation.
      history: in the observations that the base policy reads.
      chunk: in a base action.
      residual: in a residual action.
      episode: in all actions of an episode.
    """

    obs: int
    history: int
    chunk: int
    residual: int
    episode: int


def check_numbers(config: Config, sizes: Sizes, members: int, gib: float) -> None:
    """Checks each count of a config by itself, before any shape is made of it.

    XLA can neither shape nor compile what is far too large; the plan judges the rest. What each
    count needs at least is computed here; the replay is left to the plan, which knows what fits.

    Args:
      config: the run.
      sizes: what its task and base policy fix.
      members: number of members in the program.
      gib: see `make_plans`.

    Raises:
      ConfigError: a count alone does not fit; the message names it.
    """
    free = int(gib * 2**30) if gib else _free_anywhere()
    if free is None:
        return
    for name, numbers in _least(config, sizes, members).items():
        if (size := 4 * numbers) > free:
            value = configs.flat(config)[name]
            raise ConfigError(
                f"{name}={short(repr(value))} alone needs {text(size)} of memory, but {text(free)}"
                " are free; lower it"
            )


def _least(config: Config, sizes: Sizes, members: int) -> dict[str, int]:
    """Returns key -> how many numbers of 4 bytes a run holds at least because of it."""
    train, sac, row = config.train, config.sac, sizes.obs + sizes.chunk + sizes.residual
    widths = (1, *sac.hidden, 1)  # a bound, whatever the networks read
    weights = sum(a * b for a, b in itertools.pairwise(widths))
    activations = sac.num_critics * max(sac.hidden)
    rounds = train.decisions_per_epoch // train.decisions_per_round
    updates = train.decisions_per_round * train.updates_per_decision
    return {
        # Each network is there four times: its parameters, their average or target, two moments.
        "sac.hidden": 4 * weights * members,
        "sac.num_critics": 4 * sac.num_critics * weights * members,
        "sac.batch_size": sac.batch_size * (2 * row + activations),
        "sac.n_step": sac.batch_size * sac.n_step,
        "train.num_envs": train.num_envs * sizes.history * members,
        "train.decisions_per_round": train.decisions_per_round * row,
        "train.decisions_per_epoch": rounds * COUNTS,
        "train.updates_per_decision": 2 * round(updates),
        "eval.episodes": config.eval.episodes * sizes.episode,
        "eval.interim_episodes": config.eval.interim_episodes * sizes.episode * members,
    }


def _free_anywhere() -> int | None:
    """Returns the bytes available where JAX computes; None if unknown."""
    if jax.default_backend() == "cpu":
        return free_memory.free_memory()
    stats = jax.local_devices()[0].memory_stats() or {}
    limit = stats.get("bytes_limit")
    return None if limit is None else limit - stats["bytes_in_use"]


def make_plans(
    state: TrainState, frozen: Frozen, evaluation: Any, mesh: Mesh, gib: float, working: int = 0
) -> list[Plan]:
    """Makes a run's plans: for the machine's memory, or for an accelerator's and the machine's.

    Args:
      state: shapes of the training state; for several members, of the stacked one.
      frozen: the arrays that training never changes; they are allocated already.
      evaluation: shapes of the arrays of an evaluation.
      mesh: the devices. CPUs share the machine's memory. Of several accelerators one is planned,
        and each process plans only its own devices.
      gib: memory in GiB of the machine or accelerator to plan for; 0 = what is free on this one.
      working: bytes of working memory of an epoch on each device, see `working_memory`.
    """
    saved = _saved_parts(state, mesh)
    whole = placement(mesh).key
    there = {
        "base policy and model": _bytes(frozen._replace(demos=()), whole),
        "demonstrations": _bytes(frozen.demos, whole),
    }
    held = (
        saved
        | there
        | {
            "working memory of an epoch": working,
            "evaluation": _bytes(evaluation, whole),
        }
    )
    numbers, flags = sum(saved[name] for name in NUMBERS.values()), saved[FLAGS]
    size, state_size, taken = len(mesh.local_devices), sum(saved.values()), sum(there.values())
    if jax.default_backend() == "cpu":
        # A state that is being written keeps its memory, so the next epoch needs another copy; and
        # each writer makes an encoded copy.
        copies = 1 + WRITERS
        held = {name: size * part for name, part in held.items()} | {OTHERS: PROGRAMS}
        free = (
            int(gib * 2**30) - free_memory.resident_memory() if gib else free_memory.free_memory()
        )
        free = None if free is None else free + size * taken
        rings = size * (1 + copies)
        return [
            Plan(
                "this machine's memory",
                held,
                size * copies * state_size,
                rings * numbers,
                rings * flags,
                free,
            )
        ]
    copies = size * 2 * WRITERS  # each writer has a copy on the host and an encoded one
    host = Plan(
        "the host's memory",
        {OTHERS: PROGRAMS},
        copies * state_size,
        copies * numbers,
        copies * flags,
        free_memory.free_memory(),
    )
    free = int(gib * 2**30) if gib else _free_on(mesh, taken)
    return [Plan("memory of each device", held, 0, numbers, flags, free), host]


def _saved_parts(state: TrainState, mesh: Mesh) -> dict[str, int]:
    """Returns bytes on one device: part of the training state, or best residual policy -> bytes."""
    there = placement(mesh, stacked=state.decision_steps.ndim > 0)
    storage = state.replay.storage
    ring = {name: _bytes(leaf, there.replay.storage) for name, leaf in storage._asdict().items()}
    sac = {name: _bytes(tree, there.sac) for name, tree in state.sac._asdict().items()}
    best = sac["actor"]
    counters = (
        state.hyperparams,
        state.decision_steps,
        state.control_steps,
        state.key,
        state.replay.cursor,
        state.replay.size,
    )
    moments = sum(sac.pop(name) for name in MOMENTS)
    return {
        **{part: ring.pop(name) for name, part in NUMBERS.items()},
        FLAGS: sum(ring.values()),
        "environments": _bytes(state.rollout, there.rollout),
        "learner: target critics": sac.pop("target_critic"),
        "learner: optimisers": moments,
        "learner: parameters": sum(sac.values()) + _bytes(counters, there.key),
        "best residual policy": best,
    }


def _bytes(tree: Any, sharding: Any) -> int:
    """Returns the bytes of a tree of arrays, or of their shapes, on one device."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda x: x, tree))
    return sum(math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _free_on(mesh: Mesh, taken: int) -> int | None:
    """Returns the bytes available on the fullest device, `taken` included; None if unknown."""
    stats = [device.memory_stats() for device in _devices(mesh)]
    left = [s["bytes_limit"] - s["bytes_in_use"] for s in stats if s and "bytes_limit" in s]
    return min(left) + taken if left else None


def _devices(mesh: Mesh) -> list[Any]:
    """Returns the devices of this process."""
    return list(mesh.local_devices)


def working_memory(compiled: Any) -> int:
    """Returns a compiled program's bytes per device, without arguments and donated results."""
    found = compiled.memory_analysis()
    if found is None:  # some kinds of devices do not state it
        return 0
    fresh = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.temp_size_in_bytes + max(fresh, 0) + found.generated_code_size_in_bytes


def largest_capacity(plans: list[Plan], config: Config, dtype: str) -> int | None:
    """Returns the decisions of the largest replay that fits.

    Args:
      plans: the run's plans.
      config: the run.
      dtype: the replay_dtype to assume.

    Returns:
      A value for train.replay_capacity; 0 if no replay fits, None if the free memory is unknown.
    """
    train = config.train
    rounds = train.replay_capacity // train.decisions_per_round
    found = []
    for plan in plans:
        if plan.free is not None:
            numbers = plan.numbers * WIDTHS[dtype] // WIDTHS[train.replay_dtype]
            left = plan.free - (plan.total - plan.numbers - plan.flags)
            found.append(left // ((numbers + plan.flags) // rounds) * train.decisions_per_round)
    if not found:
        return None
    return min(found) if min(found) > config.sac.n_step * train.num_envs else 0


def check(plans: list[Plan], config: Config) -> None:
    """Checks that a run fits.

    Raises:
      ConfigError: it does not fit; the message names the largest replay that does.
    """
    for plan in plans:
        if plan.fits:
            continue
        largest = {dtype: largest_capacity(plans, config, dtype) for dtype in WIDTHS}
        advice = [f"lower train.replay_capacity to {largest[config.train.replay_dtype]:,} or less"]
        if config.train.replay_dtype != "bfloat16":
            advice += [f"to {largest['bfloat16']:,} with train.replay_dtype=bfloat16"]
        if not largest[config.train.replay_dtype]:
            advice = ["no train.replay_capacity fits"]
        raise ConfigError(
            f"the run needs {text(plan.total)} of {plan.name}, but {text(max(plan.free or 0, 0))}"
            f" are free; the replay's {config.train.replay_capacity:,} decisions take"
            f" {text(plan.numbers + plan.flags)}: {', or '.join(advice)}, or lower train.num_envs"
        )


def show(plans: list[Plan]) -> None:
    """Prints the plans as tables."""
    for plan in plans:
        rows = [[name, text(size)] for name, size in plan.held.items() if size]
        rows += [["steady state", text(plan.held_bytes)]]
        if plan.saving:
            rows += [
                ["copies while checkpoints are written", text(plan.saving)],
                ["peak", text(plan.total)],
            ]
        rows += [["free", "unknown" if plan.free is None else text(max(plan.free, 0))]]
        terminal.show_table(f"memory plan: {plan.name}", ["part", "size"], rows)


def summarize(plans: list[Plan], config: Config) -> dict[str, Any]:
    """Returns the plans in bytes, and the largest replay in decisions by dtype, for `--json`."""
    return {
        "plans": [
            {
                "memory": plan.name,
                "held": plan.held,
                "held_bytes": plan.held_bytes,
                "saving_bytes": plan.saving,
                "total_bytes": plan.total,
                "free_bytes": plan.free,
            }
            for plan in plans
        ],
        "largest_replay_capacity": {d: largest_capacity(plans, config, d) for d in WIDTHS},
    }


def text(size: int) -> str:
    """Returns a number of bytes as text, such as "1.5 MiB"."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
