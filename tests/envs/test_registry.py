"""Tasks by name: registered ones are found by all that look, and no name means two tasks."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pdjax_envs
from pdjax_envs import Task, UnknownName, registry
from tests.probe import make_point_task, registered


@pytest.fixture
def point():
    with registered(make_point_task(episode_steps=5, goal=0.3)) as task:
        yield task


def test_a_registered_task_is_found_by_all_that_look(point):
    assert "Point" in registry.task_names()
    assert registry.make_task("Point") is point
    assert registry.family("Point") == "Point"
    with pytest.raises(UnknownName, match="'Piont'; did you mean Point"):
        registry.make_task("Piont")


def test_its_own_engine_steps_it():
    start_and_ctrl = []

    def keep(state, ctrl):
        start_and_ctrl.append((state, ctrl))
        return state

    task = make_point_task(episode_steps=2, goal=0.3)
    assert task.engine is not None
    step = task.engine.step
    engine = task.engine._replace(
        step=lambda model, overrides, state, ctrl: keep(step(model, overrides, state, ctrl), ctrl)
    )
    with registered(dataclasses.replace(task, engine=engine)):
        env = registry.make("Point", "probe", "dense")
    assert env.engine == "probe"
    state, obs = env.reset(env.model, jax.random.key(0))
    _, out = env.step(env.model, state, jnp.ones(1))
    np.testing.assert_allclose(out.obs[0], obs[0] + 0.1, atol=1e-6)
    assert out.reward == out.obs[0] and len(start_and_ctrl) == 1


def test_a_registered_scene_runs_on_our_engines():
    door = registry.make_task("AdroitDoor")
    with registered(dataclasses.replace(door, name="OwnDoor")):
        own, known = registry.make("OwnDoor", "native"), registry.make("AdroitDoor", "native")
    assert own.task.name == "OwnDoor" and own.task.family == "AdroitDoor"
    key = jax.random.key(3)
    np.testing.assert_array_equal(own.reset(own.model, key)[1], known.reset(known.model, key)[1])


def test_a_name_means_one_task(point):
    registry.register(point)  # again
    with pytest.raises(ValueError, match="another task is registered as 'Point'; choose another"):
        registry.register(make_point_task())
    assert registry.make_task("Point") is point
    for name in ("AdroitDoor", "brax:fast"):
        registry.register(registry.make_task(name))  # what the name means already
        with pytest.raises(ValueError, match=f"the name '{name}' belongs to an installed task"):
            registry.register(dataclasses.replace(point, name=name))
        assert registry.make_task(name) is not point


def test_another_task_may_follow_under_the_same_name():
    with registered(make_point_task(episode_steps=3)):
        assert registry.make("Point").task.episode_steps == 3
    with registered(make_point_task(episode_steps=4)):
        assert registry.make("Point").task.episode_steps == 4
    with pytest.raises(UnknownName, match="unknown task 'Point'"):
        registry.make("Point")
    with pytest.raises(UnknownName, match="unknown registered task 'Point'"):
        registry.unregister("Point")


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ("AdroitDoor", TypeError, "takes a pdjax_envs.Task, got str"),
        (make_point_task, TypeError, "takes a pdjax_envs.Task, got function"),
        (
            dataclasses.replace(make_point_task(), engine=None),
            ValueError,
            "task 'Point' has neither scene nor engine; give it",
        ),
    ],
)
def test_what_is_no_task_is_refused(wrong, error, words):
    with pytest.raises(error, match=words):
        registry.register(wrong)
    assert "Point" not in registry.task_names()


def test_its_own_physics_takes_no_other_engine_and_no_shift_of_a_scene(point):
    with pytest.raises(UnknownName, match="Point brings its own physics, got 'native'; choose"):
        registry.make("Point", "native")
    registry.unregister("Point")
    registry.register(dataclasses.replace(point, objects=("point",)))
    for shift in ("mass", "friction"):
        with pytest.raises(UnknownName, match=f"no shift '{shift}': it brings its own physics"):
            registry.make("Point", shift=shift)
    assert registry.make("Point", shift="sensor_noise").task.name == "Point"


def test_a_task_needs_little():
    """The defaults of `Task` make an environment that plays, and that starts from any state."""
    point = make_point_task()
    task = Task(
        name="Little",
        observation=(("position", 1),),
        action=(("velocity", 1),),
        episode_steps=3,
        control_hz=10.0,
        sample_start=point.sample_start,
        observe=lambda episode, physics: physics.qpos,
        success=lambda episode, physics: physics.qpos[0] > 9,
        engine=point.engine,
    )
    with registered(task):
        env = registry.make("Little")
    state, obs = env.reset(env.model, jax.random.key(0))
    state, out = env.step(env.model, state, jnp.ones(1))
    np.testing.assert_allclose(out.obs, obs + 0.1, atol=1e-6)
    stored = task.get_state(state.episode, state.physics)
    _, again = env.start_from(env.model, task.make_start(stored))
    np.testing.assert_array_equal(again, out.obs)
    with pytest.raises(NotImplementedError, match="give it make_visual_model"):
        task.make_visual_model()


def test_importing_the_package_imports_no_jax():
    code = (
        "import sys, pdjax_envs; assert 'jax' not in sys.modules; pdjax_envs.make; "
        "assert 'jax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(pdjax_envs.__all__) <= set(dir(pdjax_envs))
    assert all(getattr(pdjax_envs, name).__doc__ for name in pdjax_envs.__all__)
    with pytest.raises(AttributeError, match="no attribute 'mke'"):
        _ = pdjax_envs.mke


def test_names_that_mean_one_task_and_that_do_not():
    def task(name, family=""):
        return dataclasses.replace(make_point_task(), name=name, family=family)

    same = registry.is_same
    assert same("AdroitDoor", task("AdroitDoor"))
    assert same("AdroitDoor", task("gymnasium:AdroitHandDoor-v1", "AdroitDoor"))
    assert same("gymnasium:AdroitHandDoor-v1", task("AdroitDoor"))
    assert same("gymnasium:FetchPush-v2", task("gymnasium:FetchPush-v4"))
    assert same("gymnasium:MODULE:FetchPush-v4", task("gymnasium:FetchPush-v4"))
    assert same("TurnFaucet", task("TurnFaucetHeldOut", "TurnFaucet"))
    # the name of a file that makes an environment says nothing
    assert same("PegInsertionSide", task("original.py:make_env"))
    assert same("original.py:make_env", task("PegInsertionSide"))
    assert not same("AdroitDoor", task("AdroitPen"))
    assert not same("gymnasium:FetchPush-v4", task("gymnasium:FetchSlide-v4"))
    assert not same("AdroitDoor", task("gymnasium:AdroitHandPen-v1", "AdroitPen"))
    assert not same("push.py:make_task", task("Point"))
