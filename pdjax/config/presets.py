"""Presets: recipes as data. Each lists its differences from the defaults, which are the paper's.

They live apart from the knobs in `fields.py`, so that a recipe can be read, compared and added
without touching code.
"""

from typing import Any

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # Policy Decorator, the paper's own recipe. Source: arXiv:2412.13630; policy_decorator
    # online/pi_dec_diffusion_maniskill2.py.
    "pd": {},
    # DAWN (arXiv:2602.10539): the base policy alone fills the replay before learning starts, the
    # critics are normalised, the temperature starts low, and the gate is open from the start.
    "dawn": {
        "decorator": {"exploration_steps": 0},
        "sac": {"critic_layer_norm": True, "initial_temperature": 0.01},
        "train": {"learning_starts": 20_000, "prefill": "base"},
    },
    # ResFiT (arXiv:2509.19301): a residual at every control step, ten critics, many updates, and
    # demonstrations in every batch (set train.demos to their file). The paper does not give
    # residual_scale and initial_temperature; those values are ours.
    "resfit": {
        "decorator": {
            "residual_per": "control_step",
            "residual_scale": 0.2,
            "exploration_steps": 0,
            "actor_input": "obs_base_action",
            "normalize_obs": True,
        },
        "sac": {
            "gamma": 0.99,
            "tau": 0.005,
            "batch_size": 256,
            "critic_layer_norm": True,
            "num_critics": 10,
            "min_of": 2,
            "n_step": 3,
            "initial_temperature": 0.01,
            "entropy_backup": False,
            "log_std_min": -5.0,
            "head_gain": 0.0,
            "reward_offset": 0.0,
        },
        "train": {
            "total_decisions": 200_000,
            "decisions_per_round": 16,
            "learning_starts": 10_000,
            "prefill": "base",
            "updates_per_decision": 4,
            "replay_capacity": 200_000,
            "demo_share": 0.5,
        },
    },
    # Our own recipe, which learns within minutes on a CPU; the recorded decisions say what each
    # choice gained.
    "fast": {
        "decorator": {
            "residual_scale": 0.1,
            "exploration_steps": 8_192,
            "actor_input": "obs_base_action",
            "critic_input": "res",
            "hold_residual": True,
            "task_features": True,
            "normalize_obs": True,
        },
        "sac": {
            "gamma": 0.98,
            "batch_size": 256,
            "actor_lr": 3e-4,
            "critic_lr": 3e-4,
            "temperature_lr": 1e-3,
            "hidden": (256, 256),
            "critic_layer_norm": True,
            "initial_temperature": 0.001,
            "entropy_backup": False,
            "target_entropy_scale": 0.5,
            "log_std_min": -3.0,
            "log_std_max": 0.5,
            "residual_penalty": 2.0,
            "n_step": 3,
            "reward_offset": 0.0,
        },
        "train": {
            "num_envs": 64,
            "total_decisions": 65_536,
            "decisions_per_epoch": 4_096,
            "decisions_per_round": 256,
            "learning_starts": 6_144,
            "prefill": "policy",
            "updates_per_decision": 0.125,
            "replay_capacity": 300_000,
        },
    },
}
