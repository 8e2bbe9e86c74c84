#!/usr/bin/env bash
# All tests and checks; set-up included. About 20 minutes on two cores.
#
#   launch/test.sh                 style, then the tests, without the full sweeps
#   launch/test.sh --slow          everything
#   launch/test.sh --gpu           what needs a GPU, and nothing else: minutes
#   launch/test.sh tests/test_masks.py -k tau      what pytest takes
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(realpath -m "${VENV:-$root/.venv}")
"$root/launch/setup.sh" --tests
cd "$root"
bin=$venv/bin
# Some machines forbid bytecode: each of the many processes that tests start would compile torch and timm anew.
unset PYTHONDONTWRITEBYTECODE

# Each file of tests in one of several processes: one more than there are cores, as tests of runs wait much of the time.
arguments=(-n "$(($(nproc) + 1))" --dist loadfile --no-loadscope-reorder -m "not slow")
if [[ ${1:-} == --slow ]]; then
    arguments=()
    shift
elif (($#)); then
    arguments=(-m "not slow")
fi
if [[ ${1:-} == --gpu ]]; then
    shift
    exec "$bin/python" -m pytest -m gpu -rA tests/gpu "$@"
fi
echo "=== style"
[[ -w $root ]] || export RUFF_NO_CACHE=true # set up by another user
"$bin/ruff" check .
"$bin/ruff" format --check .
# What ruff does not read.
long=$(awk 'length > 120 { print FILENAME ":" FNR ": longer than 120 characters" }' \
    ext/*.pxi ext/*.pyx ext/kernels/* tests/harness/*.[ch])
[[ -z $long ]] || { echo "$long"; exit 1; }
echo "=== types"
# The runtime, and the method's pure files; the links give the packages the names that they are imported by.
typed=$venv/typed
[[ -w $venv ]] || typed=$(mktemp -d) # set up by another user
mkdir -p "$typed"
ln -sfn "$root/ext" "$typed/subp_ext"
ln -sfn "$root/subp_dist" "$typed/subp_dist"
pure=(blocks config flag_values layer_report mask_update masks schedule scores seeds)
MYPYPATH=$typed "$bin/mypy" --cache-dir "$typed/cache" --package subp_ext "${pure[@]/#/--module=subp_dist.}"
echo "=== tests"
[[ -w $root ]] || arguments+=(-p no:cacheprovider) # set up by another user
exec "$bin/python" -m pytest "${arguments[@]}" "$@"
