#!/bin/bash
# Trains one run on two nodes with four GPUs each, one process per GPU.
# sbatch docs/clusters/slurm_train.sh
#SBATCH --job-name=pdjax-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

PROJECT=${PROJECT:-$SLURM_SUBMIT_DIR}   # shared by all nodes: the environment, base policy and run
cd "$PROJECT"
source .venv/bin/activate

# Slurm gives each process its number. Two minutes before the time limit all of them get SIGTERM, save
# after the same epoch and end with 3; the job then requeues and goes on from there.
CODE=0
srun --kill-on-bad-exit=1 pdjax train fast/peg_diffusion \
    --coordinator auto --resume --out runs/peg-two-nodes \
    --set train.num_envs=8192 train.decisions_per_round=8192 train.decisions_per_epoch=65536 \
          train.total_decisions=4000000 train.replay_capacity=2000000 sac.batch_size=4096 || CODE=$?
if [ $CODE -eq 3 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $CODE
