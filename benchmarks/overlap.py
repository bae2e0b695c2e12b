"""Measures what learning while the workers play brings (`train.overlap`).

`python benchmarks/overlap.py` trains on AdroitHandDoor-v1 in worker processes under an untrained
MLP, with preset `fast`, in turns with and without overlap: with one worker, which leaves the other
cores to the learner; with one for each core; and with an environment that waits 2 ms in each
control step, as one on a GPU or on another machine does. A ratio is decisions a second with overlap
over those without. The program appends a row to `benchmarks/results/overlap.jsonl`.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from base_policies import save_base
from harness import alternate, append_row, median, ratio

from pdjax.base_policies.load import load_base
from pdjax.config import files as configs
from pdjax.config.schema import BasePolicyConfig
from pdjax.learner.sac import make_hyperparams, residual_dim
from pdjax.training import build
from pdjax.types import BasePolicy
from pdjax_envs import registry
from pdjax_envs.workers import closing_pools

PLAIN = "gymnasium:AdroitHandDoor-v1"
WAITING = """
import time
import gymnasium, gymnasium_robotics


class Waiting(gymnasium.Wrapper):
    def step(self, action):
        time.sleep(0.002)
        return self.env.step(action)


def make_env():
    gymnasium.register_envs(gymnasium_robotics)
    return Waiting(gymnasium.make("AdroitHandDoor-v1"))
"""
EPOCH = 2_048  # decisions


def training(task: str, workers: int, overlap: bool, base: BasePolicy) -> Callable[[], float]:
    """Returns () -> decisions a second of an epoch, after one that compiles."""
    config = configs.load(
        "door_fast",
        [
            f"task.name={task}",
            f"task.workers={workers}",
            f"train.overlap={overlap}",
            f"train.decisions_per_epoch={EPOCH}",
            f"train.learning_starts={EPOCH // 2}",
        ],
    )
    run = build.build(config, base)
    hyperparams = make_hyperparams(config, residual_dim(config.decorator, run.base))
    state: Any = run.trainer.init(run.frozen, hyperparams, jax.random.key(0))

    def epoch() -> float:
        nonlocal state
        start = time.perf_counter()
        state, _ = jax.block_until_ready(run.trainer.train_epoch(run.frozen, state))
        return EPOCH / (time.perf_counter() - start)

    epoch()
    return epoch


def main() -> None:
    """Measures, prints and appends a row."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    cores = os.cpu_count() or 1
    row: dict[str, Any] = {"repeats": args.repeats}
    with tempfile.TemporaryDirectory() as folder:
        path = str(save_base(Path(folder), "mlp", "AdroitDoor"))
        base = load_base(BasePolicyConfig(path), registry.make_task("AdroitDoor"))
        file = Path(folder) / "waiting.py"
        file.write_text(WAITING)
        settings = {
            "1 worker": (PLAIN, 1),
            f"{cores} workers": (PLAIN, cores),
            f"{cores} workers, waiting": (f"{file}:make_env", cores),
        }
        for name, (task, workers) in settings.items():
            with closing_pools():
                loops = {
                    str(overlap): training(task, workers, overlap, base)
                    for overlap in (True, False)
                }
                rates = alternate(loops, args.repeats)
            found = ratio(rates["True"], rates["False"])
            figures = {key: median(values) for key, values in rates.items()}
            row[name] = {"decisions_per_s": figures, "with_over_without": found}
            print(f"{name}: {figures}, {found['median']} {found['range']}", flush=True)
    append_row("overlap", row)


if __name__ == "__main__":
    main()
