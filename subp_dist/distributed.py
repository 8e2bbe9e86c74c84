"""The process group from torchrun's environment, DDP, and what the ranks agree on: scores and masks."""

from __future__ import annotations

import math
import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from .errors import DivergedError, LostRankError, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """This process among all: global ``rank`` of ``world_size``, and the device it trains on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_primary(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0


def init_process_group(device: str = "auto", timeout_minutes: float = 10) -> Rank:
    """Join the process group that torchrun describes, or stand alone without one.

    Args:
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA where there is any.
        timeout_minutes: how long a collective may wait for another rank before the run fails.

    Raises:
        ValueError: CUDA was asked for and there is none, or there are fewer GPUs than ranks on this machine.
    """
    local_rank, local_world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count()
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r}: expected auto, cpu or cuda")
    if device == "cuda" and not gpus:
        raise ValueError("--device cuda: torch finds no CUDA device; use --device cpu, or check the driver")
    if device == "cuda" and gpus < local_world:
        raise ValueError(f"{local_world} ranks on this machine but {gpus} CUDA devices: set NPROC={gpus}")
    torch_device = torch.device(device, local_rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        torch.cuda.set_device(torch_device)
    if "RANK" not in os.environ:
        return Rank(0, 1, torch_device)
    timeout = timedelta(minutes=timeout_minutes)
    dist.init_process_group(
        backend="nccl" if device == "cuda" else "gloo",
        timeout=timeout,
        **_store_of_this_attempt(timeout),
        device_id=torch_device if device == "cuda" else None,
    )
    return Rank(dist.get_rank(), dist.get_world_size(), torch_device)


def _store_of_this_attempt(timeout: timedelta) -> dict:
    """Where the ranks of one machine meet, apart from where they met before a restart.

    torchrun may keep its store over restarts, and a new rank could read the address of one that was killed. On several
    machines the counts of restarts may differ, so that they cannot tell attempts apart; ``subp_dist.launch`` has
    torchrun open a new store for each attempt instead.
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {}
    store, rank, world_size = next(rendezvous("env://", timeout=timeout))
    prefix = f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
    return {"store": dist.PrefixStore(prefix, store), "rank": rank, "world_size": world_size}


def data_parallel(model: nn.Module, rank: Rank) -> DistributedDataParallel:
    """The model in DDP.

    Buffers are not broadcast: masks are equal on every rank because they are drawn so and checked, and batch-norm
    statistics are averaged after each epoch.
    """
    device_ids = [rank.device.index] if rank.device.type == "cuda" else None
    with warnings.catch_warnings():
        # Newer torch announces another name for it, which older torch does not have.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        ddp = DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)
    _arrange_gradients(ddp)
    return ddp


def _arrange_gradients(ddp: DistributedDataParallel) -> None:
    """Have DDP lay out the gradients it sends now, by a backward pass over the parameters alone.

    It does so once, after its first backward pass, in the order of that. With three ranks or more the place of a
    gradient decides in which order gloo adds what the ranks have, so that a run that starts anew in its middle would
    differ in last bits from one that goes through: there the first step has another layout than all later ones.
    """
    ddp.reducer.prepare_for_backward([])
    torch.autograd.backward([p.sum() for p in ddp.parameters() if p.requires_grad])
    ddp.zero_grad()


def world() -> tuple[int, int]:
    """(rank, world size); (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Element-wise sums of a few numbers over all ranks, in float64."""
    total = torch.tensor(values, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(total)
    return total.tolist()


def on_rank(rank: int, function: Callable[[], T]) -> T:
    """Call a function on one rank and give its result to every rank: what it reads need not be on all machines.

    Raises:
        UsageError: the function raised a ValueError there; the same is raised on every rank.
    """
    if not dist.is_initialized():
        return function()
    box: list = [None, None]
    if dist.get_rank() == rank:
        try:
            box[0] = function()
        except ValueError as error:
            box[1] = str(error)
    dist.broadcast_object_list(box, src=rank)
    if box[1] is not None:
        raise UsageError(box[1])
    return box[0]


def on_primary(function: Callable[[], T]) -> T:
    """``on_rank`` 0."""
    return on_rank(0, function)


def gather(value: T) -> list[T]:
    """A plain value of every rank, by rank, on every rank."""
    rank, world_size = world()
    values: list = [None] * world_size
    values[rank] = value
    if world_size > 1:
        dist.all_gather_object(values, value)
    return values


@contextmanager
def closing_process_group() -> Iterator[None]:
    """Leave the process group at the end, however it comes: an interpreter that ends with its threads may crash."""
    try:
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def lost_ranks_named() -> Iterator[None]:
    """Tell the loss of another rank apart from this rank's own failures.

    Raises:
        LostRankError: a collective failed, because a peer closed its connection or did not answer in time.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors, which name the file they come from.
        if isinstance(error, dist.DistError) or "gloo/transport" in str(error):
            # What gloo adds is advice to whoever calls it.
            reason = str(error).strip().splitlines()[0].partition(" This is typically caused")[0]
            raise LostRankError(reason.rpartition("] ")[2] if reason.startswith("[") else reason) from error
        raise


def share_out(costs: Sequence[float], world_size: int) -> list[int]:
    """The rank that takes each task so that the loads are even: largest first, to the least loaded rank."""
    loads, owner = [0.0] * world_size, [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda t: (-costs[t], t)):
        owner[task] = min(range(world_size), key=lambda r: (loads[r], r))
        loads[owner[task]] += costs[task]
    return owner


def compute_shared(
    compute: Callable[[int], Tensor], shapes: Sequence[tuple[int, ...]], costs: Sequence[float], device: torch.device
) -> list[Tensor]:
    """Every rank computes its share of the tensors; one flat all-reduce gives all of them to every rank.

    Args:
        compute: index -> float64 tensor of that index's shape.
        shapes: the shape of each tensor.
        costs: relative cost of computing each.
        device: device of the collective.
    """
    rank, world_size = world()
    sizes = [math.prod(shape) for shape in shapes]
    flat = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
    views = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
    for index, owner in enumerate(share_out(costs, world_size)):
        if owner == rank:
            views[index].copy_(compute(index))
    if world_size > 1:
        dist.all_reduce(flat)
    return views


def verify_identical(tensors: dict[str, Tensor], what: str, device: torch.device) -> None:
    """Prove that all ranks hold the same tensors; ``what`` they are is for the message.

    Raises:
        DivergedError: on every rank, with one and the same message that names the layers and ranks that differ.
    """
    _, world_size = world()
    if world_size == 1:
        return
    checksums = [_checksum(tensor) for tensor in tensors.values()]
    gathered = torch.empty(world_size, len(tensors), dtype=torch.int64, device=device)
    dist.all_gather(list(gathered.unbind(0)), torch.tensor(checksums, dtype=torch.int64, device=device))
    # What most ranks hold is taken as right; where there is no majority, all ranks are named.
    usual = gathered.mode(dim=0).values
    has_majority = (gathered == usual).sum(0) * 2 > world_size
    differs = (gathered != usual) | (~has_majority & (gathered != gathered[0]).any(0))
    if differs.any():
        found = [
            f"{name} on rank {', '.join(map(str, differs[:, column].nonzero().flatten().tolist()))}"
            for column, name in enumerate(tensors)
            if differs[:, column].any()
        ]
        raise DivergedError(
            f"{what} differ between ranks: {'; '.join(found[:5])}"
            f"{f' and {len(found) - 5} more layers' if len(found) > 5 else ''}. Resume from the last checkpoint; if it "
            "happens again, the ranks' seeds, epochs, schedules or machines differ"
        )


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of a mask; of a weight the sum of its bits, which is taken where it lies and costs one reading."""
    if tensor.is_floating_point():
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        return int(tensor.detach().view(bits).sum(dtype=torch.int64))
    return zlib.crc32(tensor.cpu().numpy().tobytes())
