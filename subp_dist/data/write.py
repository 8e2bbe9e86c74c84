"""Write pictures into ``.beton`` files: ``python -m subp_dist.data.write SRC DST [PRESET]``.

SRC is a folder with train/ and val/ of class folders, or the root of a timm data set (--dataset). Every image is
decoded first, so that broken ones are known by name before anything is written. A file appears whole or not at all,
with its classes and its size in a small JSON file beside it. PRESET is MAXRESOLUTION_JPEGSHARE_QUALITY, as in
500_0.50_90: the longer side is at most 500 pixels, half of the images are stored as JPEG of quality 90, the others raw.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import multiprocessing.queues
import os
import queue
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import repeat
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..agreement import on_primary
from ..checkpoint import write_atomically
from ..cores import usable_cores
from ..errors import Stopped, UsageError, report_usage_errors
from ..flag_values import as_path, as_path_text
from ..stopping import end_with_parent
from .beton import require_ffcv, sidecar_of
from .pictures import Pictures as PictureFiles
from .splits import check_same_classes, class_names, class_to_idx, open_split
from .storage import Storage

_CHUNK = 32  # images per task of a worker
_SMALLEST_PAGE, _LARGEST_PAGE = 1 << 23, 1 << 31
_STOPPED = {signal.SIGINT: (KeyboardInterrupt, "interrupted"), signal.SIGTERM: (Stopped, "terminated")}


class Pictures(PictureFiles):
    """Items are (RGB ``[H, W, 3]`` uint8, label)."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image, label = self.read(index)
        return np.asarray(image), label


def sound_pictures(found: PictureFiles) -> np.ndarray:
    """Indices of the pictures that can be read; the others are named. Rank 0 tries them all, for all ranks.

    Raises:
        UsageError: none can.
    """
    whole, cores = Storage(0, 0.0), usable_cores()
    return on_primary(lambda: verify(Pictures(found.dataset, found.mode), whole, cores, skip=True)[0])


@report_usage_errors
def cli() -> None:
    """Console entry."""
    # What a signal leaves is what an exception leaves: nothing.
    _handle_signals(_stop)
    args = _parse()
    require_ffcv()
    storage = Storage.parse("_".join(args.preset))
    destination = args.dst
    jobs = []
    for split, name in ((args.train_split, "train"), (args.val_split, "val")):
        if args.only in (None, name):
            path = destination / f"{name}_{storage}.beton"
            if path.exists() and not args.overwrite:
                raise UsageError(f"{path} is there already: pass --overwrite, or write to another folder")
            jobs.append((path, open_pictures(args.dataset, args.src, split)))
    classes = [class_names(pictures.dataset) for _, pictures in jobs]
    check_same_classes(classes[0], classes[-1], args.src)
    # All images of both splits first: nobody wants to hear of a broken one after an hour of writing.
    checked = [verify(pictures, storage, args.workers, args.broken == "skip") for _, pictures in jobs]
    for (path, pictures), (indices, largest) in zip(jobs, checked, strict=True):
        write(path, pictures, indices, storage, args.workers, largest)
        print(f"{path}: {len(indices)} images, {path.stat().st_size / 2**20:.1f} MiB")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="write_ffcv", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("src", type=as_path_text, metavar="SRC", help="folder with train/ and val/, or the root of --dataset")
    add("dst", type=as_path, metavar="DST", help="folder for train_PRESET.beton and val_PRESET.beton")
    add("preset", metavar="PRESET", nargs="*", default=["500_0.50_90"], help="or three words: 500 0.50 90 (default)")
    add("--dataset", default="", metavar="NAME", help="timm dataset name, such as torch/cifar10; empty for folders")
    add("--train-split", default="train", help="name of the training split")
    add("--val-split", default="validation", help="name of the validation split")
    add("--only", choices=["train", "val"], help="write one of the two")
    add(
        "--broken",
        choices=["error", "skip"],
        default="error",
        help="images that cannot be decoded end it, or are left out",
    )
    add("--workers", type=int, default=usable_cores(), help="processes; all usable cores by default")
    add("--overwrite", action="store_true", help="replace files that are there")
    args = parser.parse_args()
    if args.workers < 1:
        raise UsageError(f"--workers {args.workers}: expected 1 or more")
    return args


def open_pictures(dataset: str, root: str, split: str) -> Pictures:
    """One split of a folder or a timm data set.

    Raises:
        UsageError: there is no such thing, or nothing in it.
    """
    return Pictures(open_split(dataset, root, split))


def verify(pictures: Pictures, storage: Storage, workers: int, skip: bool) -> tuple[np.ndarray, int]:
    """Decode every image.

    Returns:
        Indices of the images that can be decoded and stored, and the pixels of the largest as stored.

    Raises:
        UsageError: some cannot, and ``skip`` is off; or none can.
    """
    chunks = [range(i, min(i + _CHUNK, len(pictures))) for i in range(0, len(pictures), _CHUNK)]
    broken, largest = {}, 0
    try:
        with (
            _signals_noted() as check,
            _decoders(min(workers, len(chunks))) as pool,
            tqdm(total=len(pictures), desc="verify") as bar,
        ):
            results = pool.map(_verify, repeat(pictures), repeat(storage), chunks)
            for chunk, (pixels, found) in zip(chunks, results, strict=True):
                broken |= found
                largest = max(largest, pixels)
                bar.update(len(chunk))
                check()
    except BrokenProcessPool as error:
        raise UsageError(
            "a process that decodes images was killed, perhaps for its memory: try fewer --workers"
        ) from error
    for index, error in broken.items():
        print(f"broken: {pictures.name(index)}: {error}", file=sys.stderr)
    if broken and not skip:
        raise UsageError(
            f"{len(broken)} of {len(pictures)} images cannot be decoded (named above): mend them, or leave them out "
            "with --broken skip"
        )
    if broken:
        print(f"left out: {len(broken)} of {len(pictures)} images that cannot be decoded", file=sys.stderr)
    if len(broken) == len(pictures):
        raise UsageError("none of the images can be decoded")
    return np.array([index for index in range(len(pictures)) if index not in broken]), largest


def _handle_signals(handle: Callable[[int], None]) -> dict[int, Callable]:
    """Have signals handled, but for those that this command was started to ignore; returns the handlers before."""
    heeded = [number for number in _STOPPED if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, lambda number, _: handle(number)) for number in heeded}


def _stop(number: int) -> None:
    """Raise what a signal means."""
    error, name = _STOPPED[signal.Signals(number)]
    raise error(f"{name}: what was not complete has been removed")


@contextmanager
def _signals_noted() -> Iterator[Callable[[], None]]:
    """Let signals wait for the function that is yielded, which raises for them, or for the end of the block.

    What a handler raises is lost where Python drops exceptions, as it does within a fork, and elsewhere it may come
    between a thing that is made and the name under which it will be cleared away.
    """
    noted: list[int] = []

    def check() -> None:
        if noted:
            _stop(noted[0])

    previous = _handle_signals(noted.append)
    try:
        yield check
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    check()


def _be_ended() -> None:
    """In a process that works for another: that one explains signals and ends this one, in any case with itself."""
    end_with_parent()
    for number in _STOPPED:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _decoders(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that do not work on to the end after an exception here."""
    pool = ProcessPoolExecutor(count, initializer=_be_ended)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _verify(pictures: Pictures, storage: Storage, indices: range) -> tuple[int, dict[int, str]]:
    """Pixels of the largest image, and what is wrong by index."""
    broken, largest = {}, 0
    for index in indices:
        try:
            image, label = pictures[index]
            if label < 0:
                raise ValueError("it has no label")
            largest = max(largest, math.prod(storage.shape(*image.shape[:2])))
        except Exception as error:  # a decoder raises whatever a damaged file leads it to
            broken[index] = f"{type(error).__name__}: {error}"
    return largest, broken


def write(path: Path, pictures: Pictures, indices: Sequence[int], storage: Storage, workers: int, largest: int) -> None:
    """Write images, in the order of ``indices``, and the sidecar.

    Args:
        path: the file; replaced if it is there.
        pictures: where they come from.
        indices: which, all of them sound.
        storage: how they are stored.
        workers: processes.
        largest: pixels of the largest image as stored.

    Raises:
        UsageError: the folder cannot be written, or a process died; nothing is left behind.
    """
    from ffcv.fields import IntField
    from ffcv.writer import DatasetWriter

    # An image lies in one page; twice the pixels, for a JPEG of noise is larger than its pixels.
    page = max(_SMALLEST_PAGE, 1 << (2 * 3 * largest - 1).bit_length())
    if page > _LARGEST_PAGE:
        raise UsageError(
            f"an image has {largest / 1e6:.0f} million pixels, too many for a page: set a largest resolution"
        )
    sidecar = sidecar_of(path)

    def fill(temporary: Path) -> None:
        fields = {"image": storage.field(), "label": IntField()}
        writer = DatasetWriter(str(temporary), fields, page_size=page, num_workers=min(workers, len(indices)))
        with _watched(writer, check):
            # Small pieces, for the last one must not keep one process alone for long.
            writer.from_indexed_dataset(pictures, indices=list(indices), chunksize=_CHUNK)
        content = {
            "class_to_idx": class_to_idx(pictures.dataset),
            "images": len(indices),
            "bytes": temporary.stat().st_size,
            "storage": str(storage),
        }
        write_atomically(sidecar, lambda file: file.write_text(json.dumps(content, indent=1) + "\n"))

    try:
        with _signals_noted() as check:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Of a writer of this file that was killed.
            for leftover in path.parent.glob(f".{path.name}.*.tmp"):
                leftover.unlink()
            write_atomically(path, fill)
    except OSError as error:
        text = str(error)
        raise UsageError(text if text.startswith("cannot write") else f"cannot write {path}: {text}") from error
    finally:
        if path.parent.is_dir() and not path.exists():
            sidecar.unlink(missing_ok=True)


@contextmanager
def _watched(writer, check_signals: Callable[[], None]) -> Iterator[None]:
    """Let FFCV write, which waits for ever once one of its processes has died; end with an error instead.

    Wherever it waits, for its counter or for a queue, the processes and the signals are looked at.

    Raises:
        OSError: a process died; its own traceback, if it left one, has been printed.
    """
    from ffcv import writer as module

    processes, queues, parent, fork = [], [], os.getpid(), multiprocessing.get_context("fork")

    def recorded(target: Callable, args: tuple) -> multiprocessing.Process:
        def work() -> None:
            _be_ended()
            target(*args)

        # One that dies at once is in no list of active children by the time anybody looks.
        processes.append(fork.Process(target=work))
        return processes[-1]

    def check() -> None:
        check_signals()
        codes = [process.exitcode for process in processes if process.exitcode]
        if codes:
            raise OSError(
                f"a writing process died (exit code {codes[0]}): is the disk full, or memory? What it said is above"
            )

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        check()

    class Queue(multiprocessing.queues.Queue):
        def __init__(self) -> None:
            super().__init__(ctx=fork)
            queues.append(self)

        def get(self):
            while os.getpid() == parent:
                with suppress(queue.Empty):
                    return super().get(timeout=0.2)
                check()
            return super().get()

    ours = {"Process": recorded, "sleep": sleep, "Queue": Queue}
    originals = {name: getattr(module, name) for name in ours}
    vars(module).update(ours)
    try:
        yield
    finally:
        vars(module).update(originals)
        for process in processes:
            if process.pid is not None:
                # Not terminate(): on its way out a process of FFCV waits for its turn to write.
                process.kill()
                process.join()
        for waiting in queues:
            waiting.cancel_join_thread()  # nobody is left to take what is in it
        shared = getattr(writer, "metadata_sm", None)
        if shared is not None:
            shared.close()
            with suppress(FileNotFoundError):  # the writer came to its end
                shared.unlink()


if __name__ == "__main__":
    # Nothing here needs numba's threads, but FFCV starts them: those of TBB, once the process has forked, keep it from
    # ending where it may use one CPU alone.
    os.environ.setdefault("NUMBA_THREADING_LAYER", "workqueue")
    cli()
