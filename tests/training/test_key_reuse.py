"""Keys in training: JAX's check for keys that are used twice sees everything that a run does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.training import epoch
from tests.training.test_epoch import build, small_config


def draw_once(used, kept):
    del kept  # comes in, as the training state does, and is left alone
    return jax.random.normal(used)


def draw_twice(used, kept):
    return draw_once(used, kept) + jax.random.uniform(used)


def splitting(draw):
    """A scan that splits its key once a round and lets `draw` see both halves."""

    def body(key, _):
        kept, used = jax.random.split(key)
        return kept, (draw(used, kept), *map(jax.random.key_data, (used, kept)))

    return jax.jit(lambda key: jax.lax.scan(body, key, length=5)[1])


def test_no_key_of_the_scan_is_used_twice():
    _, used, kept = splitting(draw_once)(jax.random.key(0))
    assert len(np.unique(np.concatenate([used, kept]), axis=0)) == 10


def test_the_check_sees_into_a_plain_function_and_not_into_a_batching_rule():
    splitting(draw_once)(jax.random.key(0))
    with pytest.raises(jax.errors.KeyReuseError):
        splitting(draw_twice)(jax.random.key(0))
    # Behind a rule the check misses what is wrong, and JAX 0.12 also objects to what is right: a
    # key that only passes through counts as used. If this fails, JAX has learned to look inside,
    # and `train_epoch` can serve a run alone and members alike.
    rule = jax.custom_batching.sequential_vmap
    wrong = rule(lambda used: draw_twice(used, None))
    splitting(lambda used, kept: wrong(used))(jax.random.key(0))


def test_a_run_uses_no_key_twice_and_the_check_would_see_it_in_learning(monkeypatch):
    def sample_twice(state, key, *args, **kwargs):
        row = jax.random.randint(key, (), 0, 1)
        return sample(state, key, *args, **kwargs)._replace(reward=jnp.zeros(64) + row)

    _, _, frozen, trainer, state = build(small_config())
    jax.eval_shape(trainer.train_epoch, frozen, state)  # tracing is what the check reads
    sample = epoch.sample
    monkeypatch.setattr(epoch, "sample", sample_twice)
    _, _, frozen, trainer, state = build(small_config())
    with pytest.raises(jax.errors.KeyReuseError):
        jax.eval_shape(trainer.train_epoch, frozen, state)
