"""A scripted expert of FetchPickAndPlace; runs in a worker."""

from typing import Any

import numpy as np


def expert(env: Any, observation: dict[str, np.ndarray]) -> np.ndarray:
    """Grasps the block and carries it to the goal: x, y, z of the hand and the gripper."""
    del env
    hand, block = observation["observation"][:3], observation["observation"][3:6]
    width = observation["observation"][9:11].sum()  # m between the fingers
    apart = block - hand
    aside = np.linalg.norm(apart[:2])
    if aside > 0.04 or (aside > 0.02 and apart[2] < -0.03):
        move, grip = 8 * np.add(apart, (0, 0, 0.06)), 1.0
    elif np.linalg.norm(apart) > 0.012:
        move, grip = 8 * apart, 1.0
    elif width > 0.06:
        move, grip = np.zeros(3), -1.0
    else:
        move, grip = 8 * (observation["desired_goal"] - block), -1.0
    return np.clip(np.append(move, grip), -1, 1)
