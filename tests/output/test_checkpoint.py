"""Checkpoints: bitwise round trips, refusals that name what does not fit, and nothing deleted."""

import threading
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from pdjax.output import checkpoint
from pdjax.output.checkpoint import CheckpointError, Checkpoints, TryAgainError


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


NUMBERS = {"x": np.arange(6.0), "y": jnp.ones((3, 2))}


def contents(folder):
    """Every file below a folder: path -> bytes; folders too, so that renames are seen."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def damage(folder):
    """Cuts every larger file of a checkpoint short."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size > 200:
            path.write_bytes(path.read_bytes()[:100])


def keep(folder, *steps):
    """Checkpoints that hold their own numbers."""
    saved = Checkpoints(folder, keep=len(steps))
    for step in steps:
        assert saved.save(step, NUMBERS | {"x": NUMBERS["x"] + step}, wait=True) == ""
    saved.close()
    return Checkpoints(folder, keep=len(steps))


def test_without_checkpoints_nothing_is_restored_and_no_folder_is_made(tmp_path):
    found = Checkpoints(tmp_path / "none", keep=1).restore(NUMBERS)
    assert (found.step, found.tree, found.unreadable) == (-1, NUMBERS, {})
    assert not (tmp_path / "none").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_be_read_is_kept_under_another_name(tmp_path):
    saved = keep(tmp_path / "run", 10, 20, 30)
    damage(tmp_path / "run" / "30")
    before = contents(tmp_path / "run")
    found = saved.restore(NUMBERS)
    assert (found.step, list(found.unreadable), found.tree["x"][0]) == (20, [30], 20.0)
    assert contents(tmp_path / "run") == before  # reading changes nothing
    (line,) = saved.set_aside(found.step, found.unreadable)
    assert "cannot be read" in line and line.endswith("; kept as 30.unreadable")
    after = contents(tmp_path / "run")
    assert {name.replace("30.unreadable", "30"): content for name, content in after.items()} == (
        before
    )
    # The run goes on, beyond the number of checkpoints to keep: Orbax leaves the name alone.
    for step in (30, 40, 50):
        assert saved.save(step, NUMBERS, wait=True) == ""
    saved.close()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"30", "40", "50", "30.unreadable"}
    # The same number may be set aside again.
    damage(tmp_path / "run" / "30")
    (line,) = Checkpoints(tmp_path / "run", 3).set_aside(20, {30: "why"})[2:]
    assert line == "why; kept as 30.unreadable-2"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("at_most", [None, 20])
def test_where_none_can_be_read_it_refuses_and_changes_nothing(tmp_path, at_most):
    saved = keep(tmp_path / "run", 10, 20)
    damage(tmp_path / "run" / "10")
    damage(tmp_path / "run" / "20")
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="can be read, and nothing was changed") as caught:
        saved.restore(NUMBERS, at_most)
    assert not isinstance(caught.value, TryAgainError) and "\n" not in str(caught.value)
    assert "20" in str(caught.value) and contents(tmp_path) == before


def test_checkpoints_that_are_all_too_new_are_refused(tmp_path):
    saved = keep(tmp_path / "run", 10, 20)
    with pytest.raises(CheckpointError, match=r"of number 5 or below .* exist are 10, 20"):
        saved.restore(NUMBERS, at_most=5)
    assert saved.restore(NUMBERS, at_most=15).step == 10
    lines = saved.set_aside(10, {})
    assert lines == [f"checkpoint {tmp_path}/run/20 is not used; kept as 20.newer"]
    assert saved.save(15, NUMBERS, wait=True) == ""  # its number was below the newest one
    assert saved.restore(NUMBERS).step == 15
    saved.close()


def test_shapes_of_another_version_are_refused_and_left_alone(tmp_path):
    saved = keep(tmp_path / "run", 10, 20)
    before = contents(tmp_path)
    message = r"does not fit: more is missing, expected float32\(3,\); .*same version of pdjax"
    with pytest.raises(CheckpointError, match=message):
        saved.restore(NUMBERS | {"more": jnp.zeros(3)})
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "MemoryError"),
        (OSError(116, "Stale file handle"), "Stale file handle"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "Out of memory"),
        (ValueError("UNKNOWN: Failed to open: 'd/1': Input/output error"), "Input/output error"),
    ],
)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_no_memory_or_a_failing_file_system_is_no_damage(
    tmp_path, monkeypatch, error, words, is_wrapped
):
    saved = keep(tmp_path / "run", 10, 20)
    before = contents(tmp_path)

    def fail(self, *args, **kwargs):
        if is_wrapped:  # as Orbax does it
            raise Exception("Encountered error while reading array index") from error
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "restore", fail)
        with pytest.raises(TryAgainError, match=rf"{words}.*; nothing was changed, so try again"):
            saved.restore(NUMBERS)
    assert contents(tmp_path) == before
    assert saved.restore(NUMBERS).step == 20


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path, monkeypatch):
    def fail(self):
        raise OSError(5, "Input/output error")

    saved = keep(tmp_path / "run", 10)
    monkeypatch.setattr(type(tmp_path), "iterdir", fail)
    with pytest.raises(TryAgainError, match="Input/output error"):
        saved.restore(NUMBERS)


class TwoProcesses:
    """What `processes` does for two processes, for two threads of this one."""

    def __init__(self):
        self._barrier = threading.Barrier(2, timeout=60)
        self._own, self._said = threading.local(), {}

    def run(self, *actions):
        """Runs one action as each process; returns what they returned or raised."""
        ends = {}

        def run_one(index):
            self._own.index = index
            try:
                ends[index] = actions[index]()
            except Exception as error:
                ends[index] = error

        threads = [threading.Thread(target=run_one, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return ends[0], ends[1]

    def _gather(self, value):
        self._said[self._own.index] = value
        self._barrier.wait()
        found = self._said[0], self._said[1]
        self._barrier.wait()
        return found

    def any_of(self, number):
        return max(self._gather(int(number)))

    def agree(self, action):
        result, mine = None, None
        try:
            result = action()
        except Exception as error:
            mine = error
        found = self._gather(mine)
        if mine is not None:
            raise mine
        for other in found:
            if other is not None:
                raise ValueError(f"another process: {other}")
        return result

    def by_writer(self, action):
        self.agree(action if self._own.index == 0 else lambda: None)

    def is_shared(self):
        return False


def failing_at(saved, step, error):
    """`Checkpoints` of a process that cannot read one of them."""
    read = saved._try_to_read

    def try_to_read(number, like):
        if number != step:
            return read(number, like)
        if isinstance(error, Exception):
            raise error
        return None, error

    saved._try_to_read = try_to_read
    return saved


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two processes, and the `Checkpoints` 10, 20 and 30 of each in one folder."""
    keep(tmp_path / "run", 10, 20, 30)
    found = TwoProcesses()
    monkeypatch.setattr(checkpoint, "processes", found)
    return found, [Checkpoints(tmp_path / "run", 3) for _ in range(2)]


def resume(saved):
    found = saved.restore(NUMBERS)
    saved.set_aside(found.step, found.unreadable)
    return found


@pytest.mark.parametrize("bad", [0, 1])
def test_processes_go_on_from_what_all_of_them_can_read(tmp_path, two, bad):
    both, saved = two
    failing_at(saved[bad], 30, "it is damaged here")
    ends = both.run(*(partial(resume, own) for own in saved))
    assert [(end.step, end.tree["x"][0]) for end in ends] == [(20, 20.0)] * 2
    assert ends[bad].unreadable == {30: "it is damaged here"}
    assert ends[1 - bad].unreadable == {30: "another process cannot read checkpoint 30"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"10", "20", "30.unreadable"}


def test_processes_that_share_no_readable_checkpoint_refuse(tmp_path, two):
    both, saved = two
    for index, step in ((0, 30), (1, 20), (0, 10)):
        failing_at(saved[index], step, "it is damaged here")
    before = contents(tmp_path)
    for end in both.run(*(partial(resume, own) for own in saved)):
        assert isinstance(end, CheckpointError) and "nothing was changed" in str(end)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("bad", [0, 1])
def test_where_one_process_has_no_memory_none_goes_on(tmp_path, two, bad):
    both, saved = two
    failing_at(saved[bad], 30, TryAgainError("no memory; try again"))
    before = contents(tmp_path)
    ends = both.run(*(partial(resume, own) for own in saved))
    assert str(ends[bad]) == "no memory; try again"
    assert str(ends[1 - bad]) == "another process: no memory; try again"
    assert contents(tmp_path) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_flipped_bit_goes_unnoticed(tmp_path):
    saved = keep(tmp_path / "run", 10, 20)
    newest = tmp_path / "run" / "20" / "tree"
    files = [path for path in newest.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 4
    for path in files:
        content = path.read_bytes()
        for at in {0, len(content) // 2, len(content) - 1}:
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            found = saved.restore(NUMBERS)
            same = found.step == 20 and (found.tree["x"] == NUMBERS["x"] + 20).all()
            # What Orbax adds once a checkpoint is complete has no digest, and holds no numbers.
            added = path.name in ("_CHECKPOINT_METADATA", "commit_success.txt")
            assert found.step == 10 or (same and added), path
        path.write_bytes(content)
    assert saved.restore(NUMBERS).step == 20
    (newest / "manifest.ocdbt").unlink()
    assert saved.restore(NUMBERS).step == 10


def test_a_checkpoint_without_digests_is_read(tmp_path):
    saved = keep(tmp_path / "run", 10)
    (tmp_path / "run" / "10" / "tree" / "digests.json").unlink()  # as before there were any
    assert saved.restore(NUMBERS).step == 10
