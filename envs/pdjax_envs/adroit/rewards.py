"""Derives success from Adroit's rewards, for recorded episodes without success flags.

Separate from the tasks, which compute rewards from states; this goes the other way.
"""

import numpy as np

# The dense rewards have a bonus for success that is far larger than all their other terms. Each
# threshold lies between the smallest reward with success and the largest without.
# Source: gymnasium-robotics 1.4 `adroit_hand/adroit_*.py`, `step`; hand_dapg has the same bonuses.
_DENSE = {
    "AdroitDoor": 15.0,  # about 20 with, 10 without
    "AdroitHammer": 60.0,  # about 100 with, 27 without
    "AdroitPen": 30.0,  # about 60 with, 11 without
    "AdroitRelocate": 5.0,  # about 10 with, 1 without
}
_SPARSE = (10.0, -0.1)  # with and without success


def success(task: str, rewards: np.ndarray) -> np.ndarray | None:
    """Derives success after each step from dense or sparse rewards; None for other tasks.

    Args:
      task: the name of the task.
      rewards: (T,).

    Returns:
      (T,) bool, or None.
    """
    if task not in _DENSE:
        return None
    sparse = np.isclose(rewards[:, None], _SPARSE).any(axis=1).all()
    return rewards > (np.mean(_SPARSE) if sparse else _DENSE[task])
