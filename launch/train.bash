# What launch/train.sh does when bash runs it; see there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(realpath -m "${VENV:-$root/.venv}")

# Under "torchrun --no-python" this is one rank of many already: become it, and do not start torchrun within torchrun.
if [[ -n ${TORCHELASTIC_RUN_ID:-} ]]; then
    python=$venv/bin/python
    [[ -x $python ]] || python=python3
    exec "$python" "$root/launch/train.sh" "$@"
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

cores=$("$python" -c "from subp_ext import affinity; print(len(affinity.usable()))")
if [[ -z ${NPROC:-} ]]; then
    gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c GPU || true)
    NPROC=$((gpus > 0 ? gpus : 2))
fi
threads=${OMP_NUM_THREADS:-$cores}
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

# Run a step of several; what this script is told by a signal, the step is told. The traps are set once, since bash ignores
# a signal that comes while it replaces a trap, and the loop polls, since a signal just before "wait" does not end it.
told=""
step() {
    local status=0 to
    set -m # a process group of its own, which Ctrl-C then reaches through the trap alone
    "$@" &
    set +m
    while kill -0 $! 2>/dev/null; do
        if [[ -n $told ]]; then
            [[ $told == TERM ]] && to=$! || to=-$!
            kill -s "$told" -- "$to" 2>/dev/null || true # it is over
            told=""
        fi
        sleep 0.2 || true # Ctrl-C ends it
    done
    wait $! || status=$?
    return "$status"
}

banner() { printf "%s\n" "" "=== $* ==="; }

case ${1:-} in
-h | --help)
    exec "$python" -m subp_dist.train --help
    ;;
"")
    runs=$root/output/quickstart
    [[ -w $root ]] || runs=$PWD/output/quickstart # set up by another user
    trap 'told=TERM' TERM
    trap 'told=INT' INT
    rm -rf "$runs"
    recipe=(--config "$root/launch/recipes/digits.yaml" --output "$runs")
    banner "1/3  a dense network learns 4000 real digits, on $NPROC ranks"
    step "${train[@]}" "${recipe[@]}" --experiment dense --prune-rate 0 --no-export
    banner "2/3  the same network learns them while half of its 1x16 blocks are pruned"
    step "${train[@]}" "${recipe[@]}" --experiment sparse --export-dtype int8
    banner "3/3  the exported networks, float32 and int8, run on subp_ext, and are compared with torch on 1000 test digits"
    OMP_NUM_THREADS=$threads step "$python" -m subp_dist.validate "$runs/sparse" --dense "$runs/dense"
    ;;
*)
    exec "${train[@]}" "$@" # so that a signal to this process reaches torchrun
    ;;
esac
