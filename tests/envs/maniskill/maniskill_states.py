"""States of mani-skill2's own environments, with what its code says of each, as one NPZ file.

    python tests/envs/maniskill_states.py StackCube states.npz

Run by `test_maniskill_parity.py` in an interpreter that has mani_skill2 0.5.3 and sapien 2.2.2,
neither of which goes with JAX's NumPy; it imports nothing of ours. Nothing is drawn, so no Vulkan
driver is needed (the library libvulkan.so.1 is); SAPIEN simulates one environment a process.
"""

# pyright: reportMissingImports=false
import os
import sys
from typing import Any

import numpy as np
import sapien.core as sapien
from mani_skill2.envs.assembly.peg_insertion_side import PegInsertionSideEnv
from mani_skill2.envs.pick_and_place.stack_cube import StackCubeEnv
from mani_skill2.envs.sapien_env import BaseEnv

DOWN = np.array([0.0, 1.0, 0.0, 0.0])  # the tool's orientation with its y axis along the world's -y

AWAY = np.array([0.12, 0.1, 0.0])  # m

_KEPT = []  # without a Vulkan driver SAPIEN crashes where it frees a scene


def make(cls, control_mode):
    BaseEnv._setup_cameras = BaseEnv._setup_lighting = lambda self: None
    BaseEnv._clear = lambda self: _KEPT.append(vars(self).get("_scene"))
    offscreen = {"offscreen_only": True}
    env = cls(obs_mode="state_dict", control_mode=control_mode, renderer_kwargs=offscreen)
    _KEPT.append(env)
    env.rest = env.agent.robot.get_qpos()
    return env


def about_z(angle):
    return np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])


def hand(yaw):
    """The tool pointing down, its x axis at an angle to the world's."""
    return (sapien.Pose([0, 0, 0], about_z(yaw)) * sapien.Pose([0, 0, 0], DOWN)).q


def above(place, height):
    return place + np.array([0, 0, height])


def reach(env, pos, quat=DOWN, fingers=0.04, wrist=0.0):
    """Puts the tool at a pose in the world, at rest; the search starts with the wrist turned."""
    robot = env.agent.robot
    arm = env.agent.controller.controllers["arm"]
    env.agent.reset(env.rest + wrist * (np.arange(9) == 6))
    found = arm.compute_ik(robot.pose.inv() * sapien.Pose(pos, quat))
    env.agent.reset(np.concatenate([found, [fingers] * 2]))


def put(actor, pos, quat=(1, 0, 0, 0)):
    actor.set_pose(sapien.Pose(pos, quat))
    if actor.type != "static":
        actor.set_velocity([0, 0, 0])
        actor.set_angular_velocity([0, 0, 0])


def play(env, steps, *action):
    for _ in range(steps):
        env.step(np.array(action, np.float32))


class Recorder:
    """Notes what mani_skill2 says of the state that an environment is in."""

    def __init__(self, env, bodies, more, grasp):
        self.env, self.bodies, self.more, self.grasp = env, bodies, more, grasp
        self.rows = []
        self.rng = np.random.RandomState(0)

    def note(self, label):
        env, robot = self.env, self.env.agent.robot
        state = env.get_obs()
        parts = {**state["agent"], **state["extra"]}
        info = env.evaluate()
        action = self.rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        row = {
            "label": label,
            "qpos": robot.get_qpos(),
            "qvel": robot.get_qvel(),
            **{name: self.body(actor) for name, actor in self.bodies(env).items()},
            **self.more(env),
            "names": list(parts),
            "sizes": [np.size(value) for value in parts.values()],
            "obs": np.concatenate([np.ravel(value) for value in parts.values()]),
            "success": info["success"],
            "grasped": self.grasp(env),
            "reward": env.compute_dense_reward(info=info),
            "action": action,
        }
        env.agent.set_action(action)
        row["target"] = robot.get_drive_target()
        row["tool_target"] = self.tool_target()
        self.rows.append(row)

    def tool_target(self):
        """(7,) where the controller wants the tool, in the robot's frame."""
        pose = self.env.agent.controller.controllers["arm"]._target_pose
        return np.concatenate([pose.p, pose.q])

    @staticmethod
    def body(actor):
        """Pose (7,), and of what moves also velocity and angular velocity (6,), in the world."""
        moves = [] if actor.type == "static" else [actor.velocity, actor.angular_velocity]
        return np.concatenate([actor.pose.p, actor.pose.q, *moves])

    def save(self, path):
        columns: dict[str, Any] = {
            key: np.array([row[key] for row in self.rows]) for key in self.rows[0]
        }
        np.savez(path, **columns)


def spawned(env, recorder, seeds=6):
    """Fresh starts, and what a few random actions lead to."""
    for seed in range(seeds):
        env.reset(seed=seed)
        recorder.note("start")
        rng = np.random.RandomState(seed)
        for _ in range(3):
            play(env, 3, *rng.uniform(-1, 1, env.action_space.shape))
            recorder.note("random")


def stack_cube(path):
    env = make(StackCubeEnv, "pd_ee_delta_pos")
    recorder = Recorder(
        env,
        lambda env: {"cube_a": env.cubeA, "cube_b": env.cubeB},
        lambda env: {},
        lambda env: env.agent.check_grasp(env.cubeA),
    )
    spawned(env, recorder)
    for index, yaw in enumerate((0.0, 0.3, -0.5)):
        place = np.array([0.05 * index - 0.05, 0.1 * index - 0.1, 0.0])
        env.reset(seed=index)
        put(env.cubeA, above(place, 0.02), about_z(yaw))
        put(env.cubeB, above(place, 0.02) + AWAY, about_z(yaw / 3))
        for height in (0.1, 0.05, 0.02):
            reach(env, above(place, height))
            play(env, 1, 0, 0, 0, 1)
            recorder.note("reaching")
        play(env, 12, 0, 0, 0, -1)
        recorder.note("grasped")
        for _ in range(4):
            play(env, 2, 0, 0, -0.4, -1)
            recorder.note("lifted")
        env.cubeB.set_velocity([0.2, 0, 0])
        play(env, 1, 0, 0, 0, -1)
        recorder.note("lifted, the other one moves")
        # On top: first in the fingers, then let go.
        put(env.cubeB, above(place, 0.02), about_z(yaw))
        put(env.cubeA, above(place, 0.06), about_z(yaw))
        reach(env, above(place, 0.06), fingers=0.03)
        play(env, 12, 0, 0, 0, -1)
        recorder.note("on top, held")
        play(env, 1, 0, 0, 0, 0.0)
        play(env, 12, 0, 0, 0, 1)
        recorder.note("released")
        env.cubeA.set_velocity([0, 0, 0.002])
        recorder.note("released, moving")
        put(env.cubeA, above(place, 0.06) + AWAY, about_z(yaw))
        recorder.note("beside")
    recorder.save(path)


def peg_insertion_side(path):
    env = make(PegInsertionSideEnv, "pd_ee_delta_pose")
    recorder = Recorder(
        env,
        lambda env: {"peg": env.peg, "box": env.box},
        lambda env: {
            "half_size": env.peg_half_size,
            "hole_offset": env.box_hole_offset.p[1:],
            "hole_half_width": env.box_hole_radius,
        },
        lambda env: env.agent.check_grasp(env.peg, max_angle=20),
    )
    spawned(env, recorder)
    for seed in range(3):
        env.reset(seed=seed)
        yaw = np.pi / 2 + (seed - 1) * 0.4
        place = np.array([0.0, -0.15, env.peg_half_size[2]])
        put(env.peg, place, about_z(yaw))
        along = np.array([np.cos(yaw), np.sin(yaw), 0])
        # The tool's x axis along the peg or against it, its y axis across.
        against = np.pi * (seed == 1)
        end = env.peg_half_size[0] + 0.06
        for back, height, turn in ((0, 0.1, 0), (0.06, 0.05, 0.3), (0.06, 0, 0.1), (end, 0, 1)):
            quat = hand(yaw + against + turn)
            reach(env, above(place, height) - back * along, quat, wrist=against)
            play(env, 1, 0, 0, 0, 0, 0, 0, 1)
            recorder.note("reaching")
        reach(env, place - 0.06 * along, hand(yaw + against), wrist=against)
        play(env, 15, 0, 0, 0, 0, 0, 0, -1)
        recorder.note("grasped")
        for _ in range(3):
            play(env, 2, 0, 0, -0.4, 0, 0, 0, -1)
            recorder.note("lifted")
        # The hole comes to the peg: off its axis, before it, around its head, too far.
        length = env.peg_half_size[0]
        for offset, label in (
            ([-0.3, 0.02, 0.0], "lifted"),
            ([-0.3, 0.004, -0.003], "before the hole"),
            ([-0.1, 0.002, 0.001], "before the hole"),
            ([-0.02, 0.0, 0.001], "entering"),
            ([-0.01, 0.001, 0.0], "inserted"),
            ([0.05, 0.0, 0.0], "inserted"),
            ([0.08, 0.0, 0.0], "through"),
        ):
            head = sapien.Pose([length - offset[0], -offset[1], -offset[2]])
            env.box.set_pose(env.peg.pose * head * env.box_hole_offset.inv())
            env._initialize_task()
            recorder.note(label)
    recorder.save(path)


if __name__ == "__main__":
    {"StackCube": stack_cube, "PegInsertionSide": peg_insertion_side}[sys.argv[1]](sys.argv[2])
    os._exit(0)  # for the same reason
