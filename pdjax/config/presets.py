"""Presets: recipes as data, each what differs from the defaults in `fields.py` (the paper's).

Apart from the knobs, so that a recipe can be read, compared and added without touching code.
"""

from typing import Any

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # arXiv:2412.13630; policy_decorator online/pi_dec_diffusion_maniskill2.py
    "pd": {},
    # arXiv:2602.10539: base-only prefill, normalised critics, small temperature, no gate
    "dawn": {
        "decorator": {"exploration_steps": 0},
        "sac": {"critic_layer_norm": True, "initial_temperature": 0.01},
        "train": {"learning_starts": 20_000, "prefill": "base"},
    },
    # arXiv:2509.19301: a residual at every control step, ten critics, many updates, demonstrations
    # in every batch (name them in train.demos). What it does not say is ours: scale, temperature.
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
    # Ours, for minutes on a CPU; docs/decisions/method.md says what each choice brought.
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
