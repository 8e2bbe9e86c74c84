"""What ranks agree on: sums, plain values, what one of them reads, scores that they share out, equal tensors.

All of it stands alone, too: without a process group a rank agrees with itself.
"""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import DivergedError, UsageError
from .process_group import Talk, talk, world

T = TypeVar("T")


def sum_over_ranks(values: Sequence[float] | Tensor, device: torch.device) -> list[float]:
    """Element-wise sums of a few numbers, or of a tensor ``[n]``, over all ranks, in float64.

    The host waits for the device, once.
    """
    total = torch.as_tensor(values, dtype=torch.float64, device=device)
    if dist.is_initialized():
        total = total.clone()
        dist.all_reduce(total)
    return total.tolist()


def on_rank(rank: int, function: Callable[[], T]) -> T:
    """Call a function on one rank and give its result to every rank: what it reads need not be on all machines.

    It may take longer than a rank waits for another, as an export does: its rank says in time that it is still at work,
    in process groups that ``init_process_group`` made.

    Raises:
        UsageError: the function raised a ValueError there; the same is raised on every rank.
    """
    if not dist.is_initialized():
        return function()
    box: list = [None, None]
    at_work = talk()
    if dist.get_rank() == rank:
        with _heard_by_others(at_work, rank) if at_work else nullcontext():
            try:
                box[0] = function()
            except ValueError as error:
                box[1] = str(error)
    elif at_work:
        while _say(at_work, rank, False):
            pass
    dist.broadcast_object_list(box, src=rank)
    if box[1] is not None:
        raise UsageError(box[1])
    return box[0]


@contextmanager
def _heard_by_others(to: Talk, rank: int) -> Iterator[None]:
    """Tell the others, while the block lasts, that this rank is at work; then, unless it failed, that it is not."""
    done = threading.Event()

    def tell() -> None:
        with suppress(RuntimeError):  # another rank is gone, which the end of the block finds as well
            while not done.wait(to.interval):
                _say(to, rank, True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
    _say(to, rank, False)


def _say(to: Talk, rank: int, at_work: bool) -> bool:
    """What that rank says on whether it is still at work; all others listen."""
    word = torch.tensor(int(at_work), dtype=torch.int32)
    dist.broadcast(word, src=rank, group=to.group)
    return bool(word)


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

    Args:
        tensors: by layer: weights on the device, or masks on the CPU.
        what: they are.
        device: of the collective.

    Raises:
        DivergedError: on every rank, with one and the same message that names the layers and ranks that differ.
    """
    _, world_size = world()
    if world_size == 1:
        return
    checksums = _checksums(list(tensors.values()), device)
    gathered = torch.empty(world_size, len(tensors), dtype=torch.int64, device=device)
    dist.all_gather(list(gathered.unbind(0)), checksums)
    gathered = gathered.cpu()  # here the host waits for the device, once for all layers
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


def _checksums(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """``[n]`` int64 on a device: of weights the sum of their bits, which is taken where they lie; of masks CRC-32."""
    sums = [_sum_of_bits(t) if t.is_floating_point() else _crc(t) for t in tensors]
    return torch.stack(sums).to(device, non_blocking=True)


def _crc(mask: Tensor) -> Tensor:
    return torch.tensor(zlib.crc32(mask.cpu().numpy().tobytes()), device="cpu")


def _sum_of_bits(weight: Tensor) -> Tensor:
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    return weight.detach().view(bits).sum(dtype=torch.int64)
