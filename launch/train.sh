#!/usr/bin/env bash
''':'
# Train with soft uniform block pruning under torchrun, on one machine or many; set-up included.
#
#   launch/train.sh                                  quick start: real digits, two ranks, export, comparison (minutes)
#   launch/train.sh resnet50 --data-dir DIR ...      any timm model; all flags: launch/train.sh --help
#
#   NPROC=4            ranks on this machine; by default one per GPU, or two on a CPU
#   MAX_RESTARTS=3     restarts after a failure, each from the last checkpoint; the flag --max-restarts is the same
#   NNODES=2 RDZV_ENDPOINT=host0:29400     several machines: the same command on each
#   LOCAL_ADDR=ADDR    this machine as the others reach it, where its host name does not say
#   JOIN_MINUTES=30    how long to wait for machines that are missing, at the start and after a failure
#   STOP_SECONDS=120   after SIGTERM, how long the ranks have to save before they are killed
#   VENV=DIR           the virtual environment, if not .venv
#
# This file is a bash script and a Python program at once, so that both commands work, each starting every rank once:
#   launch/train.sh MODEL ...      and      torchrun --standalone --nproc-per-node=2 launch/train.sh MODEL ...
# torchrun hands the file to Python. For Python, line two opens a string that holds all of the bash; for bash, the same
# line is the no-op ":". Hence no triple quotes and no backslashes here, and bash must leave before the string ends.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(realpath -m "${VENV:-$root/.venv}")

# Under "torchrun --no-python" this is one rank of many already: become it, and do not start torchrun within torchrun.
if [[ -n ${TORCHELASTIC_RUN_ID:-} ]]; then
    python=$venv/bin/python
    [[ -x $python ]] || python=python3
    exec "$python" "${BASH_SOURCE[0]}" "$@"
fi

fail() {
    printf "error: %s\n" "$*" >&2
    exit 2
}

# torchrun has this flag before the program, people write it anywhere.
flags=()
while (($#)); do
    case $1 in
    --max-restarts)
        (($# > 1)) || fail "--max-restarts: expected a number after it"
        MAX_RESTARTS=$2
        shift
        ;;
    --max-restarts=*) MAX_RESTARTS=${1#*=} ;;
    *) flags+=("$1") ;;
    esac
    shift
done
set -- ${flags[@]+"${flags[@]}"}

for setting in NPROC:1 MAX_RESTARTS:0 JOIN_MINUTES:1 STOP_SECONDS:0; do
    name=${setting%:*} least=${setting#*:}
    [[ ! ${!name:-} || ${!name} =~ ^(0|[1-9][0-9]*)$ && ${!name} -ge $least ]] ||
        fail "$name=${!name}: expected a whole number, at least $least"
done
[[ ${NNODES:=1} =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] ||
    fail "NNODES=$NNODES: expected the number of machines, or MIN:MAX"
[[ $NNODES == 1 || ${RDZV_ENDPOINT:-} =~ .:[0-9]+$ ]] ||
    fail "NNODES=$NNODES, RDZV_ENDPOINT=${RDZV_ENDPOINT:-}: expected RDZV_ENDPOINT=HOST:PORT, the same on every machine"

"$root/launch/setup.sh"
python=$venv/bin/python

cores=$("$python" -c "import os; print(len(os.sched_getaffinity(0)))")
if [[ -z ${NPROC:-} ]]; then
    gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c GPU || true)
    NPROC=$((gpus > 0 ? gpus : 2))
fi
# The ranks of a machine share its cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > NPROC ? cores / NPROC : 1))}

where=(--standalone)
if [[ $NNODES != 1 ]]; then
    where=(--nnodes "$NNODES" --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "${RDZV_ID:-subp}"
        --rdzv-conf "join_timeout=$((60 * ${JOIN_MINUTES:-30}))${RDZV_CONF:+,$RDZV_CONF}"
        ${LOCAL_ADDR:+--local-addr "$LOCAL_ADDR"})
fi
# How long torchrun waits for ranks that it has told to stop.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${STOP_SECONDS:-120}

train=("$python" -m subp_dist.launch "${where[@]}" --nproc-per-node "$NPROC" --max-restarts "${MAX_RESTARTS:-0}"
    -m subp_dist.train)

# Run a step of several; what this script is told by a signal, the step is told.
step() {
    local status=0
    set -m # a process group of its own, which Ctrl-C then reaches through the trap alone
    "$@" &
    set +m
    trap "kill -TERM $!" TERM
    trap "kill -INT -- -$!" INT
    wait $! || status=$?
    while kill -0 $! 2>/dev/null; do wait $! || status=$?; done # the signal cut it short
    return "$status"
}

banner() { printf "%s\n" "" "=== $* ==="; }

case ${1:-} in
-h | --help)
    exec "$python" -m subp_dist.train --help
    ;;
"")
    runs=$root/output/quickstart
    rm -rf "$runs"
    recipe=(--config "$root/launch/recipes/digits.yaml" --output "$runs")
    banner "1/3  a dense network learns 4000 real digits, on $NPROC ranks"
    step "${train[@]}" "${recipe[@]}" --experiment dense --prune-rate 0 --no-export
    banner "2/3  the same network learns them while half of its 1x16 blocks are pruned"
    step "${train[@]}" "${recipe[@]}" --experiment sparse
    banner "3/3  the exported network runs on subp_ext, and is compared with torch on 1000 test digits"
    exec "$python" -m subp_dist.validate "$runs/sparse" --dense "$runs/dense"
    ;;
*)
    exec "${train[@]}" "$@" # so that a signal to this process reaches torchrun
    ;;
esac
exit
'''
# From here on it is Python, started by torchrun on every rank.
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from subp_dist.train import cli

    cli()
