"""Batches from ``.beton`` files, at FFCV's speed, with its faults designed out.

FFCV's own epoch iterator waits for ever when its thread dies, leaks the thread when an epoch is left early, changes the
number of torch's threads, and draws crops that nothing can repeat. Here every batch is one task of one thread that all
loaders share, so that failures arrive where the batch is awaited and nothing is left behind. A crop depends on (seed,
epoch, image) alone: not on workers, ranks, batch size, or where an epoch was resumed.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from ..errors import DataError
from .augment import ImageAugment
from .beton import Beton
from .guarded import errors_named
from .splits import spread_out

_logger = logging.getLogger(__name__)
_AHEAD = 3  # batches in preparation while one is in use
# Share of the free memory that a file may fill as page cache; the rest is for the model, and for other programs.
_CACHE_SHARE = 0.8


@dataclass(frozen=True)
class Crop:
    """What is cut from an image before it is resized to a square.

    Attributes:
        train: a random part, perhaps flipped; else the centre.
        scale, ratio: area and aspect ratio of the random part.
        hflip: probability of a horizontal flip.
        share: side of the central square, relative to the shorter side of the image, in (0, 1]; timm's ``crop_pct``.
        filter: of the resize: box, bilinear, hamming, bicubic, lanczos.
    """

    train: bool
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    share: float = 224 / 256
    filter: str = "bilinear"


@dataclass(frozen=True)
class Output:
    """What becomes of the crop.

    Attributes:
        mean, std: normalisation per channel, of values in [0, 1].
        device: where batches are delivered; for a GPU bytes are shipped, and normalised there.
        channels_last: memory format of the images.
        augment: timm's augmentations beyond crop and flip, or None.
    """

    mean: Sequence[float]
    std: Sequence[float]
    device: torch.device = torch.device("cpu")
    channels_last: bool = False
    augment: ImageAugment | None = None


@lru_cache(maxsize=1)
def _pipeline_thread() -> ThreadPoolExecutor:
    """The one thread that prepares batches. FFCV keeps a decompressor for every thread that there ever was."""
    return ThreadPoolExecutor(1, thread_name_prefix="ffcv")


def usable_threads(workers: int) -> int:
    """Threads for a number of workers that was asked for: at least one, at most the cores of this process."""
    import numba

    return max(1, min(workers, numba.config.NUMBA_NUM_THREADS))


def choose_reading(file_size: int, free_memory: int, world_size: int, ordered: bool = False) -> tuple[bool, str]:
    """Whether a file is read through the page cache of the system, and why.

    A file that fits into memory is read from disk once. One that does not fit is read page by page in a nearly random
    order, so that the disk delivers long runs; FFCV can do that on one rank only. Images in order (validation) need
    neither: the system reads ahead.

    Returns:
        (page cache, not page by page; the reason as text).
    """
    size, free = f"{file_size / 2**30:.1f} GiB", f"{free_memory / 2**30:.1f} GiB of free memory"
    if file_size <= _CACHE_SHARE * free_memory:
        return True, f"{size} fit into {free}: page cache"
    if ordered:
        return True, f"{size} do not fit into {free}, and are read in order: page cache"
    if world_size > 1:
        return True, f"{size} do not fit into {free}, and {world_size} ranks need a random order: page cache, slow"
    return False, f"{size} do not fit into {free}: page by page, in a nearly random order"


def _places(state: tuple[np.ndarray, ...], pointers: np.ndarray, page_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The memory of a reading context of FFCV, ``[bytes]`` uint8, and where addresses of the file lie in it, int64.

    Args:
        state: (the file, ...) through the page cache, or (pages in memory ``[slots, page size]``, ..., slot by page).
        pointers: int64 addresses.
        page_size: bytes.
    """
    if state[0].ndim == 1:
        memory, start = np.asarray(state[0]), pointers
    else:
        pages, within = np.divmod(pointers, page_size)
        memory, start = state[0].reshape(-1), state[3][pages].astype(np.int64) * page_size + within
    memory = memory.view()
    memory.flags.writeable = False  # one type for both, so that the loop is compiled once
    return memory, start


class FFCVLoader:
    """Iterates over an epoch of ``(images [n, 3, size, size], labels [n] int64)``.

    Images are float32 and normalised. A batch is valid until the next one is asked for: its memory is used again.

    Args:
        beton: the file.
        batch_size: images per batch.
        size: pixels of a side; ``size_at(epoch)``.
        crop, output: see there.
        rank, world_size: the share of this process. In training, incomplete shares and batches are dropped, and the
            order is that of torch's ``DistributedSampler``; else every image is delivered once, in order.
        seed: of the order and the crops.
        workers: threads.
        page_cache: read through the system's page cache; else page by page, in training in a nearly random order.
    """

    def __init__(
        self,
        beton: Beton,
        batch_size: int,
        size: int | Callable[[int], int],
        crop: Crop,
        output: Output,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        workers: int = 1,
        page_cache: bool = True,
        limit: int | None = None,
    ) -> None:
        from ffcv.memory_managers import OSCacheManager, ProcessCacheManager

        self.beton, self.batch_size, self.crop, self.output = beton, batch_size, crop, output
        self.seed, self.workers = seed, min(usable_threads(workers), batch_size)
        self._size_at = size if callable(size) else lambda _: size
        # On the device once and for all: to send them there with each batch, the host would wait for it.
        mean, std = (torch.tensor(values, device=output.device) for values in (output.mean, output.std))
        self._mean, self._std = (255 * values.view(-1, 1, 1) for values in (mean, std))
        self._manager = (OSCacheManager if page_cache else ProcessCacheManager)(beton.reader)
        self._indices = spread_out(len(beton), limit)
        self._sampler = self._quasi_random = None
        if not crop.train:
            self._indices = self._indices[rank::world_size]
        elif page_cache:
            self._sampler = DistributedSampler(range(len(beton)), world_size, rank, seed=seed, drop_last=True)
        else:
            self._quasi_random = self._page_order(world_size)
        share = len(self._sampler) if self._sampler else len(self._indices)
        self._batches = share // batch_size if crop.train else -(-share // batch_size)
        self._buffers: tuple[int, list] | None = None
        height, width = beton.images["height"], beton.images["width"]
        self._scratch = np.empty((self.workers, 3 * int((height * width).max())), np.uint8)
        self._largest_side = int(max(height.max(), width.max()))
        self._epoch = self._first = 0

    def _page_order(self, world_size: int):
        from ffcv.traversal_order import QuasiRandom

        if world_size > 1:
            raise NotImplementedError("FFCV's page order knows one rank only")
        settings = {"indices": self._indices, "seed": self.seed, "batch_size": self.batch_size, "distributed": False}
        return QuasiRandom(SimpleNamespace(**settings, memory_manager=self._manager))

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._batches

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch that is iterated next; batches before ``first_batch`` are left out, and cost nothing."""
        self._epoch, self._first = epoch, first_batch

    def order(self, epoch: int) -> np.ndarray:
        """Images of this process in an epoch, ``[n]`` int64, incomplete batches included."""
        if self._sampler:
            self._sampler.set_epoch(epoch)
            return np.fromiter(self._sampler, np.int64)
        if self._quasi_random:
            # FFCV shuffles its table in place; an order must not depend on the orders before.
            self._quasi_random.prepare_data_structures()
            return self._quasi_random.sample_order(epoch)
        return self._indices

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, size = self._epoch, self._size_at(self._epoch)
        order = self.order(epoch)
        batches = [order[b * self.batch_size : (b + 1) * self.batch_size] for b in range(self._first, self._batches)]
        buffers = self._buffers_for(size)
        thread, pending = _pipeline_thread(), deque()
        context = self._manager.schedule_epoch(batches)
        if batches:
            context.__enter__()
        # 64 bits that belong to (seed, epoch).
        epoch_seed = np.random.SeedSequence([self.seed, epoch]).generate_state(1, np.uint64)[0]

        def submit(number: int) -> None:
            if number < len(batches):
                slot = buffers[number % len(buffers)]
                pending.append(thread.submit(self._fill, slot, context, number, batches[number], epoch_seed))

        try:
            for number in range(_AHEAD):
                submit(number)
            for number, indices in enumerate(batches):
                with errors_named():
                    batch = self._deliver(pending.popleft().result(), indices, epoch)
                yield batch
                # Only now: the oldest buffer was in the caller's hands until here.
                submit(number + _AHEAD)
        finally:
            for future in pending:
                future.cancel()
            # A batch that is being made still reads from the context. At the end of the process the thread is over.
            with contextlib.suppress(RuntimeError):
                thread.submit(int).result()
            if batches:
                context.__exit__(None, None, None)

    def _buffers_for(self, size: int) -> list[SimpleNamespace]:
        """Memory for the batches under way, kept from epoch to epoch as long as their size stays."""
        if self._buffers is None or self._buffers[0] != size:
            self._buffers = None
            self._buffers = size, [self._buffer(size) for _ in range(_AHEAD)]
        return self._buffers[1]

    def _buffer(self, size: int) -> SimpleNamespace:
        colours = self.output.augment is not None and self.output.augment.colours is not None
        normalized = self.output.device.type == "cpu" and not colours
        planar = normalized and not self.output.channels_last
        shape = (3, size, size) if planar else (size, size, 3)
        dtype = torch.float32 if normalized else torch.uint8
        images = torch.empty(self.batch_size, *shape, dtype=dtype, pin_memory=self.output.device.type == "cuda")
        return SimpleNamespace(images=images, planar=planar, normalized=normalized, copied=None)

    def _fill(self, slot: SimpleNamespace, context, number: int, indices: np.ndarray, epoch_seed: int):
        """Make one batch, in the pipeline's thread."""
        import numba

        from .ffcv_kernel import batch_loop
        from .resample import FILTERS, count_taps

        if slot.copied is not None:
            slot.copied.synchronize()
        numba.set_num_threads(self.workers)
        if hasattr(context, "start_batch"):
            context.start_batch(number)
        crop, images, size = self.crop, self.beton.images, slot.images.shape[2]
        factor = offset = None
        if slot.normalized:
            std = np.asarray(self.output.std, np.float32)
            factor, offset = 1 / (255 * std), -np.asarray(self.output.mean, np.float32) / std
        failed, shorter = np.zeros(len(indices), np.bool_), math.floor(size / crop.share)
        taps = count_taps(crop.filter, self._largest_side, size)
        pointers = images["data_ptr"][indices]
        memory, start = _places(context.state, pointers, int(self.beton.reader.page_size))
        batch_loop(
            indices, epoch_seed, crop.train, np.array(crop.scale), np.array(crop.ratio), crop.hflip, shorter,
            FILTERS[crop.filter], taps, images["mode"], images["height"], images["width"], start,
            self._lengths(pointers), memory, self._scratch, factor, offset, slot.planar, slot.images.numpy(), failed,
        )  # fmt: skip
        if failed.any():
            first = indices[failed][0]
            raise DataError(f"{self.beton.path}: image {first} is damaged; write the file again")
        return slot

    def _lengths(self, pointers: np.ndarray) -> np.ndarray:
        """Bytes of the images at addresses of the file, int64."""
        return self._manager.sizes[np.searchsorted(self._manager.ptrs, pointers.astype(np.uint64))].astype(np.int64)

    def _deliver(self, slot: SimpleNamespace, indices: np.ndarray, epoch: int) -> tuple[Tensor, Tensor]:
        """The batch as the caller gets it, on its device."""
        images, device, augment = slot.images[: len(indices)], self.output.device, self.output.augment
        if augment is not None and augment.colours is not None:
            augment.recolour(images.numpy(), indices, self.seed, epoch, self.beton.path)
        labels = torch.from_numpy(self.beton.labels[indices])
        if device.type == "cuda":
            images = images.to(device, non_blocking=True)
            # The host's memory is filled again only once it has been copied.
            slot.copied = torch.cuda.current_stream(device).record_event()
            labels = labels.pin_memory().to(device, non_blocking=True)
        if not slot.planar:
            images = images.permute(0, 3, 1, 2)
        if not slot.normalized:
            images = self._normalize(images)
        if augment is not None and augment.erasing is not None:
            augment.erase(images, indices, self.seed, epoch)
        return images, labels

    def _normalize(self, images: Tensor) -> Tensor:
        memory_format = torch.channels_last if self.output.channels_last else torch.contiguous_format
        return images.to(torch.float32, memory_format=memory_format).sub_(self._mean).div_(self._std)
