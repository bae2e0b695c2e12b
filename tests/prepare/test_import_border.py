"""Checkpoints by strangers: read where they can be, else refused in one line. Needs no torch."""

import json
import zipfile
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pdjax.base_policies import imitation
from pdjax.base_policies.kinds import diffusion
from pdjax.base_policies.kinds.trainable import abstract_params
from pdjax.base_policies.settings import DiffusionConfig
from pdjax.base_policies.torch_checkpoints import imported, lerobot, policy_decorator
from pdjax.base_policies.torch_checkpoints.weights import _axes, from_torch, read_torch
from pdjax.commands import cli
from pdjax.prepare import import_checkpoint
from tests import torch_archive
from tests.probe import make_point_task, registered

OBS, ACT = 3, 1  # of the point on a line
SHAPE = DiffusionConfig(
    act_horizon=4,
    denoiser="unet",
    prediction="epsilon",
    unet_dims=(8, 16),
    unet_step_dim=8,
    unet_final_groups=imported.FINAL_GROUPS,
)
ARGS = {
    "obs_horizon": 2,
    "act_horizon": 4,
    "pred_horizon": 8,
    "unet_dims": [8, 16],
    "n_groups": 8,
    "diffusion_step_embed_dim": 8,
}
REFERENCE = ("noise_pred_net.", ("blocks.0", "blocks.1"), ".conv")
LEROBOT = ("diffusion.unet.", ("conv1", "conv2"), "")
PARTS = {"observation.state": 2, "observation.environment_state": 1}
CONFIG = {
    "type": "diffusion",
    "n_obs_steps": 2,
    "n_action_steps": 4,
    "horizon": 8,
    "down_dims": [8, 16],
    "kernel_size": 5,
    "n_groups": 8,
    "diffusion_step_embed_dim": 8,
    "use_film_scale_modulation": True,
    "noise_scheduler_type": "DDIM",
    "num_inference_steps": 5,
    "prediction_type": "epsilon",
    "input_features": {
        name: {"type": kind, "shape": [size]}
        for (name, size), kind in zip(PARTS.items(), ("STATE", "ENV"))
    },
    "output_features": {"action": {"type": "ACTION", "shape": [ACT]}},
    "normalization_mapping": dict.fromkeys(("STATE", "ENV", "ACTION"), "MEAN_STD"),
}


@cache
def make_state(prefix, blocks, resample):
    """A random U-Net by its torch names."""
    like = abstract_params(diffusion.make_trainable(SHAPE, OBS, ACT), OBS, ACT)
    rng, state = np.random.default_rng(0), {}

    def add(path, leaf):
        names = tuple(str(entry.key) for entry in path)
        suffix = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}[names[-1]]
        axes = _axes(names, leaf.ndim)
        shape = tuple(leaf.shape[axes.index(axis)] for axis in range(leaf.ndim))
        key = prefix + imported.unet_key(names, blocks, resample) + suffix
        state[key] = rng.normal(0, 0.05, shape).astype(np.float32)

    jax.tree_util.tree_map_with_path(add, like["denoiser"])
    return state


def write_reference(folder, rename=lambda name: name, args=None, **more):
    state = make_state(*REFERENCE)
    state = {rename(name): array for name, array in state.items()} | more
    path = torch_archive.write(folder / "best.pt", {"agent": state, "ema_agent": state})
    (folder / "args.json").write_text(json.dumps(ARGS | (args or {})))
    return path


def write_lerobot(folder, config=None, stats=None, rename=lambda name: name):
    state = make_state(*LEROBOT)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({rename(name): a for name, a in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    made = {}
    for name, size in (PARTS | {"action": ACT}).items():
        made[f"{name}.mean"] = np.full(size, 0.3, np.float32)
        made[f"{name}.std"] = np.full(size, 0.5, np.float32)
    save_file(
        made | (stats or {}), folder / "policy_preprocessor_step_3_normalizer_processor.safetensors"
    )
    return folder


@pytest.fixture
def point(monkeypatch, tmp_path):
    """Registers the point as a task, and makes an empty working folder."""
    monkeypatch.chdir(tmp_path)
    with registered(make_point_task(episode_steps=7)):
        yield


def refuse(capsys, path, words):
    before = sorted(map(str, Path().rglob("*")))
    assert (
        cli.main(["import", str(path), "--task", "Point", "--out", "new", "--episodes", "2"]) == 2
    )
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1, said.err
    assert words in said.err
    assert len(said.err) < 330
    assert sorted(map(str, Path().rglob("*"))) == before


# What can be read.


WRAPPED = {
    "compiled": "_orig_mod.{}".format,
    "both": "module._orig_mod.{}".format,
    "inside": lambda name: name.replace("_net.", "_net.module."),
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_weights_of_compiled_and_parallel_modules_are_read(tmp_path, wrap):
    path = write_reference(tmp_path / "run", WRAPPED[wrap])
    saved = read_torch(path)
    assert all(
        name.startswith("noise_pred_net.") for name in from_torch(path, saved, "agent").arrays
    )
    bias = policy_decorator.read(path).params["denoiser"]["final"]["bias"]
    np.testing.assert_array_equal(bias, make_state(*REFERENCE)["noise_pred_net.final_conv.1.bias"])


def test_wrapped_weights_of_lerobot_are_read(tmp_path):
    folder = write_lerobot(tmp_path, rename="module.{}".format)
    bias = lerobot.read(folder).params["denoiser"]["final"]["bias"]
    np.testing.assert_array_equal(bias, make_state(*LEROBOT)["diffusion.unet.final_conv.1.bias"])


def test_any_part_of_a_run_of_lerobot_names_its_policy(tmp_path):
    folder = write_lerobot(tmp_path / "run/checkpoints/005000/pretrained_model")
    (tmp_path / "run/checkpoints/last").symlink_to("005000")
    expected = folder.resolve()
    for name in (
        "run",
        "run/checkpoints",
        "run/checkpoints/last",
        "run/checkpoints/005000",
        "run/checkpoints/005000/pretrained_model",
        "run/checkpoints/last/pretrained_model/model.safetensors",
        "run/checkpoints/last/pretrained_model/config.json",
    ):
        assert import_checkpoint.find(tmp_path / name).resolve() == expected
    assert import_checkpoint.find(tmp_path / "other.pt") == tmp_path / "other.pt"


@pytest.mark.parametrize("std", [0.0, 1e-12, 1e-7])
def test_a_number_that_never_changed_is_normalised_to_its_distance(tmp_path, std):
    stats = {
        "observation.state.mean": np.array([0.3, 0.3], np.float32),
        "observation.state.std": np.array([0.5, std], np.float32),
    }
    found = lerobot.read(write_lerobot(tmp_path / "run", stats=stats))
    mean, width = np.asarray(found.params["obs_mean"]), np.asarray(found.params["obs_std"])
    np.testing.assert_allclose(mean, 0.3, rtol=1e-6)
    np.testing.assert_allclose(width, [0.5, 1, 0.5], rtol=1e-6)
    policy = import_checkpoint.make_policy(found, make_point_task())
    obs = np.array([[0.1, 0.7, 0.2]] * 2, np.float32)
    act = jax.jit(policy.apply)
    carry = policy.init_carry(jax.random.key(0))
    assert np.isfinite(act(policy.params, carry, obs, jax.random.key(1))[0]).all()


def test_small_widths_that_are_more_than_rounding_are_kept(tmp_path):
    stats = {
        "observation.state.mean": np.array([0.0, 100.0], np.float32),
        "observation.state.std": np.array([1e-6, 0.01], np.float32),
    }
    found = lerobot.read(write_lerobot(tmp_path / "run", stats=stats))
    width = np.asarray(found.params["obs_std"])[:2]
    np.testing.assert_allclose(width, [1.01e-6, 0.01], rtol=1e-5)  # LeRobot adds 1e-8


def test_the_task_and_mode_of_the_training_may_be_those_of_the_task(tmp_path):
    task = make_point_task()
    path = write_reference(tmp_path, args={"env_id": "Point-v2", "control_mode": task.control_mode})
    assert import_checkpoint.read(path, task).act_dim == ACT


def test_the_whole_command_needs_no_torch(point, capsys):
    path = write_reference(Path("run"))
    argv = ["import", str(path), "--task", "Point", "--out", "new", "--episodes", "2"]
    assert cli.main(argv) == 0
    assert imitation.load(Path("new"))[1] == "Point"


# What is refused.


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"env_id": "StackCube-v0"}, "holds a policy of StackCube, expected Point; pass --task"),
        ({"control_mode": "pd_joint_pos"}, "a policy of control mode pd_joint_pos, expected"),
        (
            {"unet_dims": [10**9, 10**9]},
            "unet_dims got [1000000000, 1000000000], expected [integer 1",
        ),
        ({"unet_dims": [8] * 10**5}, "expected at most"),
        ({"pred_horizon": 10**9}, "pred_horizon got 1000000000, expected integer 1 to 1000"),
        ({"obs_horizon": 10**30}, "obs_horizon"),
        ({"obs_horizon": -1}, "obs_horizon"),
        ({"n_groups": 0}, "unet_groups"),
        ({"n_groups": "x" * 10**4}, "unet_groups"),
        ({"act_horizon": None}, "act_horizon"),
    ],
)
def test_settings_that_do_not_fit(point, capsys, args, words):
    refuse(capsys, write_reference(Path("run"), args=args), words)


def test_weights_that_cannot_be_read(point, capsys):
    refuse(capsys, write_reference(Path("a"), extra={"x": np.zeros(2)}), "extra is no tensor")
    long = {"n" * 5000: np.zeros(2, np.float32)}
    refuse(capsys, write_reference(Path("b"), **long), "which this architecture does not use")
    both = {"module.noise_pred_net.final_conv.1.bias": np.zeros(1, np.float32)}
    refuse(capsys, write_reference(Path("c"), **both), "holds arrays twice, with and without")
    path = write_reference(Path("d"))
    Path("d/args.json").write_text("[" * 10**5)
    refuse(capsys, path, "nested more than 50 levels deep")
    Path("d/args.json").write_text("[]")
    refuse(capsys, path, "it holds [], expected an object")
    Path("d/args.json").unlink()
    refuse(capsys, path, "needs the args.json of its training beside it")
    refuse(capsys, Path("x" * 300), "no checkpoint at xxx")
    with zipfile.ZipFile("e.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"cos\nsystem\n.")
    refuse(capsys, Path("e.pt"), "e.pt holds os.system, which could run code")


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"horizon": 10**9}, "pred_horizon got 1000000000, expected integer 1 to 1000"),
        ({"down_dims": [10**12]}, "unet_dims got [1000000000000], expected [integer 1 to"),
        ({"type": "x" * 10**4}, "config.json: type is 'xxx"),
        ({"normalization_mapping": {"STATE": "y" * 10**4}}, "STATE is normalised by 'yyy"),
        ({"deep": nested(100)}, "nested more than 50 levels deep"),
        (
            {"output_features": {"action": {"type": "ACTION", "shape": [10**12]}}},
            "action has shape",
        ),
        ({"output_features": {"action": {"type": "ACTION", "shape": [-1]}}}, "action has shape"),
        ({"output_features": {"action": {"type": "ACTION", "shape": [True]}}}, "action has shape"),
        ({"num_inference_steps": 10**9}, "ddim_steps"),
        ({"beta_schedule": ["z" * 10**4]}, "beta_schedule is"),
    ],
)
def test_settings_of_lerobot_that_do_not_fit(point, capsys, changes, words):
    refuse(capsys, write_lerobot(Path("run"), changes), words)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("std", [0.5, np.nan], "has no usable observation.state.std"),
        ("std", [0.5, np.inf], "has no usable observation.state.std"),
        ("std", [0.5, -0.5], "observation.state has a negative width"),
        ("mean", [0.5, 1e38], "has no usable observation.state.mean"),
        ("mean", [0.5], "has no usable observation.state.mean"),
    ],
)
def test_statistics_that_cannot_be_used(point, capsys, name, values, words):
    stats = {f"observation.state.{name}": np.array(values, np.float32)}
    refuse(capsys, write_lerobot(Path("run"), stats=stats), words)


def test_folders_of_lerobot_that_are_not_whole(point, capsys):
    folder = write_lerobot(Path("run"))
    weights = folder / "model.safetensors"
    good = weights.read_bytes()
    size = int.from_bytes(good[:8], "little")
    for content in (
        good[:-1],
        good[:100],
        b"",
        (10**18).to_bytes(8, "little") + good[8:],
        good[:8] + good[8 : 8 + size].replace(b"F32", b"F64", 1) + good[8 + size :],
        good[:8] + good[8 : 8 + size].replace(b"F32", b"F99", 1) + good[8 + size :],
        good[:8] + b"[" * size + good[8 + size :],
    ):
        weights.write_bytes(content)
        refuse(capsys, folder, "model.safetensors is not readable as safetensors")
    arrays = {name: a.astype(np.float64) for name, a in load_bytes(good).items()}
    arrays["diffusion.unet.final_conv.1.bias"][:] = 1e300  # beyond float32
    save_file(arrays, weights)
    refuse(capsys, folder, "final_conv.1.bias holds NaN or infinity")
    (folder / "policy_preprocessor.json").write_text('{"steps": 5}')
    refuse(capsys, folder, "policy_preprocessor.json: steps is 5, expected a list")
    (folder / "policy_preprocessor.json").write_text("[" * 10**5)
    refuse(capsys, folder, "nested more than 50 levels deep")
    (folder / "config.json").unlink()
    refuse(capsys, folder, "no run/config.json: expected the config.json of a LeRobot policy")


def load_bytes(content):
    Path("copy.safetensors").write_bytes(content)
    found = load_file("copy.safetensors")
    Path("copy.safetensors").unlink()
    return found
