"""What this package needs of torch without a public name, or with a name that torch does not document.

All of it is here, each with its reason, so that a new torch is looked at in one place; tests/test_torch_compat.py tells
which of it a new torch has changed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous.utils import _matches_machine_hostname
from torch.distributed.launcher import api
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree

# Nested lists, tuples and dicts of tensors, flattened as torch.export flattens them.
pytree = _pytree

# The bases of all convolutions of torch, lazy and transposed ones included, of the transposed ones, of batch norms.
ANY_CONVOLUTION, ANY_TRANSPOSED, ANY_BATCH_NORM = _ConvNd, _ConvTransposeNd, _BatchNorm


def count_writes(tensor: torch.Tensor) -> int:
    """How often a tensor was written to in place; 0 for one of inference mode, where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def is_transformed(tensor: torch.Tensor) -> bool:
    """Whether a tensor stands for others within a transform such as ``vmap``, and is nothing outside of it."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def compiled_from(module: torch.nn.Module) -> torch.nn.Module | None:
    """The module that ``torch.compile`` wrapped; None for one that is not wrapped."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, torch.nn.Module) else None


def pre_hooks(module: torch.nn.Module) -> list:
    """What runs before a module's forward, in order."""
    return list(module._forward_pre_hooks.values())


def operator_schema(target: object) -> torch.FunctionSchema | None:
    """The signature of an ATen operator in an exported graph (name, arguments); None for a function of Python."""
    return getattr(target, "_schema", None)


def loading_processes(batches: Iterator) -> list:
    """The processes that load for an iteration of a DataLoader; none where it loads by itself."""
    return list(getattr(batches, "_workers", ()))


def end_loading_processes(batches: Iterator) -> None:
    """End the processes that load for an iteration that is over, as torch does when the iterator is collected.

    Raises:
        RuntimeError: one of them was killed.
    """
    batches._shutdown_workers()


def lay_out_gradients(ddp: DistributedDataParallel) -> None:
    """Have DDP lay out the gradients it sends now, by a backward pass over the parameters alone.

    It does so once, after its first backward pass, in the order of that. With three ranks or more the place of a
    gradient decides in which order gloo adds what the ranks have, so that a run that starts anew in its middle would
    differ in last bits from one that goes through: there the first step has another layout than all later ones.
    """
    ddp.reducer.prepare_for_backward([])
    torch.autograd.backward([p.sum() for p in ddp.parameters() if p.requires_grad])
    ddp.zero_grad()


def reason_of_lost_rank(error: RuntimeError) -> str | None:
    """Why a collective failed, in torch's words, if it is for the loss of another rank; None for any other error."""
    # gloo raises plain RuntimeErrors, which name the file they come from.
    if not isinstance(error, dist.DistError) and "gloo/transport" not in str(error):
        return None
    # What gloo adds is advice to whoever calls it.
    reason = str(error).strip().splitlines()[0].partition(" This is typically caused")[0]
    return reason.rpartition("] ")[2] if reason.startswith("[") else reason


_PATIENCE = 8  # seconds that ranks have to end after another one failed: enough to finish most checkpoints


class WatchedAgent(LocalElasticAgent):
    """torchrun's agent, which starts the ranks of a machine, with names for what it keeps to itself."""

    def ranks_failed(self, failures: dict[int, ProcessFailure], ended: list[ProcessFailure]) -> None:
        """Called when ranks have failed, before torchrun restarts all of them or gives up.

        Args:
            failures: by global rank.
            ended: those among them that torchrun ended itself, by SIGTERM and then by SIGKILL, for the others.
        """

    @property
    def restarts_left(self) -> int:
        """How often torchrun will still start the ranks again; 0 has it give up."""
        return self._remaining_restarts

    @restarts_left.setter
    def restarts_left(self, count: int) -> None:
        self._remaining_restarts = count

    def leave_rendezvous_open(self) -> None:
        """Not close the rendezvous for all other machines when this agent ends."""
        self._worker_group.spec.rdzv_handler.shutdown = lambda: True

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, object]:
        started = super()._start_workers(worker_group)
        context, close = self._pcontext, self._pcontext.close
        # torchrun would give the others of a rank that failed 30 s, and can be told of no other time.
        context.close = lambda death_sig=None, timeout=_PATIENCE: close(death_sig, timeout)
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            running = getattr(self._pcontext, "_running_local_ranks", ())  # when the first of them failed
            found = [result.failures.get(worker_group.workers[local_rank].global_rank) for local_rank in running]
            ended = [failure for failure in found if failure is not None and failure.exitcode < 0]
            self.ranks_failed(result.failures, ended)
        return result


def use_agent(agent: type[WatchedAgent]) -> None:
    """Have torchrun start the ranks through an agent of this class, and leave what it logs to that.

    torchrun logs each process it ends and each exit code it sees.
    """
    api.LocalElasticAgent = agent
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)


def use_fresh_stores() -> None:
    """Have each attempt meet at a store of its own, on a free port that rank 0 opens.

    By default torchrun keeps one store for all attempts: new ranks can read addresses of killed ones there, and a
    machine that joins later waits for an address that the others have long read and do not write again.
    """
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")


def takes_for_this_machine(host: str) -> bool:
    """Whether torchrun finds that a host is this machine: it knows it by name and first address only."""
    return _matches_machine_hostname(host)


def quantized_operators() -> object:
    """torch's operators that the exporter to ONNX translates to QuantizeLinear and DequantizeLinear."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401  (it registers them)

    return torch.ops.quantized_decomposed
