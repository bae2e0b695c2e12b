"""The replay ring, checked with rows that carry their own index, hand numbers, brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.learner.holes import mark_holes
from pdjax.learner.replay import can_sample, make_packing, make_replay, sample
from pdjax.types import Transition


def make_rows(first, last, num_envs=3, **flags):
    """Makes rows in which every number is row + env / 10; chunk_dim 2, obs_dim 1."""
    row, env = np.meshgrid(np.arange(first, last), np.arange(num_envs), indexing="ij")
    index = jnp.asarray(row + env / 10, jnp.float32)
    none = jnp.zeros(index.shape, bool)
    given = jax.tree.map(jnp.asarray, flags)
    return Transition(
        obs=index[..., None],
        base_action=jnp.stack([index, index + 0.01], axis=-1),
        residual_action=jnp.stack([-index, -index - 0.01], axis=-1),
        reward=given.get("reward", index),
        terminated=given.get("terminated", none),
        truncated=given.get("truncated", none),
        is_reset=given.get("is_reset", none),
    )


def make_ring(capacity, num_envs=3):
    example = jax.tree.map(lambda x: x[0, 0], make_rows(0, 1))
    return make_replay(capacity, num_envs, example)


def draw(replay, state, *args):
    """A jitted sample as NumPy arrays."""
    return jax.tree.map(np.asarray, jitted(replay.sample)(state, *args))


@functools.cache
def jitted(function):
    """Returns one jitted function for all rings, so that equal shapes compile once."""
    return jax.jit(function, static_argnums=(2, 3) if function is sample else ())


def filled(capacity, num_rows, rows_per_add, **kwargs):
    replay = make_ring(capacity)
    state, rows = replay.init(), make_rows(0, num_rows, **kwargs)
    for start in range(0, num_rows, rows_per_add):
        part = slice(start, start + rows_per_add)
        state = jitted(replay.add)(state, Transition(*(leaf[part] for leaf in rows)))
    return replay, state


def test_init_is_empty_and_shaped():
    state = make_ring(8).init()
    assert state.storage.base_action.shape == (8, 3, 2)
    assert state.storage.is_reset.dtype == bool
    assert (state.cursor, state.size) == (0, 0)


@pytest.mark.parametrize("capacity_rows", [0, -1])
def test_capacity_below_one_is_refused(capacity_rows):
    with pytest.raises(ValueError, match="capacity_rows"):
        make_ring(capacity_rows)


def test_add_writes_at_the_cursor_and_wraps():
    _, state = filled(capacity=6, num_rows=10, rows_per_add=2)
    # rows 0..5 fill the ring, 6..9 overwrite the four oldest
    np.testing.assert_array_equal(state.storage.obs[:, 0, 0], [6, 7, 8, 9, 4, 5])
    np.testing.assert_allclose(state.storage.residual_action[:, 2, 1] * -1 % 1, 0.21, atol=1e-5)
    assert (state.cursor, state.size) == (4, 6)


@pytest.mark.parametrize("num_rows", [4, 0, 12])
def test_rows_that_do_not_divide_the_capacity_are_refused(num_rows):
    replay = make_ring(6)
    with pytest.raises(ValueError, match="must divide the capacity"):
        replay.add(replay.init(), make_rows(0, num_rows))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_add_takes_no_memory_for_the_ring(dtype):
    """A donated ring is updated in place: no copy of it is made, however large it is."""
    packing = make_packing(dtype, jnp.zeros(1), jnp.ones(1))
    example = jax.tree.map(lambda x: x[0, 0], packing.pack(make_rows(0, 1)))
    replay = make_replay(4096, 3, example)
    state = jax.eval_shape(replay.init)
    add = jax.jit(lambda state, rows: replay.add(state, packing.pack(rows)), donate_argnums=0)
    memory = add.lower(state, make_rows(0, 2)).compile().memory_analysis()
    ring_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert memory is not None
    assert memory.alias_size_in_bytes >= ring_bytes
    assert memory.temp_size_in_bytes < ring_bytes / 100


def test_can_sample_needs_more_rows_than_steps():
    _, state = filled(capacity=6, num_rows=2, rows_per_add=1)
    assert can_sample(state, 1)
    assert not can_sample(state, 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sample_takes_no_memory_for_the_ring(dtype, key):
    packing = make_packing(dtype, jnp.zeros(1), jnp.ones(1))
    example = jax.tree.map(lambda x: x[0, 0], packing.pack(make_rows(0, 1)))
    state = jax.eval_shape(make_replay(4096, 3, example).init)
    draw = jax.jit(lambda state, key: packing.unpack(sample(state, key, 4, 2, 0.9, 0.0)))
    memory = draw.lower(state, key).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 4096


@pytest.mark.parametrize("n_step", [0, 6])
def test_n_step_outside_the_ring_is_refused(n_step, key):
    replay, state = filled(capacity=6, num_rows=6, rows_per_add=2)
    with pytest.raises(ValueError, match=f"n_step={n_step}"):
        replay.sample(state, key, 4, n_step, 0.9, 0.0)


@pytest.mark.parametrize(("num_rows", "n_step"), [(4, 1), (6, 1), (10, 1), (10, 3), (12, 3)])
def test_starts_are_all_rows_but_the_newest_n_step(key, num_rows, n_step):
    replay, state = filled(capacity=6, num_rows=num_rows, rows_per_add=2)
    batch = draw(replay, state, key, 6000, n_step, 0.9, 0.0)
    oldest = max(num_rows - 6, 0)
    starts = np.arange(oldest, num_rows - n_step)
    expected = (starts[:, None] + np.arange(3) / 10).ravel().astype(np.float32)
    seen, counts = np.unique(batch.obs, return_counts=True)
    np.testing.assert_array_equal(seen, expected)
    share = counts / 6000 * len(expected)
    assert np.all(np.abs(share - 1) < 0.25)  # uniform; 5 standard deviations for 15 starts


def test_every_field_comes_from_its_own_row(key):
    replay, state = filled(capacity=6, num_rows=10, rows_per_add=2)
    batch = draw(replay, state, key, 500, 2, 0.5, -1.0)
    start = np.asarray(batch.obs[:, 0])
    np.testing.assert_allclose(batch.base_action, np.stack([start, start + 0.01], -1), rtol=1e-6)
    np.testing.assert_allclose(batch.residual_action, -batch.base_action, rtol=1e-6)
    np.testing.assert_allclose(batch.next_obs[:, 0], start + 2, rtol=1e-6)
    np.testing.assert_allclose(batch.next_base_action, batch.base_action + 2, rtol=1e-6)
    # (r - 1) + .5 (r + 1 - 1)
    np.testing.assert_allclose(batch.reward, (start - 1) + 0.5 * start, rtol=1e-5)
    np.testing.assert_array_equal(batch.discount, np.full(500, 0.25))
    np.testing.assert_array_equal(batch.weight, np.ones(500))


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_n_step_stops_at_an_end_hand_numbers(key, end):
    """Rewards 1, 2, 4, 8 ...; gamma .5, offset -1; row 2 ends an episode, row 3 is its reset."""
    reward = np.repeat(2.0 ** np.arange(8, dtype=np.float32)[:, None], 3, axis=1)
    ends, is_reset = np.zeros((2, 8, 3), bool)
    ends[2], is_reset[3] = True, True
    flags = {"reward": reward, end: ends, "is_reset": is_reset}
    replay, state = filled(capacity=8, num_rows=8, rows_per_add=8, **flags)
    batch = draw(replay, state, key, 300, 3, 0.5, -1.0)
    expected = {  # start: reward, k, next row
        0: (0 + 0.5 * 1 + 0.25 * 3, 3, 3),  # reaches the end with its last reward
        1: (1 + 0.5 * 3, 2, 3),
        2: (3, 1, 3),
        3: (7 + 0.5 * 15 + 0.25 * 31, 3, 6),  # the reset row: any number, weight 0
        4: (15 + 0.5 * 31 + 0.25 * 63, 3, 7),
    }
    for index in range(300):
        row = int(batch.obs[index, 0])
        total, used, next_row = expected[row]
        assert batch.reward[index] == pytest.approx(total)
        assert int(batch.next_obs[index, 0]) == next_row
        ended = end == "terminated" and row < 3
        assert batch.discount[index] == (0 if ended else 0.5**used)
        assert batch.weight[index] == (row != 3)


def episode_stream(rng, num_rows, num_envs):
    """Makes rows as next-step autoreset does: one reset row follows each end."""
    terminated, truncated, is_reset = np.zeros((3, num_rows, num_envs), bool)
    for env in range(num_envs):
        ended = False
        for row in range(num_rows):
            is_reset[row, env] = ended
            if not ended:
                terminated[row, env] = rng.random() < 0.2
                truncated[row, env] = rng.random() < 0.2
            ended = terminated[row, env] or truncated[row, env]
    reward = rng.normal(size=(num_rows, num_envs)).astype(np.float32)
    return {
        "reward": reward,
        "terminated": terminated,
        "truncated": truncated,
        "is_reset": is_reset,
    }


def brute_force(stream, row, env, n_step, gamma, offset):
    """Walks one transition decision by decision."""
    total, factor = 0.0, 1.0
    for _ in range(n_step):
        total += factor * (stream["reward"][row, env] + offset)
        factor *= gamma
        row += 1
        if stream["terminated"][row - 1, env]:
            return total, 0.0, row
        if stream["truncated"][row - 1, env]:
            break
    return total, factor, row


@pytest.mark.parametrize("n_step", [1, 2, 5])
def test_random_streams_equal_brute_force(n_step):
    for seed in range(4):
        stream = episode_stream(np.random.default_rng(seed), 30, 3)
        replay, state = filled(capacity=12, num_rows=30, rows_per_add=3, **stream)
        batch = draw(replay, state, jax.random.key(seed), 400, n_step, jnp.float32(0.9), -0.5)
        start = np.round(batch.obs[:, 0] * 10).astype(int)  # row * 10 + env
        assert np.all((start // 10 >= 18) & (start // 10 < 30 - n_step))
        places = zip(start // 10, start % 10, strict=True)
        walked = [brute_force(stream, row, env, n_step, 0.9, -0.5) for row, env in places]
        total, discount, next_row = np.array(walked).T
        np.testing.assert_allclose(batch.reward, total, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(batch.discount, discount, rtol=1e-5)
        np.testing.assert_allclose(batch.next_obs[:, 0], next_row + start % 10 / 10, rtol=1e-6)
        np.testing.assert_array_equal(batch.next_base_action[:, 0], batch.next_obs[:, 0])
        resets = stream["is_reset"][start // 10, start % 10]
        np.testing.assert_array_equal(batch.weight, ~resets)
        assert 0 < resets.sum() < 400
        assert 0 < np.sum(discount == 0) < 400


def packed_ring(dtype, rows, mean, std):
    """A ring that is full of packed rows, added two at a time, and its packing."""
    packing = make_packing(dtype, jnp.float32([mean]), jnp.float32([std]))
    example = jax.tree.map(lambda x: x[0, 0], packing.pack(rows))
    replay = make_replay(len(rows.reward), rows.reward.shape[1], example)
    state, add = replay.init(), jax.jit(lambda state, part: replay.add(state, packing.pack(part)))
    for start in range(0, len(rows.reward), 2):
        state = add(state, Transition(*(leaf[start : start + 2] for leaf in rows)))
    assert add._cache_size() == 1
    return state, packing


def test_bfloat16_rounds_as_hand_numbers_say(key):
    """Row r observes 10 + r / 1000: whitened by (10, 1 / 1000) it is r, which fits."""
    rows = make_rows(0, 8, num_envs=1)
    rows = rows._replace(obs=10 + rows.obs / 1000)
    state, packing = packed_ring("bfloat16", rows, mean=10.0, std=1e-3)
    stored = jax.tree.map(lambda words: np.asarray(words).view(jnp.bfloat16), state.storage[:3])
    np.testing.assert_array_equal(stored[0][:, 0, 0].astype(np.float32), np.arange(8))
    # 5.01 lies between 5 and 5.03125, the step from 4 to 8 being 2^-5; 1.01 between 1 + 2^-7 and 1
    action = stored[1][:, 0, 1].astype(np.float32)
    assert action[5] == 5.0 and action[1] == 1 + 2**-7
    batch = packing.unpack(sample(state, key, 64, 1, 0.9, 0.0))
    np.testing.assert_allclose(np.unique(batch.obs), 10 + np.arange(7) / 1000, atol=1e-6)
    # as it is, 10 would be known to 2^-4 / 2 only, and all rows would be one
    assert jnp.bfloat16(10.007) == 10.0


def test_bfloat16_stays_within_its_bound_and_samples_float32(key):
    rows = make_rows(0, 40)
    noise = np.random.default_rng(0).uniform(-1, 1, (3, 40, 3, 2)).astype(np.float32)
    rows = rows._replace(
        obs=3 + jnp.asarray(0.1 * noise[0, ..., :1]),
        base_action=jnp.asarray(noise[1]),
        residual_action=jnp.asarray(noise[2]),
    )
    drawn = {}
    for dtype in ("float32", "bfloat16"):
        state, packing = packed_ring(dtype, rows, mean=3.0, std=0.05)
        for name in ("obs", "base_action", "residual_action"):
            width = getattr(state.storage, name).dtype.itemsize
            assert width == (4 if dtype == "float32" else 2)
        assert state.storage.reward.dtype == jnp.float32 and state.storage.terminated.dtype == bool
        drawn[dtype] = packing.unpack(sample(state, jax.random.clone(key), 500, 2, 0.9, -1.0))
        assert all(leaf.dtype == jnp.float32 for leaf in drawn[dtype])
    exact, rounded = drawn["float32"], drawn["bfloat16"]
    for name in ("reward", "discount", "weight"):
        np.testing.assert_array_equal(getattr(exact, name), getattr(rounded, name))
    for name, centre in (
        ("obs", 3.0),
        ("next_obs", 3.0),
        ("base_action", 0.0),
        ("residual_action", 0.0),
        ("next_base_action", 0.0),
    ):
        value, error = getattr(exact, name), getattr(rounded, name) - getattr(exact, name)
        # half a step of 8 bits, and what float32 itself rounds while whitening
        assert np.all(np.abs(error) <= 2.0**-8 * np.abs(value - centre) + 1e-6), name
        assert np.any(error != 0)
    assert np.max(np.abs(rounded.base_action - exact.base_action)) <= 2.0**-9  # sizes below 1


def test_float32_is_kept_bit_for_bit(key):
    rows = make_rows(0, 8)
    state, packing = packed_ring("float32", rows, mean=3.0, std=0.1)
    np.testing.assert_array_equal(state.storage.obs, rows.obs)
    batch = sample(state, key, 16, 1, 0.9, 0.0)
    assert packing.unpack(batch) is batch


def test_no_transition_meets_a_hole():
    """Observation 5 is a hole, 6 the reset after it; with n = 2 starts at 3 to 5 meet the hole."""
    rows = Transition(
        obs=jnp.arange(1.0, 9.0)[:, None, None],
        base_action=jnp.zeros((8, 1, 1)).at[4].set(jnp.nan),
        residual_action=jnp.zeros((8, 1, 1)),
        reward=jnp.ones((8, 1)),
        terminated=jnp.zeros((8, 1), bool),
        truncated=jnp.zeros((8, 1), bool),
        is_reset=jnp.zeros((8, 1), bool).at[5].set(True),
    )
    marked = mark_holes(rows, jnp.arange(8)[:, None] == 4)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(marked))
    ring = make_replay(8, 1, jax.tree.map(lambda leaf: leaf[0, 0], rows))
    state = ring.add(ring.init(), marked)
    batch = sample(state, jax.random.key(0), 256, 2, 0.9, 0.0)
    weight = dict(zip(batch.obs[:, 0].tolist(), batch.weight.tolist(), strict=True))
    assert weight == {1.0: 1.0, 2.0: 1.0, 3.0: 0.0, 4.0: 0.0, 0.0: 0.0, 6.0: 0.0}
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(batch))


def test_a_success_before_a_hole_counts():
    rows = Transition(
        obs=jnp.ones((4, 1, 1)),
        base_action=jnp.zeros((4, 1, 1)),
        residual_action=jnp.zeros((4, 1, 1)),
        reward=jnp.ones((4, 1)),
        terminated=jnp.asarray([[False], [True], [False], [False]]),
        truncated=jnp.zeros((4, 1), bool),
        is_reset=jnp.asarray([[False], [False], [True], [False]]),
    )
    ring = make_replay(4, 1, jax.tree.map(lambda leaf: leaf[0, 0], rows))
    state = ring.add(ring.init(), mark_holes(rows, jnp.arange(4)[:, None] == 2))
    batch = sample(state, jax.random.key(0), 64, 2, 0.9, 0.0)
    ends = batch.discount == 0
    assert ends.any() and (batch.weight[ends] == 1).all()
