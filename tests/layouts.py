"""Tiny demonstration files in the layouts that other projects publish."""

import pickle

import h5py
import numpy as np


def numbers(*shape):
    return np.random.default_rng(sum(shape)).uniform(-0.9, 0.9, shape)


def write_minari(path, lengths=(3, 2), obs_dim=3, act_dim=1):
    """Minari's layout: T + 1 observations and infos, the reset's first."""
    with h5py.File(path, "w") as file:
        for index, steps in enumerate(lengths):
            group = file.create_group(f"episode_{index}")
            group.attrs.update(id=index, total_steps=steps, seed=index)
            group.attrs["options/initial_state_dict/qpos"] = np.array([0.1 * index])
            group.attrs["options/initial_state_dict/qvel"] = np.zeros(1)
            group["observations"] = numbers(steps + 1, obs_dim)
            group["actions"] = numbers(steps, act_dim).astype(np.float32)
            group["rewards"] = np.arange(steps, dtype=np.float64)
            group["terminations"], group["truncations"] = np.zeros((2, steps), bool)
            group["infos/success"] = np.arange(steps + 1) == steps
    return path


def write_d4rl(path, lengths=(3, 4), obs_dim=3, act_dim=1):
    """D4RL's layout: all steps in a row, each episode's last one marked."""
    steps = sum(lengths)
    ends = np.cumsum(lengths) - 1
    with h5py.File(path, "w") as file:
        file["observations"] = numbers(steps, obs_dim).astype(np.float32)
        file["actions"] = numbers(steps, act_dim).astype(np.float32)
        file["rewards"] = np.arange(steps, dtype=np.float32)
        file["terminals"] = np.arange(steps) == ends[0]  # the first terminates,
        file["timeouts"] = np.isin(np.arange(steps), ends[1:])  # the others time out
        file["infos/qpos"] = np.arange(steps, dtype=np.float32)[:, None]
        file["infos/qvel"] = np.zeros((steps, 1), np.float32)
        file["infos/goal_achieved"] = np.arange(steps) == 1
        file["metadata/algorithm"] = np.bytes_("DAPG")
    return path


def make_episode(steps=4, obs_dim=3, act_dim=1):
    return {
        "observations": numbers(steps, obs_dim),
        "actions": numbers(steps, act_dim),
        "rewards": np.arange(steps, dtype=np.float64),
        "init_state_dict": {"qpos": np.array([0.25]), "qvel": np.zeros(1)},
    }


def write_dapg(path, episodes=None, protocol=3):
    path.write_bytes(pickle.dumps([make_episode()] if episodes is None else episodes, protocol))
    return path
