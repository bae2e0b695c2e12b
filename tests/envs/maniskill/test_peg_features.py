"""Task features: relations read off the observation alone, zero where things fit."""

import jax
import jax.numpy as jnp
import numpy as np

from pdjax_envs.maniskill import panda, peg_insertion_side, peg_relations
from pdjax_envs.rotations import rotate
from tests.probe import physics_at


def observation(key, head_in_hole):
    """The observation with the peg's head at a place (3,) m in the hole's frame, peg aligned."""
    start = peg_insertion_side.sample_start(key)
    params = start.episode.params
    offset = jnp.append(0.0, params.hole_offset) + head_in_hole
    middle = offset - jnp.array([1.0, 0, 0]) * params.peg_half_length
    peg_pos = params.box_pos + rotate(params.box_quat, middle)
    qpos = jnp.concatenate([start.qpos[: panda.NUM_JOINTS], peg_pos, params.box_quat])
    physics = physics_at(qpos, start.qvel)
    return peg_insertion_side.observe(start.episode, physics), params


def test_an_aligned_peg_at_the_entrance_has_no_error():
    for key in jax.random.split(jax.random.key(0), 4):
        half = peg_insertion_side.sample_start(jax.random.clone(key)).episode.params.peg_half_length
        obs, _ = observation(key, jnp.stack([-half, 0.0, 0.0]))
        # head from the entrance (3) and direction across the hole (2)
        np.testing.assert_allclose(peg_relations.features(obs)[:5], 0.0, atol=2e-4)


def test_millimetres_count_and_far_things_are_bounded():
    key = jax.random.key(1)
    half = peg_insertion_side.sample_start(jax.random.clone(key)).episode.params.peg_half_length
    obs, _ = observation(key, jnp.stack([-half - 0.01, 0.003, -0.002]))
    # 10 mm before the entrance, 3 mm and -2 mm beside it, per 2 cm
    np.testing.assert_allclose(peg_relations.features(obs)[:3], [-0.5, 0.15, -0.1], atol=2e-4)
    far = jax.vmap(lambda k: peg_relations.features(peg_insertion_side.observe(*_start(k))))(
        jax.random.split(jax.random.key(2), 50)
    )
    assert far.shape == (50, 11) and jnp.abs(far).max() <= 3.0
    assert (far.std(axis=0)[5:] > 0).any()


def _start(key):
    start = peg_insertion_side.sample_start(key)
    return start.episode, physics_at(start.qpos, start.qvel)
