#!/bin/bash
# Runs a sweep on four nodes: Ray on all of them, trials wherever a GPU is free.
# sbatch docs/clusters/slurm_sweep.sh suite.yaml
#SBATCH --job-name=pdjax-sweep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

SPEC=${1:?name the sweep: sbatch slurm_sweep.sh SPEC.yaml}
PROJECT=${PROJECT:-$SLURM_SUBMIT_DIR}   # shared by all nodes: the environment, base policies, runs
cd "$PROJECT"
source .venv/bin/activate

# The nodes of the job share a secret that others on the network do not know.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PROJECT/.ray_token_$SLURM_JOB_ID
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 20000))
OPTIONS=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" --disable-usage-stats --block)
srun --overlap --nodes=1 --ntasks=1 --nodelist="$HEAD" \
    ray start --head --port=$PORT --include-dashboard=false "${OPTIONS[@]}" &
until ray status --address "$HEAD:$PORT" > /dev/null 2>&1; do sleep 2; done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --overlap --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) \
        --exclude="$HEAD" ray start --address="$HEAD:$PORT" "${OPTIONS[@]}" &
fi

# Five minutes before the time limit SIGTERM saves and ends the sweep with 3; the job then requeues.
pdjax sweep "$SPEC" --address "$HEAD:$PORT" --resume &
SWEEP=$!
trap 'kill -TERM $SWEEP' TERM
set +e
wait $SWEEP
CODE=$?
if [ $CODE -gt 128 ]; then wait $SWEEP; CODE=$?; fi   # the signal ended the first wait, not the sweep
if [ $CODE -eq 3 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $CODE
