"""Tasks built from a model and a few functions, against MuJoCo's own numbers."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

import pdjax_envs
from pdjax_envs import registry
from pdjax_envs.maniskill import panda
from pdjax_envs.mujoco_task import make_mujoco_task, panda_scene
from pdjax_envs.reading import InputError
from pdjax_envs.task import make_env

TEMPLATES = Path(pdjax_envs.__file__).parent / "templates"
MODEL = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <site name="goal" pos="1 2 0"/>
    <body name="cart" pos="0 0 0.1">
      <joint name="slide" type="slide" axis="1 0 0" damping="1"/>
      <geom name="cart" size="0.1" mass="2"/>
      <body name="pole" pos="0.5 0 0">
        <joint name="swing" type="hinge" axis="0 0 1"/>
        <geom size="0.05" pos="0.2 0 0" mass="1"/>
        <site name="tip" pos="0.4 0 0"/>
      </body>
    </body>
    <body name="ball" pos="3 0 0"><freejoint name="ball"/><geom size="0.1"/></body>
  </worldbody>
  <actuator>
    <motor name="push" joint="slide" ctrlrange="-2 6"/>
    <position name="aim" joint="swing" kp="3" ctrlrange="-1 1"/>
  </actuator>
  <sensor><jointvel name="speed" joint="slide"/></sensor>
</mujoco>
"""
OBSERVE = {
    "slide": lambda state: state.qpos("slide"),
    "tip": lambda state: state.site("tip"),
    "axes": lambda state: state.site_axes("tip")[:, 0],
    "ball": lambda state: state.body("ball"),
    "turn": lambda state: state.body_quat("ball"),
    "spin": lambda state: state.qvel("ball")[3:],
    "cart": lambda state: state.geom("cart"),
    "speed": lambda state: state.sensor("speed"),
}


def make(**changes):
    spec = mujoco.MjSpec.from_string(MODEL)
    settings = {
        "episode_steps": 30,
        "observe": OBSERVE,
        "success": lambda state: state.qpos("slide") > 0.5,
        "control_hz": 50,
    }
    return make_mujoco_task("Cart", spec, **settings | changes)


def started(task, count=500):
    return jax.vmap(task.sample_start)(jax.random.split(jax.random.key(0), count))


def test_observations_and_commands_are_mujocos_own():
    task = make(start={"swing": 0.3, "ball": (3, 1, 0)}, noise={"slide": 0.1})
    env = make_env(task, registry.make_engine(task.scene, "native"))
    state, obs = env.reset(env.model, jax.random.key(1))
    data = mujoco.MjData(task.scene.model)
    data.qpos[:] = state.physics.qpos
    assert data.joint("swing").qpos[0] == np.float32(0.3)
    np.testing.assert_array_equal(data.joint("ball").qpos, [3, 1, 0, 1, 0, 0, 0])

    def expected():
        site, ball = data.site("tip"), data.joint("ball")
        return np.concatenate(
            [
                data.joint("slide").qpos,
                site.xpos,
                site.xmat.reshape(3, 3)[:, 0],
                data.body("ball").xpos,
                data.body("ball").xquat,
                ball.qvel[3:],
                data.geom("cart").xpos,
                data.sensor("speed").data,
            ]
        )

    mujoco.mj_forward(task.scene.model, data)
    np.testing.assert_allclose(obs, expected(), atol=1e-6)
    for action in ([0.5, -1.0], [-0.25, 1.0]):
        state, out = env.step(env.model, state, jnp.array(action))
        # [-2, 6] and [-1, 1] from [-1, 1]
        data.ctrl[:] = [2 + 4 * action[0], action[1]]
        mujoco.mj_step(task.scene.model, data, 2)  # 50 Hz of 0.01 s
        mujoco.mj_forward(task.scene.model, data)
        np.testing.assert_allclose(out.obs, expected(), atol=1e-6)
    assert task.observation[:3] == (("slide", 1), ("tip", 3), ("axes", 3))
    assert set(task.scene.fields) == {
        *("xpos", "xquat", "site_xpos", "site_xmat", "geom_xpos", "sensordata")
    }


def test_only_what_the_functions_read_is_computed():
    task = make(observe={"slide": OBSERVE["slide"], "tip": OBSERVE["tip"]})
    assert task.scene.fields == ("site_xpos",)


def test_noise_has_its_width_around_the_start():
    noise = {"slide": 0.2, "ball": (0.3, 0.1, 0.0, 1.0)}
    task = make(start={"slide": 1.0}, noise=noise)
    qpos = np.asarray(started(task).qpos)
    for column, middle, width in ((0, 1.0, 0.2), (2, 3.0, 0.3), (3, 0.0, 0.1)):
        assert abs(qpos[:, column].mean() - middle) < 0.1 * width
        assert 0.97 * width < np.abs(qpos[:, column] - middle).max() <= width + 1e-6
    assert (qpos[:, 1] == 0).all() and (qpos[:, 4] == 0).all()
    angle = 2 * np.arctan2(qpos[:, 8], qpos[:, 5])
    assert 0.97 < np.abs(angle).max() <= 1 + 1e-6
    np.testing.assert_allclose(np.linalg.norm(qpos[:, 5:9], axis=1), 1, atol=1e-6)


def test_randomised_fields_are_factors_of_the_models():
    task = make(randomize={"dof_damping": {"slide": (0.5, 2.0)}, "geom_size": {"cart": (1, 1)}})
    overrides = started(task).episode.overrides
    damping = np.asarray(overrides["dof_damping"])[:, 0]
    assert 0.5 <= damping.min() < 0.52 and 1.97 < damping.max() <= 2.0
    np.testing.assert_allclose(overrides["geom_size"][:, 0, 0], 0.1)
    env = make_env(task, registry.make_engine(task.scene, "native"))
    state, _ = jax.vmap(env.reset, (None, 0))(env.model, jax.random.split(jax.random.key(0), 8))
    rerun = jax.vmap(task.make_start)(jax.vmap(task.get_state)(state.episode, state.physics))
    jax.tree.map(np.testing.assert_array_equal, rerun.episode, state.episode)
    for _ in range(5):
        state, _ = jax.vmap(env.step, (None, 0, 0))(env.model, state, jnp.ones((8, 2)))
    speeds, damping = state.physics.qvel[:, 0], state.episode.overrides["dof_damping"][:, 0]
    assert (np.diff(np.asarray(speeds)[np.argsort(damping)]) < 0).all()  # more damping, slower


def test_dense_reward_is_the_sum_of_its_terms():
    terms = lambda state: {"near": -state.qpos("slide"), "bonus": 2.0}  # noqa: E731
    task = make(reward=terms, start={"slide": 0.25})
    env = make_env(task, registry.make_engine(task.scene, "native"), reward="dense")
    state, _ = env.reset(env.model, jax.random.key(0))
    _, out = env.step(env.model, state, jnp.array([-0.5, 0.0]))  # a force of 0
    np.testing.assert_allclose(out.reward, 1.75, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"observe": {"x": lambda s: s.site("tp")}}, "unknown site 'tp'; did you mean tip"),
        ({"observe": {"x": lambda s: s.sensor("seed")}}, "unknown sensor 'seed'; did you mean spe"),
        ({"observe": {"x": lambda s: s.site_axes("tip")}}, "observe x returns .*expected a number"),
        ({"observe": {"x": lambda s: s.nope()}}, "observe x failed with AttributeError"),
        ({"success": lambda s: s.qpos("slide")}, "success returns .*, expected True or False"),
        ({"reward": lambda s: s.qpos("slide")}, "reward returns .*, expected a dict of numbers"),
        ({"control": "velocity"}, "unknown control 'velocity'; known: actuators"),
        ({"control_hz": 30}, "control_hz=30 makes 3.333 physics steps"),
        ({"start": {"swin": 1}}, "unknown joint 'swin'; did you mean swing"),
        ({"start": {"swing": (1, 2)}}, "start of joint swing got 2 numbers, expected 1"),
        ({"noise": {"ball": (1, 2)}}, r"noise of joint ball got 2 number\(s\), expected 1 or 3 or"),
        ({"randomize": {"geom_siz": {"cart": (1, 1)}}}, "randomize cannot vary geom_siz of cart"),
        ({"randomize": {"geom_size": {"wheel": (1, 1)}}}, "model has no geom named 'wheel'"),
        ({"randomize": {"geom_size": {"cart": (1, 2)}}}, "of a size at most 1"),
        ({"randomize": {"geom_friction": {"cart": (2, 1)}}}, "expected factors low <= high"),
    ],
)
def test_mistakes_are_one_line_each(changes, why):
    with pytest.raises(InputError, match=why) as caught:
        make(**changes)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_actuators_without_a_range_are_refused():
    spec = mujoco.MjSpec.from_string(MODEL.replace('ctrlrange="-2 6"', ""))
    with pytest.raises(InputError, match="actuator 'push' has no ctrlrange"):
        make_mujoco_task(
            "Cart", spec, episode_steps=3, observe=OBSERVE, success=lambda s: s.qpos("slide") > 1
        )


def test_a_models_files_are_those_that_it_needs(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/more.xml").write_text(
        "<mujoco><worldbody><geom size='1'/></worldbody></mujoco>"
    )
    text = MODEL.replace("<worldbody>", '<include file="parts/more.xml"/><worldbody>', 1)
    (tmp_path / "model.xml").write_text(text)
    task = make_mujoco_task(
        "Cart",
        tmp_path / "model.xml",
        episode_steps=3,
        control_hz=50,
        observe=OBSERVE,
        success=lambda s: s.qpos("slide") > 1,
    )
    assert sorted(task.files) == [tmp_path / "model.xml", tmp_path / "parts/more.xml"]
    with pytest.raises(InputError, match=r"no model at .*absent.xml: no such file"):
        make_mujoco_task(
            "Cart",
            tmp_path / "absent.xml",
            episode_steps=3,
            observe=OBSERVE,
            success=lambda s: s.qpos("slide") > 1,
        )


def with_panda(control):
    return make_mujoco_task(
        "Arm",
        lambda visual: panda_scene("Arm", visual),
        episode_steps=50,
        control=control,
        observe={"joints": lambda s: s.qpos(), "tool": lambda s: s.site("tcp")},
        success=lambda s: s.site("tcp")[2] > 1,
    )


@pytest.mark.parametrize(
    ("control", "action"),
    [
        ("panda_joint_velocity", [0, 0, 0, 0.5, 0, 0, 0, 1]),
        ("panda_ee_delta_pos", [0, 0, 0.2, 1]),
        ("panda_ee_delta_pose", [0, 0, 0.2, 0, 0, 0, 1]),
    ],
)
def test_the_pandas_controls_move_it_as_they_say(control, action):
    task = with_panda(control)
    env = make_env(task, registry.make_engine(task.scene, "native"))
    state, first = env.reset(env.model, jax.random.key(0))
    assert np.abs(np.asarray(first[:7]) - panda.REST_ARM).max() <= 0.02
    assert task.act_dim == len(action)
    step = jax.jit(env.step)
    seen = [np.asarray(first)]
    for _ in range(20):  # one second
        state, out = step(env.model, state, jnp.array(action, jnp.float32))
        seen.append(np.asarray(out.obs))
    late = seen[-1] - seen[10]  # half a second, the drives have caught up
    if control == "panda_joint_velocity":
        assert abs(late[3] - 0.25) < 0.02  # 0.5 rad/s
        assert np.abs(late[[0, 1, 2, 4, 5, 6]]).max() < 0.02
    else:  # the tool points down: along its z axis is down
        assert late[-1] < -0.03 and np.abs(late[-3:-1]).max() < 0.01


def test_the_template_is_a_task_on_every_level(tmp_path, monkeypatch):
    for file in TEMPLATES.glob("own_task.*"):
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    task = registry.make_task("own_task.py:make_task")
    assert len((tmp_path / "own_task.py").read_text().splitlines()) <= 80
    assert task.name == "OwnTask" and task.files == (tmp_path / "own_task.xml",)
    assert registry.make_task("own_task.py:make_task") is task
    assert set(task.meanings) == {name for name, _ in task.observation}
    assert all(task.meanings.values())
    model = task.make_visual_model()
    assert model.camera("view").id >= 0
