#!/usr/bin/env bash
# Train on a TPU pod slice: the same command on every worker, started again after a preemption.
#
#   TPU_TYPE=v5litepod-16 TPU_VERSION=v2-alpha-tpuv5-lite bash launch/tpu_pod.sh NAME ZONE \
#       --config configs/nyu_mix6.py --config.workdir=/mnt/shared/runs/a --config.data_dir=/mnt/shared/data
#
# Everything after NAME and ZONE goes to jdepth.main. workdir and data_dir must be on a file system that all workers
# mount; JDEPTH_SETUP is a command that each worker runs first, such as one that mounts it.
# A slice that does not exist, or was preempted, is created as a spot slice of TPU_TYPE and TPU_VERSION; the project's
# last commit is copied to it. Without TPU_TYPE the slice must exist. JDEPTH_RESTARTS: at most so many (default: 20).
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash launch/tpu_pod.sh NAME ZONE --config CONFIG ..." >&2
    exit 2
fi
if ! command -v gcloud >/dev/null; then
    echo "error: gcloud not found: install the Google Cloud CLI and log in" >&2
    exit 2
fi
cd "$(dirname "$0")/.."
name=$1 zone=$2
shift 2
tpu() { gcloud compute tpus tpu-vm "$1" "$name" --zone "$zone" "${@:2}"; }
state="" said=$(mktemp) packed=$(mktemp --suffix=.tar)
trap 'rm -f "$said" "$packed"' EXIT

# Leaves the slice's state in $state, ABSENT where there is none. What else goes wrong is tried again, but not at first.
look() {
    local found attempt
    for attempt in 1 2 3 4 5; do
        if found=$(tpu describe --format='value(state)' 2>"$said"); then
            state=$found
            return
        elif grep -qi 'NOT_FOUND\|not found' "$said"; then
            state=ABSENT
            return
        fi
        cat "$said" >&2
        if [ -z "$state" ] || [ "$attempt" = 5 ]; then
            echo "error: gcloud cannot tell the state of the slice $name in $zone; what it says is above" >&2
            exit 2
        fi
        sleep 60
    done
}

create() {
    if [ -z "${TPU_TYPE:-}" ] || [ -z "${TPU_VERSION:-}" ]; then
        echo "error: the slice $name in $zone is $state; create it, or set TPU_TYPE and TPU_VERSION" >&2
        exit 2
    fi
    [ "$state" = ABSENT ] || tpu delete --quiet
    until tpu create --spot --accelerator-type "$TPU_TYPE" --version "$TPU_VERSION" 2>"$said"; do
        cat "$said" >&2
        if grep -q 'INVALID_ARGUMENT\|PERMISSION_DENIED\|UNAUTHENTICATED\|NOT_FOUND\|argument' "$said"; then
            echo "error: the slice $name cannot be created in $zone; what gcloud says is above" >&2
            exit 2
        fi
        echo "no spot slice of $TPU_TYPE to be had; the next attempt follows in a minute" >&2
        sleep 60
    done
}

send() {
    git archive --output "$packed" HEAD
    gcloud compute tpus tpu-vm scp "$packed" "$name:jdepth.tar" --zone "$zone" --worker=all
    tpu ssh --worker=all --command 'mkdir -p jdepth && tar -xf jdepth.tar -C jdepth'
}

# Quoted once more, for the workers' shell. jax finds the other workers by itself.
run="${JDEPTH_SETUP:-true} && cd jdepth && . launch/environment.sh tpu &&"
run+=" exec \"\$PYTHON\" -m jdepth.main --multihost$(printf ' %q' "$@")"
for start in $(seq 0 "${JDEPTH_RESTARTS:-20}"); do
    look
    [ "$state" = READY ] || create
    send
    code=0
    tpu ssh --worker=all --command "$run" || code=$?
    # 75: stopped by a signal and saved. 255: the connection broke, and with it the run.
    [ "$code" != 0 ] || exit 0
    look
    [ "$code" = 75 ] || [ "$code" = 255 ] || [ "$state" != READY ] || exit "$code"
    echo "interrupted (exit code $code) after $((start + 1)) starts" >&2
done
exit "$code"
