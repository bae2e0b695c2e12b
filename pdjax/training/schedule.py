"""How a run is divided: budget into epochs, epochs into rounds, the replay into rows.

Whole numbers from a config, without any array. Separate from `epoch`, which trains by them.
"""

from typing import NamedTuple

from pdjax.config.schema import Config, ConfigError

TOLD = 0.01  # share of the replay whose loss to rounding is worth a line


class Schedule(NamedTuple):
    """How an epoch is divided, in the whole numbers that follow from the config's ratios.

    Attributes:
      decisions: decisions of each environment per round.
      rounds: rounds per epoch.
      updates: gradient steps per round.
    """

    decisions: int
    rounds: int
    updates: int


def make_schedule(config: Config) -> Schedule:
    """Divides an epoch into rounds.

    Raises:
      ConfigError: the config's decisions do not divide into whole rounds, or a round owes a
        fraction of a gradient step.
    """
    train = config.train
    decisions, rest = divmod(train.decisions_per_round, train.num_envs)
    if rest or decisions < 1:
        raise ConfigError(
            f"train.decisions_per_round={train.decisions_per_round} must be a multiple of"
            f" train.num_envs={train.num_envs}"
        )
    rounds, rest = divmod(train.decisions_per_epoch, train.decisions_per_round)
    if rest or rounds < 1:
        raise ConfigError(
            f"train.decisions_per_epoch={train.decisions_per_epoch} must be a multiple of"
            f" train.decisions_per_round={train.decisions_per_round}"
        )
    updates = train.decisions_per_round * train.updates_per_decision
    if abs(updates - round(updates)) > 1e-6 or updates < 1:
        raise ConfigError(
            f"train.decisions_per_round={train.decisions_per_round} times"
            f" train.updates_per_decision={train.updates_per_decision} gives {updates:g} updates"
            " per round, expected a whole number of at least 1; change either"
        )
    return Schedule(decisions, rounds, round(updates))


def replay_rows(config: Config, schedule: Schedule) -> int:
    """Returns the rows of the ring: whole rounds, and more than an n-step transition needs.

    Raises:
      ConfigError: the replay is too small for that.
    """
    rows = config.train.replay_capacity // config.train.num_envs
    rows -= rows % schedule.decisions
    if rows <= config.sac.n_step:
        raise ConfigError(
            f"train.replay_capacity={config.train.replay_capacity} holds {rows} decisions of each"
            f" of {config.train.num_envs} environments in whole rounds, expected more than"
            f" sac.n_step={config.sac.n_step}; raise train.replay_capacity"
        )
    return rows


def whole_epochs(config: Config) -> int:
    """Returns the decisions that a run trains: its budget, rounded up to whole epochs.

    Raises:
      ConfigError: a counter of 32 bits cannot hold them, or learning would start after the end.
    """
    train = config.train
    total = -(-train.total_decisions // train.decisions_per_epoch) * train.decisions_per_epoch
    if total >= 2**31:
        raise ConfigError(
            f"train.total_decisions={train.total_decisions:,} in whole epochs of"
            f" {train.decisions_per_epoch:,} is more than 32 bits can count; lower either"
        )
    if train.learning_starts > total:
        raise ConfigError(
            f"train.learning_starts={train.learning_starts:,} is beyond the {total:,} decisions of"
            " the run, so nothing would be learnt; lower it or raise train.total_decisions"
        )
    return total


def describe_rounding(config: Config) -> list[str]:
    """Says in sentences where a run takes other numbers than its config, to fill whole units."""
    train, said = config.train, []
    if (total := whole_epochs(config)) != train.total_decisions:
        said.append(
            f"train.total_decisions={train.total_decisions:,} becomes {total:,}: whole epochs of"
            f" {train.decisions_per_epoch:,} (train.decisions_per_epoch)"
        )
    kept = replay_rows(config, make_schedule(config)) * train.num_envs
    if kept < (1 - TOLD) * train.replay_capacity:
        said.append(
            f"train.replay_capacity={train.replay_capacity:,} becomes {kept:,}: whole rounds of"
            f" {train.decisions_per_round:,} (train.decisions_per_round)"
        )
    return said
