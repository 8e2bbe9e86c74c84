"""What one mask update costs, by number of ranks: ``python -m subp_dist.bench.update [MODEL] [--ranks 1 2 4]``.

Scoring is shared out; exchanging scores, drawing masks and comparing checksums is not. So the first falls with the
ranks, as long as each has a core of its own (or a GPU), and the rest stays; the CPU time that a rank spends on scoring
falls anyway. Times are of the slowest rank, the best of some updates.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.distributed as dist
import torch.multiprocessing

from ..agreement import gather
from ..pruner import SUBPPruner
from ..schedule import PruneSchedule
from ..scores import CRITERIA


@dataclass(frozen=True)
class Update:
    """The update that is measured: of which model's masks, and how often."""

    model: str
    criterion: str
    block_size: int
    prune_rate: float
    updates: int


def cli() -> None:
    """Console entry: a table, then one JSON document."""
    parser = argparse.ArgumentParser(prog="subp-bench-update", description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="resnet50", help="any timm model")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="numbers of ranks, one thread each")
    parser.add_argument("--criterion", default="bpar", choices=list(CRITERIA))
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--prune-rate", type=float, default=0.5)
    parser.add_argument("--updates", type=int, default=3, help="timed updates, after one that is not")
    args = parser.parse_args()
    update = Update(args.model, args.criterion, args.block_size, args.prune_rate, args.updates)
    print(f"{args.model}, 1x{args.block_size}, {args.criterion}, {os.cpu_count()} cores; ms per update")
    print("| ranks | update | of it scoring | the rest | scoring, CPU time of a rank |")
    print("|---|---|---|---|---|")
    results = [measure(update, ranks) for ranks in args.ranks]
    print(json.dumps({"model": args.model, "cores": os.cpu_count(), "results": results}))


def measure(update: Update, ranks: int) -> dict:
    """``update_ms``, ``scoring_ms`` and ``scoring_cpu_ms`` of the slowest rank, the best of the updates."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(_rank, (ranks, update, folder), nprocs=ranks, start_method="spawn")
        result = json.loads((Path(folder) / "result").read_text())
    total, scoring, cpu = result["update_ms"], result["scoring_ms"], result["scoring_cpu_ms"]
    print(f"| {ranks} | {total:.0f} | {scoring:.0f} | {total - scoring:.0f} | {cpu:.0f} |", flush=True)
    return result


def _rank(rank: int, ranks: int, update: Update, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", ranks), rank=rank, world_size=ranks)
    torch.manual_seed(0)
    schedule, criterion = PruneSchedule(update.prune_rate, 0, 100), update.criterion
    pruner = SUBPPruner(timm.create_model(update.model), schedule, block_size=update.block_size, criterion=criterion)
    score, seconds, cpu_seconds = CRITERIA[criterion], [], []

    def timed_score(*arguments) -> torch.Tensor:
        start, cpu_start = time.perf_counter(), time.process_time()
        result = score(*arguments)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        return result

    CRITERIA[criterion] = timed_score
    found = []
    for number in range(update.updates + 1):
        seconds.clear()
        cpu_seconds.clear()
        dist.barrier()
        start = time.perf_counter()
        pruner.step(50 + number)
        found.append((time.perf_counter() - start, sum(seconds), sum(cpu_seconds)))
    # The update is over when the slowest rank is done with it, and so is its scoring.
    slowest = [
        [1000 * max(values) for values in zip(*ranked, strict=True)] for ranked in zip(*gather(found), strict=True)
    ]
    if rank == 0:
        names = ("update_ms", "scoring_ms", "scoring_cpu_ms")
        result = {"ranks": ranks} | dict(zip(names, min(slowest[1:]), strict=True))
        (Path(folder) / "result").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    cli()
