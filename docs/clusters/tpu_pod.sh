#!/bin/bash
# Trains one run on all hosts of a TPU slice:
# ZONE=... SLICE=... SHARE=host:/export docs/clusters/tpu_pod.sh
# SHARE is an NFS export that the hosts can mount (Filestore); it holds pdjax's source in pdjax/,
# the base policy and the run. Call it again to go on where the run stopped.
set -euo pipefail
: "${ZONE:?}" "${SLICE:?}" "${SHARE:?}"
TYPE=${TYPE:-v5litepod-16}
on_all() { gcloud compute tpus tpu-vm ssh "$SLICE" --zone="$ZONE" --worker=all --command="$1"; }

gcloud compute tpus tpu-vm describe "$SLICE" --zone="$ZONE" > /dev/null 2>&1 ||
    gcloud compute tpus tpu-vm create "$SLICE" --zone="$ZONE" --accelerator-type="$TYPE" \
        --version=v2-alpha-tpuv5-lite

on_all "sudo apt-get -qq install -y nfs-common
    sudo mkdir -p /shared && { mountpoint -q /shared || sudo mount -t nfs $SHARE /shared; }
    pip install -q uv && ~/.local/bin/uv venv -q --allow-existing --python 3.12 ~/venv
    ~/.local/bin/uv pip install -q --python ~/venv/bin/python 'jax[tpu]' /shared/pdjax"

# JAX asks the slice for each host's process number. Environments are split over all chips, here 4,096
# on each of 16; the physics engine is MJX.
on_all "cd /shared && ~/venv/bin/pdjax train fast/peg_diffusion --coordinator auto --resume \
    --out runs/peg-tpu --set task.physics=mjx train.num_envs=65536 train.decisions_per_round=65536 \
    train.decisions_per_epoch=524288 train.total_decisions=10000000 \
    train.replay_capacity=4000000 sac.batch_size=8192"
