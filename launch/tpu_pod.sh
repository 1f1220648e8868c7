#!/usr/bin/env bash
# Train on a TPU pod slice: starts the same command on every worker, and again after a preemption.
#
#   bash launch/tpu_pod.sh NAME ZONE --config configs/nyu_mix6.py --config.workdir=/mnt/shared/runs/a ...
#
# NAME is a TPU VM slice that exists. On every worker the project lies in JDEPTH_DIR (default: ~/jdepth), put there by
#
#   gcloud compute tpus tpu-vm scp --recurse . NAME:jdepth --zone ZONE --worker=all
#
# workdir and data_dir must be on a file system that all workers mount, such as Filestore.
# JDEPTH_RESTARTS: how often the run is started again after SIGTERM (default: 10).
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash launch/tpu_pod.sh NAME ZONE --config CONFIG ..." >&2
    exit 2
fi
name=$1 zone=$2
shift 2
# Quoted once for the shell of the workers.
arguments=$(printf ' %q' "$@")
# jax finds the other workers by itself. tmux or nohup is not needed: a broken connection ends the run, and it goes on.
command="cd ${JDEPTH_DIR:-jdepth} && . launch/environment.sh tpu && exec \"\$PYTHON\" -m jdepth.main --multihost$arguments"

for start in $(seq 0 "${JDEPTH_RESTARTS:-10}"); do
    code=0
    gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "$command" || code=$?
    [ "$code" = 75 ] || exit "$code"
    echo "stopped and saved; start $((start + 1)) follows" >&2
    sleep 30
done
exit "$code"
