"""PyTorch checkpoints as native policies: outputs agree, and wrong checkpoints are refused."""

import json
from pathlib import Path
from typing import Any

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from pdjax.base_policies import imitation
from pdjax.base_policies.kinds import act, behavior_transformer, diffusion
from pdjax.base_policies.kinds.attention import Keys
from pdjax.base_policies.settings import ActConfig
from pdjax.base_policies.torch_checkpoints import lerobot as torch_checkpoints_lerobot
from pdjax.base_policies.torch_checkpoints import policy_decorator
from pdjax.base_policies.torch_checkpoints.adaptation import Adaptation, adapt
from pdjax.base_policies.torch_checkpoints.weights import read_safetensors
from pdjax.commands import cli
from pdjax.config.options import ConfigError
from pdjax.modules import functional
from pdjax.prepare import import_checkpoint
from tests.probe import make_point_task, registered

torch = pytest.importorskip("torch", reason="torch makes the checkpoints: pdjax[torch]")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors writes LeRobot's")

from tests import torch_policies as nets  # noqa: E402

OBS, ACT = 3, 1  # of the point on a line
UNET = {"dims": (16, 32), "step_dim": 8}
ARGS = {
    "obs_horizon": 2,
    "act_horizon": 4,
    "pred_horizon": 8,
    "unet_dims": [16, 32],
    "n_groups": 8,
    "diffusion_step_embed_dim": 8,
}
BET_ARGS = {"context_window": 4, "n_clusters": 3, "n_layers": 2, "n_heads": 2, "n_embedding": 8}
DIFFUSION = {
    "type": "diffusion",
    "n_obs_steps": 2,
    "n_action_steps": 4,
    "horizon": 8,
    "down_dims": [16, 32],
    "kernel_size": 5,
    "n_groups": 8,
    "diffusion_step_embed_dim": 8,
    "use_film_scale_modulation": True,
    "noise_scheduler_type": "DDIM",
    "num_inference_steps": 5,
    "num_train_timesteps": 100,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "clip_sample": True,
    "clip_sample_range": 1.0,
}
ACT_CONFIG = {
    "type": "act",
    "n_obs_steps": 1,
    "n_action_steps": 4,
    "chunk_size": 6,
    "pre_norm": False,
    "dim_model": 8,
    "n_heads": 2,
    "dim_feedforward": 16,
    "feedforward_activation": "relu",
    "n_encoder_layers": 2,
    "n_decoder_layers": 1,
    "latent_dim": 4,
    "dropout": 0.1,
    "kl_weight": 10.0,
    "temporal_ensemble_coeff": None,
}


def write_reference(folder, state, args, name="ema_agent"):
    """Writes a checkpoint as the offline scripts do, with args.json one folder up."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps(args))
    path = folder / "checkpoints" / "best.pt"
    torch.save({name: state}, path)
    return path


def prefixed(prefix, module):
    return {prefix + name: value for name, value in module.state_dict().items()}


def make_unet(obs_dim=OBS, act_dim=ACT, groups=8, lerobot=False, scales=True):
    made = nets.Unet(
        act_dim,
        2 * obs_dim,
        groups=groups,
        lerobot=lerobot,
        scales=scales,
        **UNET,
    )
    return nets.scramble(made)


def reference_unet(folder, unet=None, **changes):
    state = prefixed("noise_pred_net.", unet or make_unet())
    return write_reference(folder, state, ARGS | changes)


def reference_bet(folder, bet=None):
    bet = bet or nets.scramble(nets.Bet(OBS, ACT))
    return write_reference(folder, prefixed("net.", bet), BET_ARGS, "agent")


def write_lerobot(folder, config, state, stats, modes=None, beside=True):
    """Writes a LeRobot folder: statistics beside the weights, or among them (older versions)."""
    parts = {"observation.state": 2, "observation.environment_state": OBS - 2}
    kinds = dict(zip(parts, ("STATE", "ENV")))
    features = {name: {"type": kinds[name], "shape": [size]} for name, size in parts.items()}
    config = {
        **config,
        "input_features": features,
        "output_features": {"action": {"type": "ACTION", "shape": [ACT]}},
        "normalization_mapping": modes or dict.fromkeys(("STATE", "ENV", "ACTION"), "MIN_MAX"),
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if beside:
        for end in (
            "policy_preprocessor_step_3_normalizer",
            "policy_postprocessor_step_0_unnormal",
        ):
            name = end if end.endswith("normalizer") else end + "izer"
            safetensors.save_file(stats, folder / f"{name}_processor.safetensors")
        steps = [
            {"registry_name": "rename_observations_processor"},
            {"registry_name": "normalizer_processor"},
        ]
        (folder / "policy_preprocessor.json").write_text(json.dumps({"steps": steps}))
    else:
        for key, value in stats.items():
            name, which = key.rsplit(".", 1)
            part = "unnormalize_outputs" if name == "action" else "normalize_inputs"
            state[f"{part}.buffer_{name.replace('.', '_')}.{which}"] = value
    safetensors.save_file(state, folder / "model.safetensors")
    return folder


def make_stats(names=("min", "max"), seed=0):
    """Returns random pairs of vectors, the first smaller than the second."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"observation.state": 2, "observation.environment_state": OBS - 2, "action": ACT}
    stats = {}
    for name, size in sizes.items():
        low = -0.3 - torch.rand(size, generator=generator) / 2
        stats[f"{name}.{names[0]}"] = low
        stats[f"{name}.{names[1]}"] = low + 0.5 + torch.rand(size, generator=generator)
    return stats


def observed(stats, which):
    """Returns a statistic of the whole observation."""
    parts = ("observation.state", "observation.environment_state")
    return torch.cat([stats[f"{part}.{which}"] for part in parts])


def lerobot_diffusion(folder, stats=None, unet=None, beside=True, **changes):
    state = prefixed("diffusion.unet.", unet or make_unet(lerobot=True))
    return write_lerobot(folder, DIFFUSION | changes, state, stats or make_stats(), beside=beside)


def make_act():
    return nets.scramble(nets.Act({"robot_state": 2, "env_state": OBS - 2}, ACT))


MEAN_STD = dict.fromkeys(("STATE", "ENV", "ACTION"), "MEAN_STD")


def lerobot_act(folder, stats=None, module=None, **changes):
    state = prefixed("model.", module or make_act())
    stats = stats or make_stats(("mean", "std"))
    for key in stats:
        stats[key] = stats[key].abs() if key.endswith("std") else stats[key]
    return write_lerobot(folder, ACT_CONFIG | changes, state, stats, MEAN_STD)


def loaded(found, folder):
    """Returns the base policy after saving and loading it."""
    kind = imitation.MAKERS[found.kind](found.shape, OBS, found.act_dim)
    adaptation = Adaptation((0.0,) * OBS, (2.0,) * OBS, found.action_scale, found.action_offset)
    folder.mkdir()
    imitation.save_imported(folder, kind.make_policy(found.params), found.shape, "T", adaptation)
    base, _ = imitation.load(folder)
    assert (
        base.obs_std.tolist() == [2.0] * OBS
    )  # for the residual policy, whatever the policy normalises by
    return base


def history_of(horizon, seed=0):
    return np.random.default_rng(seed).normal(size=(horizon, OBS)).astype(np.float32)


def decide(base, history, seed=0):
    return base.apply(
        base.params, base.init_carry(jax.random.key(1)), jnp.asarray(history), jax.random.key(seed)
    )[0]


def compare_levels(found, unet):
    denoiser = diffusion.make_denoiser(OBS, found.act_dim, found.shape)
    rng = np.random.default_rng(1)
    noisy = rng.normal(size=(3, 8, found.act_dim)).astype(np.float32)
    cond = rng.normal(size=(3, 2 * OBS)).astype(np.float32)
    for level in (0, 13, 50, 99):
        with torch.no_grad():
            expected = unet(torch.from_numpy(noisy), level, torch.from_numpy(cond)).numpy()
        ours = denoiser.apply(
            found.params["denoiser"],
            jnp.asarray(noisy).reshape(3, -1),
            jnp.full(3, level),
            jnp.asarray(cond),
        )
        np.testing.assert_allclose(ours.reshape(expected.shape), expected, atol=1e-5)


def start_noise(act_dim, seed=0):
    """Returns the noise that `diffusion.make_policy` draws with this key."""
    noise = jax.random.normal(jax.random.key(seed), (1, 8 * act_dim))
    return torch.from_numpy(np.array(noise)).reshape(1, 8, act_dim)


@pytest.mark.parametrize("groups", [8, 4])
def test_the_reference_unet(groups, tmp_path):
    unet = make_unet(act_dim=2, groups=groups)
    found = policy_decorator.read(reference_unet(tmp_path / "run", unet, n_groups=groups))
    assert found.shape.ddim_steps == 4 and found.statistics is None
    compare_levels(found, unet)
    base, history = loaded(found, tmp_path / "base"), history_of(2)
    with torch.no_grad():  # the policy reads raw observations
        chunk = nets.ddim(unet, start_noise(2), torch.from_numpy(history).reshape(1, -1), 4)
    np.testing.assert_allclose(decide(base, history), chunk[0, 1:5], atol=1e-4)


def test_the_averaged_weights_are_taken_where_there_are_any(tmp_path):
    path = reference_unet(tmp_path / "run")
    states = torch.load(path)
    states = {"agent": {k: v + 1 for k, v in states["ema_agent"].items()}, **states}
    torch.save(states, path)
    bias = policy_decorator.read(path).params["denoiser"]["final"]["bias"]
    np.testing.assert_array_equal(bias, states["ema_agent"]["noise_pred_net.final_conv.1.bias"])


def test_the_reference_bet(tmp_path):
    bet = nets.scramble(nets.Bet(OBS, 2))
    found = policy_decorator.read(reference_bet(tmp_path / "run", bet))
    history = history_of(4)
    with torch.no_grad():
        logits, offsets = (x[0].numpy() for x in bet(torch.from_numpy(history)[None]))
    shape: Any = found.shape
    graph, _ = functional(
        lambda rngs: behavior_transformer._Transformer(shape, OBS, found.act_dim, rngs)
    )
    network = nnx.merge(graph, nnx.State(found.params["transformer"]))
    ours = network(jnp.asarray(history), Keys(None, 0))
    np.testing.assert_allclose(ours.logits, logits, atol=1e-5)
    np.testing.assert_allclose(ours.offsets, offsets, atol=1e-5)
    best = logits[-1].argmax()  # greedy: the centre of the likeliest bin plus its offset
    action = bet._cluster_centers[best].numpy() + offsets[-1, best]
    chunk = decide(loaded(found, tmp_path / "base"), history)
    np.testing.assert_allclose(chunk, [np.clip(action, -1, 1)], atol=1e-5)


@pytest.mark.parametrize(("scales", "beside"), [(True, True), (False, False)])
def test_lerobot_diffusion(scales, beside, tmp_path):
    unet, stats = make_unet(lerobot=True, scales=scales), make_stats()
    folder = lerobot_diffusion(
        tmp_path / "run", stats, unet, beside=beside, use_film_scale_modulation=scales
    )
    found = torch_checkpoints_lerobot.read(folder)
    assert found.shape.ddim_steps == 5
    compare_levels(found, unet)
    base, history = loaded(found, tmp_path / "base"), history_of(2)
    low, high = (observed(stats, end) for end in ("min", "max"))
    cond = 2 * (torch.from_numpy(history) - low) / (high - low) - 1
    with torch.no_grad():
        chunk = nets.ddim(unet, start_noise(ACT), cond.reshape(1, -1), 5)[0, 1:5]
    chunk = (chunk + 1) / 2 * (stats["action.max"] - stats["action.min"]) + stats["action.min"]
    np.testing.assert_allclose(decide(base, history), chunk.clip(-1, 1), atol=1e-4)


def test_numbers_that_never_changed_are_read_gently(tmp_path):
    stats = make_stats()
    stats["observation.state.max"] = stats["observation.state.min"].clone()
    found = torch_checkpoints_lerobot.read(lerobot_diffusion(tmp_path / "run", stats))
    mean, std = (np.asarray(found.params[name]) for name in ("obs_mean", "obs_std"))
    low = stats["observation.state.min"].numpy()
    np.testing.assert_allclose((low - mean[:2]) / std[:2], -1, atol=1e-6)  # as LeRobot there
    np.testing.assert_allclose((low + 0.5 - mean[:2]) / std[:2], -0.5, atol=1e-6)


def test_features_without_a_mode_are_read_as_they_are(tmp_path):
    # LeRobot's own mapping of its diffusion policy has no ENV
    state = prefixed("diffusion.unet.", make_unet(lerobot=True))
    modes = {"STATE": "QUANTILES", "ACTION": "IDENTITY"}
    folder = write_lerobot(tmp_path / "run", DIFFUSION, state, make_stats(("q01", "q99")), modes)
    found = torch_checkpoints_lerobot.read(folder)
    assert found.params["obs_mean"][2] == 0 and found.params["obs_std"][2] == 1
    assert found.params["obs_std"][0] != 1 and found.action_scale == (1.0,)


def test_lerobot_act(tmp_path):
    module, stats = make_act(), make_stats(("mean", "std"))
    found = torch_checkpoints_lerobot.read(lerobot_act(tmp_path / "run", stats, module))
    history = history_of(1)
    sides = [observed(stats, which) for which in ("mean", "std")]
    obs = (torch.from_numpy(history) - sides[0]) / (sides[1] + 1e-8)
    with torch.no_grad():
        chunk = module([obs[:, :2], obs[:, 2:]])[0]
    chunk = (chunk * stats["action.std"] + stats["action.mean"]).numpy()
    shape: Any = found.shape
    graph, _ = functional(lambda rngs: act._Network(shape, OBS, ACT, rngs))
    network = nnx.merge(graph, nnx.State(found.params["act"]))
    ours = network(jnp.asarray(obs.numpy())[None], jnp.zeros((1, 4)), Keys(None, 0))[0]
    np.testing.assert_allclose(ours, chunk, atol=1e-5)
    base = loaded(found, tmp_path / "base")
    assert base.act_horizon == 4
    np.testing.assert_allclose(decide(base, history), chunk[:4].clip(-1, 1), atol=1e-5)
    # the residual policy gets the statistics of the training data
    assert found.statistics is not None
    np.testing.assert_array_equal(found.statistics[1], sides[1])


def test_lerobot_act_with_temporal_ensembling(tmp_path):
    folder = lerobot_act(tmp_path / "run", temporal_ensemble_coeff=0.02, n_action_steps=1)
    shape = torch_checkpoints_lerobot.read(folder).shape
    assert isinstance(shape, ActConfig)
    assert (shape.temporal_ensemble, shape.ensemble_decay, shape.act_horizon) == (True, 0.02, 1)


def test_half_precision_and_metadata_are_read_as_the_package_reads_them(tmp_path):
    arrays = {"a": torch.rand(2, 3).half(), "b": torch.rand(4).double(), "c": torch.tensor([3])}
    safetensors.save_file(arrays, tmp_path / "x.safetensors", {"format": "pt"})
    found = read_safetensors(tmp_path / "x.safetensors").arrays
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array.numpy())


@pytest.fixture
def point(monkeypatch, tmp_path):
    """Registers the point as a task, and makes an empty working folder."""
    monkeypatch.chdir(tmp_path)
    with registered(make_point_task(episode_steps=7)):
        yield


GOOD = ["--task", "Point", "--out", "new", "--episodes", "3"]
WRITERS = {
    "unet": reference_unet,
    "bet": reference_bet,
    "lerobot": lerobot_diffusion,
    "act": lerobot_act,
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_command_writes_a_base_policy(name, point, capsys):
    path = WRITERS[name](Path("run"))
    assert cli.main(["import", str(path), *GOOD, "--json"]) == 0
    said = capsys.readouterr()
    summary = json.loads(said.out.splitlines()[-1])
    base, task = imitation.load(Path("new"))
    assert task == "Point" and (base.obs_dim, base.act_dim) == (OBS, ACT)
    found = import_checkpoint.read(path, make_point_task())
    kind = imitation.MAKERS[found.kind](found.shape, OBS, ACT)
    adaptation = Adaptation((0.0,) * OBS, (1.0,) * OBS, found.action_scale, found.action_offset)
    direct, history = (
        adapt(kind.make_policy(found.params), adaptation),
        history_of(base.obs_horizon),
    )
    np.testing.assert_array_equal(decide(base, history), decide(direct, history))
    learnt_from = "the checkpoint" if name == "act" else "the trial's 3 episodes"
    assert summary["statistics"] == learnt_from and f"come from {learnt_from}" in said.err
    counted = sum(leaf.size for leaf in jax.tree.leaves(base.params)) - 2 * OBS
    assert summary["parameters"] == counted and f"{counted:,} parameters" in said.err
    if (
        name != "act"
    ):  # the third number is the step: 0 and 4 for chunks of 4, 0 to 6 for chunks of 1
        assert base.obs_mean[2] == (3 if name == "bet" else 2)


def test_statistics_come_from_demonstrations_where_they_are_given(point):
    path = reference_bet(Path("run"))
    obs = np.random.default_rng(0).normal(size=(5, OBS)).astype(np.float32)
    with h5py.File("demos.h5", "w") as file:
        group = file.create_group("traj_0")
        group["obs"], group["actions"] = obs, np.zeros((4, ACT), np.float32)
    Path("demos.json").write_text('{"env_info": {"env_id": "Point-v0"}}')
    assert cli.main(["import", str(path), *GOOD, "--demos", "demos.h5"]) == 0
    base, _ = imitation.load(Path("new"))
    np.testing.assert_allclose(base.obs_mean, obs.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(base.obs_std, obs.std(axis=0), atol=1e-6)


def refuse(capsys, path, words, *more):
    assert cli.main(["import", str(path), *GOOD, *more]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and words in captured.err, captured.err
    assert not Path("new").exists()


def changed_state(path, change):
    states = torch.load(path)
    change(next(iter(states.values())))
    torch.save(states, path)
    return path


@pytest.mark.parametrize(
    ("writer", "change", "words"),
    [
        (
            reference_unet,
            lambda state: state.pop("noise_pred_net.up_modules.0.2.conv.weight"),
            "best.pt lacks noise_pred_net.up_modules.0.2.conv.weight",
        ),
        (
            reference_unet,
            lambda state: state.update(extra=torch.zeros(1)),
            "best.pt holds extra, which this architecture does not use",
        ),
        (
            reference_unet,
            lambda state: state.update(
                {"noise_pred_net.final_conv.1.bias": torch.tensor([torch.nan])}
            ),
            "noise_pred_net.final_conv.1.bias holds NaN",
        ),
        (
            reference_unet,
            lambda state: state.update(
                {"noise_pred_net.down_modules.0.1.cond_encoder.1.weight": torch.zeros(14, 32)}
            ),
            "down_modules.0.1.cond_encoder.1.weight has shape (14, 32), expected (32, 14)",
        ),
        (
            reference_bet,
            lambda state: state.pop("net._gpt_model.transformer.h.1.attn.c_attn.bias"),
            "best.pt lacks net._gpt_model.transformer.h.1.attn.c_attn.bias",
        ),
        (
            reference_bet,
            lambda state: state.update(
                {"net._gpt_model.transformer.h.2.ln_1.bias": torch.zeros(8)}
            ),
            "best.pt holds net._gpt_model.transformer.h.2.ln_1.bias, which",
        ),
        (
            reference_bet,
            lambda state: state.update({"net._map_to_cbet_preds.0.weight": torch.zeros(256, 6)}),
            "net._map_to_cbet_preds.0.weight has shape (256, 6), expected (6, 256)",
        ),
        (
            reference_bet,
            lambda state: (state.clear(), state.update({"actor.fc.weight": torch.zeros(1)})),
            "agent holds actor.fc.weight, expected noise_pred_net. or net._gpt_model.transformer.",
        ),
    ],
)
def test_weights_that_do_not_fit(writer, change, words, point, capsys):
    refuse(capsys, changed_state(writer(Path("run")), change), words)


class Malicious:
    def __reduce__(self):
        return exec, ("open('was_here', 'w').close()",)


def test_files_that_are_no_checkpoints(point, capsys):
    refuse(capsys, "none.pt", "no checkpoint at none.pt")
    Path("junk.pt").write_bytes(b"junk")
    refuse(capsys, "junk.pt", "junk.pt is not a torch.save file, so pdjax does not read it; write")
    path = reference_unet(Path("run"))
    torch.save({"ema_agent": Malicious()}, path)
    words = "best.pt holds builtins.exec, which could run code, so pdjax does not read it; write"
    refuse(capsys, path, words)
    assert not Path("was_here").exists()
    torch.save({"actor": {}}, path)
    refuse(capsys, path, "best.pt holds actor, expected ema_agent or agent")
    Path("empty").mkdir()
    refuse(capsys, "empty", "no empty/config.json: expected the config.json of a LeRobot")


def test_settings_that_do_not_fit(point, capsys):
    path = reference_unet(Path("run"))
    Path("run/args.json").write_text(json.dumps({k: v for k, v in ARGS.items() if k != "n_groups"}))
    refuse(capsys, path, "args.json lacks n_groups")
    Path("run/args.json").write_text(json.dumps(ARGS | {"obs_horizon": 4}))
    refuse(
        capsys, path, "reads 6 observed numbers in addition to the 8 of the noise level, expected a"
    )
    Path("run/args.json").unlink()
    refuse(capsys, path, "best.pt needs the args.json of its training")
    bet = reference_bet(Path("bet"))
    refuse(capsys, bet, "--ddim-steps got 4, but", "--ddim-steps", "4")
    other = reference_unet(Path("other"), make_unet(obs_dim=5))
    refuse(capsys, other, "its observation has 5 numbers, expected 3 for Point; give the --task")
    other = reference_unet(Path("another"), make_unet(act_dim=2))
    refuse(capsys, other, "its action has 2 numbers, expected 1 for Point")


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": "vqbet"}, "config.json: type is 'vqbet', expected diffusion or act"),
        ({"beta_schedule": "linear"}, "beta_schedule is 'linear', expected 'squaredcos_cap_v2'"),
        ({"horizon": 4}, "pred_horizon=4 must be >= obs_horizon - 1 + act_horizon = 5"),
        ({"input_features": None}, "lacks input_features and output_features"),
        (
            {"input_features": {"observation.image": {"type": "VISUAL", "shape": [3, 96, 96]}}},
            "the policy reads images (observation.image); pdjax imports policies that read numbers",
        ),
        (
            {"input_features": {"observation.effort": {"type": "STATE", "shape": [3]}}},
            "observation.effort has shape [3], expected one axis of observation.state",
        ),
        ({"normalization_mapping": {"STATE": "MEAN_STD"}}, "has no observation.state.mean"),
        ({"normalization_mapping": {"STATE": "LOG"}}, "STATE is normalised by 'LOG', expected"),
    ],
)
def test_lerobot_folders_that_cannot_be_imported(changes, words, point, capsys):
    folder = lerobot_diffusion(Path("run"))
    change_json(folder / "config.json", **changes)
    refuse(capsys, folder, words)


def test_lerobot_weights_that_do_not_fit(point, capsys):
    module = make_act()
    folder = lerobot_act(Path("run"), module=module)
    state = prefixed("model.", module)
    key = "model.decoder.layers.0.multihead_attn.in_proj_weight"
    safetensors.save_file(state | {key: torch.zeros(8, 24)}, folder / "model.safetensors")
    refuse(capsys, folder, f"{key} has shape (8, 24), expected (24, 8)")
    del state[key]
    safetensors.save_file(state, folder / "model.safetensors")
    refuse(capsys, folder, f"lacks {key}")
    change_json(folder / "config.json", pre_norm=True)
    refuse(capsys, folder, "pre_norm is True, expected False")
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0notjson!")
    refuse(capsys, folder, "model.safetensors is not readable as safetensors (")
    (folder / "model.safetensors").unlink()
    refuse(capsys, folder, "no weights at run/model.safetensors")


def test_a_step_that_is_more_than_normalisation_is_refused(point, capsys):
    folder = lerobot_diffusion(Path("run"))
    steps = [{"registry_name": "relative_actions_processor"}]
    (folder / "policy_preprocessor.json").write_text(json.dumps({"steps": steps}))
    refuse(capsys, folder, "the processing step relative_actions_processor cannot be imported")


def test_an_adaptation_of_the_wrong_size():
    with pytest.raises(ConfigError, match="obs_mean has 2 numbers, expected 3"):
        Adaptation((0.0,) * 2, (1.0,) * 3).validate(3, 1)
