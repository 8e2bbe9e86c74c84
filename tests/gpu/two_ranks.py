"""Two ranks on one device, over gloo, which takes tensors of a GPU by way of the host: what ranks must have alike.

NCCL wants a GPU for each rank; what depends on the number of ranks, not on the backend, is the same here.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from parts import Place, loader_of, make_training

from subp_dist.agreement import gather
from subp_dist.errors import DivergedError
from subp_dist.loop import train_epoch
from subp_dist.process_group import Rank
from subp_dist.train import evaluate


def two_ranks_agree(place: Place) -> dict:
    """An epoch with mask updates in DDP: equal weights and masks; one changed weight of a rank is told by its layer."""
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    torch.multiprocessing.start_processes(_rank, (place,), nprocs=2, start_method="spawn" if place.on_gpu else "fork")
    return json.loads((place.folder / "result").read_text())


def _rank(number: int, place: Place) -> None:
    torch.set_num_threads(1)
    if place.on_gpu:
        torch.cuda.set_device(place.device)
    store = dist.FileStore(str(place.folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=number, world_size=2)
    rank = Rank(number, 2, place.device)
    figures = {}
    for name, flags in {"bfloat16": ["--amp", "--amp-dtype", "bfloat16"], "synchronised": ["--sync-bn"]}.items():
        if name == "synchronised" and not place.on_gpu:
            continue  # torch's layer takes no tensors of a CPU
        figures[name] = _train(place, rank, flags)
    if rank.is_primary:
        Path(place.folder / "result").write_text(json.dumps(figures))
    dist.barrier()
    dist.destroy_process_group()


def _train(place: Place, rank: Rank, flags: list[str]) -> dict:
    training, data = make_training(place, *flags, rank=rank, images=64)
    train_epoch(training, loader_of(training, data), 0)
    metrics = evaluate(training, data.val_loader(rank))
    own = [_crc(tensor) for tensor in training.model.state_dict().values()]
    assert gather(own)[0] == gather(own)[1], "the ranks' states differ"
    latent = next(iter(training.pruner.layers.values())).parametrizations.weight.original
    with torch.no_grad():
        if rank.rank == 1:
            latent.view(-1)[0] += 1
    try:
        training.pruner.step(2)
        told = ""
    except DivergedError as error:
        told = str(error)
    first = next(iter(training.pruner.layers))
    assert told.startswith("weights differ between ranks") and first in told, told or "a changed weight was not found"
    return {"loss": metrics["loss"], "updates": training.updates}


def _crc(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes())
