"""mani-skill2's own environments and ours say the same of the same states.

Its package and SAPIEN need an older NumPy than JAX: PDJAX_MANISKILL_PYTHON names the interpreter of
an environment that has them, and `maniskill_states.py` plays there. CONTRIBUTING.md says how.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdjax_envs import registry
from pdjax_envs.maniskill import panda, peg_reward, stack_cube
from pdjax_envs.rotations import quat_conjugate, quat_from_columns, quat_multiply, quat_to_rotvec

PYTHON = os.environ.get("PDJAX_MANISKILL_PYTHON") or sys.executable
SCRIPT = Path(__file__).with_name("maniskill_states.py")
TASKS = ("StackCube", "PegInsertionSide")
# Their names of the observation's parts where ours are others.
NAMES = {
    "cubeA_pose": "cube_a_pose",
    "cubeB_pose": "cube_b_pose",
    "tcp_to_cubeA_pos": "tcp_to_cube_a",
    "tcp_to_cubeB_pos": "tcp_to_cube_b",
    "cubeA_to_cubeB_pos": "cube_a_to_cube_b",
}


@pytest.fixture(scope="module", params=TASKS)
def theirs(request, tmp_path_factory):
    """(task's name, name -> (states, ...) of what `maniskill_states.py` notes)."""
    why = "needs an interpreter with mani_skill2 (PDJAX_MANISKILL_PYTHON, see CONTRIBUTING.md)"
    found = subprocess.run(
        [PYTHON, "-c", "import sapien.core, mani_skill2"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if found.returncode:
        pytest.skip(f"{why}: {found.stderr.strip().splitlines()[-1:]}")
    path = tmp_path_factory.mktemp("maniskill") / f"{request.param}.npz"
    played = subprocess.run(
        [PYTHON, str(SCRIPT), request.param, str(path)], capture_output=True, text=True, timeout=300
    )
    assert played.returncode == 0, played.stderr
    return request.param, dict(np.load(path))


def free_velocity(body):
    """MuJoCo's six velocities of a free body, whose angular one is in the body's frame."""
    pose, linear, angular = body[:, 3:7], body[:, 7:10], body[:, 10:]
    turned = [
        quat_multiply(quat_conjugate(q), quat_multiply(jnp.append(0.0, w), q))[1:]
        for q, w in zip(jnp.asarray(pose), jnp.asarray(angular), strict=True)
    ]
    return np.concatenate([linear, turned], axis=1)


def states_of(name, theirs):
    """The same states as `Task.make_start` takes them."""
    bodies = ("cube_a", "cube_b") if name == "StackCube" else ("peg",)
    qpos = [theirs["qpos"], *(theirs[body][:, :7] for body in bodies)]
    qvel = [theirs["qvel"], *(free_velocity(theirs[body]) for body in bodies)]
    state = {"qpos": np.concatenate(qpos, axis=1), "qvel": np.concatenate(qvel, axis=1)}
    if name == "PegInsertionSide":
        state |= {
            "peg_half_length": theirs["half_size"][:, 0],
            "peg_half_width": theirs["half_size"][:, 1],
            "hole_offset": theirs["hole_offset"],
            "hole_half_width": theirs["hole_half_width"],
            "box_pos": theirs["box"][:, :3],
            "box_quat": theirs["box"][:, 3:],
        }
    return {key: jnp.asarray(value, jnp.float32) for key, value in state.items()}


@pytest.fixture(scope="module")
def ours(theirs):
    """(environment, episodes, physics, observations) of the same states, through our engine."""
    name, noted = theirs
    env = registry.make(name, "native")
    starts = jax.vmap(env.task.make_start)(states_of(name, noted))
    state, obs = jax.jit(jax.vmap(env.start_from, (None, 0)))(env.model, starts)
    return env, state.episode, state.physics, np.asarray(obs)


def test_observations_have_the_same_parts_and_numbers(theirs, ours):
    _, noted = theirs
    env, _, _, obs = ours
    names = [NAMES.get(name, name) for name in noted["names"][0].tolist()]
    assert list(zip(names, noted["sizes"][0].tolist(), strict=True)) == list(env.task.observation)
    assert obs.shape == noted["obs"].shape and len(obs) > 50
    begin = 0
    for part, size in env.task.observation:
        found, expected = (x[:, begin : begin + size] for x in (obs, noted["obs"]))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6, err_msg=part)
        begin += size


def test_success_is_theirs(theirs, ours):
    name, noted = theirs
    env, episodes, physics, _ = ours
    found = np.asarray(jax.vmap(env.task.success)(episodes, physics))
    # The reference implementation's bound, which mani_skill2 does not have: all the way through.
    through = noted["label"] == "through"
    assert np.all(noted["success"][through]) and not np.any(found[through])
    assert np.sum(through) == (3 if name == "PegInsertionSide" else 0)
    np.testing.assert_array_equal(found[~through], noted["success"][~through])
    assert np.sum(found) >= 3 and np.sum(~found) >= 20


def test_a_grasp_is_seen_where_they_see_one(theirs, ours):
    name, noted = theirs
    _, episodes, physics, _ = ours
    grasped = stack_cube.grasped if name == "StackCube" else peg_reward.grasped
    found = np.asarray(jax.vmap(grasped)(episodes, physics))
    np.testing.assert_array_equal(found, noted["grasped"])
    assert np.sum(found) >= 15


def test_dense_rewards_are_theirs(theirs, ours):
    _, noted = theirs
    env, episodes, physics, _ = ours
    through = noted["label"] == "through"
    terms = jax.vmap(env.task.rewards["dense"])(episodes, physics)
    found = np.asarray(sum(terms.values()))
    np.testing.assert_allclose(found[~through], noted["reward"][~through], rtol=0, atol=1e-4)
    silent = [name for name, value in terms.items() if not np.any(value)]
    assert not silent  # each term counts somewhere


def test_actions_aim_at_the_same_tool_pose_and_joints(theirs, ours):
    _, noted = theirs
    env, episodes, physics, _ = ours
    targets = np.asarray(jax.vmap(env.task.control)(episodes, physics, noted["action"]))
    np.testing.assert_allclose(targets[:, 7:], noted["target"][:, 7:], rtol=0, atol=1e-6)
    arms = targets[:, : panda.ARM_JOINTS]
    # Beyond the arm's reach mani_skill2 holds still, while ours goes as far as it can.
    reachable = np.any(
        np.abs(noted["target"] - noted["qpos"])[:, : panda.ARM_JOINTS] > 1e-6, axis=1
    )
    assert np.sum(~reachable) <= 2
    frames = jax.vmap(panda.forward_kinematics)(jnp.asarray(arms))
    quat = jax.vmap(lambda columns: quat_from_columns(*columns))(frames.columns)
    wanted = jnp.asarray(noted["tool_target"])
    away = np.linalg.norm(frames.pos - wanted[:, :3], axis=1)
    turned = jax.vmap(quat_multiply)(jax.vmap(quat_conjugate)(wanted[:, 3:]), quat)
    angle = np.linalg.norm(jax.vmap(quat_to_rotvec)(turned), axis=1)
    # Pinocchio stops at 0.1 mm; the largest of ours is 0.22 mm.
    assert np.max(away[reachable]) < 3e-4 and np.median(away) < 1e-5
    assert np.max(angle[reachable]) < 1e-4
    # The arm has a joint more than the pose asks for: elbows differ a little.
    off = np.abs(arms - noted["target"][:, : panda.ARM_JOINTS])
    assert np.max(off[reachable]) < 0.02 and np.median(off) < 2e-3
