"""The process group from torchrun's environment: joining and leaving it, DDP, and the loss of other ranks."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from .errors import LostRankError
from .torch_compat import lay_out_gradients, reason_of_lost_rank

# How launchers other than torchrun say how many processes they have started; SLURM's steps go before its job.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE")


# Seconds between two words of a rank that others wait for; less where the timeout is short.
_WORD_EVERY = 10.0


@dataclass(frozen=True)
class Talk:
    """How ranks tell each other, from CPU to CPU, that they are still at work.

    Attributes:
        group: on gloo, apart from that of the tensors.
        interval: seconds from one word to the next; several fall into the time that a rank may wait.
    """

    group: dist.ProcessGroup
    interval: float


_talk: Talk | None = None


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
        ValueError: CUDA was asked for and there is none, there are fewer GPUs than ranks on this machine, or this is
            one of several processes that were not started by torchrun.
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
        _check_alone()
        return Rank(0, 1, torch_device)
    timeout = timedelta(minutes=timeout_minutes)
    dist.init_process_group(
        backend="nccl" if device == "cuda" else "gloo",
        timeout=timeout,
        **_store_of_this_attempt(timeout),
        device_id=torch_device if device == "cuda" else None,
    )
    global _talk  # as torch keeps its group
    _talk = Talk(dist.new_group(backend="gloo", timeout=timeout), min(_WORD_EVERY, timeout.total_seconds() / 4))
    return Rank(dist.get_rank(), dist.get_world_size(), torch_device)


def _check_alone() -> None:
    """Refuse to be one of several processes that do not know of each other: each would train, and write, as rank 0."""
    name = next((name for name in _COUNTS if os.environ.get(name, "").isdecimal()), None)
    if name is not None and int(os.environ[name]) > 1:
        raise ValueError(
            f"one of {os.environ[name]} processes ({name}), but without RANK they would all be rank 0: start ranks "
            "with launch/train.slurm under SLURM, or else with launch/train.sh or torchrun; for one process, unset "
            f"{name}, or use srun -n 1"
        )


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
    lay_out_gradients(ddp)
    return ddp


def is_in_ddp(model: nn.Module) -> bool:
    """Whether a DDP holds parameters of a model. The model does not know, so DDP is looked for among all objects."""
    if not dist.is_initialized():
        return False
    own = {id(parameter) for parameter in model.parameters()}

    def found() -> bool:
        wrappers = [thing for thing in gc.get_objects() if issubclass(type(thing), DistributedDataParallel)]
        return any(id(parameter) in own for wrapper in wrappers for parameter in wrapper.parameters())

    if not found():
        return False
    gc.collect()  # one that nobody refers to any more, but for itself
    return found()


def talk() -> Talk | None:
    """How ranks tell each other that they are still at work; None where somebody else made torch's group."""
    return _talk


def world() -> tuple[int, int]:
    """(rank, world size); (0, 1) without a process group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


@contextmanager
def closing_process_group() -> Iterator[None]:
    """Leave the process group at the end, however it comes: an interpreter that ends with its threads may crash."""
    global _talk
    try:
        yield
    finally:
        _talk = None
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
        if (reason := reason_of_lost_rank(error)) is not None:
            raise LostRankError(reason) from error
        raise
