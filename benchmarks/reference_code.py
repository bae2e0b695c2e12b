"""Compares our training with the reference code's, in decisions per second, in ManiSkill2 itself.

    python benchmarks/reference_code.py --reference policy_decorator --python ms2/bin/python

Both refine the same U-Net with random weights on PegInsertionSide of mani-skill2 0.5.3, at the
setting that the reference publishes: 16 environments, batch 1,024, an update for four decisions.
The reference, which `experiments/policy_decorator.py` says how to install, has a process for each
environment, ours a worker for each core. They take turns; a rate is that of the decisions between
the first and the last record after the prefill, so neither start nor compilation counts. The
program appends a row to `benchmarks/results/reference_code.jsonl`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import alternate, append_row, median, ratio

from pdjax.output.records import read_metrics

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.append(str(EXPERIMENTS))

from bases import run  # noqa: E402
from policy_decorator import SIMULATORS, Reference  # noqa: E402

ENVIRONMENTS, EPOCH = 16, 512  # decisions between two records
PREFILL = 1024  # decisions
SIZES = {
    "obs_horizon": 2,
    "act_horizon": 4,
    "pred_horizon": 16,
    "unet_dims": [64, 128, 256],
    "n_groups": 8,
    "diffusion_step_embed_dim": 64,
}
MAKE_BASE = """
import json, sys, torch
from nets.diffusion_policy.conditional_unet1d_colab import ConditionalUnet1D
path, sizes = sys.argv[1], json.loads(sys.argv[2])
holder = torch.nn.Module()
holder.noise_pred_net = ConditionalUnet1D(
    input_dim=7, global_cond_dim=50 * sizes["obs_horizon"], down_dims=sizes["unet_dims"],
    n_groups=sizes["n_groups"], diffusion_step_embed_dim=sizes["diffusion_step_embed_dim"],
)
torch.save({"ema_agent": holder.state_dict()}, path)
"""


def make_base(args: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Returns a checkpoint of the reference with random weights, and the same policy as ours."""
    file = folder / "theirs" / "checkpoints" / "best.pt"
    file.parent.mkdir(parents=True)
    sizes = {"env_id": "PegInsertionSide-v2", "control_mode": "pd_ee_delta_pose", **SIZES}
    (folder / "theirs" / "args.json").write_text(json.dumps(sizes))
    program = [args.python, "-c", MAKE_BASE, str(file), json.dumps(SIZES)]
    subprocess.run(program, check=True, env=os.environ | {"PYTHONPATH": str(args.reference)})
    ours = folder / "ours"
    run("import", file, "--task", "PegInsertionSide", "--out", ours, "--episodes", 1)
    return file, ours


def make_theirs(args: argparse.Namespace, folder: Path, base: Path) -> Callable[[], float]:
    """Returns () -> decisions per second of the reference code."""
    flags = {
        "base-policy-ckpt": base,
        "num-envs": ENVIRONMENTS,
        "total-timesteps": PREFILL + args.decisions,
        "learning-starts": PREFILL,
        "log-freq": EPOCH,
        "eval-freq": 10**9,
    }
    reference = Reference(args.reference, args.python)

    def measure() -> float:
        out = Path(tempfile.mkdtemp(dir=folder))
        reference.run("online/pi_dec_diffusion_maniskill2.py", flags, out)
        first, *_, last = reference.scalars(out, "losses/qf_loss")
        return (last[0] - first[0]) / (last[1] - first[1])

    return measure


def make_ours(args: argparse.Namespace, folder: Path, base: Path) -> Callable[[], float]:
    """Returns () -> decisions per second of `pdjax train pd`."""
    settings = (
        f"task.name={SIMULATORS / 'maniskill2.py'}:make_env",
        f"task.python={args.python}",
        f"base_policy.path={base}",
        f"train.num_envs={ENVIRONMENTS}",
        f"train.learning_starts={PREFILL}",
        f"train.total_decisions={PREFILL + EPOCH + args.decisions}",
        f"train.decisions_per_epoch={EPOCH}",
        f"eval.interim_every={10**6}",
        "eval.episodes=2",
    )

    def measure() -> float:
        out = Path(tempfile.mkdtemp(dir=folder)) / "run"
        run("train", "pd", "--set", *settings, "--out", out)
        records = [row for row in read_metrics(out, "train") if row["gradient_steps"] > 0]
        first, last = records[0], records[-1]
        decisions = last["decision_steps"] - first["decision_steps"]
        updates = last["gradient_steps"] - first["gradient_steps"]
        assert updates == decisions / 4, "the reference makes an update for four decisions"
        return decisions / (last["wall_s"] - first["wall_s"])

    return measure


def main() -> None:
    """Measures both and prints the row."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--reference", type=Path, required=True, help="checkout of the code")
    parser.add_argument("--python", type=Path, required=True, help="its interpreter")
    parser.add_argument("--decisions", type=int, default=3072, help="of a turn, after the prefill")
    parser.add_argument("--turns", type=int, default=2)
    args = parser.parse_args()
    args.reference, args.python = args.reference.absolute(), args.python.absolute()
    with tempfile.TemporaryDirectory() as name:
        theirs, ours = make_base(args, Path(name))
        loops = {
            "ours": make_ours(args, Path(name), ours),
            "reference": make_theirs(args, Path(name), theirs),
        }
        rates = alternate(loops, args.turns)
    row = {f"{name}_decisions_per_s": median(found) for name, found in rates.items()}
    row |= {"rates": rates, "ratio": ratio(rates["ours"], rates["reference"])}
    print(json.dumps(row, indent=1))
    append_row("reference_code", row)


if __name__ == "__main__":
    main()
