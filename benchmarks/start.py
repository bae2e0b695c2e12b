"""Measures the time from the command to the first epoch, at the first and the second start.

    python benchmarks/start.py                     # door_fast, a small and a published base policy
    python benchmarks/start.py --config peg_fast --kinds diffusion_unet

Starts `pdjax train` in its own process, first with an empty cache of compiled programs and then
with the cache that the first start left. It prints the seconds from the process's start until the
first epoch begins (imports, tracing, compiling, the base policy's interim evaluation) and until it
ends, and appends a row to `benchmarks/results/start.jsonl`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from base_policies import save_base
from harness import append_row

from pdjax.config import files as configs

POLL_S = 0.05
LIMIT_S = 600


def start(config: str, base: Path, out: Path, cache: Path) -> dict[str, float]:
    """Measures the seconds to the beginning and end of a run's first epoch, then stops the run."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    program = [
        sys.executable,
        "-m",
        "pdjax.commands.cli",
        "train",
        config,
        "--out",
        str(out),
        "--set",
        f"base_policy.path={base}",
    ]
    began, found = time.monotonic(), {}
    process = subprocess.Popen(program, env=environment, stderr=subprocess.DEVNULL)
    metrics = out / "metrics.jsonl"
    while "first_epoch_done_s" not in found and time.monotonic() - began < LIMIT_S:
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(program)} ended with {process.returncode}")
        time.sleep(POLL_S)
        lines = metrics.read_text().splitlines() if metrics.exists() else []
        groups = {json.loads(line)["group"] for line in lines if line.endswith("}")}
        for group, name in (("eval", "first_epoch_s"), ("train", "first_epoch_done_s")):
            if group in groups:
                found.setdefault(name, round(time.monotonic() - began, 2))
    process.send_signal(signal.SIGTERM)
    process.wait()
    return found


def measure(config: str, kind: str) -> dict[str, Any]:
    """Measures a first and a second start under an untrained base policy."""
    task_name = configs.load(config, []).task.name
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = save_base(folder, kind, task_name)
        first, second = (
            start(config, base, folder / f"run{turn}", folder / "cache") for turn in range(2)
        )
        size = sum(path.stat().st_size for path in (folder / "cache").rglob("*") if path.is_file())
    return {
        "config": config,
        "kind": kind,
        "first": first,
        "second": second,
        "cache_mib": round(size / 2**20, 1),
    }


def main() -> None:
    """Measures, prints and appends a row."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--config", default="door_fast")
    parser.add_argument("--kinds", nargs="+", default=["mlp", "diffusion_unet"])
    parser.add_argument("--dry", action="store_true", help="append no row")
    args = parser.parse_args()
    rows = [measure(args.config, kind) for kind in args.kinds]
    for row in rows:
        print(
            f"{row['config']}, {row['kind']}: the first epoch begins after"
            f" {row['first']['first_epoch_s']:.1f} s, at the second start after"
            f" {row['second']['first_epoch_s']:.1f} s",
            flush=True,
        )
    if not args.dry:
        append_row("start", {"rows": rows})


if __name__ == "__main__":
    main()
