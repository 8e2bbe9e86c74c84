#!/usr/bin/env bash
# Write a folder of pictures into FFCV's .beton files; set-up included. Needs about the disk space of the pictures, and
# decodes each of them twice: minutes per 100,000 images on a few cores.
#
#   launch/write_ffcv.sh /data/imagenet /data/imagenet-ffcv                 train_500_0.50_90.beton, val_500_0.50_90.beton
#   launch/write_ffcv.sh /data/imagenet /data/imagenet-ffcv 256 1.0 90      largest side, share stored as JPEG, quality
#   launch/write_ffcv.sh --help                                             all flags
#
#   VENV=DIR           the virtual environment, if not .venv
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$(realpath -m "${VENV:-$root/.venv}")
"$root/launch/setup.sh"
exec "$venv/bin/python" -m subp_dist.data.write "$@"
