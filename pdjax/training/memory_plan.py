"""What a run will take of memory, told before it takes any, and refused where that is not there.

Counted are the very arrays that training will hold, by their shapes alone, what XLA says of the
compiled epoch, and bounds of the rest (docs/decisions/training.md, 40). Pure but for `make_plans`,
which asks how much is free, and `show`.
"""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from pdjax.config.schema import Config, ConfigError
from pdjax.devices import free_memory
from pdjax.output import terminal
from pdjax.rollout.decision import Frozen
from pdjax.training.epoch import TrainState, placement

PROGRAMS = 32 * 2**20  # bytes of OTHERS
WRITERS = 2  # checkpoints that may be under way at once: the newest and the best
WIDTHS = {"float32": 4, "bfloat16": 2}  # bytes of a number in each replay_dtype
MOMENTS = ("actor_opt", "critic_opt", "temperature_opt")
NUMBERS = {  # fields of the replay in replay_dtype -> parts of the plan
    "obs": "replay: observations",
    "base_action": "replay: base actions",
    "residual_action": "replay: residual actions",
}
FLAGS = "replay: rewards and flags"
OTHERS = "other programs, physics threads; about"


class Plan(NamedTuple):
    """What one memory has to hold.

    Attributes:
      name: of the memory.
      held: part -> bytes, all the while.
      saving: bytes besides while checkpoints are written, at most.
      numbers: bytes of both that are the replay's observations and actions.
      flags: bytes of both that are its rewards and flags.
      free: bytes, with those that `held` counts and that are taken already; None where unknown.
    """

    name: str
    held: dict[str, int]
    saving: int
    numbers: int
    flags: int
    free: int | None

    @property
    def held_bytes(self) -> int:
        """Bytes, all the while."""
        return sum(self.held.values())

    @property
    def total(self) -> int:
        """Bytes, at most."""
        return self.held_bytes + self.saving

    @property
    def fits(self) -> bool:
        """Whether it does, as far as is known."""
        return self.free is None or self.total <= self.free


def make_plans(
    state: TrainState, frozen: Frozen, evaluation: Any, mesh: Mesh, gib: float, working: int = 0
) -> list[Plan]:
    """Plans of a run: of the machine's memory, or of the accelerator's and the machine's.

    Args:
      state: shapes of the training state, of several members stacked.
      frozen: as training takes it; it is there already.
      evaluation: shapes of what an evaluation holds.
      mesh: of the devices. CPUs share the machine's memory; of accelerators one is planned. Those
        of other processes are their matter.
      gib: GiB of the machine or the accelerator to plan for; 0 = what is free of this one.
      working: bytes that an epoch needs besides on each device, see `working_memory`.
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
        # A state that is being written keeps its memory, so the next epoch takes other; and each
        # writer encodes what it writes.
        copies = 1 + WRITERS
        held = {name: size * part for name, part in held.items()} | {OTHERS: PROGRAMS}
        free = (
            int(gib * 2**30) - free_memory.resident_memory() if gib else free_memory.free_memory()
        )
        free = None if free is None else free + size * taken
        rings = size * (1 + copies)
        return [
            Plan("memory", held, size * copies * state_size, rings * numbers, rings * flags, free)
        ]
    copies = size * 2 * WRITERS  # on the host, and that encoded
    host = Plan(
        "the host's memory",
        {OTHERS: PROGRAMS},
        copies * state_size,
        copies * numbers,
        copies * flags,
        free_memory.free_memory(),
    )
    free = int(gib * 2**30) if gib else _free_on(mesh, taken)
    return [Plan("memory on each device", held, 0, numbers, flags, free), host]


def _saved_parts(state: TrainState, mesh: Mesh) -> dict[str, int]:
    """Bytes on one device of each part of a training state, and of the best residual policy."""
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
    """Bytes that a tree of arrays or of their shapes takes on one device."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda x: x, tree))
    return sum(math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _free_on(mesh: Mesh, taken: int) -> int | None:
    """Bytes of the fullest device, with those that are taken already; None where unknown."""
    stats = [device.memory_stats() for device in _devices(mesh)]
    left = [s["bytes_limit"] - s["bytes_in_use"] for s in stats if s and "bytes_limit" in s]
    return min(left) + taken if left else None


def _devices(mesh: Mesh) -> list[Any]:
    """Those of this process."""
    return list(mesh.local_devices)


def working_memory(compiled: Any) -> int:
    """Bytes on each device that a compiled program takes besides arguments and donated results."""
    found = compiled.memory_analysis()
    if found is None:  # not told by every kind of device
        return 0
    fresh = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.temp_size_in_bytes + max(fresh, 0) + found.generated_code_size_in_bytes


def largest_capacity(plans: list[Plan], config: Config, dtype: str) -> int | None:
    """Decisions of the largest replay that fits, kept in a dtype; 0 = none, None = unknown."""
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
    """Refuses a run that does not fit.

    Raises:
      ConfigError: with the largest replay that does.
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
            f" are free; the replay's {config.train.replay_capacity:,} decisions come to"
            f" {text(plan.numbers + plan.flags)}: {', or '.join(advice)}, or lower train.num_envs"
        )


def show(plans: list[Plan]) -> None:
    """Prints the plans as tables."""
    for plan in plans:
        rows = [[name, text(size)] for name, size in plan.held.items() if size]
        rows += [["all the while", text(plan.held_bytes)]]
        if plan.saving:
            rows += [
                ["besides, while checkpoints are written, at most", text(plan.saving)],
                ["at most", text(plan.total)],
            ]
        rows += [["free", "unknown" if plan.free is None else text(max(plan.free, 0))]]
        terminal.show_table(f"{plan.name} of this run", ["part", "size"], rows)


def summarize(plans: list[Plan], config: Config) -> dict[str, Any]:
    """The plans in bytes, and the largest replay in decisions, for `--json`."""
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
    """Bytes for people."""
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"
