#!/usr/bin/env bash
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
# `torchrun --standalone --nproc-per-node=2 launch/train.sh MODEL ...` works, too: it hands this file to Python on every
# rank. bash leaves at the next line, which is nothing but four strings to Python.
"exec" "bash" "${BASH_SOURCE[0]%train.sh}train.bash" "$@"

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

if __name__ == "__main__":
    from subp_dist.train import cli

    cli()
