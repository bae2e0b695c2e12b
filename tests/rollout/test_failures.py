"""Where failed episodes end, by the stages that they reached."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.rollout.evaluate import Evaluation
from pdjax.rollout.failures import NO_STAGES, UNDONE, Group, group
from pdjax_envs import registry
from tests.probe import make_point_task

STAGES = {"begun": lambda obs: obs[0] > 0.1, "half way": lambda obs: obs[0] > 0.25}


def played(*paths, once=None, at_end=None):
    """The recorded evaluation of points at these positions, one path for each episode."""
    position = np.array(paths, np.float32).T
    obs = np.stack([position, 0 * position, 0 * position], axis=-1)
    no = np.zeros(len(paths), bool)
    fields = {"success_once": no if once is None else np.array(once)}
    fields["success_at_end"] = no if at_end is None else np.array(at_end)
    rest = dict.fromkeys(("steps_to_success", "smoothness", "saturation", "returns"), no)
    return Evaluation(**fields, **rest, qpos=None, obs=obs)  # pyright: ignore


def test_groups_by_hand():
    task = dataclasses.replace(make_point_task(), stages=STAGES)
    paths = [
        (0.0, 0.0, 0.0),
        (0.0, 0.2, 0.0),  # got on its way and came back
        (0.0, 0.2, 0.3),
        (0.0, 0.2, 0.4),
        (0.3, 0.3, 0.2),  # half way, then less
        (0.5, 0.5, 0.0),  # solved
        (0.5, 0.5, 0.5),  # solved and stayed so
    ]
    solved = [False] * 5 + [True] * 2
    found = group(task, played(*paths, once=solved, at_end=[False] * 6 + [True]))
    assert found == [
        Group("half way at the end", 2),
        Group("begun, at the end not begun", 1),
        Group("half way, at the end begun", 1),
        Group("never begun", 1),
        Group(UNDONE, 1),
    ]


def test_without_stages_and_without_failures():
    point = played((0.0, 0.0), (0.0, 0.0))
    assert group(make_point_task(), point) == [Group(NO_STAGES, 2)]
    solved = played((0.5, 0.5), once=[True], at_end=[True])
    assert group(dataclasses.replace(make_point_task(), stages=STAGES), solved) == []


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_no_episode_starts_at_the_last_stage_of_a_task(name, key):
    env = registry.make(name)
    assert env.task.stages

    def look(key):
        _, obs = env.reset(env.model, key)
        return jnp.stack([stage(obs) for stage in env.task.stages.values()])

    held = jax.jit(jax.vmap(look))(jax.random.split(key, 16))
    assert held.shape == (16, len(env.task.stages)) and held.dtype == bool
    assert not held[:, -1].any()
