#!/usr/bin/env bash
# Train on one or more nodes of a Slurm cluster; submit it from the project's folder, which all nodes must share.
#
#   sbatch launch/slurm.sh --config configs/nyu_mix6.py             one node of 4 GPUs
#   sbatch --nodes=4 launch/slurm.sh --config configs/nyu_mix6.py   sixteen GPUs
#
# Everything after the script goes to jdepth.main. JDEPTH_EXTRAS names the jax to install (default: cuda12).
#
# One task per node drives all of its GPUs, as on a single machine: a node reads its data and its weights once.
# A preempted job is requeued by Slurm, one that reaches its time limit by this script; both go on from where they were.
#SBATCH --job-name=jdepth
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "error: not a Slurm job; submit with: sbatch launch/slurm.sh --config CONFIG" >&2
    exit 2
fi
# Slurm runs a copy of this file that lies elsewhere.
cd "$SLURM_SUBMIT_DIR"
. launch/environment.sh "${JDEPTH_EXTRAS:-cuda12}"

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Two ports of this job's own.
export JDEPTH_COORDINATOR="$first_node:$((20000 + 2 * (SLURM_JOB_ID % 5000)))"
export JDEPTH_PROCESSES="$SLURM_NTASKS"

# The tasks get a SIGTERM of their own, save and end; this script has to outlive them.
told=""
trap 'told=1' TERM
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    bash -c 'JDEPTH_PROCESS=$SLURM_PROCID exec "$@"' task "$PYTHON" -m jdepth.main "$@" &
tasks=$!
while kill -0 "$tasks" 2>/dev/null; do
    wait "$tasks" || true
done
code=0
wait "$tasks" || code=$?

# 75: stopped by a signal and saved. Where this script got the signal too, Slurm itself requeues or cancels the job.
if [ "$code" = 75 ] && [ -z "$told" ]; then
    echo "requeued after $((${SLURM_RESTART_COUNT:-0} + 1)) starts"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
