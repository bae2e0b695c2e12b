#!/bin/sh
# Runs everything that needs a GPU, on one machine, in under 8 minutes and without a network.
#
#   benchmarks/gpu_suite.sh                 # in the current environment
#   benchmarks/gpu_suite.sh WHEELS          # first installs the wheels in that folder, see below
#   SMALL=1 benchmarks/gpu_suite.sh         # a rehearsal with a few environments, on any machine,
#                                           # without rows; slow where a CPU has to compile
#
# To download wheels for a machine like this one: pip download -d WHEELS '.[gpu,warp]' hatchling
# Rows go to benchmarks/results/. A part that fails or exceeds its time does not stop the others.
set -u
cd "$(dirname "$0")/.." || exit 1
if [ $# -gt 0 ]; then
    python3 -m venv --system-site-packages /tmp/pdjax-suite && . /tmp/pdjax-suite/bin/activate
    pip install -q --no-index --find-links "$1" '.[gpu,warp]' || exit 1
fi
export PYTHONPATH=".:envs${PYTHONPATH:+:$PYTHONPATH}"

part() { # seconds, command
    limit=$(($1 * patience))
    shift
    echo "== $*"
    timeout "$limit" "$@" || echo "-- failed, or not done in $limit s"
}

if [ -n "${SMALL:-}" ]; then
    tasks="--tasks AdroitDoor" physics="--num-envs 8 --repeats 1" train="--num-envs 16 --repeats 1"
    scale="--repeats 1 --seeds 1 2" update="--batch-size 64 --repeats 1" warp=warp patience=6
    dry=--dry
else
    tasks="" physics="" train="--num-envs 1024 4096"
    scale="--repeats 3" update="" warp=auto patience=1 dry=""
fi
python3 -c "import jax; print(jax.devices(), jax.__version__)"
one="--tasks AdroitDoor"
# shellcheck disable=SC2086
{
    part 90 python3 benchmarks/accelerator.py --physics $warp $tasks $physics $dry
    part 120 python3 benchmarks/accelerator.py --train --physics $warp $one $train $dry
    part 40 python3 benchmarks/update.py --no-torch $update $dry
    part 100 python3 benchmarks/accelerator.py --physics mjx $one ${physics:---num-envs 4096} $dry
    part 110 python3 benchmarks/scaling.py --only seeds $scale $dry
}
