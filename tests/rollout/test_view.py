"""What the learner reads of an observation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.config.schema import Config, DecoratorConfig
from pdjax.rollout.collect import make_rollout
from pdjax.rollout.decision import Frozen
from tests.probe import make_constant_policy, make_point_env

OBS = jnp.array([[1.0, 0.5, 3.0], [2.0, 0.5, 4.0]])
MEAN, STD = jnp.array([1.0, 0.0, 0.0]), jnp.array([2.0, 1.0, 1.0])
WHITE = [[0.0, 0.5, 3.0], [0.5, 0.5, 4.0]]
GAPS = [[0.5], [1.5]]  # position minus goal


@pytest.mark.parametrize(
    ("has", "changes", "expected"),
    [
        (True, {}, WHITE),
        (True, {"task_features": True}, np.hstack([WHITE, GAPS])),
        (True, {"task_features": True, "only_features": True}, GAPS),
        (False, {"task_features": True, "only_features": True}, WHITE),  # there are none
    ],
)
def test_observations_are_whitened_and_features_stay_as_they_are(has, changes, expected):
    env, base = make_point_env(), make_constant_policy(0.1)
    if has:
        task = dataclasses.replace(env.task, features=lambda obs: obs[:1] - obs[1:2])
        env = env._replace(task=task)
    rollout = make_rollout(env, base, Config(decorator=DecoratorConfig(**changes)))
    frozen = Frozen(env.model, base.params, MEAN, STD)
    np.testing.assert_allclose(rollout.see(frozen, OBS), expected)
    assert rollout.view_dim == np.shape(expected)[1]

    # What collects and what evaluates reads just that.
    seen = []

    def explore(view, base_action, key, index):
        del key, index
        seen.append(view.shape)
        return 0 * base_action, 0.0

    def residual(view, base_action):
        seen.append(view.shape)
        return 0 * base_action

    start_key, collect_key, evaluate_key = jax.random.split(jax.random.key(0), 3)
    state = rollout.init(frozen, start_key, 2)
    keys = jax.random.split(collect_key, 2)
    jax.eval_shape(lambda keys: rollout.collect(frozen, state, explore, keys), keys)
    jax.eval_shape(lambda key: rollout.evaluate(frozen, residual, 0.0, key, 2), evaluate_key)
    assert seen and set(seen) == {(2, rollout.view_dim)}
