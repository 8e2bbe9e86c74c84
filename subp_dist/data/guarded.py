"""A DataLoader whose errors end a run: told by picture, raised where the batch is awaited, and no worker outlives them.

torch hands an exception of a worker over as text in a new exception, and lets go of its workers when the iterator is
collected: at the interpreter's exit they are sent SIGTERM, which ours leave to their rank, and are waited for for ever.
Here what went wrong in a worker is delivered in place of the batch, and an iteration that ends, however it does, ends
its workers.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, default_collate

from ..errors import DataError, LoaderError, UsageError
from ..process_group import world
from ..torch_compat import end_loading_processes, loading_processes

_PATIENCE = 3  # seconds that a worker has for the picture in its hands, before it is killed
_running: dict[int, tuple[Iterator, list]] = {}  # iterations under way, and their workers


def on_this_rank(text: str) -> str:
    """A message that names the rank, for an error that the others do not have."""
    return f"rank {world()[0]}: {text}"


@dataclass(frozen=True)
class _Failure:
    """What a worker delivers in place of a batch. ``explained``: the message says which picture, and what to do."""

    message: str
    explained: bool
    details: str

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        explained = isinstance(error, UsageError)
        message = str(error) if explained else f"loading failed: {type(error).__name__}: {_one_line(error)}"
        return cls(message, explained, "".join(traceback.format_exception(error)))

    def throw(self) -> None:
        error = (DataError if self.explained else LoaderError)(on_this_rank(self.message))
        raise error from RuntimeError(f"in the process that loads:\n{self.details}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


class _Guarded(Dataset):
    """Gives ``[_Failure]`` for a batch that cannot be had, and for one that nobody waits for any more."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.abandoned = dataset, None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: list[int]) -> list:
        items, load = [], getattr(self.dataset, "load", lambda indices: map(self.dataset.__getitem__, indices))
        try:
            for item in load(indices):
                items.append(item)
                if self.abandoned is not None and self.abandoned.value:
                    return [_Failure("abandoned", False, "")]
        except Exception as error:  # decoders and transforms raise whatever a picture leads them to
            return [_Failure.of(error)]
        return items


def _collate(items: list) -> Any:
    if isinstance(items[0], _Failure):
        return items[0]
    try:
        return default_collate(items)
    except Exception as error:  # such as images of different sizes
        return _Failure.of(error)


def _leave_stopping_to_the_rank(worker: int) -> None:
    """Schedulers send SIGTERM to every process of a job; the rank needs its workers until it has saved."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class GuardedLoader(DataLoader):
    """As torch's DataLoader, but for what is said above; a batch of ``dataset[index]`` each.

    Raises while it is iterated:
        DataError: a picture cannot be loaded; the message names it, and the rank.
        LoaderError: something else failed; the message names the rank.
    """

    def __init__(self, dataset: Dataset, batch_size: int, **kwargs: Any) -> None:
        kwargs = {"collate_fn": _collate, "worker_init_fn": _leave_stopping_to_the_rank} | kwargs
        super().__init__(_Guarded(dataset), batch_size, **kwargs)

    def __iter__(self) -> Iterator:
        # Of this iteration alone, for its workers start with it.
        self.dataset.abandoned = abandoned = multiprocessing.RawValue("b", 0) if self.num_workers else None
        batches, workers = None, []
        try:
            with errors_named(), _all_workers_or_none():
                batches = super().__iter__()
                workers = loading_processes(batches)
                if workers:
                    _running[id(batches)] = batches, workers
            while True:
                with errors_named():
                    batch = next(batches, batches)
                if batch is batches:
                    return
                if isinstance(batch, _Failure):
                    batch.throw()
                yield batch
        finally:
            if abandoned is not None:
                abandoned.value = 1
            if batches is not None and workers:
                _end(batches, workers)


@contextmanager
def _all_workers_or_none() -> Iterator[None]:
    """Where a worker cannot be started, end those that were: nobody knows them, and they would be waited for."""
    before = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        _kill(set(multiprocessing.active_children()) - before)
        raise


def _end(batches: Iterator, workers: list) -> None:
    """End the workers of an iteration: torch asks them to, and those that do not answer in time are killed."""
    if _running.pop(id(batches), None) is None:  # the interpreter has ended, and collects what is left
        return
    overdue = threading.Timer(_PATIENCE, _kill, [workers])
    overdue.daemon = True
    overdue.start()
    try:
        with suppress(RuntimeError):  # torch's, of a worker that was killed
            end_loading_processes(batches)
    finally:
        overdue.cancel()
        _kill(workers)


def _kill(workers: Iterable) -> None:
    for worker in workers:
        worker.kill()  # which does nothing to one that has been waited for


@atexit.register  # and called before multiprocessing's own, which waits for workers that ignore its SIGTERM
def _kill_all() -> None:
    if _running:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises for a worker that is killed
    for _, workers in _running.values():
        _kill(workers)
    _running.clear()


@contextmanager
def errors_named() -> Iterator[None]:
    """Tell what a loader raises in one line, with the rank.

    Raises:
        DataError, LoaderError: see ``GuardedLoader``.
    """
    try:
        with worker_deaths_named():
            yield
    except LoaderError:
        raise
    except Exception as error:
        failure = _Failure.of(error)
        raise (DataError if failure.explained else LoaderError)(on_this_rank(failure.message)) from error


@contextmanager
def worker_deaths_named() -> Iterator[None]:
    """For all that runs while there are workers: torch raises in the midst of it when one of them dies.

    Raises:
        LoaderError: a worker was killed; the message names the rank.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        text = f"a process that loads pictures died ({_one_line(error)}), for lack of memory? Try fewer --workers"
        raise LoaderError(on_this_rank(text)) from error
