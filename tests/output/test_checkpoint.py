"""Checkpoints: bitwise round trips, and refusals that name what does not fit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax.output import checkpoint
from pdjax.output.checkpoint import CheckpointError


class State(NamedTuple):
    params: Any
    keys: jax.Array
    step: jax.Array


def make_state():
    awkward = np.array([np.pi, np.nan, -0.0, 1e-45, np.inf], np.float32)
    return State(
        params={
            "hidden": {0: {"kernel": jnp.asarray(awkward)}, 1: {"kernel": jnp.ones((3, 2))}},
            "half": jnp.full((2,), 1.1, jnp.bfloat16),
            "flags": jnp.array([True, False]),
            "nothing": (),
        },
        keys=jax.random.split(jax.random.key(3), 4),
        step=jnp.int32(7),
    )


def raw(leaf):
    leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return np.asarray(leaf).tobytes()


def shapes_of(tree):
    return jax.eval_shape(lambda: tree)


@pytest.fixture
def saved(tmp_path):
    state = make_state()
    checkpoint.save(tmp_path / "state", state)
    return state, tmp_path / "state"


def test_a_round_trip_is_bitwise_typed_keys_and_integer_names_included(saved):
    state, path = saved
    restored = checkpoint.restore(path, shapes_of(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        assert raw(before) == raw(after)
    # the keys are usable as keys
    np.testing.assert_array_equal(
        jax.random.normal(restored.keys[1], (3,)), jax.random.normal(state.keys[1], (3,))
    )


def test_a_key_of_another_generator_comes_back_as_such(tmp_path):
    key = jax.random.key(5, impl="rbg")
    checkpoint.save(tmp_path / "key", {"key": key})
    restored = checkpoint.restore(tmp_path / "key", shapes_of({"key": key}))
    assert restored["key"].dtype == key.dtype
    assert raw(restored["key"]) == raw(key)


def changed(state, **params):
    return shapes_of(state._replace(params=state.params | params))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"hidden": {0: {"kernel": jnp.zeros(5)}, 1: {"kernel": jnp.zeros((3, 4))}}},
            r"params/hidden/1/kernel is float32\(3, 2\), expected float32\(3, 4\)",
        ),
        ({"flags": jnp.zeros(2)}, r"params/flags is bool\(2,\), expected float32\(2,\)"),
        ({"more": jnp.zeros(1)}, r"params/more is missing, expected float32\(1,\)"),
        ({"half": ()}, r"params/half is bfloat16\(2,\), expected nothing"),
    ],
)
def test_other_shapes_are_refused_by_name(saved, params, message):
    state, path = saved
    with pytest.raises(CheckpointError, match=message) as caught:
        checkpoint.restore(path, changed(state, **params))
    assert "\n" not in str(caught.value)
    assert "use the config it was made with" in str(caught.value)


def test_nothing_is_overwritten(saved):
    state, path = saved
    with pytest.raises(CheckpointError, match="exists already"):
        checkpoint.save(path, state._replace(step=jnp.int32(8)))
    assert checkpoint.restore(path, shapes_of(state)).step == 7


def test_a_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoint.restore(tmp_path / "none", shapes_of(make_state()))


def test_a_directory_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "file").write_text("something else")
    with pytest.raises(CheckpointError, match="damaged or holds no checkpoint"):
        checkpoint.restore(tmp_path, shapes_of(make_state()))


def cut_short(file):
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # TensorStore's threads
@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "_sharding"])
def test_a_file_cut_short_is_refused(saved, name):
    state, path = saved
    cut_short(path / name)
    with pytest.raises(CheckpointError, match="good copy or make it again") as caught:
        checkpoint.restore(path, shapes_of(state))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # TensorStore's threads
def test_an_array_cut_short_is_refused(tmp_path, key):
    state = {"x": jax.random.normal(key, (200, 200))}
    checkpoint.save(tmp_path / "x", state)
    files = [file for file in (tmp_path / "x").rglob("*") if file.is_file()]
    cut_short(max(files, key=lambda file: file.stat().st_size))
    with pytest.raises(CheckpointError, match=r"cannot be read .*good copy or make it again"):
        checkpoint.restore(tmp_path / "x", shapes_of(state))
