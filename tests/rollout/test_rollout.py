"""Rollout: next-step autoreset, chunks, histories, base-policy carries, evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pdjax.base_policies.chunking import step_by_step
from pdjax.rollout.collect import make_rollout
from pdjax.rollout.decision import Frozen
from pdjax.rollout.evaluate import _summarize
from pdjax_envs import registry
from pdjax_envs.physics.anomalies import is_anomalous, joint_limits
from pdjax_envs.task import make_env
from tests.probe import (
    SPEED,
    make_constant_policy,
    make_counting_policy,
    make_point_env,
    make_point_task,
    physics_at,
)


def frozen_of(env, base):
    return Frozen(env.model, base.params, base.obs_mean, base.obs_std)


def collect(env, base, decisions, num_envs=3, residual=0.0, scale=1.0, seed=0):
    rollout, frozen = make_rollout(env, base), frozen_of(env, base)

    def choose(obs, base_action, key, index):
        del obs, key, index
        return jnp.full_like(base_action, residual), scale

    @jax.jit
    def play(key):
        start_key, keys_key = jax.random.split(key)
        state = rollout.init(frozen, start_key, num_envs)
        return rollout.collect(frozen, state, choose, jax.random.split(keys_key, decisions))

    _, rows, metrics = play(jax.random.key(seed))
    return jax.device_get(rows), jax.device_get(metrics)


def evaluate(env, base, choose, scale, episodes=5, seed=0, record=False):
    rollout, frozen = make_rollout(env, base), frozen_of(env, base)
    play = jax.jit(lambda key: rollout.evaluate(frozen, choose, scale, key, episodes, record))
    return jax.device_get(play(jax.random.key(seed)))


def nothing(obs, base_action):
    del obs
    return jnp.zeros_like(base_action)


def test_time_limit_in_the_middle_of_a_chunk_truncates_and_the_next_row_is_the_final_observation():
    # 5 control steps an episode, chunks of 2: decisions play 2, 2 and 1 steps, then a reset row.
    env, base = make_point_env(episode_steps=5), make_constant_policy(velocity=0.1)
    rows, metrics = collect(env, base, decisions=8)
    pattern = [False, False, True, False]
    np.testing.assert_array_equal(rows.truncated, np.repeat([pattern * 2], 3, axis=0).T)
    np.testing.assert_array_equal(rows.is_reset, np.roll(rows.truncated, 1, axis=0))
    assert not rows.terminated.any()
    # steps taken, as the observation shows them: 0, 2, 4, and 5 at the end of the episode
    np.testing.assert_array_equal(rows.obs[:, 0, 2], [0, 2, 4, 5, 0, 2, 4, 5])
    assert metrics["control_steps"] == 3 * 2 * 5 and metrics["episodes"] == 6


def test_success_ends_the_episode_within_the_chunk_and_pays_once():
    # From about 0 at 0.1 a step, |x - 0.5| < 0.05 is reached after 5 steps or so; chunks of 4.
    env, base = make_point_env(episode_steps=50), make_constant_policy(1.0, act_horizon=4)
    rows, metrics = collect(env, base, decisions=6)
    ended = np.argwhere(rows.terminated)
    assert len(ended) == metrics["successes"] > 0
    for row, column in ended:
        assert rows.reward[row, column] == 1.0
        final = rows.obs[row + 1, column]
        assert rows.is_reset[row + 1, column] and abs(final[0] - 0.5) < 0.05
    # Nothing is paid or flagged in a reset row, whose action is ignored.
    assert not (rows.terminated | rows.truncated)[rows.is_reset].any()
    assert (rows.reward[rows.is_reset] == 0).all()


def test_new_episodes_start_at_fresh_random_places():
    env, base = make_point_env(episode_steps=2), make_constant_policy(0.0)
    rows, _ = collect(env, base, decisions=40, num_envs=2)
    starts = rows.obs[np.roll(rows.is_reset, 1, axis=0)][:, 0]
    assert len(np.unique(starts)) > 0.9 * len(starts) and np.abs(starts).max() <= 0.1


def test_episodes_that_end_together_all_start_anew():
    env, base = make_point_env(episode_steps=6), make_constant_policy(0.05)
    rows, _ = collect(env, base, decisions=12, num_envs=20)  # 20 at once, in blocks of 3
    assert rows.is_reset.any() and (rows.is_reset == rows.is_reset[:, :1]).all()
    starts = rows.obs[np.roll(rows.is_reset, 1, axis=0)][:, 0]
    assert len(np.unique(starts)) == len(starts) >= 20
    moved = np.diff(rows.obs[:, :, 0], axis=0)[~rows.is_reset[:-1]]  # but by a new start
    np.testing.assert_allclose(moved, moved[0], rtol=1e-3)


def test_the_base_policys_carry_is_reset_with_its_environment():
    env, base = make_point_env(episode_steps=4, goal=9.0), make_counting_policy()
    rows, _ = collect(env, base, decisions=9)
    # Two decisions an episode, then the reset row, where the policy was still called once more.
    counts = np.round(rows.base_action[:, 0, 0] * 100).astype(int)
    np.testing.assert_array_equal(counts, [1, 2, 3, 1, 2, 3, 1, 2, 3])


def test_history_holds_the_latest_control_steps_and_starts_with_the_first_observation():
    env, plain = make_point_env(episode_steps=6, goal=9.0), make_constant_policy(1.0)

    def apply(params, carry, obs_history, key):
        del key
        # The difference of the two latest positions, shown as the action.
        gap = obs_history[-1, 0] - obs_history[-2, 0]
        return jnp.full((2, 1), params["velocity"]) * 0 + gap, carry

    rows, _ = collect(env, plain._replace(apply=apply), decisions=3, residual=1.0, scale=0.5)
    # Repeated at the start: no gap; later the executed velocity: gap + 0.5, times SPEED.
    gaps = rows.base_action[:, 0, 0]
    expected = [0.0, SPEED * 0.5, SPEED * (0.5 + SPEED * 0.5)]
    np.testing.assert_allclose(gaps, expected, atol=1e-6)


def test_residual_scale_zero_is_the_base_policy_bitwise():
    env, base = make_point_env(), make_counting_policy()
    alone = evaluate(env, base, nothing, 1.0, record=True)
    scaled = evaluate(env, base, lambda obs, a: jnp.full_like(a, -0.7), 0.0, record=True)
    np.testing.assert_array_equal(alone.qpos, scaled.qpos)
    changed = evaluate(env, base, lambda obs, a: jnp.full_like(a, -0.7), 0.1, record=True)
    assert (alone.qpos != changed.qpos).any()


def test_executed_actions_stay_within_residual_scale_of_the_base():
    env, base = make_point_env(goal=9.0), make_constant_policy(0.3)
    result = evaluate(env, base, lambda obs, a: jnp.ones_like(a), 0.2, record=True)
    moved = np.diff(result.qpos[..., 0], axis=0) / SPEED
    np.testing.assert_allclose(moved, 0.5, atol=1e-5)
    clipped = evaluate(
        env, make_constant_policy(0.95), lambda o, a: jnp.ones_like(a), 0.2, record=True
    )
    np.testing.assert_allclose(np.diff(clipped.qpos[..., 0], axis=0) / SPEED, 1.0, atol=1e-5)


def test_evaluation_meets_the_same_starts_for_the_same_seed_only():
    env, base = make_point_env(), make_constant_policy(0.0)
    first = evaluate(env, base, nothing, 0.0, record=True, seed=3).qpos
    again = evaluate(env, base, lambda o, a: jnp.ones_like(a), 0.0, record=True, seed=3).qpos
    other = evaluate(env, base, nothing, 0.0, record=True, seed=4).qpos
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()


def test_evaluation_plays_on_after_success_and_tells_once_from_at_end():
    # Passes the goal at speed and leaves it: success once, not at the end.
    env = make_point_env(episode_steps=12)
    passing = evaluate(env, make_constant_policy(1.0), nothing, 0.0)
    assert passing.success_once.all() and not passing.success_at_end.any()
    assert (passing.steps_to_success >= 4).all() and (passing.steps_to_success <= 6).all()
    still = evaluate(env, make_constant_policy(0.0), nothing, 0.0)
    assert not still.success_once.any() and (still.steps_to_success == 12).all()


def test_summary_hand_numbers():
    # One episode, five steps; success at step 4. Actions 0, 1, 0, 0, 9 in one dimension.
    success = jnp.array([[False], [False], [False], [True], [False]])
    actions = jnp.array([0.0, 1.0, 0.0, 0.0, 9.0]).reshape(5, 1, 1)
    result = _summarize(success, actions, jnp.array([[0.0], [1.0], [1.0]]), act_horizon=2)
    assert result.steps_to_success[0] == 4
    # Second differences while it runs: 0 - 2 + 0 = -2 and 0 - 0 + 1 = 1; mean square 2.5.
    np.testing.assert_allclose(result.smoothness, 2.5)
    # Decisions at steps 0, 2, 4: the third comes after success.
    np.testing.assert_allclose(result.saturation, 0.5)
    assert result.success_once[0] and not result.success_at_end[0]


def test_scan_equals_a_python_loop_of_control_steps():
    env, base = make_point_env(episode_steps=6, goal=9.0), make_constant_policy(0.4, act_horizon=3)
    result = evaluate(env, base, nothing, 0.0, episodes=2, record=True, seed=5)
    keys = jax.random.split(jax.random.key(5), 2)
    for index in range(2):
        start_key = jax.random.split(keys[index])[0]
        state, _ = env.reset(env.model, jax.random.split(start_key)[0])
        for step in range(6):
            state, _ = env.step(env.model, state, jnp.array([0.4]))
            np.testing.assert_allclose(result.qpos[step, index], state.physics.qpos, rtol=1e-6)


def test_a_chunked_policy_step_by_step_does_the_same():
    """Two routes: chunks played by the rollout, or waiting in the policy's own carry."""
    env, base = make_point_env(episode_steps=11), make_counting_policy(act_horizon=3)
    whole = evaluate(env, base, nothing, 0.0, record=True)
    stepped = evaluate(env, step_by_step(base), nothing, 0.0, record=True)
    np.testing.assert_array_equal(whole.qpos, stepped.qpos)
    assert len(np.unique(np.diff(whole.qpos[:, 0, 0]).round(5))) > 2  # the count shows
    rows, _ = collect(env, step_by_step(base), decisions=26, num_envs=2)
    # 11 control steps, each a decision: 3 of each chunk, the last cut short; then a reset
    expected = 0.01 * np.array([1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4])
    for episode in (rows.base_action[:11], rows.base_action[12:23]):
        np.testing.assert_allclose(episode[:, 1, 0], expected, rtol=1e-6)


def test_success_need_not_end_an_episode():
    env = make_point_env(episode_steps=8, terminate_on_success=False)
    # At the goal after 4 to 6 steps of 0.1, beyond it at the end of the episode.
    rows, metrics = collect(env, make_constant_policy(velocity=1.0, act_horizon=1), 9)
    assert not rows.terminated.any()
    np.testing.assert_array_equal(rows.truncated, np.arange(9)[:, None] == [7, 7, 7])
    np.testing.assert_array_equal(rows.reward.sum(axis=0), [1, 1, 1])  # solved for one step each
    assert metrics["episodes"] == metrics["successes"] == 3
    assert metrics["control_steps"] == 24


def test_another_reward_than_success():
    env = make_point_env(episode_steps=3, reward="dense")
    rows, _ = collect(env, make_constant_policy(velocity=1.0, act_horizon=2), 1)
    start = rows.obs[0, :, 0]
    np.testing.assert_allclose(rows.reward[0], 2 * start + 0.1 + 0.2, rtol=1e-6)


def test_actions_out_of_range_are_clipped_and_counted():
    env = make_point_env(episode_steps=8)
    state, _ = env.reset(env.model, jax.random.key(0))
    for action, moved, bad in (
        (1.0, 0.1, False),
        (1.5, 0.1, True),
        (-jnp.inf, -0.1, True),
        (jnp.nan, 0.0, True),
    ):
        after, out = env.step(env.model, state, jnp.array([action]))
        np.testing.assert_allclose(after.physics.qpos - state.physics.qpos, moved, atol=1e-7)
        assert out.bad_action == bad
    _, metrics = collect(env, make_constant_policy(velocity=jnp.nan), 2)
    assert metrics["bad_actions"] == metrics["control_steps"] == 6  # the second decision resets


def test_anomalies_are_joints_too_fast_or_beyond_their_limits_and_numbers_not_finite():
    scene = registry.make_task("AdroitDoor").scene
    limits, model = joint_limits(scene), scene.model
    assert len(limits.index) == 30  # arm 4, wrist and fingers 24, hinge and latch of the door
    qpos = np.array(model.qpos0, np.float32)
    qpos[limits.index] = (limits.low + limits.high) / 2

    def judged(qpos=qpos, speed=0.0, seen=0.0):
        physics = physics_at(jnp.asarray(qpos), jnp.full(model.nv, speed))
        return bool(is_anomalous(limits, physics, jnp.full(3, seen)))

    assert not judged() and not judged(speed=-199.0)
    assert judged(speed=-201.0) and judged(speed=np.nan) and judged(seen=np.inf)
    for index, low, high in zip(*limits, strict=True):
        for value, bad in ((low - 0.49, 0), (high + 0.49, 0), (low - 0.51, 1), (high + 0.51, 1)):
            moved = qpos.copy()
            moved[index] = value
            assert judged(moved) == bool(bad)
    assert judged(np.full_like(qpos, np.nan))
    assert len(joint_limits(None).index) == 0


def test_a_base_action_that_is_not_finite_cuts_the_episode_and_leaves_a_hole():
    env, counting = make_point_env(episode_steps=50, goal=9.0), make_counting_policy()

    def apply(params, carry, obs_history, key):  # NaN in the third decision of an episode
        chunk, next_carry = counting.apply(params, carry, obs_history, key)
        return jnp.where(carry == 3, jnp.nan, chunk), next_carry

    rows, metrics = collect(env, counting._replace(apply=apply), decisions=8)
    assert all(np.isfinite(leaf).all() for leaf in rows)
    # two decisions, the hole, and the reset with the final observation; then anew
    hole, reset = [False, False, True, False], [False, False, False, True]
    np.testing.assert_array_equal(rows.truncated, np.repeat([hole * 2], 3, axis=0).T)
    np.testing.assert_array_equal(
        rows.is_reset, np.repeat([np.logical_or(hole, reset).tolist() * 2], 3, axis=0).T
    )
    assert not rows.base_action[rows.truncated].any() and not rows.terminated.any()
    assert metrics["cut_episodes"] == metrics["episodes"] == 6


def test_an_observation_that_is_not_finite_cuts_the_episode():
    task = make_point_task(episode_steps=50, goal=9.0)

    def observe(episode, physics):  # NaN after the third control step, and ever after
        return jnp.where(physics.raw >= 3, jnp.nan, task.observe(episode, physics))

    broken = dataclasses.replace(task, observe=observe)
    assert task.engine is not None
    env = make_env(broken, task.engine)
    rows, metrics = collect(env, make_constant_policy(0.1), decisions=6)
    assert all(np.isfinite(leaf).all() for leaf in rows)
    # a decision of two steps; one that ends in NaN, truncated; the hole where its observation was
    np.testing.assert_array_equal(rows.truncated[:, 0], [False, True, True] * 2)
    np.testing.assert_array_equal(rows.is_reset[:, 0], [False, False, True] * 2)
    np.testing.assert_array_equal(rows.obs[:, 0, 2], [0, 2, 0] * 2)
    assert metrics["cut_episodes"] == 6 and metrics["anomalies"] == 12  # two steps each


def test_what_is_not_finite_is_no_residual():
    env, base = make_point_env(), make_constant_policy(0.3)
    alone = evaluate(env, base, nothing, 0.0, record=True)
    for scale in (0.0, 0.1):
        diverged = evaluate(env, base, lambda o, a: jnp.full_like(a, jnp.nan), scale, record=True)
        np.testing.assert_array_equal(diverged.qpos, alone.qpos)


def test_smoothness_is_that_of_what_is_executed():
    result = evaluate(make_point_env(), make_constant_policy(jnp.nan), nothing, 0.0)
    assert (result.smoothness == 0).all()  # the environment takes NaN as no motion


def test_a_task_without_success_is_judged_by_its_return():
    task = dataclasses.replace(make_point_task(episode_steps=3), has_success=False)
    assert task.engine is not None
    env = make_env(task, task.engine, reward="dense")
    result = evaluate(env, make_constant_policy(1.0), nothing, 0.0, record=True)
    assert result.success_once is None and result.success_at_end is None
    np.testing.assert_allclose(result.returns, result.qpos[:, :, 0].sum(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(result.scores, result.returns)
    with_success = evaluate(make_point_env(), make_constant_policy(1.0), nothing, 0.0)
    np.testing.assert_array_equal(with_success.scores, with_success.success_once)
    np.testing.assert_array_equal(with_success.returns, 1)  # until it terminates at success
